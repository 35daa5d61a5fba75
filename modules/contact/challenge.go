package contact

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
)

// The states of a challenge. A live one may have expired.
const (
	stateLive  = "live"
	stateUsed  = "used"
	stateEnded = "ended" // by another challenge, or a change of the account
)

const (
	maxTries   = 5 // of the code of a challenge
	verifyTTL  = 24 * time.Hour
	resetTTL   = 15 * time.Minute
	codeLength = 8  // of an alphabet of 32: 40 bits
	linkBytes  = 32 // of the secret in a link

	// resendAfter is how long a challenge answers further requests for one: nothing is sent again
	// meanwhile.
	resendAfter = time.Minute
	// How many challenges are sent in [countedFor]. Requests may come from strangers, so they are counted
	// by what was requested, and a network has a part of them: resets by the username or the address,
	// and codes that verify an address by that address, over all accounts. Requests from a device that
	// the account knows have a limit of their own.
	maxByStrangers  = 10
	maxOfOneNetwork = 5
	maxByOwner      = 10
	// trickle is how long after the last code for a reset another one is sent beyond what strangers may
	// have: otherwise two of them could keep every code from an owner whose device is not known.
	trickle = time.Hour
	// Only somebody who is signed in, or knows the password, requests a code that verifies an address.
	maxToVerify = 20 // of one account
	countedFor  = 24 * time.Hour

	// clockSlack is how far the clocks of servers may differ. A challenge from further ahead was made by a
	// clock that was ahead, nobody knows when: it is void.
	clockSlack = 5 * time.Minute
)

// latest is the latest time at which a challenge can have been made, and from which it counts.
func latest(now int64) int64 { return now + clockSlack.Milliseconds() }

// codeAlphabet has no two characters that are easily confused.
const codeAlphabet = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"

// newCode makes a code as it is shown.
func newCode() string {
	raw := make([]byte, codeLength)
	_, _ = rand.Read(raw) // never fails
	for i, b := range raw {
		raw[i] = codeAlphabet[b%byte(len(codeAlphabet))] // 32 divides 256: all are equally likely
	}
	return string(raw[:codeLength/2]) + "-" + string(raw[codeLength/2:])
}

// typedCode is the form of a typed code that its digest is made of. A keyboard for Japanese or Chinese may type
// full-width letters.
func typedCode(typed string) string {
	return strings.Map(func(r rune) rune {
		if r >= '！' && r <= '～' {
			r -= '！' - '!'
		}
		if r == '-' || r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, strings.ToUpper(typed[:min(len(typed), 64)]))
}

// Tokens of links are a prefix and then, in base64url, an id and a secret.
const (
	challengePrefix = "alt_"
	undoPrefix      = "aut_"
)

func linkToken(prefix string, id uuid.UUID, secret []byte) string {
	return prefix + base64.RawURLEncoding.EncodeToString(append(id[:len(id):len(id)], secret...))
}

// parseLink takes a token apart. Its cost is bounded, whatever the input.
func parseLink(prefix, token string) (id uuid.UUID, secret []byte, ok bool) {
	text, found := strings.CutPrefix(token, prefix)
	if !found || len(text) != base64.RawURLEncoding.EncodedLen(len(id)+linkBytes) {
		return uuid.Nil, nil, false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != len(id)+linkBytes {
		return uuid.Nil, nil, false
	}
	return uuid.UUID(raw[:len(id)]), raw[len(id):], true
}

// digests makes the digests of codes, links and addresses that the database keeps. The first key makes new
// ones; stored ones may be of any key.
type digests struct{ keys [][]byte }

func newDigests(secrets []config.Secret) (digests, error) {
	var d digests
	for _, secret := range secrets {
		key, err := hkdf.Key(sha256.New, []byte(secret.Reveal()), nil, "authctl contact digest v1", sha256.Size)
		if err != nil {
			return digests{}, fmt.Errorf("derive a key: %w", err)
		}
		d.keys = append(d.keys, key)
	}
	if len(d.keys) == 0 {
		return digests{}, errors.New("contact: there is no secret")
	}
	return d, nil
}

// What a digest is of.
const (
	digestCode      = "code"
	digestLink      = "link"
	digestUndo      = "undo"
	digestRecipient = "recipient"
	digestAsked     = "asked"
	digestNetwork   = "network"
	digestNobody    = "nobody"
)

// of is the digest of a value that belongs to an id.
func (d digests) of(what string, id uuid.UUID, value []byte) []byte {
	return digest(d.keys[0], what, id, value)
}

func digest(key []byte, what string, id uuid.UUID, value []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(what + "\x00"))
	mac.Write(id[:]) // of fixed length, so the value is unambiguous
	mac.Write(value)
	return mac.Sum(nil)
}

// fits reports in constant time whether the digest is that of the value.
func (d digests) fits(stored []byte, what string, id uuid.UUID, value []byte) bool {
	fits := false
	for _, key := range d.keys {
		fits = hmac.Equal(stored, digest(key, what, id, value)) || fits
	}
	return fits
}

// nobody is the id of a challenge's owner when there is no account: always the same for a
// name or an address, as that of an account would be.
func (d digests) nobody(typed string) uuid.UUID {
	raw := d.of(digestNobody, uuid.Nil, []byte(typed))
	id := uuid.UUID(raw[:16])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version 8: no account has it
	return id
}

// challenge is what is about to be sent.
type challenge struct {
	userID   uuid.UUID // of an account, or of nobody
	username string
	purpose  Purpose
	contact  *contactRow // to which it is sent; nil: to nobody
	language string      // where the contact has none
	asked    string      // what was requested, by which it is counted
	owner    bool        // on a device that the account knows
	from     netip.Addr  // of the request; invalid: not known
	also     []outbox.Event
}

// toVerify is a challenge that verifies a contact.
func toVerify(u auth.User, c *contactRow, from netip.Addr) challenge {
	return challenge{userID: u.ID, username: u.Username, purpose: PurposeVerify, contact: c, from: from,
		asked: "verify " + c.canonical}
}

// issue makes a challenge and its message, and ends the previous one. outcome says whether it did: if the
// previous one is recent enough to be the answer, it returns that one's id, and if the limits forbid
// another, an id of no challenge. The account is locked. Without a recipient it does the same work.
func (s *Service) issue(ctx context.Context, tx database.Tx, c challenge) (id uuid.UUID, outcome string, err error) {
	defer func() {
		if err == nil {
			s.met.requested(c.purpose, outcome)
		}
	}()
	now := s.now().UnixMilli()
	asked := s.digests.of(digestAsked, uuid.Nil, []byte(c.asked))
	to, recipient := contactRow{}, s.digests.of(digestRecipient, uuid.Nil, []byte("\x00"+c.asked))
	if c.contact != nil {
		to = *c.contact
		recipient = s.recipient(to.canonical)
	}
	if database.IsPostgres(tx) { // SQLite has one writer
		// Otherwise transactions of several accounts would not see what the others send to the address.
		_, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(?)", int64(binary.BigEndian.Uint64(recipient)))
		if err != nil {
			return uuid.Nil, "", fmt.Errorf("count what is sent to an address: %w", err)
		}
	}
	id, err = lastChallenge(ctx, tx, c, asked, now)
	if err == nil {
		return id, requestRepeated, nil
	}
	if !database.IsNotFound(err) {
		return uuid.Nil, "", fmt.Errorf("look for a challenge: %w", err)
	}
	id = uuid.New()
	network := s.network(c.from)
	within, err := isWithinLimits(ctx, tx, c, asked, recipient, network, now)
	if err != nil || !within {
		return id, requestLimited, err
	}
	_, err = tx.ExecContext(ctx, "UPDATE contact_challenge SET state = 'ended' WHERE user_id = ? AND purpose = ? "+
		"AND state = 'live'", c.userID, c.purpose)
	if err != nil {
		return uuid.Nil, "", fmt.Errorf("end a challenge: %w", err)
	}
	ttl := resetTTL
	if c.purpose == PurposeVerify {
		ttl = verifyTTL
	}
	code, secret := newCode(), make([]byte, linkBytes)
	_, _ = rand.Read(secret) // never fails
	// Two requests for an unknown name may come here at once, since there is no account to lock.
	made, err := tx.ExecContext(ctx, `INSERT INTO contact_challenge (id, user_id, purpose, contact_id, recipient, owner, asked, network,
		code_digest, link_digest, state, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'live', ?, ?) ON CONFLICT DO NOTHING`,
		id, c.userID, c.purpose, uuid.NullUUID{UUID: to.ID, Valid: c.contact != nil}, recipient, c.owner, asked,
		network,
		s.digests.of(digestCode, id, []byte(typedCode(code))), s.digests.of(digestLink, id, secret), now,
		now+ttl.Milliseconds())
	if err != nil {
		return uuid.Nil, "", fmt.Errorf("insert a challenge: %w", err)
	}
	if n, err := made.RowsAffected(); err != nil || n == 0 {
		return id, requestNobody, err
	}
	m := Message{Purpose: c.purpose, Language: cmp.Or(to.language, c.language), Recipient: to.Address,
		ContactID: to.ID, UserID: c.userID,
		Username: c.username, Code: code, LinkToken: linkToken(challengePrefix, id, secret), ChallengeID: id,
		ExpiresAt: time.UnixMilli(now).Add(ttl).UTC()}
	outcome = requestSent
	if c.contact == nil {
		m, outcome = Message{Purpose: PurposeNone, UserID: c.userID}, requestNobody
	}
	return id, outcome, s.send(ctx, tx, c.also, m)
}

// lastChallenge returns the challenge that was made for the same request less than [resendAfter] ago, or an
// error for which [database.IsNotFound] is true. It stays the answer after a request by another name has
// replaced it. Otherwise requests by a username and by an address would tell that both belong to one
// account: without an account, each has a challenge of its own.
func lastChallenge(ctx context.Context, tx database.Tx, c challenge, asked []byte, now int64) (uuid.UUID, error) {
	return database.Value[uuid.UUID](tx.QueryRowContext(ctx, `SELECT c.id FROM contact_challenge c WHERE c.user_id = ?1 AND c.purpose = ?2
		AND c.asked = ?3 AND c.created_ms > ?4 AND c.created_ms <= ?6 AND c.tries < ?5 AND (c.state = 'live' OR c.purpose = 'reset' AND c.state = 'ended'
			AND EXISTS (SELECT 1 FROM contact_challenge n WHERE n.user_id = c.user_id AND n.purpose = c.purpose AND n.id <> c.id
				AND n.created_ms >= c.created_ms AND n.asked <> c.asked))
		ORDER BY c.created_ms DESC LIMIT 1`, c.userID, c.purpose, asked, now-resendAfter.Milliseconds(), maxTries, latest(now)))
}

// isWithinLimits reports whether one more challenge may be sent.
func isWithinLimits(ctx context.Context, tx database.Tx, c challenge, asked, recipient, network []byte,
	now int64) (bool, error) {
	since := now - countedFor.Milliseconds()
	var byOwner, byStrangers, ofNetwork, toVerify int
	var last int64
	err := tx.QueryRowContext(ctx, `SELECT
		(SELECT count(*) FROM contact_challenge WHERE recipient = ?1 AND created_ms > ?5 AND created_ms <= ?6 AND owner),
		(SELECT count(*) FROM contact_challenge WHERE asked = ?2 AND created_ms > ?5 AND created_ms <= ?6 AND NOT owner),
		(SELECT count(*) FROM contact_challenge WHERE asked = ?2 AND created_ms > ?5 AND created_ms <= ?6 AND NOT owner AND network = ?3),
		(SELECT count(*) FROM contact_challenge WHERE user_id = ?4 AND created_ms > ?5 AND created_ms <= ?6 AND purpose = 'verify'),
		(SELECT coalesce(max(created_ms), 0) FROM contact_challenge WHERE asked = ?2 AND created_ms > ?5 AND created_ms <= ?6 AND NOT owner)`,
		recipient, asked, network, c.userID, since, latest(now)).Scan(&byOwner, &byStrangers, &ofNetwork, &toVerify,
		&last)
	if err != nil {
		return false, fmt.Errorf("count challenges: %w", err)
	}
	switch {
	case c.purpose == PurposeVerify && toVerify >= maxToVerify:
		return false, nil
	case c.owner:
		return byOwner < maxByOwner, nil
	case c.purpose == PurposeReset && last <= now-trickle.Milliseconds():
		return true, nil // whoever takes this turn, the owner gets the mail, and its link works
	}
	return byStrangers < maxByStrangers && (len(network) == 0 || ofNetwork < maxOfOneNetwork), nil
}

// network is the digest of the network of an address: an IPv4 address, or an IPv6 /64. It is empty
// if the address is not known.
func (s *Service) network(from netip.Addr) []byte {
	from = from.Unmap().WithZone("")
	if !from.IsValid() {
		return []byte{}
	}
	bits := from.BitLen()
	if from.Is6() {
		bits = 64
	}
	prefix, _ := from.Prefix(bits) // the number of bits fits
	return s.digests.of(digestNetwork, uuid.Nil, []byte(prefix.String()))
}

// recipient is the digest by which messages to an address are counted.
func (s *Service) recipient(canonical string) []byte {
	return s.digests.of(digestRecipient, uuid.Nil, []byte(canonical))
}

// send adds messages, and events before them, to the transaction.
func (s *Service) send(ctx context.Context, tx database.Tx, events []outbox.Event, messages ...Message) error {
	for _, m := range messages {
		e, err := s.sealer.Event(m, s.auth.Issuer())
		if err != nil {
			return err
		}
		e.Target = TargetMail
		events = append(events, e)
	}
	return outbox.Add(ctx, tx, events...)
}

// challengeRow is the part of a challenge that a comparison needs.
type challengeRow struct {
	id         uuid.UUID
	userID     uuid.UUID
	contactID  uuid.NullUUID
	codeDigest []byte
	linkDigest []byte
	shown      string // what has met it: [metByCode] or [metByLink]
}

const challengeColumns = "id, user_id, contact_id, code_digest, link_digest"

func scanChallenge(row database.Row) (c challengeRow, err error) {
	err = row.Scan(&c.id, &c.userID, &c.contactID, &c.codeDigest, &c.linkDigest)
	if database.IsNotFound(err) {
		return challengeRow{}, ErrInvalidCode
	}
	if err != nil {
		return challengeRow{}, fmt.Errorf("read a challenge: %w", err)
	}
	return c, nil
}

// liveChallenge returns a challenge that can still be used, or [ErrInvalidCode].
func (s *Service) liveChallenge(ctx context.Context, purpose Purpose, id uuid.UUID) (challengeRow, error) {
	now := s.now().UnixMilli()
	return scanChallenge(s.db.QueryRowContext(ctx, "SELECT "+challengeColumns+` FROM contact_challenge
		WHERE id = ? AND purpose = ? AND state = 'live' AND expires_ms > ? AND created_ms <= ?`, id, purpose, now, latest(now)))
}

// countTry counts a try of a code before the code is compared, and returns the challenge. Without
// tries left it returns [ErrInvalidCode]. A replaced challenge counts its tries as well, so that it
// looks like one of an unknown name.
func (s *Service) countTry(ctx context.Context, purpose Purpose, id uuid.UUID) (c challengeRow, err error) {
	live, now := false, s.now().UnixMilli()
	err = s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		state, err := database.Value[string](tx.QueryRowContext(ctx, `UPDATE contact_challenge SET tries = tries + 1 WHERE id = ?
			AND purpose = ? AND state <> 'used' AND expires_ms > ? AND created_ms <= ? AND tries < ? RETURNING state`, id, purpose, now, latest(now), maxTries))
		if database.IsNotFound(err) {
			return ErrInvalidCode
		}
		if err != nil {
			return fmt.Errorf("count a try: %w", err)
		}
		live = state == stateLive
		c, err = scanChallenge(tx.QueryRowContext(ctx, "SELECT "+challengeColumns+" FROM contact_challenge "+
			"WHERE id = ?", id))
		return err
	})
	if err == nil && !live {
		err = ErrInvalidCode
	}
	return c, err
}

// use uses up a challenge, or returns [ErrInvalidCode] if another request was faster or something has
// ended it.
func (s *Service) use(ctx context.Context, tx database.Tx, c challengeRow) error {
	now := s.now().UnixMilli()
	_, err := scanChallenge(tx.QueryRowContext(ctx, `UPDATE contact_challenge SET state = 'used' WHERE id = ? AND state = 'live'
		AND expires_ms > ? AND created_ms <= ? RETURNING `+challengeColumns, c.id, now, latest(now)))
	return err
}
