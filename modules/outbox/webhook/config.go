package webhook

// Config is outbox.webhook.*.
type Config struct {
	AllowPrivate bool `config:"outbox.webhook.allow_private" default:"false" doc:"Allow webhooks to loopback addresses and private networks (127.0.0.0/8, 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, ::1, fc00::/7). Link-local addresses and metadata services are refused in any case."`
}
