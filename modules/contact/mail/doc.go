// Package mail sends the messages of package contact: it is the sink of the target mail.
//
// A message comes sealed from the outbox. The sink opens it, drops it when it has become pointless,
// makes a mail of it with a template, and hands that to an SMTP server, or writes it to a folder
// where no server is named. The same event gives the same mail every time, with the same
// Message-ID: a duplicate can be recognized.
package mail
