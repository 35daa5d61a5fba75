package telemetry

import "time"

// ReadinessAt is [NewReadiness] with another clock.
func ReadinessAt(now func() time.Time, checks ...Check) *Readiness {
	r := NewReadiness(checks...)
	r.now = now
	return r
}
