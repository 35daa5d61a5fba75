package main

import (
	"github.com/toppira/authctl/modules/outbox/delivery"
)

// deliverySinks makes what delivers to the targets besides the log, by kind. A process without the
// sink of a kind leaves its targets to others.
func (a *app) deliverySinks() (map[string]delivery.Sink, error) {
	return map[string]delivery.Sink{}, nil
}

// newDeliverer makes what delivers to the targets besides the log. It shares nothing with the relay but
// the database. The caller runs it.
func (a *app) newDeliverer() (*delivery.Deliverer, error) {
	sinks, err := a.deliverySinks()
	if err != nil {
		return nil, err
	}
	cfg := a.Delivery
	cfg.Lease = a.Outbox.Lease
	opt := delivery.Options{Log: a.log, Waker: a.waker}
	if a.registry != nil {
		opt.Registry = a.registry
	}
	return delivery.New(a.db, sinks, cfg, opt)
}
