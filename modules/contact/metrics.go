package contact

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/platform/metric"
)

// Outcomes of a request for a challenge.
const (
	requestSent     = "sent"
	requestNobody   = "nobody"   // there is nobody to send it to
	requestRepeated = "repeated" // the answer is a recent challenge
	requestLimited  = "limited"  // the limits forbid another message
)

// Outcomes of an attempt to meet a challenge, or to undo a change.
const (
	metByCode   = "code"
	metByLink   = "link"
	wrongCode   = "wrong_code"
	invalidCode = "invalid_code" // of a challenge that is not live, or has no tries left
	invalidLink = "invalid_link"
	metButTaken = "taken" // the address is another account's by now
	notCompared = "throttled"
)

// purposeUndo is no purpose of a challenge: the answers to notices are counted under it.
const purposeUndo Purpose = "undo"

// metrics counts what happens to challenges. No label identifies a person.
type metrics struct {
	requests, answers, expired *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "authctl_contact_" + name, Help: help}, labels)
	}
	m := &metrics{
		requests: counter("requests_total", "Requests for a code and link, by purpose and outcome.", "purpose",
			"outcome"),
		answers: counter("answers_total", "Codes and links that were entered, by purpose and outcome.", "purpose",
			"outcome"),
		expired: counter("expired_total", "Codes and links that nobody used, by purpose.", "purpose"),
	}
	// So that they are shown before the first one.
	for _, purpose := range []Purpose{PurposeVerify, PurposeReset} {
		for _, outcome := range []string{requestSent, requestNobody, requestRepeated, requestLimited} {
			m.requests.WithLabelValues(string(purpose), outcome)
		}
		for _, outcome := range []string{metByCode, metByLink, wrongCode, invalidCode, invalidLink, notCompared} {
			m.answers.WithLabelValues(string(purpose), outcome)
		}
		m.expired.WithLabelValues(string(purpose))
	}
	m.answers.WithLabelValues(string(PurposeVerify), metButTaken)
	m.answers.WithLabelValues(string(purposeUndo), metByLink)
	m.answers.WithLabelValues(string(purposeUndo), invalidLink)
	return m, metric.Register(reg, "the metrics of contacts", m.requests, m.answers, m.expired)
}

func (m *metrics) requested(purpose Purpose, outcome string) {
	m.requests.WithLabelValues(string(purpose), outcome).Inc()
}

func (m *metrics) answered(purpose Purpose, outcome string) {
	m.answers.WithLabelValues(string(purpose), outcome).Inc()
}
