// Package mail sends the messages of package contact: it is the sink of the target mail.
//
// A message comes sealed from the outbox. The sink opens it, drops it if it has become pointless,
// makes a mail of it with a template, and hands that to an SMTP server, or writes it to a folder
// if no server is set. The same event always gives the same mail, with the same
// Message-ID, so that a duplicate can be recognized.
package mail
