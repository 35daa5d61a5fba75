package outbox

import (
	"context"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// Kinds are of what an attempt to publish can fail for: the labels of metrics. Of the first
// four a relay takes care by itself; the others wait for a person, see [relay.Stalled].
var Kinds = []string{
	"retry", "refused", "not_owned", "database",
	"authentication", "authorization", "certificate", "clock", "compression",
	"partitions", "rights", "shards", "target", "topic",
	"unexpected", "version",
}

// Trouble is what keeps a relay from publishing, as it told the database.
type Trouble struct {
	Target string    `json:"target"`
	Relay  string    `json:"relay"` // its name
	Kind   string    `json:"kind"`  // one of [Kinds]
	Error  string    `json:"error"` // says what to do where a person must
	Since  time.Time `json:"since"`
	Lasts  bool      `json:"lasts"` // false: the relay is gone, and this was its last word
}

// NeedsPerson reports whether it stays until somebody acts.
func (t Trouble) NeedsPerson() bool { return t.Kind != "retry" && t.Kind != "database" }

// troubles lists what relays have told, the oldest first. A row that holds for longer than
// any can is of a clock that was ahead.
func troubles(ctx context.Context, db database.IDB) ([]Trouble, error) {
	clock := schema.Now(db)
	rows, err := db.QueryContext(ctx, `SELECT target, name, kind, error, since_ms, until_ms > `+clock+` AND until_ms <= `+clock+` + ?
		FROM outbox_trouble ORDER BY since_ms, name`, (schema.TroubleHolds + time.Second).Milliseconds())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Trouble
	for rows.Next() {
		var t Trouble
		var since int64
		if err := rows.Scan(&t.Target, &t.Relay, &t.Kind, &t.Error, &since, &t.Lasts); err != nil {
			return nil, err
		}
		t.Since = time.UnixMilli(since).UTC()
		out = append(out, t)
	}
	return out, rows.Err()
}
