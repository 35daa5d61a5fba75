package outbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
)

// Entry is an event as an operator sees it.
type Entry struct {
	Record
	Where string // pending, parked, published
}

// TailOptions say which events to show.
type TailOptions struct {
	Last   int    // start with so many of the newest; 0: with none
	From   int64  // or start with this id
	Key    string // only of this key
	Type   string // only of this type
	Follow bool   // go on with new events until ctx ends
	// Away is called while following, once when the database cannot be read any more. The next events are read
	// when it is back. Nil: Tail ends with the error.
	Away func(error)
}

// Tail calls fn with events, oldest first, each once. New events come in the order of their
// commits, as far as a reader can see it. It remembers only the ids of events that came after the
// oldest open transaction, however many events there are.
func Tail(ctx context.Context, db *database.DB, opt TailOptions, fn func(Entry) error) error {
	return tail(ctx, db, opt, &idSet{}, fn)
}

func tail(ctx context.Context, db *database.DB, opt TailOptions, shown *idSet, fn func(Entry) error) error {
	stable := schema.StableWatermark{DB: db}
	current, err := stable.Advance(ctx, "")
	if err != nil {
		return fmt.Errorf("follow the outbox: %w", err)
	}
	if !current { // relays may know a higher one
		err := db.QueryRowContext(ctx, `SELECT coalesce(min(low), 0) FROM outbox_shard`).Scan(&stable.ID)
		if err != nil {
			return fmt.Errorf("follow the outbox: %w", err)
		}
	}
	above := stable.ID
	switch {
	case opt.From > 0:
		above = opt.From - 1
	case opt.Last > 0:
		where, args := Selection{Key: opt.Key, Type: opt.Type}.where()
		err = db.QueryRowContext(ctx, `SELECT coalesce(min(id), 1) - 1 FROM
			(SELECT e.id FROM outbox_event e WHERE `+where+` ORDER BY e.id DESC LIMIT ?) l`, append(args, opt.Last)...).Scan(&above)
	case !current:
		above, err = schema.LastID(ctx, db)
	}
	var newest int64  // when the newest event was written that was shown, or might have been
	var server string // that these are of
	var seen sightings
	if err == nil && opt.Follow {
		err = seen.begin(ctx, db)
	}
	if err == nil {
		err = db.QueryRowContext(ctx, "SELECT "+schema.Now(db)+", "+schema.ThisServer(db)).Scan(&newest, &server)
	}
	if err != nil {
		return fmt.Errorf("find where to begin: %w", err)
	}
	began, away := false, false
	for {
		begun := time.Now()
		through := stable.ID // before the read: later ids can still appear in between, and are read again
		last := above
		for {
			list, from, err := entries(ctx, db, Selection{FromID: last + 1, Key: opt.Key, Type: opt.Type}, 500)
			if opt.Follow && ctx.Err() != nil {
				return nil
			}
			if err != nil && opt.Follow && began && opt.Away != nil && database.IsUnavailable(err) {
				if !away {
					opt.Away(err)
				}
				away, through = true, min(through, last) // what was read is not read again
				break
			}
			if err != nil {
				return err
			}
			began, away = true, false
			// A connection that is gone is replaced without an error, by one to whatever server there is now.
			if len(list) > 0 && opt.Follow && from != server {
				through = min(through, last)
				break
			}
			for _, e := range list {
				last = e.ID
				newest = max(newest, e.CreatedMS)
				seen.add(e.ID, e.EventID)
				if shown.has(e.ID) {
					continue
				}
				if e.ID > through && opt.Follow {
					shown.add(e.ID)
				}
				if err := fn(e); err != nil {
					return err
				}
			}
			if len(list) < 500 {
				break
			}
		}
		if !opt.Follow {
			return nil
		}
		above = max(above, through)
		shown.forget(above)
		// While a transaction stays open, everything after it is read again and again.
		for pause := max(100*time.Millisecond, time.Since(begun)); ; {
			if !retry.Sleep(ctx, pause) {
				return nil
			}
			_, err := stable.Advance(ctx, "")
			var now string // stable.Server may be from before the server's statistics were reset
			if err == nil {
				err = db.QueryRowContext(ctx, "SELECT "+schema.ThisServer(db)).Scan(&now)
			}
			if err == nil && now != server {
				var same int64
				if same, now, err = seen.on(ctx, db, newest); err == nil {
					above, server = max(opt.From-1, min(above, same)), now
					shown.forgetAbove(same)
					stable = schema.StableWatermark{DB: db}
				}
			}
			if err == nil {
				break
			}
			switch {
			case ctx.Err() != nil:
				return nil
			case opt.Away == nil || !database.IsUnavailable(err):
				return fmt.Errorf("follow the outbox: %w", err)
			case !away:
				opt.Away(err)
				away = true
			}
		}
	}
}

// sightings are the events that were read last. Another server may be a standby that had not received all events, and
// gives the ids of those that are lost to other events: these tell what it has.
type sightings struct {
	list  []sighting
	older bool // there may have been others before them
}

type sighting struct {
	id    int64
	event string
}

// mostSightings bounds them: a standby that lacks more events was behind for long.
const mostSightings = 1000

// begin takes the newest events that there are.
func (s *sightings) begin(ctx context.Context, db *database.DB) (err error) {
	s.list, _, err = readSightings(ctx, db, "true ORDER BY id DESC LIMIT ?", mostSightings)
	s.older = len(s.list) == mostSightings
	return err
}

func (s *sightings) add(id int64, event string) {
	s.list = append(s.list, sighting{id, event})
	if len(s.list) >= 2*mostSightings {
		s.list, s.older = slices.Clone(s.list[len(s.list)-mostSightings:]), true
	}
}

// on is the highest id of an event that another server has as well, and the server that says so. Where it has none of
// them, and had others, the time tells when the newest was written: its clock may be another one.
func (s *sightings) on(ctx context.Context, db *database.DB, newest int64) (id int64, server string, err error) {
	ids := make([]int64, len(s.list))
	for i, one := range s.list {
		ids[i] = one.id
	}
	there, server, err := readSightings(ctx, db, "id IN (?)", database.List(ids))
	for _, one := range there {
		if slices.Contains(s.list, one) {
			id = max(id, one.id)
		}
	}
	if err == nil && id == 0 {
		if !s.older {
			newest = 0 // all that it has are new
		}
		err = db.QueryRowContext(ctx, `SELECT coalesce(max(id), 0), `+schema.ThisServer(db)+` FROM outbox_event
			WHERE created_ms <= ?`, newest).Scan(&id, &server)
	}
	return id, server, err
}

func readSightings(
	ctx context.Context, db *database.DB, where string, arg any,
) (list []sighting, server string, err error) {
	list, err = database.Collect(ctx, db, "read events", func(row database.Row) (one sighting, err error) {
		err = row.Scan(&one.id, &one.event, &server)
		return one, err
	}, `SELECT id, event_id, (SELECT `+schema.ThisServer(db)+`) FROM outbox_event WHERE `+where, arg)
	return list, server, err
}

// idSet is a set of ids, most of which are consecutive. It takes about one bit for each.
type idSet struct{ bits map[int64]uint64 }

func (s *idSet) has(id int64) bool { return s.bits[id/64]>>(id%64)&1 != 0 }

func (s *idSet) add(id int64) {
	if s.bits == nil {
		s.bits = map[int64]uint64{}
	}
	s.bits[id/64] |= 1 << (id % 64)
}

// forget removes the ids up to one, except a few.
func (s *idSet) forget(through int64) {
	maps.DeleteFunc(s.bits, func(word int64, _ uint64) bool { return word < through/64 })
}

// forgetAbove removes the ids above one.
func (s *idSet) forgetAbove(id int64) {
	maps.DeleteFunc(s.bits, func(word int64, _ uint64) bool { return word > id/64 })
	if bits, has := s.bits[id/64]; has {
		s.bits[id/64] = bits & (2<<(id%64) - 1)
	}
}

// entries reads events. Where there are any, it tells the server that they are of.
func entries(ctx context.Context, db *database.DB, sel Selection, limit int) (list []Entry, server string, err error) {
	where, args := sel.where()
	list, err = database.Collect(ctx, db, "read events", func(row database.Row) (e Entry, err error) {
		err = row.Scan(append(e.fields(), &e.Where, &server)...)
		return e, err
	}, `SELECT e.id, coalesce(p.replay, false), `+recordColumns+`,
			CASE WHEN p.id IS NOT NULL THEN 'pending' WHEN d.id IS NOT NULL THEN 'parked' ELSE 'published' END,
			(SELECT `+schema.ThisServer(db)+`)
		FROM (SELECT e.* FROM outbox_event e WHERE `+where+` ORDER BY e.id LIMIT ?) e
		LEFT JOIN outbox_pending p ON p.id = e.id LEFT JOIN outbox_dead d ON d.id = e.id ORDER BY e.id`, append(args, limit)...)
	return list, server, err
}
