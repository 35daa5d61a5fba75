// Package delivery brings events to targets that take one event at a time, such as webhooks: one
// request under way for a key, many keys side by side.
package delivery
