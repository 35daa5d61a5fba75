package outbox

// Record is one event as the outbox keeps it.
type Record struct {
	ID         int64 // the position in the outbox
	Seq        int64 // counts the events of the key from 1, without gaps
	EventID    string
	Type       string
	Key        string
	Subject    string
	Source     string
	DataSchema string
	Time       string // RFC 3339
	Data       []byte // compact JSON
	Replay     bool   // sent again because an operator asked for it

	CreatedMS int64 // when it was written, by the database's clock
}
