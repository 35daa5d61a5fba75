// Package redis keeps sessions in Redis.
//
// All keys of a user share a hash slot (the user id in braces) and each has a TTL:
//
//	authctl:session:{USER}:s:SESSION   hash    the record
//	authctl:session:{USER}:n:SESSION   string  the sealed newest token, for the grace window
//	authctl:session:{USER}:l:SESSION:N string  the link from token N, for its grace window
//	authctl:session:{USER}:o:SESSION   zset    when tokens without a link were replaced
//	authctl:session:{USER}:index       zset    live session ids by idle expiry
//	authctl:session:{USER}:reused      set     session ids stopped and not yet committed
//	authctl:session:memory             hash    since when the store is known to forget nothing
//	authctl:session:memory:{TAG}       hash    the same of a part of a cluster's slots
//	authctl:session:scanning:{TAG}     string  somebody searches the server of this slot for stopped sessions
//	authctl:session:scan:{TAG}         string  how far the search came
//
// What decides is done by a script, in one round trip, by the server's clock. Losing any of
// it signs people out and nothing else. Redis 5 or newer; the server must not evict.
//
// While a cluster moves a user's slot, a script that names a key which does not exist is told to try again: until
// the slot has moved, the store is unavailable to that user.
package redis

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	goredis "github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/retry"
)

var (
	//go:embed lib.lua
	libSource string
	//go:embed create.lua
	createSource string
	//go:embed rotate.lua
	rotateSource string
	//go:embed reissue.lua
	reissueSource string
	//go:embed memory.lua
	memorySource string
)

// markTTL is how long a stopped session waits for its revocation to be committed, which is
// retried until it succeeds: it must outlast any outage of the database.
const markTTL = 30 * 24 * time.Hour

const (
	// Keys that the server looks at in one step of a SCAN. With millions of them each is cold, and takes 3 µs
	// in which nobody else is served.
	scanCount = 100
	// The search for stopped sessions, at most in one call: steps without a pause, which find everything in a
	// small installation, the pause after each later one, and how long it goes on.
	scanAtOnce = 50
	scanPause  = 10 * time.Millisecond
	scanFor    = 45 * time.Second
	// A store that searches keeps the others from it for so long, if it does not end properly. The next one
	// goes on where it was, unless nobody has searched for a day.
	scanTurn   = scanFor + 15*time.Second
	scanMemory = 24 * time.Hour
)

// Options are for tests.
type Options struct {
	Prefix string               // of every key; "authctl:session:" when empty
	Skew   func() time.Duration // added to the server's clock; nil is zero
}

// Store is a [session.Store].
type Store struct {
	client cache.Client
	prefix string
	skew   func() time.Duration
	skewed bool // the clock of the store is not that of the servers

	create, rotate, reissue, memory *goredis.Script
}

// New returns a store that uses the client, which stays the caller's to close.
func New(client cache.Client, opt Options) *Store {
	s := &Store{
		client: client, prefix: cmp.Or(opt.Prefix, cache.Prefix+"session:"), skew: opt.Skew, skewed: opt.Skew != nil,
		create: goredis.NewScript(libSource + createSource), rotate: goredis.NewScript(libSource + rotateSource),
		reissue: goredis.NewScript(libSource + reissueSource), memory: goredis.NewScript(libSource + memorySource),
	}
	if s.skew == nil {
		s.skew = func() time.Duration { return 0 }
	}
	return s
}

func (s *Store) user(id uuid.UUID) string         { return s.prefix + "{" + id.String() + "}:" }
func (s *Store) record(u, id uuid.UUID) string    { return s.user(u) + "s:" + id.String() }
func (s *Store) successor(u, id uuid.UUID) string { return s.user(u) + "n:" + id.String() }
func (s *Store) links(u, id uuid.UUID) string     { return s.user(u) + "l:" + id.String() + ":" }
func (s *Store) lost(u, id uuid.UUID) string      { return s.user(u) + "o:" + id.String() }
func (s *Store) index(u uuid.UUID) string         { return s.user(u) + "index" }
func (s *Store) marks(u uuid.UUID) string         { return s.user(u) + "reused" }

func (s *Store) Create(ctx context.Context, start session.Start) (session.Started, error) {
	reply, err := s.create.Run(ctx, s.client,
		[]string{s.record(start.UserID, start.ID), s.index(start.UserID)},
		start.ID.String(), start.Hash[:], start.Epoch, start.DeviceName, start.UserAgent, start.IP,
		start.MaxAge.Milliseconds(), start.IdleTTL.Milliseconds(), start.Max, start.RejectNew,
		s.user(start.UserID)+"s:", s.skew().Milliseconds()).Slice()
	if err != nil {
		return session.Started{}, fail("create session", err)
	}
	if reply[0] == "full" {
		return session.Started{}, session.ErrTooMany
	}
	one, err := decode(start.UserID, start.ID, reply[1])
	if err != nil {
		return session.Started{}, fail("create session", err)
	}
	excess, err := parseExcess(reply[2:])
	return session.Started{Session: one, Excess: excess}, fail("create session", err)
}

func (s *Store) Rotate(ctx context.Context, r session.Rotation) (session.RotateResult, error) {
	user, sid := s.user(r.UserID), r.SessionID.String()
	reply, err := s.rotate.Run(ctx, s.client,
		[]string{user + "s:" + sid, user + "index", user + "n:" + sid, user + "reused", user + "o:" + sid},
		sid, r.Generation, r.PresentedHash[:], r.NextHash[:], r.SealedNext,
		r.Grace.Milliseconds(), r.IdleTTL.Milliseconds(), r.UserAgent, r.IP,
		markTTL.Milliseconds(), s.skew().Milliseconds(), user+"l:"+sid+":", session.MaxLinks).Slice()
	if err != nil {
		return session.RotateResult{}, fail("rotate session", err)
	}
	if reply[0] == "gone" {
		return session.RotateResult{Outcome: session.Gone}, nil
	}
	one, err := decode(r.UserID, r.SessionID, reply[1])
	if err != nil {
		return session.RotateResult{}, fail("rotate session", err)
	}
	switch reply[0] {
	case "rotated":
		return session.RotateResult{Outcome: session.Rotated, Session: one}, nil
	case "superseded":
		return session.RotateResult{Outcome: session.Superseded, Session: one}, nil
	case "replayed":
		links := make([][]byte, len(reply)-2)
		for i, link := range reply[2:] {
			sealed, _ := link.(string)
			links[i] = []byte(sealed)
		}
		return session.RotateResult{Outcome: session.Replayed, Session: one, Links: links}, nil
	}
	return session.RotateResult{Outcome: session.Reused, Session: one}, nil
}

func (s *Store) Reissue(ctx context.Context, r session.Reissue) (session.Session, error) {
	reply, err := s.reissue.Run(ctx, s.client,
		[]string{s.record(r.UserID, r.SessionID), s.successor(r.UserID, r.SessionID), s.lost(r.UserID, r.SessionID)},
		r.Generation, r.Hash[:], r.Grace.Milliseconds(), r.IdleTTL.Milliseconds(), r.Reauthenticated,
		s.skew().Milliseconds(), r.Sealed, s.links(r.UserID, r.SessionID), session.MaxLinks).Slice()
	if err != nil {
		return session.Session{}, fail("reissue session", err)
	}
	switch reply[0] {
	case "gone":
		return session.Session{}, session.ErrNotFound
	case "conflict":
		return session.Session{}, session.ErrConflict
	}
	one, err := decode(r.UserID, r.SessionID, reply[1])
	return one, fail("reissue session", err)
}

func (s *Store) Get(ctx context.Context, userID, id uuid.UUID) (session.Session, error) {
	live, err := s.live(ctx, []session.Ref{{UserID: userID, ID: id}})
	if err != nil {
		return session.Session{}, fail("read session", err)
	}
	if len(live) == 0 {
		return session.Session{}, session.ErrNotFound
	}
	return live[0], nil
}

func (s *Store) List(ctx context.Context, userID uuid.UUID) ([]session.Session, error) {
	refs, err := s.members(ctx, userID)
	if err != nil {
		return nil, fail("list sessions", err)
	}
	live, err := s.live(ctx, refs)
	slices.SortFunc(live, session.NewestUse)
	return live, fail("list sessions", err)
}

// Delete implements [session.Store]. The links of a session open nothing without it, and expire.
func (s *Store) Delete(ctx context.Context, userID uuid.UUID, ids ...uuid.UUID) error {
	if len(ids) == 0 {
		return nil
	}
	keys, members := make([]string, 0, 3*len(ids)), make([]any, 0, len(ids))
	for _, id := range ids {
		keys = append(keys, s.record(userID, id), s.successor(userID, id), s.lost(userID, id))
		members = append(members, id.String())
	}
	_, err := s.client.TxPipelined(ctx, func(tx goredis.Pipeliner) error {
		tx.Del(ctx, keys...)
		tx.ZRem(ctx, s.index(userID), members...)
		tx.SRem(ctx, s.marks(userID), members...)
		return nil
	})
	return fail("delete sessions", err)
}

func (s *Store) DeleteAll(ctx context.Context, userID uuid.UUID, epoch int64, keep uuid.NullUUID) error {
	live, err := s.List(ctx, userID)
	if err != nil {
		return err
	}
	var ids []uuid.UUID
	for _, one := range live {
		// A session's epoch never changes: nothing can come between looking and deleting.
		if one.Epoch < epoch && !(keep.Valid && one.ID == keep.UUID) {
			ids = append(ids, one.ID)
		}
	}
	return s.Delete(ctx, userID, ids...)
}

// Reused implements [session.Store]. Nothing here knows which users have marks, since one key
// for all of them could not be in the slot of each: the keys are scanned. On each server one store
// at a time does it, in a small part of the server's time, and leaves there how far it came. It
// serves sessions whose server died before it committed, and no others.
func (s *Store) Reused(ctx context.Context, limit int) ([]session.Marked, error) {
	servers, err := cache.Servers(ctx, s.client)
	if err != nil {
		return nil, fail("look for stopped sessions", err)
	}
	var marked []session.Marked
	for _, server := range servers {
		some, away := s.reusedOn(ctx, server, limit-len(marked), scanFor/time.Duration(len(servers)))
		marked, err = append(marked, some...), cmp.Or(err, away)
		if len(marked) >= limit {
			break
		}
	}
	if err != nil && len(marked) == 0 {
		return nil, fail("look for stopped sessions", err)
	}
	return marked[:min(len(marked), limit)], nil // the rest is found when the scan comes round again
}

// reusedOn looks at a part of one server's keys, unless another store does.
func (s *Store) reusedOn(
	ctx context.Context, server cache.Server, limit int, most time.Duration,
) (marked []session.Marked, err error) {
	var cursor uint64
	if tag := server.Tag(); tag != "" { // else nobody can know how far others came
		turn, place := s.prefix+"scanning:"+tag, s.prefix+"scan:"+tag
		mine, err := server.Client.SetNX(ctx, turn, 1, scanTurn).Result()
		if err != nil || !mine {
			return nil, err
		}
		if cursor, err = server.Client.Get(ctx, place).Uint64(); err != nil && !errors.Is(err, goredis.Nil) {
			return nil, err
		}
		defer func() { // also when ctx has ended, or the server does not answer: then turn and place expire
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if cursor == 0 {
				_ = server.Client.Del(ctx, place).Err()
			} else {
				_ = server.Client.Set(ctx, place, cursor, scanMemory).Err()
			}
			_ = server.Client.Del(ctx, turn).Err()
		}()
	}
	end := time.Now().Add(most)
	for step := 0; time.Now().Before(end); step++ {
		found, next, err := server.Client.Scan(ctx, cursor, s.prefix+"{*}:reused", scanCount).Result()
		if err != nil {
			return marked, err
		}
		for _, name := range found {
			some, err := s.markedBy(ctx, name)
			if err != nil {
				return marked, err
			}
			marked = append(marked, some...)
		}
		if cursor = next; next == 0 || len(marked) >= limit {
			break
		}
		if step >= scanAtOnce && !retry.Sleep(ctx, scanPause) {
			return marked, ctx.Err()
		}
	}
	return marked, nil
}

func (s *Store) markedBy(ctx context.Context, marks string) ([]session.Marked, error) {
	of, ok := s.parseKey(marks)
	if !ok {
		return nil, nil
	}
	members, err := s.client.SMembers(ctx, marks).Result()
	if err != nil {
		return nil, err
	}
	var marked []session.Marked
	for _, member := range members {
		id, err := uuid.Parse(member)
		if err != nil {
			return nil, fmt.Errorf("%w: a session id is not one", errCorrupt)
		}
		wanted := append(slices.Clone(recordFields), "stopped", "sgen", "sagent", "sip")
		fields, err := s.client.HMGet(ctx, s.record(of.UserID, id), wanted...).Result()
		if err != nil {
			return nil, err
		}
		if fields[sessionFields] == nil { // deleted in the meantime
			continue
		}
		var d decoder
		m := session.Marked{Session: d.session(of.UserID, id, fields), StoppedAt: d.time(fields[sessionFields]),
			Generation: uint32(d.int(fields[sessionFields+1])), UserAgent: d.text(fields[sessionFields+2]),
			IP: d.text(fields[sessionFields+3])}
		if d.err != nil {
			return nil, d.err
		}
		marked = append(marked, m)
	}
	return marked, nil
}

// Purge implements [session.Store]. Redis expires keys by itself, and Create drops expired
// ids from the index, which has a TTL as well.
func (s *Store) Purge(context.Context, int) (int64, error) { return 0, nil }

// Forget implements [session.Store]. Redis drops each key when its window is over.
func (s *Store) Forget(context.Context, int) (int64, error) { return 0, nil }

func (s *Store) Missing(ctx context.Context, refs []session.Ref) ([]session.Ref, error) {
	live, err := s.live(ctx, refs)
	if err != nil {
		return nil, fail("look for sessions", err)
	}
	there := make(map[session.Ref]bool, len(live))
	for _, one := range live {
		there[session.Ref{UserID: one.UserID, ID: one.ID}] = true
	}
	return slices.DeleteFunc(slices.Clone(refs), func(ref session.Ref) bool { return there[ref] }), nil
}

// A store that nobody has looked at for memoryGap may have been put back to an older copy
// meanwhile. That it was empty is remembered for as long as any access token of before can live.
const (
	memoryGap  = 3 * time.Minute
	memoryTTL  = 60 * 24 * time.Hour
	memoryLong = 25 * time.Hour
)

// Memory implements [session.Store]. In a cluster each node can lose its data alone: the store remembers as
// little as any part of it does.
func (s *Store) Memory(ctx context.Context) (session.Memory, error) {
	names := []string{s.prefix + "memory"}
	if cache.IsCluster(s.client) {
		names = nil
		for _, tag := range cache.Tags() {
			names = append(names, s.prefix+"memory:"+tag)
		}
	}
	parts := make([]session.Memory, len(names))
	var all session.Memory
	for i, name := range names {
		var err error
		if parts[i], err = s.remembers(ctx, name); err != nil {
			return session.Memory{}, fail("ask the session store what it remembers", err)
		}
		if parts[i].Since.After(all.Since) {
			all.Since = parts[i].Since
		}
	}
	for _, part := range parts {
		if part.Emptied && all.Since.Sub(part.Since) <= memoryLong {
			all.Emptied = true
		}
	}
	return all, nil
}

func (s *Store) remembers(ctx context.Context, name string) (session.Memory, error) {
	reply, err := s.memory.Run(ctx, s.client, []string{name}, s.skew().Milliseconds(),
		memoryGap.Milliseconds(), memoryLong.Milliseconds(), memoryTTL.Milliseconds()).Slice()
	if err != nil {
		return session.Memory{}, err
	}
	var d decoder
	return session.Memory{Since: d.time(reply[0]), Emptied: d.text(reply[1]) == "1"}, d.err
}

func (s *Store) Count(ctx context.Context) (n int, err error) {
	err = s.scan(ctx, "{*}:s:*", func(names []string) error {
		n += len(names)
		return nil
	})
	return n, fail("count sessions", err)
}

// Clear implements [session.Store]. What the store remembers goes as well: it was emptied.
func (s *Store) Clear(ctx context.Context, progress func(gone int)) error {
	gone := 0
	err := s.scan(ctx, "*", func(names []string) error {
		_, err := s.client.Pipelined(ctx, func(p goredis.Pipeliner) error {
			for _, name := range names {
				p.Del(ctx, name) // one by one: they are in many slots
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.Contains(name, "}:s:") {
				gone++
			}
		}
		progress(gone)
		return nil
	})
	return fail("clear sessions", err)
}

// scan passes the names of the keys that match, after the prefix, some hundred at a time. It passes
// every key that is there all the while, and may pass one twice. It ends with an error if servers or slots
// change meanwhile, since a key may then be on none of them when it is looked for.
func (s *Store) scan(ctx context.Context, pattern string, do func(names []string) error) error {
	before, err := cache.Layout(ctx, s.client)
	if err != nil {
		return err
	}
	servers, err := cache.Servers(ctx, s.client)
	if err != nil {
		return err
	}
	for _, server := range servers {
		for cursor := uint64(0); ; {
			names, next, err := server.Client.Scan(ctx, cursor, s.prefix+pattern, scanCount).Result()
			if err != nil {
				return err
			}
			if err := do(names); err != nil {
				return err
			}
			if cursor = next; next == 0 {
				break
			}
		}
	}
	after, err := cache.Layout(ctx, s.client)
	if err == nil && after != before {
		err = cache.ErrMoved
	}
	return err
}

// Walk implements [session.Store]. It ends with an error if servers or slots change meanwhile.
func (s *Store) Walk(ctx context.Context, f session.Filter) iter.Seq2[session.Session, error] {
	pattern := "{*}:s:*"
	if f.ID.Valid {
		pattern = "{*}:s:" + f.ID.UUID.String()
	}
	return func(yield func(session.Session, error) bool) {
		enough := errors.New("enough")
		err := s.scan(ctx, pattern, func(names []string) error {
			refs := make([]session.Ref, 0, len(names))
			for _, name := range names {
				if ref, ok := s.parseKey(name); ok {
					refs = append(refs, ref)
				}
			}
			live, err := s.live(ctx, refs)
			if err != nil {
				return err
			}
			for _, one := range live {
				if f.Match(one) && !yield(one, nil) {
					return enough
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, enough) {
			yield(session.Session{}, fail("walk sessions", err))
		}
	}
}

// parseKey reads the user and, of a record's key, the session.
func (s *Store) parseKey(name string) (ref session.Ref, ok bool) {
	user, rest, _ := strings.Cut(strings.TrimPrefix(name, s.prefix+"{"), "}:")
	var err error
	if ref.UserID, err = uuid.Parse(user); err != nil {
		return ref, false
	}
	if sid, isRecord := strings.CutPrefix(rest, "s:"); isRecord {
		ref.ID, err = uuid.Parse(sid)
	}
	return ref, err == nil
}

// members returns the sessions in a user's index, some of which may have expired.
func (s *Store) members(ctx context.Context, userID uuid.UUID) ([]session.Ref, error) {
	names, err := s.client.ZRange(ctx, s.index(userID), 0, -1).Result()
	if err != nil {
		return nil, err
	}
	refs := make([]session.Ref, len(names))
	for i, name := range names {
		refs[i].UserID = userID
		if refs[i].ID, err = uuid.Parse(name); err != nil {
			return nil, fmt.Errorf("%w: a session id is not one", errCorrupt)
		}
	}
	return refs, nil
}

// live reads sessions in one round trip and leaves out what is expired or stopped.
func (s *Store) live(ctx context.Context, refs []session.Ref) ([]session.Session, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	var clock *goredis.TimeCmd
	records := make([]*goredis.SliceCmd, len(refs))
	// In a cluster TIME would be that of any node. There the records' own expiry decides, which is at the same
	// time by the clock of the node that has them.
	timed := s.skewed || !cache.IsCluster(s.client)
	_, err := s.client.Pipelined(ctx, func(p goredis.Pipeliner) error {
		if timed {
			clock = p.Time(ctx)
		}
		for i, ref := range refs {
			records[i] = p.HMGet(ctx, s.record(ref.UserID, ref.ID), append(slices.Clone(recordFields), "stopped")...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var now time.Time
	if timed {
		now = clock.Val().Add(s.skew())
	}
	var live []session.Session
	for i, ref := range refs {
		fields := records[i].Val()
		if fields[0] == nil || fields[sessionFields] != nil {
			continue
		}
		one, err := decode(ref.UserID, ref.ID, fields)
		if err != nil {
			return nil, err
		}
		if now.Before(one.IdleExpiresAt) {
			live = append(live, one)
		}
	}
	return live, nil
}

// recordFields is a session in the order of read() in lib.lua.
var recordFields = []string{"gen", "hash", "epoch", "device", "agent", "ip", "auth", "created", "used", "expires",
	"idle", "recorded"}

const sessionFields = 12

func decode(userID, id uuid.UUID, reply any) (session.Session, error) {
	var d decoder
	fields, _ := reply.([]any)
	if len(fields) < sessionFields {
		return session.Session{}, fmt.Errorf("%w: fields are missing", errCorrupt)
	}
	one := d.session(userID, id, fields)
	return one, d.err
}

// decoder keeps the first error, so that a record reads as one expression.
type decoder struct{ err error }

func (d *decoder) session(userID, id uuid.UUID, f []any) session.Session {
	return session.Session{
		ID: id, UserID: userID,
		Generation: uint32(d.int(f[0])), Hash: d.hash(f[1]), Epoch: d.int(f[2]),
		DeviceName: d.text(f[3]), UserAgent: d.text(f[4]), IP: d.text(f[5]),
		AuthTime: d.time(f[6]), CreatedAt: d.time(f[7]), LastUsedAt: d.time(f[8]), ExpiresAt: d.time(f[9]),
		IdleExpiresAt: d.time(f[10]), Recorded: f[11] != nil,
	}
}

func (d *decoder) text(v any) string {
	text, ok := v.(string)
	if !ok && d.err == nil {
		d.err = fmt.Errorf("%w: a field is missing", errCorrupt)
	}
	return text
}

func (d *decoder) int(v any) int64 {
	if n, ok := v.(int64); ok { // computed by a script
		return n
	}
	n, err := strconv.ParseInt(d.text(v), 10, 64)
	if err != nil && d.err == nil {
		d.err = fmt.Errorf("%w: a number is not one", errCorrupt)
	}
	return n
}

func (d *decoder) time(v any) time.Time { return time.UnixMilli(d.int(v)).UTC() }

func (d *decoder) hash(v any) (h session.Hash) {
	if copy(h[:], d.text(v)) != len(h) && d.err == nil {
		d.err = fmt.Errorf("%w: a hash has a wrong length", errCorrupt)
	}
	return h
}

// parseExcess reads session ids, with a question mark after those that are tentative.
func parseExcess(values []any) ([]session.Excess, error) {
	var excess []session.Excess
	for _, v := range values {
		text, _ := v.(string)
		text, tentative := strings.CutSuffix(text, "?")
		id, err := uuid.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%w: a session id is not one", errCorrupt)
		}
		excess = append(excess, session.Excess{ID: id, Tentative: tentative})
	}
	return excess, nil
}

// errCorrupt says that something else wrote to our keys. Trying again will not help.
var errCorrupt = errors.New("the session keys in Redis are damaged")

// fail says what failed, if anything did.
func fail(what string, err error) error {
	if err == nil {
		return nil
	}
	if cache.IsUnavailable(err) && !errors.Is(err, errCorrupt) {
		return fmt.Errorf("%s: %w: %w", what, session.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
