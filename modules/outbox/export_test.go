package outbox

import "time"

// SweepOften makes a relay look below its bounds all the time.
func SweepOften(r *Relay) { SweepEvery(r, 20*time.Millisecond) }

// SweepEvery makes a relay look below its bounds so often.
func SweepEvery(r *Relay, d time.Duration) { r.sweepEvery = d }
