package outbox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/tracing"
)

// MaxEventBytes limits the size of an event, all fields together. A sink must accept an event of
// this size; the default limit of Kafka is four times as large.
const MaxEventBytes = 256 << 10

// frameBytes is what headers and framing of an event take at most, in every sink.
const frameBytes = 512

// ErrInvalidEvent says that an event could never be published. It is a mistake of the program that
// made the event.
var ErrInvalidEvent = errors.New("invalid event")

// Event is something that happened and that other systems can learn of.
type Event struct {
	ID         uuid.UUID       // zero: [Add] makes a UUIDv7
	Type       string          // auth.UserRegistered.v1
	Key        string          // events of one key are delivered in order; 1 to 255 bytes
	Subject    string          // what it is about; may be empty
	Source     string          // who says so: a URI reference
	DataSchema string          // where its JSON Schema is; may be empty
	Time       time.Time       // when it happened; zero: now
	Data       json.RawMessage // a JSON object, no member twice

	// Target names the one target that gets the event, such as mail. The event is then not in the
	// log: it has no sequence number, no other target gets it, and it is deleted once it was
	// delivered. Empty: the log gets it, and every target that wants events of its type.
	Target string
}

// Add writes events in the caller's transaction: they exist if it commits. Each gets the next
// sequence number of its key. The key stays locked until the transaction ends, so call Add as late
// in it as possible.
//
// Add refuses events that could never be published (see [Event]) with an error that wraps
// [ErrInvalidEvent], or [ErrNoTarget] if the target that an event names does not exist. Wake relays after
// the commit with [relay.Waker.Wake]; otherwise they find the events a little later, when they poll.
// [WithKeys] tells which keys to name to it.
func Add(ctx context.Context, tx database.IDB, events ...Event) error {
	if _, is := tx.(database.Tx); !is {
		return errors.New("outbox.Add: call it in a transaction")
	}
	ready := make([]stored, len(events))
	for i, e := range events {
		var err error
		if ready[i], err = prepare(e); err != nil {
			return fmt.Errorf("outbox.Add: event %d, type %q: %w", i, e.Type, err)
		}
		ready[i].trace = create(ctx, &ready[i])
	}
	// All transactions must lock keys in the same order.
	slices.SortStableFunc(ready, func(a, b stored) int { return cmp.Compare(a.Key, b.Key) })
	var logged, messages []stored
	for _, s := range ready {
		if s.Target == "" {
			logged = append(logged, s)
		} else {
			messages = append(messages, s)
		}
	}
	add := addSQLite
	if database.IsPostgres(tx) {
		add = addPostgres
	}
	if len(logged) > 0 {
		if err := add(ctx, tx, logged); err != nil {
			return fmt.Errorf("outbox.Add: %w", err)
		}
	}
	if keys, ok := ctx.Value(keysOf{}).(*Keys); ok {
		for i := range logged {
			keys.note(logged[i].Key)
		}
	}
	for i := range messages {
		if err := addMessage(ctx, tx, &messages[i]); err != nil {
			return fmt.Errorf("outbox.Add: %w", err)
		}
	}
	return nil
}

// Await waits until the transaction can add events: an index that is built on their table keeps writers waiting for
// minutes. Call it before the clock is read for an event that says how long something holds: [Add] would wait
// afterwards.
func Await(ctx context.Context, tx database.IDB) error {
	if !database.IsPostgres(tx) {
		return nil
	}
	// As the function outbox_add_traced does, and kept as long.
	if _, err := tx.ExecContext(ctx, "LOCK TABLE ONLY outbox_event IN ROW EXCLUSIVE MODE"); err != nil {
		return fmt.Errorf("outbox.Await: %w", err)
	}
	return nil
}

// create makes the span of an event, if the context's trace is recorded, and returns what the event keeps of
// its trace.
func create(ctx context.Context, s *stored) (traceparent string) {
	ctx, span := tracing.Producer(ctx, "CloudEvents Create")
	if span.Recorded() {
		span.Rename("CloudEvents Create " + s.Type)
		span.Set("cloudevents.event_id", s.ID.String())
		span.Set("cloudevents.event_source", s.Source)
		span.Set("cloudevents.event_type", s.Type)
	}
	span.End()
	return tracing.Parent(ctx)
}

// AddUndeliverable adds the event which says that a message cannot be delivered: its type ends with
// .Undeliverable and a version. A process that delivers needs no right to add other events. id is the
// [Record.ID] of the message; nothing is added when it no longer waits. If the key was finished while the message was
// tried, it returns [ErrFinished], and the transaction must be rolled back.
func AddUndeliverable(ctx context.Context, tx database.Tx, id int64, e Event) error {
	s, err := prepare(e)
	if err != nil {
		return fmt.Errorf("outbox.AddUndeliverable: %w", err)
	}
	if !database.IsPostgres(tx) {
		err = Add(ctx, tx, e)
	} else {
		s.trace = create(ctx, &s)
		err = database.Exec(ctx, tx, "outbox.AddUndeliverable",
			`SELECT outbox_add_undeliverable(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			id, s.hash, s.bytes, s.ID, s.Type, s.Key, s.Subject, s.Source, s.DataSchema, s.time, string(s.Data),
			s.trace)
	}
	if err != nil {
		return err
	}
	// Afterwards: to add it waits for a transaction that finishes the key.
	finished, err := finishedBefore(ctx, tx, e.Key, 1)
	if err == nil && finished {
		err = ErrFinished
	}
	return err
}

// ErrFinished says that a key has no more events: see [Finish].
var ErrFinished = errors.New("the key is finished")

// Finish says that a key will have no more events, because what it stands for no longer exists,
// such as a deleted account. Call it after [Add], in the transaction that adds the last event. Once
// the retention has passed, the outbox forgets the key's sequence number; without Finish it never
// does.
//
// Do not use the key again: after the retention its events would be counted from 1. A key that gets
// another event before then is not forgotten, and must be finished again.
func Finish(ctx context.Context, tx database.Tx, key string) error {
	return database.Exec(ctx, tx, "outbox.Finish", `INSERT INTO outbox_finished_key (key, seq, finished_ms)
		SELECT key, seq, `+schema.Now(tx)+` FROM outbox_key WHERE key = ?
		ON CONFLICT (key) DO UPDATE SET seq = excluded.seq, finished_ms = excluded.finished_ms`, key)
}

// IsFinished reports whether [Finish] said of a key that it has no more events, and it has had none since. After
// the retention nobody knows.
func IsFinished(ctx context.Context, db database.IDB, key string) (bool, error) {
	return finishedBefore(ctx, db, key, 0)
}

// finishedBefore is [IsFinished] as of so many events ago.
func finishedBefore(ctx context.Context, db database.IDB, key string, events int) (bool, error) {
	n, err := database.Value[int64](db.QueryRowContext(ctx, `SELECT count(*) FROM outbox_finished_key f
		JOIN outbox_key k ON k.key = f.key AND k.seq = f.seq + ? WHERE f.key = ?`, events, key))
	if err != nil {
		return false, fmt.Errorf("look whether a key is finished: %w", err)
	}
	return n > 0, nil
}

// stored is an event in the form of its table.
type stored struct {
	Event
	time  string
	trace string // W3C traceparent; empty: of no trace
	bytes int
	hash  int32 // not negative; shard and partition are its remainder
}

func prepare(e Event) (stored, error) {
	for _, f := range []struct {
		name, text string
		min, max   int
	}{
		{"type", e.Type, 1, 255}, {"key", e.Key, 1, 255}, {"source", e.Source, 1, 2048},
		{"subject", e.Subject, 0, 1024}, {"dataschema", e.DataSchema, 0, 2048},
	} {
		switch {
		case len(f.text) < f.min || len(f.text) > f.max:
			return stored{}, fmt.Errorf("%w: the %s has %d bytes, it must have %d to %d",
				ErrInvalidEvent, f.name, len(f.text), f.min, f.max)
		case !utf8.ValidString(f.text):
			return stored{}, fmt.Errorf("%w: the %s is not UTF-8", ErrInvalidEvent, f.name)
		}
		for _, r := range f.text {
			if r < ' ' || r == 0x7f {
				return stored{}, fmt.Errorf("%w: the %s has a control character", ErrInvalidEvent, f.name)
			}
		}
	}
	if len(e.Data) > MaxEventBytes {
		return stored{}, fmt.Errorf("%w: it has %d bytes of data, the limit is %d in all", ErrInvalidEvent, len(e.Data),
			MaxEventBytes)
	}
	// No member twice, and text that is Unicode (RFC 7493): consumers would differ about anything else.
	data, err := jsontext.AppendFormat(nil, e.Data, jsontext.PreserveRawStrings(true))
	if err != nil || data[0] != '{' {
		return stored{}, fmt.Errorf("%w: the data is not a JSON object in UTF-8 whose members have names of their own",
			ErrInvalidEvent)
	}
	e.Data = data
	if e.ID == uuid.Nil {
		var err error
		if e.ID, err = uuid.NewV7(); err != nil {
			return stored{}, fmt.Errorf("make an event id: %w", err)
		}
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	s := stored{Event: e, time: e.Time.UTC().Format(time.RFC3339Nano), hash: schema.Hash(e.Key)}
	if y := e.Time.UTC().Year(); y < 1 || y > 9999 {
		return stored{}, fmt.Errorf("%w: the year %d has no RFC 3339 form", ErrInvalidEvent, y)
	}
	s.bytes = frameBytes + len(e.Type) + 2*len(e.Key) + len(e.Subject) + len(e.Source) + len(e.DataSchema) + len(e.Data)
	if s.bytes > MaxEventBytes {
		return stored{}, fmt.Errorf("%w: it takes %d bytes, the limit is %d", ErrInvalidEvent, s.bytes, MaxEventBytes)
	}
	return s, nil
}

// addPostgres takes one round trip for any number of events.
func addPostgres(ctx context.Context, tx database.IDB, events []stored) error {
	if len(events) == 1 {
		s := &events[0]
		return database.Exec(ctx, tx, "insert event", `SELECT outbox_add_traced(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			s.hash, s.bytes, s.ID, s.Type, s.Key, s.Subject, s.Source, s.DataSchema, s.time, string(s.Data), s.trace)
	}
	n := len(events)
	hashes, sizes, ids, texts := make([]int32, n), make([]int32, n), make([]uuid.UUID, n), [8][]string{}
	for i := range events {
		s := &events[i]
		hashes[i], sizes[i], ids[i] = s.hash, int32(s.bytes), s.ID
		for j, text := range []string{s.Type, s.Key, s.Subject, s.Source, s.DataSchema, s.time, string(s.Data),
			s.trace} {
			texts[j] = append(texts[j], text)
		}
	}
	// PostgreSQL calls a volatile function after sorting, in the order of the rows.
	return database.Exec(ctx, tx, "insert events", `SELECT outbox_add_traced(hash, size, id, type, key, subject, source, dataschema, time, data, trace)
		FROM unnest(?::integer[], ?::integer[], ?::uuid[],
				?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[])
			WITH ORDINALITY AS e (hash, size, id, type, key, subject, source, dataschema, time, data, trace, n) ORDER BY n`,
		hashes, sizes, ids, texts[0], texts[1], texts[2], texts[3], texts[4], texts[5], texts[6], texts[7])
}

// addMessage writes an event for one target alone.
func addMessage(ctx context.Context, tx database.IDB, s *stored) error {
	found := false
	var err error
	if database.IsPostgres(tx) {
		err = tx.QueryRowContext(ctx, `SELECT outbox_add_message_traced(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			s.Target, s.hash, s.ID, s.Type, s.Key, s.Subject, s.Source, s.DataSchema, s.time, string(s.Data), s.trace).
			Scan(&found)
	} else {
		found, err = addMessageSQLite(ctx, tx, s)
	}
	if err != nil {
		return fmt.Errorf("insert an event for the target %s: %w", s.Target, err)
	}
	if !found {
		return fmt.Errorf("%w that takes events for it alone: %q", ErrNoTarget, s.Target)
	}
	return nil
}

func addMessageSQLite(ctx context.Context, tx database.IDB, s *stored) (bool, error) {
	var target int
	err := tx.QueryRowContext(ctx, `SELECT id FROM outbox_subscription WHERE name = ? AND state <> 'removed' AND types = '[]'`,
		s.Target).Scan(&target)
	if database.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var id int64
	err = tx.QueryRowContext(ctx, `INSERT INTO outbox_message
			(created_ms, event_id, type, key, subject, source, dataschema, time, data, traceparent)
		VALUES (`+schema.SQLiteNow+`, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`,
		s.ID.String(), s.Type, s.Key, s.Subject, s.Source, s.DataSchema, s.time, string(s.Data), s.trace).Scan(&id)
	if err != nil {
		return false, err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO outbox_delivery (id, target, segment, key) VALUES (?, ?, ?, ?)`,
		id, target, schema.MessageSegment, s.Key)
	return err == nil, err
}

func addSQLite(ctx context.Context, tx database.IDB, events []stored) error {
	for i := range events {
		s := &events[i]
		var seq, id int64
		err := tx.QueryRowContext(ctx, `INSERT INTO outbox_key (key, seq) VALUES (?, 1)
			ON CONFLICT (key) DO UPDATE SET seq = seq + 1 RETURNING seq`, s.Key).Scan(&seq)
		if err != nil {
			return fmt.Errorf("count the key's events: %w", err)
		}
		err = tx.QueryRowContext(ctx, `INSERT INTO outbox_event
				(created_ms, key_seq, event_id, type, key, subject, source, dataschema, time, data, traceparent)
			VALUES (`+schema.SQLiteNow+`, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`,
			seq, s.ID.String(), s.Type, s.Key, s.Subject, s.Source, s.DataSchema, s.time, string(s.Data),
			s.trace).Scan(&id)
		if err != nil {
			return fmt.Errorf("insert event: %w", err)
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO outbox_pending (shard, id, bytes) SELECT ? % shards, ?, ? FROM outbox_setting`,
			s.hash, id, s.bytes)
		if err != nil {
			return fmt.Errorf("insert pending event: %w", err)
		}
	}
	return nil
}
