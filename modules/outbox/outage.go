package outbox

import (
	"context"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// Kinds are the reasons for which an attempt to publish can fail: the labels of metrics. A relay
// handles the first four by itself; the others wait for a person, see [relay.Stalled].
var Kinds = []string{
	"retry", "refused", "not_owned", "database",
	"authentication", "authorization", "certificate", "clock", "compression",
	"partitions", "rights", "shards", "target", "topic",
	"unexpected", "version",
}

// Outage is what keeps a relay from publishing, or a deliverer from delivering, as it wrote it to the
// database.
type Outage struct {
	Target string    `json:"target"` // of a deliverer: [DeliveryTargets]
	Relay  string    `json:"relay"`  // its name
	Kind   string    `json:"kind"`   // one of [Kinds]
	Error  string    `json:"error"`  // says what to do where a person must act
	Since  time.Time `json:"since"`
	Lasts  bool      `json:"lasts"` // false: the relay has ended, and this was its last report
}

// DeliveryTargets is what the outages of deliverers are of.
const DeliveryTargets = "webhooks and mail"

// NeedsPerson reports whether the outage lasts until somebody acts.
func (o Outage) NeedsPerson() bool { return o.Kind != "retry" && o.Kind != "database" }

// ReportOutage writes what has kept a relay or a deliverer from its work for some time. The report ends
// with [EndOutage], or is a last one after holds.
func ReportOutage(ctx context.Context, db *database.DB, id string, o Outage, lasted, holds time.Duration) error {
	clock := schema.Now(db)
	_, err := db.Write(ctx, `INSERT INTO outbox_trouble (relay, target, name, kind, error, since_ms, until_ms)
		VALUES (?, ?, ?, ?, ?, `+clock+` - ?, `+clock+` + ?)
		ON CONFLICT (relay, target) DO UPDATE SET
			kind = excluded.kind, error = excluded.error, since_ms = excluded.since_ms, until_ms = excluded.until_ms`,
		id, o.Target, o.Relay, o.Kind, o.Error, lasted.Milliseconds(), holds.Milliseconds())
	return err
}

// EndOutage removes the reports of a relay or a deliverer.
func EndOutage(ctx context.Context, db *database.DB, id string) error {
	_, err := db.Write(ctx, `DELETE FROM outbox_trouble WHERE relay = ?`, id)
	return err
}

// outages lists what relays have reported, the oldest first. A row that expires later than any
// row can was written by a clock that was ahead.
func outages(ctx context.Context, db database.IDB) ([]Outage, error) {
	clock := schema.Now(db)
	return database.Collect(ctx, db, "list outages", func(row database.Row) (o Outage, err error) {
		var since int64
		err = row.Scan(&o.Target, &o.Relay, &o.Kind, &o.Error, &since, &o.Lasts)
		o.Since = time.UnixMilli(since).UTC()
		return o, err
	}, `SELECT target, name, kind, error, since_ms, until_ms > `+clock+` AND until_ms <= `+clock+` + ?
		FROM outbox_trouble ORDER BY since_ms, name`, (schema.OutageHolds + time.Second).Milliseconds())
}

// ErrorText makes an error fit its column: one line of valid text, not too long.
func ErrorText(err error) string {
	const most = 1000 // bytes
	text := strings.NewReplacer("\x00", "?", "\n", " ").Replace(strings.ToValidUTF8(err.Error(), "?"))
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
