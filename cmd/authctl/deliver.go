package main

import (
	"context"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
)

// deliverySinks makes what delivers to the targets besides the log, by kind. A process without the
// sink of a kind leaves its targets to others.
func (a *app) deliverySinks(ctx context.Context) (map[string]delivery.Sink, error) {
	sinks := map[string]delivery.Sink{}
	if to := a.webhookSink(ctx); to != nil {
		sinks[outbox.KindWebhook] = to
	}
	return sinks, nil
}

// newDeliverer makes what delivers to the targets besides the log. It shares nothing with the relay but
// the database. The caller runs it.
func (a *app) newDeliverer(ctx context.Context) (*delivery.Deliverer, error) {
	sinks, err := a.deliverySinks(ctx)
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
