package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
)

// On PostgreSQL the statements that every event passes through go to pgx directly, prepared, with
// binary values. Arrays are written as (SELECT $1), so that the planner does not see how long they
// are; for long ones it would choose to scan whole tables. And when it learns as much without the
// values as with them, PostgreSQL plans a statement once, and not again for every fetch.

// fetchPostgres reads the pending rows as one row for each shard, because rows cost more than their
// contents. The events are read from their segment in a second step, because a join with the whole
// ring would look for the segment again for every row.
const fetchPostgres = `SELECT s.shard, p.ids, p.segments, p.replays, p.sizes, p.places
	FROM unnest((SELECT $1::integer[])::integer[], (SELECT $2::bigint[])::bigint[]) AS s(shard, watermark)
	CROSS JOIN LATERAL (
		SELECT array_agg(id) AS ids, array_agg(segment) AS segments, array_agg(replay) AS replays,
			array_agg(bytes) AS sizes, array_agg(ctid) AS places
		FROM (SELECT id, segment, replay, bytes, ctid FROM outbox_pending
			WHERE shard = s.shard AND id > s.watermark ORDER BY id LIMIT (SELECT $3::bigint)) q
	) p WHERE p.ids IS NOT NULL`

const segmentPostgres = `SELECT id, key_seq, created_ms, event_id, key, subject, time, type, source, dataschema, data,
		generation, traceparent
	FROM outbox_event_%02d WHERE id = ANY ((SELECT $1::bigint[])::bigint[]) ORDER BY id`

// A crash may bring back the row of an acknowledged event, which repeats the event and loses none.
// So the deletion need not wait for the disk.
const withoutFlush = ` AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'`

// ackPostgres deletes rows by their place in the table, which takes a third of the time of looking
// them up in the index. There may be another row in that place now, so its id must be among those
// that were sent. (IS TRUE keeps the planner from making a join of it.) And the row must be as it
// was read: if it was marked for replay since, it must be sent again.
const ackPostgres = `DELETE FROM outbox_pending p WHERE p.ctid = ANY ((SELECT $1::tid[])::tid[])
	AND (p.id IN (SELECT unnest($2::bigint[]))) IS TRUE AND p.replay = $3` + withoutFlush

// ackMovedPostgres deletes them by their ids: VACUUM FULL moves rows.
const ackMovedPostgres = `DELETE FROM outbox_pending p
	USING unnest((SELECT $1::integer[])::integer[], (SELECT $2::bigint[])::bigint[]) AS d(shard, id)
	WHERE p.shard = d.shard AND p.id = d.id AND p.replay = $3` + withoutFlush

// pendingRow is a row of outbox_pending.
type pendingRow struct {
	id      int64
	at      pgtype.TID
	shard   int
	segment int
	bytes   int
	replay  bool
}

// readPostgres is [store.pendingOf].
func (s *store) readPostgres(
	ctx context.Context, server string, shards []int, watermarks []int64, limit, bytes int,
) (out []Record, err error) {
	on := s.onServer
	if s.db.Pooled() { // each statement asks itself
		on = func(ctx context.Context, _ string, fn func(*pgx.Conn) error) error { return s.db.Postgres(ctx, fn) }
	}
	err = on(ctx, server, func(conn *pgx.Conn) error {
		ask := asking(conn, s.db.Prepared())
		if s.db.Pooled() {
			ask = askingOn(conn, server)
		}
		rows, err := pendingRows(ctx, ask, shards, watermarks, limit, bytes)
		if err != nil {
			return err
		}
		slices.SortFunc(rows, func(a, b pendingRow) int {
			return cmp.Or(a.segment-b.segment, cmp.Compare(a.id, b.id))
		})
		out = make([]Record, 0, len(rows))
		for len(rows) > 0 {
			n := slices.IndexFunc(rows, func(r pendingRow) bool { return r.segment != rows[0].segment })
			if n < 0 {
				n = len(rows)
			}
			if out, err = complete(ctx, ask, rows[:n], out); err != nil {
				return err
			}
			rows = rows[n:]
		}
		return nil
	})
	return out, err
}

// onServer is [database.DB.Postgres] on the given server and no other.
func (s *store) onServer(ctx context.Context, server string, fn func(*pgx.Conn) error) error {
	return schema.OnServer(ctx, s.db, server, func(conn *pgx.Conn, found string) error {
		if found != server {
			return errOtherServer
		}
		return fn(conn)
	})
}

// pendingRows reads the rows that [store.pendingOf] asks for.
func pendingRows(
	ctx context.Context, ask asker, shards []int, watermarks []int64, limit, bytes int,
) ([]pendingRow, error) {
	rows := make([]pendingRow, 0, 1024)
	err := ask(ctx, func(v [][]byte) error {
		begin := len(rows)
		shard, ids, segments, replays := int(number(v[0])), array{v[1], 8}, array{v[2], 2}, array{v[3], 1}
		sizes, places := array{v[4], 4}, array{v[5], 6}
		n := ids.len()
		if segments.len() != n || replays.len() != n || sizes.len() != n || places.len() != n {
			return errors.New("the arrays of an answer differ in length")
		}
		for i := range n {
			place := places.at(i)
			rows = append(rows, pendingRow{
				shard: shard, id: number(ids.at(i)), segment: int(number(segments.at(i))),
				replay: number(replays.at(i)) != 0, bytes: int(number(sizes.at(i))),
				at: pgtype.TID{BlockNumber: uint32(number(place[:4])), OffsetNumber: uint16(number(place[4:])),
					Valid: true},
			})
		}
		slices.SortFunc(rows[begin:], func(a, b pendingRow) int { return cmp.Compare(a.id, b.id) })
		for i, size := begin, 0; i < len(rows); i++ {
			if size >= bytes {
				rows = rows[:i]
			} else {
				size += rows[i].bytes
			}
		}
		return nil
	}, fetchPostgres, shards, watermarks, limit)
	return rows, err
}

// complete appends the records of pending rows of one segment. The rows are sorted by id.
func complete(
	ctx context.Context, ask asker, rows []pendingRow, out []Record,
) ([]Record, error) {
	ids := make([]int64, len(rows))
	for i := range rows {
		ids[i] = rows[i].id
	}
	var text []byte // of one record: one allocation instead of six
	var last Record
	err := ask(ctx, func(v [][]byte) error {
		if len(rows) == 0 {
			return errors.New("more events than pending rows")
		}
		p := rows[0]
		rows = rows[1:]
		if id := number(v[0]); id != p.id {
			return fmt.Errorf("the pending event %d has no event", p.id)
		}
		eventID, err := uuid.FromBytes(v[3])
		if err != nil {
			return err
		}
		text = append(text[:0], eventID.String()...)
		key := len(text)
		text = append(text, v[4]...)
		subject := len(text)
		text = append(text, v[5]...)
		when := len(text)
		text = append(text, v[6]...)
		trace := len(text)
		text = append(text, v[12]...)
		all := string(text)
		// Consecutive events mostly share these.
		if string(v[7]) != last.Type {
			last.Type = string(v[7])
		}
		if string(v[8]) != last.Source {
			last.Source = string(v[8])
		}
		if string(v[9]) != last.DataSchema {
			last.DataSchema = string(v[9])
		}
		out = append(out, Record{shard: p.shard, at: p.at, Record: outbox.Record{
			ID: p.id, Replay: p.replay, Seq: number(v[1]), CreatedMS: number(v[2]),
			EventID: all[:key], Key: all[key:subject], Subject: all[subject:when], Time: all[when:trace],
			TraceParent: all[trace:], Generation: number(v[11]),
			Type: last.Type, Source: last.Source, DataSchema: last.DataSchema, Data: slices.Clone(v[10]),
		}})
		return nil
	}, fmt.Sprintf(segmentPostgres, rows[0].segment), ids)
	return out, err
}

// publishedPostgres is [store.published].
func (s *store) publishedPostgres(ctx context.Context, server string, records []Record) error {
	return s.onServer(ctx, server, func(conn *pgx.Conn) error {
		for _, replay := range []bool{false, true} {
			var at []pgtype.TID
			var shards []int
			var ids []int64
			for i := range records {
				if r := &records[i]; r.Replay == replay {
					at, shards, ids = append(at, r.at), append(shards, r.shard), append(ids, r.ID)
				}
			}
			if len(ids) == 0 {
				continue
			}
			done, err := conn.Exec(ctx, ackPostgres, s.db.Prepared(), at, ids, replay)
			if err != nil {
				return err
			}
			if done.RowsAffected() == int64(len(ids)) {
				continue
			}
			if _, err := conn.Exec(ctx, ackMovedPostgres, s.db.Prepared(), shards, ids, replay); err != nil {
				return err
			}
		}
		return nil
	})
}

// asker asks a statement, and calls row with the binary values of each row, which are valid until it returns.
type asker func(ctx context.Context, row func([][]byte) error, text string, args ...any) error

func asking(conn *pgx.Conn, mode pgx.QueryExecMode) asker {
	return func(ctx context.Context, row func([][]byte) error, text string, args ...any) error {
		options := []any{mode, pgx.QueryResultFormats{pgx.BinaryFormatCode}}
		rows, err := conn.Query(ctx, text, append(options, args...)...)
		if err != nil {
			return err
		}
		return each(rows, row)
	}
}

// askingOn asks the given server and no other. A pooler may lead each message to another one: so the statement goes
// together with the question which one it is. Alone, that and a transaction took as long as the statement.
func askingOn(conn *pgx.Conn, server string) asker {
	return func(ctx context.Context, row func([][]byte) error, text string, args ...any) error {
		var both pgx.Batch
		both.Queue("SELECT " + schema.ThisPostgres)
		both.Queue(text, args...)
		answers := conn.SendBatch(ctx, &both)
		var found string
		err := answers.QueryRow().Scan(&found)
		if err == nil && found != server {
			err = errOtherServer
		}
		if err != nil {
			return cmp.Or(err, answers.Close())
		}
		rows, err := answers.Query()
		if err == nil {
			err = each(rows, row)
		}
		return cmp.Or(err, answers.Close())
	}
}

func each(rows pgx.Rows, row func([][]byte) error) error {
	defer rows.Close()
	for _, column := range rows.FieldDescriptions() {
		if column.Format != pgx.BinaryFormatCode && column.DataTypeOID != pgtype.TextOID {
			return fmt.Errorf("%s is not binary", column.Name)
		}
	}
	for rows.Next() {
		if err := row(rows.RawValues()); err != nil {
			return err
		}
	}
	return rows.Err()
}

// array is a binary array of one dimension whose elements all have the given width and none is null.
type array struct {
	binary []byte
	width  int
}

// The header has the dimensions, nulls, type, length and first index. Each element follows its width.
const arrayHeader = 20

func (a array) len() int { return max(0, len(a.binary)-arrayHeader) / (4 + a.width) }

func (a array) at(i int) []byte {
	begin := arrayHeader + i*(4+a.width) + 4
	return a.binary[begin : begin+a.width]
}

// number reads an integer or a boolean of any width. None of them is negative here.
func number(v []byte) (n int64) {
	for _, b := range v {
		n = n<<8 | int64(b)
	}
	return n
}
