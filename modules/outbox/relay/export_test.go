package relay

import "time"

// SweepOften makes a relay sweep all the time.
func SweepOften(r *Relay) { SweepEvery(r, 20*time.Millisecond) }

// SweepEvery sets how often a relay sweeps.
func SweepEvery(r *Relay, d time.Duration) { r.sweepEvery = d }
