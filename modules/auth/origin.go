package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
)

// origin is where an account was imported from.
type origin struct {
	source    string
	sourceID  string    // what it calls the account, when that is not its id here
	hash      []byte    // SHA-256 of the imported hash, which the first sign-in replaces
	created   time.Time // as the record has it; zero: it does not say
	address   string
	confirmed *bool // whether the address was; nil: the source does not say
}

// insertOrigins stores where accounts were imported from. By that the same account is told from
// another person of the same name, also after its password was changed here.
func insertOrigins(ctx context.Context, tx database.IDB, batch []*pendingUser) error {
	if len(batch) == 0 {
		return nil
	}
	args := make([]any, 0, len(batch)*9)
	for _, n := range batch {
		o := n.origin
		created := sql.NullTime{Time: o.created, Valid: !o.created.IsZero()}
		args = append(args, n.ID, o.source, o.sourceID, o.hash, created, o.address, o.confirmed,
			strings.Join(n.lost, ","), n.UpdatedAt)
	}
	return database.Exec(ctx, tx, "insert the origins of users", `INSERT INTO user_origin (user_id, source, source_id, hash_sha256, created_at, address, address_confirmed,
		not_carried_over, imported_at) VALUES `+strings.Repeat(", (?, ?, ?, ?, ?, ?, ?, ?, ?)", len(batch))[2:], args...)
}

// owner is an account that has the name or the id of a record.
type owner struct {
	id                  uuid.UUID
	username, canonical string
	hash                string
	status              Status
	created             time.Time
	origin              *origin // nil: registered here, or imported by a release that stored none
}

// owners are those of a batch.
type owners struct {
	byID   map[uuid.UUID]*owner
	byName map[string]*owner
}

// ownersOf returns the accounts that have the id or the name of one of the records.
func ownersOf(ctx context.Context, db database.IDB, batch []*pendingUser) (owners, error) {
	found := owners{make(map[uuid.UUID]*owner), make(map[string]*owner)}
	if len(batch) == 0 {
		return found, nil
	}
	var ids []uuid.UUID
	var names []string
	for _, n := range batch {
		ids, names = append(ids, n.ID), append(names, n.canonical)
	}
	// Two branches rather than an OR, for which a planner may read the whole table.
	const columns = `
		SELECT u.id, u.username, u.username_canonical, u.password_hash, u.status, u.created_at, o.source, o.source_id,
			o.hash_sha256, o.created_at
		FROM users u LEFT JOIN user_origin o ON o.user_id = u.id WHERE `
	list, err := database.Collect(ctx, db, "look for users", scanOwner,
		columns+"u.id IN (?1) UNION ALL "+columns+"u.username_canonical IN (?2)", database.List(ids),
		database.List(names))
	for _, o := range list {
		found.byID[o.id], found.byName[o.canonical] = o, o
	}
	return found, err
}

func scanOwner(row database.Row) (*owner, error) {
	var o owner
	var source, sourceID sql.NullString
	var hash []byte
	var created sql.NullTime
	err := row.Scan(&o.id, &o.username, &o.canonical, &o.hash, &o.status, &o.created, &source, &sourceID, &hash,
		&created)
	if source.Valid {
		o.origin = &origin{source: source.String, sourceID: sourceID.String, hash: hash, created: created.Time}
	}
	return &o, err
}

// check refuses the record if an account that exists keeps it from being imported. If it is the record's own
// account, it sets in what they differ.
func (o owners) check(n *pendingUser) {
	n.refused, n.differs = o.refusal(n), nil
	if named := o.byName[n.canonical]; named != nil && n.refused == nil {
		n.differs = n.differences(*named)
	}
}

// refusal is nil if the account is the record's own, or nobody has its id or its name.
func (o owners) refusal(n *pendingUser) *fault.Refusal {
	named := o.byName[n.canonical]
	if named == nil {
		if o.byID[n.ID] != nil {
			return fault.Refuse("id_taken", "the id belongs to an account with another username")
		}
		return nil
	}
	switch n.is(*named) {
	case samePerson:
		return nil
	case anotherPerson:
		return fault.Refuse("username_taken", "the username belongs to somebody else's account")
	}
	return fault.Refuse("username_taken",
		"the username belongs to an account here, and the record does not show that it is the same person's: "+
			"it has neither its id, nor its password hash, nor the time when it was created")
}

type likeness int

const (
	nothingTells likeness = iota
	samePerson
	anotherPerson
)

// is compares the record with the account that has its name: by the id, else by the hash or the time
// of creation. When two of them disagree it is another person, who is refused with a reason rather
// than silently counted as present.
func (n *pendingUser) is(o owner) likeness {
	if n.keepID {
		if n.ID == o.id {
			return samePerson
		}
		return anotherPerson
	}
	created := o.created
	if o.origin != nil {
		created = o.origin.created
		if o.origin.source == n.origin.source && o.origin.sourceID != "" && n.origin.sourceID != "" {
			switch {
			case o.origin.sourceID != n.origin.sourceID:
				return anotherPerson
			case !n.numbered:
				return samePerson
			}
		}
	}
	known := !created.IsZero() && !n.origin.created.IsZero()
	switch {
	case known && !sameMoment(created, n.origin.created, 24*time.Hour):
		return anotherPerson
	case n.hasHashOf(o):
		return samePerson
	case known && o.username == n.Username && // all of a database may be made in one moment
		sameMoment(created, n.origin.created, time.Second) && !isDate(created): // and several people on one day
		return samePerson
	}
	return nothingTells
}

// sameMoment reports whether two times are one, which systems write with more or fewer digits: a table of Django has
// microseconds, its dumpdata milliseconds, and a list that a spreadsheet has saved no seconds.
func sameMoment(a, b time.Time, coarsest time.Duration) bool {
	apart := a.Sub(b).Abs()
	for _, unit := range []time.Duration{24 * time.Hour, time.Minute, time.Second, time.Millisecond} {
		if unit <= coarsest && apart < unit && (a.Truncate(unit).Equal(a) || b.Truncate(unit).Equal(b)) {
			return true
		}
	}
	return apart == 0
}

func isDate(t time.Time) bool { return t.Truncate(24 * time.Hour).Equal(t) }

// In what a record may differ from its account: its source has changed it since the last import.
const (
	differsDisabled = "disabled" // there, and not here
	differsPassword = "password" // also changed here, but not the same
)

func (n *pendingUser) differences(o owner) (differs []string) {
	if n.Status == StatusDisabled && o.status == StatusActive {
		differs = append(differs, differsDisabled)
	}
	if !n.hasHashOf(o) {
		differs = append(differs, differsPassword)
	}
	return differs
}

// hasHashOf reports whether the record has the password hash of the account, or the one that was imported for it.
func (n *pendingUser) hasHashOf(o owner) bool {
	sum := sha256.Sum256([]byte(o.hash))
	return bytes.Equal(sum[:], n.origin.hash) || o.origin != nil && bytes.Equal(o.origin.hash, n.origin.hash)
}

// addresses returns the addresses of imported accounts, and whether they were confirmed.
func addresses(ctx context.Context, db database.IDB, ids []uuid.UUID) (map[uuid.UUID]origin, error) {
	found := make(map[uuid.UUID]origin, len(ids))
	scan := func(row database.Row) (id uuid.UUID, err error) {
		var o origin
		err = row.Scan(&id, &o.address, &o.confirmed)
		found[id] = o
		return id, err
	}
	_, err := database.Collect(ctx, db, "read the origins of users", scan,
		"SELECT user_id, address, address_confirmed FROM user_origin WHERE user_id IN (?)", database.List(ids))
	return found, err
}
