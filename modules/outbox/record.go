package outbox

// Record is one event as the outbox keeps it.
type Record struct {
	ID      int64  `json:"id"` // its position in the outbox
	EventID string `json:"event_id"`
	Type    string `json:"type"`
	Key     string `json:"key"`
	Seq     int64  `json:"sequence"` // counts the events of the key from 1, without gaps

	// Generation is that of the database when the event was written: it rises each time the database was
	// set back to an older state ([RaiseGeneration]). Sequence numbers can repeat in a higher one.
	Generation int64 `json:"generation,omitempty"`

	Time        string `json:"time"` // RFC 3339
	Subject     string `json:"subject,omitempty"`
	Source      string `json:"source,omitempty"`
	DataSchema  string `json:"dataschema,omitempty"`
	Replay      bool   `json:"replay,omitempty"`      // sent again because an operator asked for it
	TraceParent string `json:"traceparent,omitempty"` // of the span that created it (W3C Trace Context), if any
	Data        []byte `json:"-"`                     // compact JSON
	CreatedMS   int64  `json:"-"`                     // when it was written, by the database's clock
}

// Bytes is an upper bound of what the event takes in a batch of any sink.
func (r *Record) Bytes() int {
	return frameBytes + len(r.Type) + 2*len(r.Key) + len(r.Subject) + len(r.Source) + len(r.DataSchema) + len(r.Data)
}

// recordColumns are those of an event e, in the order of [Record.fields] after the first two.
const recordColumns = `e.created_ms, e.key_seq, e.event_id, e.type, e.key, e.subject, e.source, e.dataschema, e.time, e.data,
	e.generation, e.traceparent`

// fields are what a row is scanned into: id, replay, and recordColumns.
func (r *Record) fields() []any {
	return []any{
		&r.ID, &r.Replay, &r.CreatedMS, &r.Seq, &r.EventID, &r.Type, &r.Key, &r.Subject, &r.Source, &r.DataSchema,
		&r.Time, &r.Data, &r.Generation, &r.TraceParent,
	}
}
