package outbox

import (
	"context"
	"slices"
)

// mostKeys is how many keys are worth naming: with more of them, a relay that looks at all keys is as fast.
const mostKeys = 16

// Keys are the keys of the events that [Add] wrote to the log with a context of [WithKeys].
type Keys struct {
	list []string
	more bool // than are worth naming
}

type keysOf struct{}

// WithKeys returns a context for a transaction, and the keys of the events that [Add] writes with it.
func WithKeys(ctx context.Context) (context.Context, *Keys) {
	k := &Keys{}
	return context.WithValue(ctx, keysOf{}, k), k
}

func (k *Keys) note(key string) {
	switch {
	case k.more || slices.Contains(k.list, key):
	case len(k.list) == mostKeys:
		k.list, k.more = nil, true
	default:
		k.list = append(k.list, key)
	}
}

// List returns the keys for [relay.Waker.Wake], or none if they are too many to name.
func (k *Keys) List() []string { return k.list }
