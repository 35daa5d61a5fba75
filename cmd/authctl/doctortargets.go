package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/toppira/authctl/modules/contact/mail"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/webhook"
	"github.com/toppira/authctl/platform/database"
)

// reachTimeout is how long doctor tries to connect to a webhook or the mail server: less than the check may take.
const reachTimeout = checkTimeout - time.Second

// targets says what keeps webhooks and mail from getting what waits for them.
func (d *doctor) targets(ctx context.Context) []finding {
	if !d.schemaFits {
		return []finding{skipped("the database cannot be read yet")}
	}
	all, err := outbox.Deliveries(ctx, d.db)
	var st outbox.State
	if err == nil {
		st, err = outbox.Status(ctx, d.db)
	}
	if database.IsForbidden(err) {
		return []finding{skipped("this database role may not look at them; ask as the relay's or the owner")}
	}
	if err != nil {
		return []finding{failing(err.Error(), "look at the database's log")}
	}
	var list []finding
	var hooks []outbox.Subscription
	waiting := int64(0)
	for _, t := range all {
		waiting += t.Waiting
		if t.Kind == outbox.KindWebhook {
			hooks = append(hooks, t.Subscription)
		}
		list = append(list, d.targetState(t, len(st.Relays) > 0)...)
	}
	list = append(append(list, d.webhooks(ctx, hooks)...), d.mailServer(ctx)...)
	if len(list) > 0 {
		return list
	}
	return []finding{fine("mail and %s; %s", count(len(hooks), "webhook", "webhooks"), waits(waiting))}
}

// targetState is what the database says of one target. relays says whether any relay runs.
func (d *doctor) targetState(t outbox.DeliveryState, relays bool) (list []finding) {
	switch {
	case !t.Active():
		advice := "authctl outbox target resume " + t.Name
		if t.Kind == outbox.KindWebhook {
			advice += ", or authctl outbox target remove " + t.Name
		}
		found := fmt.Sprintf("%s is paused since %s, because %s; %s", t.Name, moment(t.Since), t.Reason,
			waits(t.Waiting))
		list = append(list, doubtful(found, advice))
	case t.Deliverers == 0 && (t.Waiting > 0 || relays && t.Kind == outbox.KindWebhook):
		found := fmt.Sprintf("no process delivers to %s; %s", t.Name, waits(t.Waiting))
		list = append(list, doubtful(found, deliverAdvice(t.Kind)))
	case t.HeldKeys > 0:
		keys := count(int(t.HeldKeys), "key of "+t.Name+" is", "keys of "+t.Name+" are")
		list = append(list, doubtful(keys+" tried again: "+t.LastError,
			"see: authctl outbox parked list --all --target "+t.Name))
	}
	if t.ParkedKeys > 0 {
		list = append(list, doubtful(count(int(t.ParkedKeys), "key is", "keys are")+" parked for "+t.Name,
			"see: authctl outbox parked list --target "+t.Name))
	}
	return list
}

// webhooks tries the secrets of webhooks, and from a process that would send to them, their hosts.
func (d *doctor) webhooks(ctx context.Context, hooks []outbox.Subscription) (list []finding) {
	if len(hooks) == 0 {
		return nil
	}
	sends := d.sends()
	seals, err := d.webhookSeals()
	if err != nil && !sends {
		return []finding{skipped("the secrets of webhooks cannot be tried without AUTH_TOKEN_SECRET")}
	}
	if err != nil {
		return []finding{doubtful("a process with these settings leaves webhooks to others: "+err.Error(),
			"their secrets are sealed under it; nothing is to do if another process sends to webhooks")}
	}
	for _, s := range hooks {
		if _, _, err := seals.Reseal(s, time.Now()); err != nil {
			list = append(list, failing(err.Error(), "its events wait until then"))
		}
	}
	if !sends {
		return list
	}
	to := webhook.New(d.Webhook, webhook.Options{Prod: d.App.prod(), Version: version(), Seals: seals,
		Timeout: reachTimeout})
	failed := make([]error, len(hooks))
	var all sync.WaitGroup
	for i, s := range hooks {
		if s.Active() {
			all.Go(func() { failed[i] = to.Reach(ctx, s) })
		}
	}
	all.Wait()
	for i, err := range failed {
		if err != nil {
			list = append(list, doubtful(fmt.Sprintf("%s cannot be reached from here: %v", hooks[i].Name, err),
				"mend that, or pause it meanwhile: authctl outbox target pause "+hooks[i].Name))
		}
	}
	return list
}

// sends reports whether a process with these settings sends to targets.
func (d *doctor) sends() bool { return d.Outbox.Relay == "inline" || d.relays }

// mailServer tries to reach the SMTP server and to sign in.
func (d *doctor) mailServer(ctx context.Context) []finding {
	if !d.Mail.Sends() || !d.sends() {
		return nil
	}
	m, err := mail.New(d.Mail, mail.Options{Issuer: d.Auth.Token.Issuer, BaseURL: d.baseURL(), DataDir: d.App.DataDir})
	if err != nil {
		return []finding{failing(err.Error(), "correct it: serve and relay do not start with it")}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, reachTimeout,
		fmt.Errorf("it was not ready for a mail within %v", reachTimeout))
	defer cancel()
	if err := m.Reach(ctx); err != nil {
		return []finding{doubtful(fmt.Sprintf("the mail server %s cannot be used from here: %v", m.Describe(), err),
			"mails wait until then; each step is shown by: authctl mail test ADDRESS")}
	}
	return nil
}
