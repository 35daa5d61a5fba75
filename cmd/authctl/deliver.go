package main

import (
	"context"
	"errors"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/contact/mail"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
)

// openMailer makes what sends mails. There is none without the secret, which a relay may lack, since
// messages are sealed. Nor in prod mode without a server: files are for trying.
func (a *app) openMailer() (*mail.Mailer, error) {
	if a.App.prod() && !a.Mail.Sends() {
		a.log.Info("mail_left_to_others", zap.String("hint", "set MAIL_URL and MAIL_FROM to send mails here"))
		return nil, nil //nolint:nilnil // it is no fault
	}
	_, err := a.ensureSecret(false)
	if errors.Is(err, errNoSecret) {
		a.log.Info("mail_left_to_others", zap.String("hint", "messages are sealed with the signing secret: set "+
			"AUTH_TOKEN_SECRET to send them here"))
		return nil, nil //nolint:nilnil // it is no fault
	}
	if err != nil {
		return nil, err
	}
	sealer, err := contact.NewSealer(a.Auth.Token.Secrets()...)
	if err != nil {
		return nil, err
	}
	mailer, err := mail.New(a.Mail, mail.Options{Issuer: a.Auth.Token.Issuer, BaseURL: a.baseURL(),
		DataDir: a.App.DataDir, Sealer: sealer, DB: a.relayDB, Committed: a.waker.Wake, Log: a.log})
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, mailer.Close)
	return mailer, nil
}

// newDeliverer makes what delivers to the targets besides the log. It shares nothing with the relay but
// the database. The caller runs it.
func (a *app) newDeliverer(ctx context.Context) (*delivery.Deliverer, error) {
	sinks := map[string]delivery.Sink{} // by kind; without that of a kind this process leaves its targets to others
	if to := a.webhookSink(ctx); to != nil {
		sinks[outbox.KindWebhook] = to
	}
	mailer, err := a.openMailer()
	if err != nil {
		return nil, err
	}
	if mailer != nil {
		sinks[outbox.KindMail] = mailer
	}
	cfg := a.Delivery
	cfg.Lease = a.Outbox.Lease
	return delivery.New(a.relayDB, sinks, cfg,
		delivery.Options{Log: a.log, Waker: a.waker, Tracer: a.tracer, Registry: a.registry})
}
