package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/modules/auth/internal/username"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
)

// ImportOptions say what is imported, and who hears of it.
type ImportOptions struct {
	From     string        // one of [ImportSources]
	Format   string        // FormatAuto, FormatNDJSON, FormatJSON or FormatCSV
	Firebase *FirebaseHash // for the source firebase
	// Refused is called for each record that was not taken, in their order. Its error ends
	// the import. Nil: they are counted alone.
	Refused func(Refusal) error
	// Progress is called after each portion. Nil: never.
	Progress func(ImportReport)
}

// ImportReport is what an import came to.
type ImportReport struct {
	Imported int64            `json:"imported"`
	Present  int64            `json:"already_there"`
	Refused  int64            `json:"refused"`
	Line     int64            `json:"last_line"` // up to which all is settled
	Schemes  map[string]int64 `json:"schemes"`   // how the passwords of those imported are hashed
	Weak     int64            `json:"weak"`      // of those, hashed in a way that hardly slows a thief
}

// importBatch is how many accounts share a transaction: enough that its commit hardly
// counts, few enough that servers beside it do not notice.
const importBatch = 500

// Import makes accounts of what another system, or [Service.Export], has written. It reads
// in bounded memory, however long the input is. Each account is written in one transaction
// with its event, as by [Service.CreateUser]; passwords are taken over as they are hashed,
// and hashed anew when their owners sign in.
//
// An account whose name is there already, under the same id where the record has one, is
// left as it is and counted as present. So an import that was broken off is run again with
// the same input, and an import that is run twice does nothing the second time.
//
// A record that cannot be taken is refused, with its reason, and the next one is read. When
// ctx ends, what was read is still written, and the error is that of ctx.
func (s *Service) Import(ctx context.Context, r io.Reader, opt ImportOptions) (ImportReport, error) {
	report := ImportReport{Schemes: map[string]int64{}}
	from, err := newSource(opt.From, opt.Firebase)
	if err != nil {
		return report, err
	}
	cut, columns, err := newCutter(r, opt.Format, from)
	if err != nil {
		return report, err
	}
	for _, name := range from.columns {
		if columns != nil && !slices.Contains(columns, name) {
			return report, fmt.Errorf("the heading of the CSV lacks the column %q", name)
		}
	}
	err = s.importAll(ctx, cut, columns, from, opt, &report)
	s.security.Info("users_imported", zap.String("from", opt.From), zap.Int64("imported", report.Imported),
		zap.Int64("already_there", report.Present), zap.Int64("refused", report.Refused), zap.String("by", byAdmin))
	return report, err
}

func (s *Service) importAll(ctx context.Context, cut cutter, columns []string, from source, opt ImportOptions, report *ImportReport) error {
	var batch []*newcomer
	number := int64(0)
	for {
		rec, err := cut.next()
		if err != nil && !errors.Is(err, io.EOF) {
			return errors.Join(err, s.settleBatch(ctx, batch, opt, report))
		}
		if err == nil {
			number++
			n := s.judge(from.read(columns, rec))
			n.line, n.number = rec.line, number
			batch = append(batch, n)
		}
		if err != nil || len(batch) == importBatch || ctx.Err() != nil {
			if err := s.settleBatch(ctx, batch, opt, report); err != nil {
				return err
			}
			batch = batch[:0]
		}
		if err != nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// newcomer is a record on its way to become an account.
type newcomer struct {
	account
	line, number int64
	keepID       bool // the record has the id
	scheme       password.Scheme
	imported     bool
	refused      *Refusal
}

// judge decides whether the record can become an account, as far as the record tells.
func (s *Service) judge(f foreign, err error) *newcomer {
	n := &newcomer{}
	if err == nil {
		err = s.becomeAccount(n, f)
	}
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		n.refused = refusal
	} else if err != nil {
		n.refused = refuse("malformed", "cannot be read")
	}
	return n
}

func (s *Service) becomeAccount(n *newcomer, f foreign) error {
	now := s.timestamp()
	canonical, err := username.Canonical(s.cfg.UsernameProfile, f.username)
	if f.username == "" {
		return refuse("no_username", "has no username")
	}
	if p, ok := errors.AsType[*username.Problem](err); ok {
		return refuse("username_"+p.Code, "the username "+p.Detail)
	}
	if f.hash == "" {
		return refuse("no_password", "has no password hash")
	}
	if f.hash, n.scheme, err = password.Import(f.hash); err != nil {
		return refuse("hash_refused", err.Error())
	}
	n.keepID = f.id != ""
	if n.ID, err = parseImportID(f.id); !n.keepID {
		n.ID, err = newID()
	}
	if err != nil {
		return err
	}
	if f.created.IsZero() {
		f.created = now
	}
	if f.changed.IsZero() {
		f.changed = f.created
	}
	for _, at := range []time.Time{f.created, f.changed} {
		if at.Before(time.Unix(0, 0)) || at.After(now.Add(24*time.Hour)) {
			return refuse("invalid_time", "a time is before 1970 or yet to come")
		}
	}
	n.Username, n.canonical, n.passwordHash = f.username, canonical, f.hash
	n.CreatedAt, n.PasswordChangedAt, n.UpdatedAt = f.created.Truncate(time.Microsecond), f.changed.Truncate(time.Microsecond), now
	n.Status = StatusActive
	if f.status == StatusDisabled || f.banned.After(now) {
		n.Status = StatusDisabled
	}
	// An account that comes back under the id of a deleted one must not bring back what was
	// issued to that: nothing was issued under an epoch as high as this.
	n.epoch = now.UnixMilli()
	return nil
}

func parseImportID(text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 || id == uuid.Nil {
		return uuid.Nil, refuse("invalid_id", "the id is not a UUID")
	}
	return id, nil
}

// settleBatch writes a portion and reports what became of each record. It finishes although ctx
// has ended: what has been read is worth the second that it takes.
func (s *Service) settleBatch(ctx context.Context, batch []*newcomer, opt ImportOptions, report *ImportReport) error {
	if len(batch) == 0 {
		return nil
	}
	var good []*newcomer
	for _, n := range batch {
		if n.refused == nil {
			good = append(good, n)
		}
	}
	if err := s.writeImport(ctx, good); err != nil {
		return fmt.Errorf("import lines %d to %d: %w", batch[0].line, batch[len(batch)-1].line, err)
	}
	for _, n := range batch {
		switch {
		case n.refused != nil:
			report.Refused++
			n.refused = &Refusal{Line: n.line, Record: n.number, Code: n.refused.Code, Detail: n.refused.Detail}
			if opt.Refused != nil {
				if err := opt.Refused(*n.refused); err != nil {
					return err
				}
			}
		case n.imported:
			report.Imported++
			report.Schemes[string(n.scheme)]++
			if n.scheme.Fast() {
				report.Weak++
			}
		default:
			report.Present++
		}
		report.Line = max(report.Line, n.line)
	}
	if opt.Progress != nil {
		opt.Progress(*report)
	}
	return nil
}

// writeImport writes the accounts with their events in one transaction. A database that is
// away for a moment does not end an import of an hour.
func (s *Service) writeImport(ctx context.Context, batch []*newcomer) error {
	if len(batch) == 0 {
		return nil
	}
	const attempts = 4
	for attempt := 1; ; attempt++ {
		work, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		err := s.transact(work, func(ctx context.Context, tx database.Tx) error { return s.insertImported(ctx, tx, batch) })
		cancel()
		if err == nil || attempt == attempts || !database.IsUnavailable(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(attempt) * time.Second):
		}
	}
}

// insertImported inserts those of the accounts that are not there and says of each what
// became of it. Whatever is being written beside it, an account is inserted once.
func (s *Service) insertImported(ctx context.Context, tx database.Tx, batch []*newcomer) error {
	inserted, err := insertAbsent(ctx, tx, batch)
	if err != nil {
		return err
	}
	var events []outbox.Event
	var others []*newcomer
	for _, n := range batch {
		n.imported, n.refused = inserted[n.ID] == n.canonical, nil
		if !n.imported {
			others = append(others, n)
			continue
		}
		delete(inserted, n.ID) // a second record of the same account finds it there
		made, err := s.importEvents(n)
		if err != nil {
			return err
		}
		events = append(events, made...)
	}
	if err := refuseConflicts(ctx, tx, others); err != nil {
		return err
	}
	return outbox.Add(ctx, tx, events...)
}

// importEvents are what the rest of the world hears of an imported account.
func (s *Service) importEvents(n *newcomer) ([]outbox.Event, error) {
	head := s.head(n.ID)
	registered, err := s.event(EventUserRegistered, head, userRegistered{eventHead: head, Username: n.Username})
	if err != nil || n.Status == StatusActive {
		return []outbox.Event{registered}, err
	}
	disabled, err := s.event(EventUserDisabled, head, userChanged{eventHead: head, By: byAdmin})
	return []outbox.Event{registered, disabled}, err
}

// insertAbsent inserts the accounts whose id and name are free, and returns the names of
// those by their ids.
func insertAbsent(ctx context.Context, tx database.IDB, batch []*newcomer) (map[uuid.UUID]string, error) {
	// In the order of their names: two imports beside each other do not wait in a circle.
	ordered := slices.SortedStableFunc(slices.Values(batch), func(a, b *newcomer) int { return strings.Compare(a.canonical, b.canonical) })
	args := make([]any, 0, len(batch)*9)
	for _, n := range ordered {
		args = append(args, n.ID, n.Username, n.canonical, n.passwordHash, n.Status, n.epoch, n.CreatedAt, n.UpdatedAt, n.PasswordChangedAt)
	}
	values := strings.Repeat(", (?, ?, ?, ?, ?, ?, ?, ?, ?)", len(batch))[2:]
	rows, err := tx.QueryContext(ctx, `INSERT INTO users (id, username, username_canonical, password_hash, status, session_epoch,
		created_at, updated_at, password_changed_at) VALUES `+values+` ON CONFLICT DO NOTHING RETURNING id, username_canonical`, args...)
	if err != nil {
		return nil, fmt.Errorf("insert users: %w", err)
	}
	defer rows.Close()
	inserted := make(map[uuid.UUID]string, len(batch))
	for rows.Next() {
		var id uuid.UUID
		var canonical string
		if err := rows.Scan(&id, &canonical); err != nil {
			return nil, fmt.Errorf("insert users: %w", err)
		}
		inserted[id] = canonical
	}
	return inserted, rows.Err()
}

// refuseConflicts looks at accounts whose id or name is there already, and refuses those for
// whom that is somebody else's.
func refuseConflicts(ctx context.Context, tx database.IDB, batch []*newcomer) error {
	if len(batch) == 0 {
		return nil
	}
	var ids []uuid.UUID
	var names []string
	for _, n := range batch {
		ids, names = append(ids, n.ID), append(names, n.canonical)
	}
	rows, err := tx.QueryContext(ctx, "SELECT id, username_canonical FROM users WHERE id IN (?) OR username_canonical IN (?)", database.List(ids), database.List(names))
	if err != nil {
		return fmt.Errorf("look for users: %w", err)
	}
	defer rows.Close()
	nameOf, idOf := make(map[uuid.UUID]string), make(map[string]uuid.UUID)
	for rows.Next() {
		var id uuid.UUID
		var canonical string
		if err := rows.Scan(&id, &canonical); err != nil {
			return fmt.Errorf("look for users: %w", err)
		}
		nameOf[id], idOf[canonical] = canonical, id
	}
	for _, n := range batch {
		owner, taken := idOf[n.canonical]
		_, used := nameOf[n.ID]
		switch {
		case taken && (!n.keepID || owner == n.ID): // there already
		case taken:
			n.refused = refuse("username_taken", "the username belongs to an account with another id")
		case used:
			n.refused = refuse("id_taken", "the id belongs to an account with another username")
		default:
			n.refused = refuse("conflict", "an account with this name was deleted at the same moment")
		}
	}
	return rows.Err()
}
