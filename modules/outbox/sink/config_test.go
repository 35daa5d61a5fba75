package sink

import (
	"slices"
	"testing"
)

// A file of authorities does not turn TLS on, and a name does not sign in.
func TestSettingsWithoutEffectAreToldOf(t *testing.T) {
	t.Parallel()
	tlsOff := []string{"kafka.tls.ca_file", "kafka.tls.cert_file", "kafka.tls.key_file"}
	saslOff := []string{"kafka.sasl.user", "kafka.sasl.password"}
	for _, c := range []struct {
		cfg  KafkaConfig
		want []string
	}{
		{KafkaConfig{}, slices.Concat(tlsOff, saslOff)},
		{KafkaConfig{TLS: TLSConfig{Enabled: true}}, saslOff},
		{KafkaConfig{SASL: SASLConfig{Mechanism: "plain"}}, tlsOff},
		{KafkaConfig{TLS: TLSConfig{Enabled: true}, SASL: SASLConfig{Mechanism: "scram-sha-256"}}, nil},
	} {
		var got []string
		c.cfg.withDefaults().Overridden(func(path, _ string) { got = append(got, path) })
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.cfg, got, c.want)
		}
	}
}
