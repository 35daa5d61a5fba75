package verify

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Event is a CloudEvent of authctl.
//
// Of a Kafka record it is Event{Type: header ce_type, Source: header ce_source, Data: value}.
// [ParseEvent] reads one in structured JSON, such as a line of events.ndjson.
type Event struct {
	Type   string
	Source string // the issuer; an event of another one is refused. Empty: not checked
	Data   []byte // JSON
}

// ParseEvent reads an event in structured JSON.
func ParseEvent(text []byte) (Event, error) {
	var envelope struct {
		SpecVersion string          `json:"specversion"`
		Type        string          `json:"type"`
		Source      string          `json:"source"`
		Data        json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(text, &envelope); err != nil {
		return Event{}, fmt.Errorf("read an event: %w", err)
	}
	if !strings.HasPrefix(envelope.SpecVersion, "1.") || envelope.Type == "" {
		return Event{}, fmt.Errorf("read an event: it is no CloudEvent 1.0 in structured JSON")
	}
	return Event{Type: envelope.Type, Source: envelope.Source, Data: envelope.Data}, nil
}

// Apply takes an event that authctl has sent to Kafka, for those who follow it with a client of
// their own. Give it every event: those that end nothing are ignored. Giving it one twice, late
// or out of order does no harm, and with the feed beside it neither. It does not change Lag:
// how far the consumer is behind, the consumer knows.
//
// The error is of an event that cannot be understood, or is of another issuer. A token that it
// was about is not refused then.
func (v *Verifier) Apply(e Event) error {
	if e.Source != "" && e.Source != v.cfg.Issuer {
		return fmt.Errorf("apply %s: an event of %q, and not of %q", e.Type, e.Source, v.cfg.Issuer)
	}
	var kind string
	switch e.Type {
	case "auth.SessionRevoked.v1":
		kind = "session"
	case "auth.AllSessionsRevoked.v1":
		kind = "account"
	default:
		if strings.HasPrefix(e.Type, "auth.SessionRevoked.") || strings.HasPrefix(e.Type, "auth.AllSessionsRevoked.") {
			v.metric(MetricUnknownTypes, 1)
		}
		return nil
	}
	var data struct {
		revocation
		UserID     string    `json:"user_id"`
		OccurredAt time.Time `json:"occurred_at"`
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		return fmt.Errorf("apply %s: %w", e.Type, err)
	}
	data.Type, data.Subject = kind, data.UserID
	if _, err := v.known.add([]revocation{data.revocation}); err != nil {
		return fmt.Errorf("apply %s: %w", e.Type, err)
	}
	if sane(data.OccurredAt) {
		v.clock.happened(data.OccurredAt)
	}
	_, early := v.clock.issuerTime()
	v.known.list.Load().forget(early, 1)
	return nil
}
