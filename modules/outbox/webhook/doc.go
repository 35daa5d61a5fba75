// Package webhook delivers events to webhooks: an HTTP POST of the CloudEvent in structured JSON,
// signed according to Standard Webhooks (https://www.standardwebhooks.com).
//
// # One request
//
// The body is the same at every attempt, and so is the header webhook-id, the id of the event.
// webhook-timestamp and webhook-signature belong to the attempt. A status from 200 to 299
// acknowledges the event; 410 says that the receiver is gone, and pauses the target. After any other
// answer, and without one in 10 seconds, the event is sent again, no earlier than a Retry-After says.
//
// # Where requests go
//
// An operator chooses the URL, but a foreign name server resolves the name in it. So the address is
// checked when the connection is made, after the name was resolved, at every attempt: the checked address
// is the one in use. Redirects are not followed, since they would lead elsewhere,
// and no proxy is used, since it would resolve the name again. In prod mode a URL must be https.
// Of an answer only the status is logged.
//
// # Secrets
//
// The secret of a webhook is sealed under a key that is derived from the secret of the service (see
// package seal), and bound to the name of the target. While a secret is rotated, requests carry two
// signatures, and the receiver accepts either.
package webhook
