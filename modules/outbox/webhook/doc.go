// Package webhook delivers events to webhooks: an HTTP POST of the CloudEvent in structured JSON,
// signed as Standard Webhooks says (https://www.standardwebhooks.com).
//
// # One request
//
// The body is the same at every attempt, and so is the header webhook-id, the id of the event.
// webhook-timestamp and webhook-signature belong to the attempt. A status from 200 to 299
// acknowledges the event; 410 says that the receiver is gone, and pauses the target. After anything
// else, and after no answer in 10 seconds, the event is sent again, no earlier than a Retry-After
// says.
//
// # Where requests go
//
// A URL is chosen by an operator, but a name in it is answered by whoever runs the name server. So the
// address is checked when the connection is made, after the name was resolved: what is checked is
// what is connected to, at every attempt. Redirects are not followed, since they would lead elsewhere,
// and no proxy is used, since it would resolve the name again. In prod mode a URL must be https.
// Nothing that a receiver writes is logged but the number of its status.
//
// # Secrets
//
// The secret of a webhook is sealed under a key that is derived from the secret of the service (see
// package seal), bound to the name of the target. While a secret is rotated, requests carry two
// signatures, and the receiver accepts either.
package webhook
