package outboxtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
)

var errAbort = errors.New("abort on purpose")

// Workload writes events of random keys until its context ends. Most transactions have one event,
// some have several, some abort, and some stay open for a while.
type Workload struct {
	DB      *database.DB
	Log     *Log
	Writers int
	Keys    int
	Prefix  string               // of the keys, for workloads that share a log
	Limit   int64                // events in all; 0: no limit
	Pause   time.Duration        // of each writer between transactions
	Wake    func(keys ...string) // called after each commit; may be nil

	written atomic.Int64
}

// Run returns when all writers have ended. Writers wait while the database is away.
func (w *Workload) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for n := range w.Writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(n), 1))
			for ctx.Err() == nil && (w.Limit == 0 || w.written.Load() < w.Limit) {
				w.once(rnd)
				if w.Pause > 0 {
					select {
					case <-ctx.Done():
					case <-time.After(w.Pause):
					}
				}
			}
		})
	}
	wg.Wait()
}

func (w *Workload) once(rnd *rand.Rand) {
	// Not the context of the workload: a transaction that has begun should end in a known way.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	n := 1
	if rnd.IntN(10) == 0 {
		n += rnd.IntN(4)
	}
	events := make([]outbox.Event, n)
	notes := make([]Written, n)
	for i := range events {
		key := fmt.Sprintf("%skey-%d", w.Prefix, rnd.IntN(w.Keys))
		id := uuid.Must(uuid.NewV7())
		body, _ := json.Marshal(map[string]any{"user_id": key, "n": w.written.Add(1), "text": "<&> ü"})
		events[i] = outbox.Event{ID: id, Type: "test.Happened.v1", Key: key, Subject: key,
			Source: "https://auth.example", Data: body}
		notes[i] = Written{ID: id.String(), Key: key}
	}
	ctx, keys := outbox.WithKeys(ctx)
	committing := false
	err := w.DB.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		// One at a time, to read each sequence number.
		for i, e := range events {
			if err := outbox.Add(ctx, tx, e); err != nil {
				return err
			}
			if err := tx.QueryRowContext(ctx, `SELECT seq FROM outbox_key WHERE key = ?`, e.Key).Scan(&notes[i].Seq); err != nil {
				return err
			}
			if w.DB.IsPostgres() && rnd.IntN(200) == 0 {
				time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond) // a slow transaction
			}
		}
		if rnd.IntN(20) == 0 {
			return errAbort
		}
		committing = true
		return nil
	})
	outcome := Committed
	switch {
	case err != nil && committing:
		outcome = Unknown
	case err != nil:
		outcome = Aborted
		if !errors.Is(err, errAbort) {
			time.Sleep(20 * time.Millisecond) // the database is away
		}
	default:
		if w.Wake != nil {
			w.Wake(keys.List()...)
		}
	}
	for i := range notes {
		notes[i].Outcome = outcome
	}
	w.Log.Add(notes...)
}

// ReadFile reads what a file sink wrote. The key of an event must be its subject.
func ReadFile(path string) ([]Seen, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer f.Close()
	var out []Seen
	for lines := bufio.NewReader(f); ; {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return out, nil // a partial line is not an event
		}
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		s, err := ParseLine(line)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
}

// ParseLine parses a line of the file sink.
func ParseLine(line []byte) (Seen, error) {
	var e struct {
		ID, Subject, Sequence, Type, Time, Source, DataSchema, Generation, TraceParent string

		Replay bool
		Data   json.RawMessage
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return Seen{}, fmt.Errorf("parse a line of events: %w", err)
	}
	seq, err := strconv.ParseInt(e.Sequence, 10, 64)
	if err != nil {
		return Seen{}, fmt.Errorf("parse the sequence of an event: %w", err)
	}
	body := []string{e.Type, e.Source, e.Time, e.DataSchema, e.Generation, e.TraceParent, string(e.Data)}
	return Seen{ID: e.ID, Key: e.Subject, Seq: seq, Replay: e.Replay, Trace: e.TraceParent, Generation: e.Generation,
		Body: strings.Join(body, "\n")}, nil
}
