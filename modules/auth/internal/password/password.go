// Package password hashes and verifies passwords, says which are acceptable, and reads the
// hashes that other systems made.
//
// Passwords are text: their Unicode normalisation form C is hashed, so that the same
// characters typed on different keyboards are the same password. Nothing is trimmed, folded
// or cut off. bcrypt uses only 72 bytes and stumbles over NUL; passwords it cannot take
// whole are hashed with bcrypt-sha256 instead, and against a plain bcrypt hash they never
// match.
//
// All hashing runs in a [Pool], and the caller must hold no database connection while it waits.
package password

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/text/unicode/norm"

	"github.com/toppira/authctl/platform/fault"
)

// Passwords does everything with passwords. Make it with [New].
type Passwords struct {
	cfg        Config
	pool       *Pool
	population population
	policy     *policy
}

// Options are what is not a setting.
type Options struct {
	// Registry takes the metrics; none when nil.
	Registry prometheus.Registerer
	// Key decides which kind of hash a missing account seems to have. It must be secret, and
	// the same on every node and after every start, or a name that changes its behaviour shows that
	// it has no account.
	Key []byte
	// ReserveProcs raises GOMAXPROCS for the workers, in a process that also serves. It lasts as long as the process.
	ReserveProcs bool
	// Context are words that no password may be made of, besides the username: the issuer,
	// the name of the service.
	Context []string
}

// New starts the hashing workers and opens the breached-set file, if there is one.
func New(cfg Config, opt Options) (*Passwords, error) {
	cfg = cfg.withDefaults()
	cfg.Workers = cfg.workers() // before there are more Ps than CPUs
	policy, err := newPolicy(cfg, opt.Context)
	if err != nil {
		return nil, err
	}
	pool, err := NewPool(cfg, opt.Registry)
	if err != nil {
		return nil, errors.Join(err, policy.close())
	}
	if opt.ReserveProcs {
		reserveProcs(cfg.Workers)
	}
	p := &Passwords{cfg: cfg, pool: pool, policy: policy, population: population{key: bytes.Clone(opt.Key)}}
	p.Learn(nil)
	return p, nil
}

// Close turns away what waits for a worker, waits for what is being hashed, and closes the
// breached-set file.
func (p *Passwords) Close() error {
	p.pool.Close()
	return p.policy.close()
}

// Check returns nil when the password may be set for the username, a [*fault.Refusal] when it may
// not, and any other error when the breached-set file could not be asked.
func (p *Passwords) Check(password, username string) error { return p.policy.check(password, username) }

// Overloaded is [ErrOverloaded] with the time after which to try again, which differs for those that are
// refused together.
func (p *Passwords) Overloaded() error { return p.pool.Overloaded() }

// Hash returns the hash to store. It waits for a worker: [ErrOverloaded], [ErrClosed], or
// the error of ctx. It does not ask [Passwords.Check].
func (p *Passwords) Hash(ctx context.Context, password string) (string, error) {
	return p.hash(ctx, signIn, password)
}

// HashForRegistration is [Passwords.Hash] for somebody who has no account yet: it waits in a
// queue of its own, so that a flood of registrations does not hold up sign-ins.
func (p *Passwords) HashForRegistration(ctx context.Context, password string) (string, error) {
	return p.hash(ctx, registration, password)
}

func (p *Passwords) hash(ctx context.Context, why purpose, password string) (string, error) {
	if !utf8.ValidString(password) {
		return "", fault.Refuse(InvalidUnicode, "is not valid UTF-8")
	}
	text := norm.NFC.Bytes([]byte(password))
	var encoded string
	if err := p.pool.do(ctx, why, nothing, func() error { encoded = p.make(text); return nil }); err != nil {
		return "", err
	}
	return encoded, nil
}

// make hashes a password in NFC under the present settings, on a worker.
func (p *Passwords) make(password []byte) string {
	maker, size := p.maker(password)
	return maker.seal(password, size).String()
}

// Closed returns a hash to store that no password matches. It computes none, so it never waits.
func (p *Passwords) Closed() string { return p.likeness().String() }

// likeness is [hash.likeness] of what the present settings make.
func (p *Passwords) likeness() hash {
	maker, size := p.maker(nil)
	maker.salt, maker.digest = make([]byte, 16), make([]byte, size)
	return maker.likeness()
}

// nothing is what there is to prepare for most hashes.
func nothing() error { return nil }

// maker is the way to hash the password under the present settings.
func (p *Passwords) maker(password []byte) (maker hash, digestSize int) {
	switch {
	case p.cfg.Algorithm == string(Argon2id):
		return argon2Hash(Argon2id, argon2idPrefix, p.cfg.Argon2Memory<<10, argon2Time, argon2Threads,
			argon2Order), argon2Digest
	case bcryptTakes(password):
		return bcryptHash("$2b$", p.cfg.BcryptCost), bcryptDigest
	default:
		return bcryptHMAC(bcryptHMACPrefix, p.cfg.BcryptCost), bcryptDigest
	}
}

// Result is the outcome of a verification.
type Result struct {
	OK bool
	// Renewed is a hash of the right password to store instead: the algorithm is not the one set, its cost is
	// below the setting, or the hash was made elsewhere. Empty: the stored one stays.
	Renewed string
}

// Verify reports whether the password is the one of the stored hash that find returns, false
// when the name is nobody's. It waits for a worker, and calls find when one is about to be
// free, so not for those turned away: [ErrOverloaded], [ErrClosed], or the error of ctx. A
// hash that cannot be read, or would cost more than any may, is an error before anything is
// computed.
//
// For a name that does not exist as much is done as for one that does: a hash is computed of
// a kind that accounts have, always the same kind for the same canonical name, and the result
// is never OK.
func (p *Passwords) Verify(ctx context.Context, canonical, password string,
	find func() (encoded string, found bool, err error)) (Result, error) {
	var h hash
	prepare := func() error {
		encoded, found, err := find()
		if err != nil {
			return err
		}
		if !found {
			h = p.population.pick(canonical)
			return nil
		}
		if h, err = parse(encoded); err != nil {
			return fmt.Errorf("read the stored password hash: %w", err)
		}
		return nil
	}
	typed := []byte(password)
	normal := norm.NFC.Bytes(typed)
	// Elsewhere passwords are hashed as they are typed. Which hashes come from elsewhere
	// does not show, so all are tried; hashes made here cannot match the second time unless
	// they match the first.
	again := !bytes.Equal(typed, normal)
	var result Result
	err := p.pool.do(ctx, signIn, prepare, func() error {
		outdated := h.current == nil || !h.current(p.cfg)
		result.OK = h.matches(normal)
		if again && h.matches(typed) && !result.OK {
			result.OK, outdated = true, true
		}
		if result.OK && outdated { // at once: to wait for a worker again takes seconds during a flood
			result.Renewed = p.make(normal)
		}
		return nil
	})
	if err != nil {
		return Result{}, err
	}
	return result, nil
}

// Behind reports whether sign-ins come faster than they can be hashed, so that the newest is next and many are refused.
func (p *Passwords) Behind() bool { return p.pool.behind() }

// Learn tells how the accounts' passwords are hashed, from [SampleSize] stored hashes taken
// evenly from all accounts. It replaces what was learned before. Call it at the start and now
// and then, since hashes are upgraded and imported. Until then, or without any, the present
// settings count. It may be called at any time.
func (p *Passwords) Learn(sample []string) {
	p.population.learn(sample, p.likeness())
}
