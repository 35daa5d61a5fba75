package webhook

import "time"

// Config is outbox.webhook.*.
type Config struct {
	AllowPrivate bool          `config:"outbox.webhook.allow_private" default:"false" doc:"Let webhooks go to loopback and private addresses (127.0.0.0/8, 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, ::1, fc00::/7), such as those of your own network. Link-local addresses, metadata services among them, are refused in any case."`
	RetryFor     time.Duration `config:"outbox.webhook.retry_for" default:"72h" min:"1m" max:"720h" doc:"How long an event is sent to a webhook that does not acknowledge it. Then its key is parked for this webhook."`
}
