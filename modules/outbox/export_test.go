package outbox

import "time"

// SweepOften makes a relay look below its bounds all the time.
func SweepOften(r *Relay) { r.sweepEvery = 20 * time.Millisecond }
