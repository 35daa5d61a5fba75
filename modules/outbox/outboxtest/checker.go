// Package outboxtest checks the promises of the outbox: writers log what they did, a reader reads
// everything that the target has, and [Check] compares the two.
package outboxtest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Outcome is what a writer knows about its transaction.
type Outcome int

const (
	Committed Outcome = iota
	Unknown           // the commit returned an error; it may have succeeded
	Aborted
)

// Written is one event that a writer tried to write.
type Written struct {
	ID, Key string
	Seq     int64
	Outcome Outcome
}

// Log records what writers did. It is safe for concurrent use.
type Log struct {
	mu   sync.Mutex
	list []Written
}

// Add records events.
func (l *Log) Add(w ...Written) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, w...)
}

// All returns everything recorded.
func (l *Log) All() []Written {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}

// Committed counts the events that certainly exist.
func (l *Log) Committed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, w := range l.list {
		if w.Outcome == Committed {
			n++
		}
	}
	return n
}

// Seen is one event of the target. The events of a partition are in its order.
type Seen struct {
	Partition int
	ID, Key   string
	Seq       int64
	Body      string // everything that must be the same in every delivery
	Replay    bool

	Trace, Generation string // as in the target; empty if absent
}

// Report counts the broken promises, and has the first of each kind.
type Report struct {
	Written, Seen int
	Lost          int // committed, and missing
	Ghost         int // present, and never committed
	Duplicate     int // present again without a replay
	Changed       int // present again with other bytes
	Inverted      int // first appears after a later event of its key
	Gapped        int // first appears before an earlier event of its key
	Moved         int // in another partition than earlier events of its key
	First         []string
}

// Sound reports whether every promise was kept. It allows the given number of duplicates, for faults
// that may cause them.
func (r Report) Sound(duplicates int) bool {
	return r.Lost+r.Ghost+r.Changed+r.Inverted+r.Gapped+r.Moved == 0 && r.Duplicate <= duplicates
}

func (r Report) String() string {
	return fmt.Sprintf("%d written, %d seen: %d lost, %d ghost, %d duplicate, %d changed, %d inverted, %d gapped, %d "+
		"moved; %s", r.Written, r.Seen, r.Lost, r.Ghost, r.Duplicate, r.Changed, r.Inverted, r.Gapped, r.Moved,
		strings.Join(r.First, "; "))
}

// Check compares what was written with what was seen. One pass is enough, because the sequence of a
// key has no gaps.
func Check(written []Written, seen []Seen) Report {
	r := Report{Seen: len(seen)}
	note := func(count *int, format string, args ...any) {
		if *count++; *count == 1 {
			r.First = append(r.First, fmt.Sprintf(format, args...))
		}
	}
	byID := make(map[string]Written, len(written))
	for _, w := range written {
		byID[w.ID] = w
		if w.Outcome == Committed {
			r.Written++
		}
	}
	type key struct {
		partition int
		highest   int64
		have      map[int64]bool
	}
	keys := map[string]*key{}
	bodies := map[string]string{}
	for _, s := range seen {
		if w, ok := byID[s.ID]; !ok || w.Outcome == Aborted {
			note(&r.Ghost, "ghost: %s %s/%d", s.ID, s.Key, s.Seq)
			continue
		} else if w.Key != s.Key || w.Seq != s.Seq {
			note(&r.Changed, "changed: %s is %s/%d, was written as %s/%d", s.ID, s.Key, s.Seq, w.Key, w.Seq)
		}
		k := keys[s.Key]
		if k == nil {
			k = &key{partition: s.Partition, have: map[int64]bool{}}
			keys[s.Key] = k
		}
		if k.partition != s.Partition {
			note(&r.Moved, "moved: %s from partition %d to %d", s.Key, k.partition, s.Partition)
		}
		if k.have[s.Seq] {
			if bodies[s.ID] != s.Body {
				note(&r.Changed, "changed: %s", s.ID)
			}
			if !s.Replay {
				note(&r.Duplicate, "duplicate: %s %s/%d", s.ID, s.Key, s.Seq)
			}
			continue
		}
		bodies[s.ID], k.have[s.Seq] = s.Body, true
		switch {
		case s.Seq < k.highest:
			note(&r.Inverted, "inverted: %s/%d after %d", s.Key, s.Seq, k.highest)
		case s.Seq > k.highest+1:
			note(&r.Gapped, "gapped: %s/%d after %d", s.Key, s.Seq, k.highest)
		}
		k.highest = max(k.highest, s.Seq)
	}
	for _, w := range written {
		if k := keys[w.Key]; w.Outcome == Committed && (k == nil || !k.have[w.Seq]) {
			note(&r.Lost, "lost: %s %s/%d", w.ID, w.Key, w.Seq)
		}
	}
	return r
}
