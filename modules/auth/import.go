package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/modules/auth/internal/userfile"
	"github.com/toppira/authctl/modules/auth/internal/username"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/retry"
)

// FirebaseHash is what Firebase says once for all users of a project: SignerKey (a secret) and SaltSeparator in
// base64, Rounds and MemCost.
type FirebaseHash = userfile.FirebaseHash

// Refusal is why one record of an import was not taken. It holds nothing of the record.
type Refusal struct {
	Line   int64 `json:"line"`   // where the record begins, from 1
	Record int64 `json:"record"` // which one it is, from 1, the heading not counted
	fault.Refusal
}

// Forms of an import. Auto looks at how the input begins.
const (
	FormatAuto   = userfile.FormatAuto
	FormatNDJSON = userfile.FormatNDJSON
	FormatJSON   = userfile.FormatJSON
	FormatCSV    = userfile.FormatCSV
)

// ImportSources are the systems whose exports are read, the first one our own.
func ImportSources() []string { return userfile.Sources() }

// ParseFirebaseHash reads the hash parameters as the Firebase console shows them.
func ParseFirebaseHash(text string) (*FirebaseHash, error) { return userfile.ParseFirebaseHash(text) }

// What an import does with a username that is an address which its source has not confirmed.
const (
	UnconfirmedTake    = "take"    // imports it like the others
	UnconfirmedDisable = "disable" // imports and disables it
	UnconfirmedSkip    = "skip"    // refuses it
)

// ImportOptions say what is imported, and how it is reported.
type ImportOptions struct {
	From        string        // one of [ImportSources]
	Format      string        // FormatAuto, FormatNDJSON, FormatJSON or FormatCSV
	Firebase    *FirebaseHash // for the source firebase
	Unconfirmed string        // UnconfirmedTake when empty
	// DryRun reports what an import would do and writes nothing.
	DryRun bool
	// Refused is called for each record that was refused, in order. Its error ends the import. Nil:
	// they are only counted.
	Refused func(Refusal) error
	// Progress is called after each batch. Nil: never.
	Progress func(ImportReport)
}

// ImportReport is the result of an import.
type ImportReport struct {
	Imported int64            `json:"imported"`
	Present  int64            `json:"already_there"`
	Refused  int64            `json:"refused"`
	Other    int64            `json:"not_accounts"` // records of something else, passed over
	Line     int64            `json:"last_line"`    // up to which all is committed
	Schemes  map[string]int64 `json:"schemes"`      // how the passwords of those imported are hashed
	Weak     int64            `json:"weak"`         // of those, hashed too cheaply to slow a thief
	Assumed  int64            `json:"assumed"`      // of those, taken for what default settings write: see [password.Assumed]
	Disabled int64            `json:"disabled"`     // of those imported
	// Lost counts, by kind, what was not imported: second factors, required actions, addresses that cannot
	// be contacts. An unconfirmed address as a name counts as well.
	Lost map[string]int64 `json:"not_carried_over"`
	// Differs counts, by kind, in what those present differ from their accounts, which stay as they are: the
	// source has changed them since they were imported.
	Differs map[string]int64 `json:"left_as_is"`
	// Unread names members or columns that our own form does not have.
	Unread []string `json:"not_read"`
	// Hint says what the input looks like when all of it was refused.
	Hint string `json:"hint,omitempty"`
}

// ErrOtherSource ends an import when its input comes from another system, which the error names.
var ErrOtherSource = errors.New("none of the first records can be imported")

// Import makes accounts from an export of another system or of [Service.Export], in bounded memory.
// Each account is written in one transaction with its event, as by [Service.CreateUser]. Passwords
// keep their hashes until their owners sign in.
//
// An account that exists already is left as it is and counted as present, so that an interrupted
// import can be run again with the same input. A record of another person with an existing name is
// refused; see [pendingUser.is].
//
// A record that cannot be imported is refused with its reason, and the next one is read. When ctx
// ends, what was read is still written, and the error is that of ctx.
func (s *Service) Import(ctx context.Context, r io.Reader, opt ImportOptions) (ImportReport, error) {
	report := ImportReport{Schemes: map[string]int64{}, Lost: map[string]int64{}, Differs: map[string]int64{},
		Unread: []string{}}
	in, err := userfile.Open(r, opt.From, opt.Format, opt.Firebase)
	if err != nil {
		return report, err
	}
	i := &importer{service: s, opt: opt, report: &report}
	if opt.DryRun {
		if i.rehearsal, err = openRehearsal(ctx); err != nil {
			return report, err
		}
	}
	i.pace = newPace(s.db, s.now)
	err = i.all(ctx, in)
	report.Unread = append(report.Unread, in.Unread()...)
	if i.rehearsal != nil {
		return report, errors.Join(err, i.rehearsal.close())
	}
	s.security.Info("users_imported", zap.String("from", opt.From), zap.Int64("imported", report.Imported),
		zap.Int64("already_there", report.Present), zap.Int64("refused", report.Refused), zap.String("by", byAdmin))
	return report, err
}

// CheckImport looks for the account of that name in the input of an import, and verifies the
// password against its hash: nothing else shows whether the parameters of the hashes are right. It
// writes nothing. The error says what is wrong.
func (s *Service) CheckImport(ctx context.Context, r io.Reader, opt ImportOptions, name, password string) error {
	in, err := userfile.Open(r, opt.From, opt.Format, opt.Firebase)
	if err != nil {
		return err
	}
	canonical, err := username.Canonical(s.cfg.UsernameProfile, name)
	if err != nil {
		return fmt.Errorf("the username %q: %w", name, err)
	}
	i := &importer{service: s, opt: opt}
	const mostFound = 10 // of one canonical name: each costs a hash
	for found := 0; ; {
		rec, err := in.Next()
		switch {
		case errors.Is(err, io.EOF) && found == 0:
			err := fmt.Errorf("the input has no account %q", name)
			if hint := in.Hint(); hint != "" {
				err = fmt.Errorf("%w\n%s", err, hint)
			}
			return err
		case errors.Is(err, io.EOF), err == nil && found == mostFound:
			return fmt.Errorf("the password is not that of %q: check how it is typed, and that the source and "+
				"its hash parameters are right", name)
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
		theirs, err := username.Canonical(s.cfg.UsernameProfile, rec.Username)
		if rec.Refused == nil && err == nil && rec.Hash != "" {
			in.Accept()
		}
		if rec.Refused != nil || err != nil || theirs != canonical {
			continue
		}
		n := i.check(rec)
		if n.refused != nil {
			return fmt.Errorf("line %d: %w", rec.Line, n.refused)
		}
		found++
		result, err := s.passwords.Verify(ctx, canonical, password,
			func() (string, bool, error) { return n.passwordHash, true, nil })
		if err != nil {
			return fmt.Errorf("line %d: verify the password: %w", rec.Line, err)
		}
		if result.OK {
			return nil
		}
	}
}

type importer struct {
	service   *Service
	opt       ImportOptions
	report    *ImportReport
	rehearsal *rehearsal // not nil: nothing is written
	pace      *pace
}

func (i *importer) all(ctx context.Context, in *userfile.Reader) error {
	var batch []*pendingUser
	for {
		rec, err := in.Next()
		if err != nil && !errors.Is(err, io.EOF) {
			return errors.Join(err, i.commit(ctx, batch))
		}
		if err == nil {
			n := i.check(rec)
			batch = append(batch, n)
			if n.refused == nil && !n.other {
				in.Accept()
			}
		}
		ended := err != nil
		wrong := ""
		if ended || rec.Number == userfile.HintAfter {
			wrong = in.Hint()
		}
		if ended || wrong != "" || len(batch) >= i.pace.size || ctx.Err() != nil {
			if err := i.commit(ctx, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
		switch {
		case ended:
			if i.report.Imported+i.report.Present == 0 {
				i.report.Hint = wrong
			}
			return nil
		case wrong != "":
			return fmt.Errorf("%w. %s", ErrOtherSource, wrong)
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// check decides whether the record can become an account, without asking the database.
func (i *importer) check(rec userfile.Record) *pendingUser {
	n := &pendingUser{line: rec.Line, number: rec.Number, other: rec.Other, lost: lostKinds(rec.Lost),
		refused: rec.Refused}
	if n.refused == nil && !n.other {
		n.refused = i.becomeAccount(n, rec)
	}
	return n
}

// lostKinds returns the kinds in order, each once. Their names come from the input.
func lostKinds(list []string) []string {
	kinds := make([]string, 0, len(list))
	for _, kind := range list {
		if len(kind) > 64 ||
			strings.ContainsFunc(kind, func(r rune) bool { return !strings.ContainsRune(kindLetters, r) }) {
			kind = "something_else"
		}
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

const kindLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:"

func (i *importer) becomeAccount(n *pendingUser, rec userfile.Record) *fault.Refusal {
	s := i.service
	now := s.timestamp()
	if rec.Username == "" {
		return fault.Refuse("no_username", "has no username")
	}
	if strings.ContainsRune(rec.Hash+rec.Address+rec.SourceID, 0) { // PostgreSQL keeps none
		return fault.Refuse("malformed", "has a NUL in its hash, its address or its id")
	}
	canonical, err := username.Canonical(s.cfg.UsernameProfile, rec.Username)
	if r, ok := errors.AsType[*fault.Refusal](err); ok {
		return fault.Refuse("username_"+r.Code, "the username "+r.Detail)
	}
	if rec.Hash == "" {
		return fault.Refuse("no_password", "has no password hash")
	}
	if n.passwordHash, n.scheme, err = password.Import(rec.Hash); err != nil {
		return fault.Refuse("hash_refused", err.Error())
	}
	n.assumed = password.Assumed(rec.Hash)
	n.ID, n.keepID = rec.ID, rec.ID != uuid.Nil
	if !n.keepID {
		n.ID = newID()
	}
	n.numbered = rec.Numbered
	sum := sha256.Sum256([]byte(n.passwordHash))
	n.origin = origin{
		source: i.opt.From, sourceID: rec.SourceID, hash: sum[:], created: rec.Created.Truncate(time.Microsecond),
		address: rec.Address, confirmed: rec.Confirmed,
	}
	n.addresses = rec.Addresses
	if rec.Created.IsZero() {
		rec.Created = now
	}
	if rec.Changed.IsZero() {
		rec.Changed = rec.Created
	}
	for _, at := range []time.Time{rec.Created, rec.Changed} {
		if at.Before(time.Unix(0, 0)) || at.After(now.Add(24*time.Hour)) {
			return fault.Refuse("invalid_time", "a time is before 1970 or in the future")
		}
	}
	n.Username, n.canonical = rec.Username, canonical
	n.CreatedAt, n.PasswordChangedAt, n.UpdatedAt = rec.Created.Truncate(time.Microsecond),
		rec.Changed.Truncate(time.Microsecond), now
	n.Status = StatusActive
	if rec.Disabled || rec.Banned.After(now) {
		n.Status = StatusDisabled
	}
	// An account with the id of a deleted one must not revive its tokens: none was issued under an
	// epoch as high as this.
	n.epoch = now.UnixMilli()
	if s.hooks.NotImported != nil {
		n.lost = lostKinds(append(n.lost, s.hooks.NotImported(n.asImported())...))
	}
	return i.unconfirmed(n)
}

// unconfirmed applies the option Unconfirmed. The owner of the mailbox may not be the owner of the
// account.
func (i *importer) unconfirmed(n *pendingUser) *fault.Refusal {
	if n.origin.confirmed == nil || *n.origin.confirmed || !strings.EqualFold(n.origin.address, n.Username) {
		return nil
	}
	n.lost = lostKinds(append(n.lost, userfile.LostUnconfirmed))
	switch i.opt.Unconfirmed {
	case UnconfirmedSkip:
		return fault.Refuse(userfile.LostUnconfirmed, "the username is an address that its source has not confirmed")
	case UnconfirmedDisable:
		n.Status = StatusDisabled
	}
	return nil
}

// commit writes a batch and reports the result of each record. It finishes although ctx has ended.
func (i *importer) commit(ctx context.Context, batch []*pendingUser) error {
	if len(batch) == 0 {
		return nil
	}
	var good []*pendingUser
	for _, n := range batch {
		if n.refused == nil && !n.other {
			good = append(good, n)
		}
	}
	if err := i.write(ctx, good); err != nil {
		return fmt.Errorf("import lines %d to %d: %w", batch[0].line, batch[len(batch)-1].line, err)
	}
	for _, n := range batch {
		if err := i.count(n); err != nil {
			return err
		}
	}
	if i.opt.Progress != nil {
		i.opt.Progress(*i.report)
	}
	return nil
}

func (i *importer) count(n *pendingUser) error {
	report := i.report
	report.Line = max(report.Line, n.line)
	switch {
	case n.refused != nil:
		report.Refused++
		if i.opt.Refused != nil {
			return i.opt.Refused(Refusal{Line: n.line, Record: n.number, Refusal: *n.refused})
		}
		return nil
	case n.other:
		report.Other++
	case n.imported:
		report.Imported++
		report.Schemes[string(n.scheme)]++
		if n.scheme.Fast() {
			report.Weak++
		}
		if n.assumed {
			report.Assumed++
		}
		if n.Status == StatusDisabled {
			report.Disabled++
		}
	default:
		report.Present++
		for _, kind := range n.differs {
			report.Differs[kind]++
		}
		return nil
	}
	const mostKinds = 100
	for _, kind := range n.lost {
		if _, known := report.Lost[kind]; !known && len(report.Lost) >= mostKinds {
			kind = "something_else"
		}
		report.Lost[kind]++
	}
	return nil
}

// write writes the accounts with their events in one transaction. It tries again when the database is
// away: an import may take an hour.
func (i *importer) write(ctx context.Context, batch []*pendingUser) error {
	if len(batch) == 0 {
		return nil
	}
	if i.rehearsal != nil {
		return i.rehearsal.write(ctx, i.service.db, batch)
	}
	return retry.Do(ctx, 4, 2*time.Second, database.IsUnavailable, func() error {
		work, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		asked := i.service.now()
		began := asked
		err := i.service.transact(work, func(ctx context.Context, tx database.Tx) error {
			began = i.service.now()
			return i.service.insertImported(ctx, tx, batch)
		})
		if err == nil {
			i.pace.wrote(ctx, len(batch), began.Sub(asked), i.service.now().Sub(began))
		}
		return err
	})
}

// insertImported inserts the accounts that do not exist, with their events, and sets the result of
// each. Concurrent imports insert an account once.
func (s *Service) insertImported(ctx context.Context, tx database.Tx, batch []*pendingUser) error {
	if err := insertAbsent(ctx, tx, batch); err != nil {
		return err
	}
	var events []outbox.Event
	for _, n := range batch {
		if !n.imported {
			continue
		}
		made, err := s.importEvents(n)
		if err != nil {
			return err
		}
		events = append(events, made...)
	}
	if err := outbox.Add(ctx, tx, events...); err != nil || s.hooks.Imported == nil {
		return err
	}
	var list []ImportedUser
	for _, n := range batch {
		if n.imported {
			list = append(list, n.asImported())
		}
	}
	return s.hooks.Imported(ctx, tx, list)
}

func (s *Service) importEvents(n *pendingUser) ([]outbox.Event, error) {
	env := s.newEnvelope(n.ID)
	registered, err := env.Event(s.Issuer(), EventUserRegistered, userRegistered{Envelope: env, Username: n.Username})
	if err != nil || n.Status == StatusActive {
		return []outbox.Event{registered}, err
	}
	disabled, err := env.Event(s.Issuer(), EventUserDisabled, userChanged{Envelope: env, By: byAdmin})
	return []outbox.Event{registered, disabled}, err
}
