package session

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/config"
)

// ErrMalformed is the one refusal of [Codec.Parse]. Why a token is not ours is nobody's
// business but ours, and not even ours: it is never logged apart.
var ErrMalformed = errors.New("not a refresh token of this service")

// A refresh token is tokenPrefix and the unpadded base64url form of
//
//	version 1 | key id 1 | user id 16 | session id 16 | generation 4 | secret 32 | MAC 16
//
// The MAC is HMAC-SHA-256 cut to 16 bytes. Whoever guesses it has only got as far as the lookup,
// where the secret's 256 bits wait, and 2^128 tries over a network are out of reach: 16 more
// bytes in every request would buy nothing.
const (
	tokenPrefix  = "art_"
	tokenVersion = 1

	atKeyID      = 1
	atUser       = 2
	atSession    = atUser + 16
	atGeneration = atSession + 16
	atSecret     = atGeneration + 4
	atMAC        = atSecret + secretSize
	tokenSize    = atMAC + macSize

	secretSize = 32
	macSize    = 16
)

// SealedSize is how long a sealed token is: a nonce comes before it and a tag after it.
const SealedSize = 12 + tokenSize + 16

// Labels keep keys and hashes made from one secret apart.
const (
	labelMAC  = "authctl refresh token v1 mac"
	labelID   = "authctl refresh token v1 key id"
	labelHash = "authctl refresh token v1 hash"
	labelSeal = "authctl refresh token v1 seal"
	labelOwn  = "authctl refresh token v1 reissue"
)

// strict refuses set bits after the last byte: one token, one spelling. It still skips line
// breaks, which the fixed length rules out.
var strict = base64.RawURLEncoding.Strict()

var tokenLength = len(tokenPrefix) + strict.EncodedLen(tokenSize)

// Token is a refresh token whose MAC is right. It prints redacted; only [Token.Encode] shows
// it. The zero Token is not valid.
type Token struct{ raw [tokenSize]byte }

// UserID returns whose token it is.
func (t Token) UserID() uuid.UUID { return uuid.UUID(t.raw[atUser:atSession]) }

// SessionID returns the session it refreshes.
func (t Token) SessionID() uuid.UUID { return uuid.UUID(t.raw[atSession:atGeneration]) }

// Generation counts the tokens of a session, from 1.
func (t Token) Generation() uint32 { return binary.BigEndian.Uint32(t.raw[atGeneration:]) }

func (t Token) secret() []byte { return t.raw[atSecret:atMAC] }

// Hash is the form in which a store keeps the secret.
func (t Token) Hash() Hash {
	h := sha256.New()
	_, _ = h.Write([]byte(labelHash))
	_, _ = h.Write(t.secret())
	return Hash(h.Sum(nil))
}

// Encode returns the text that the client keeps.
func (t Token) Encode() string { return tokenPrefix + strict.EncodeToString(t.raw[:]) }

// Format redacts the token under every verb of fmt.
func (t Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted]")) }

// MarshalText redacts the token in JSON, YAML and logs.
func (t Token) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// Codec makes and reads refresh tokens. It is safe for concurrent use.
type Codec struct{ keys []macKey } // the first one signs

type macKey struct {
	id  byte // which key to try; two may share one, since it comes from the secret by hashing
	key []byte
	own cipher.AEAD // seals what was reissued
}

// NewCodec derives the MAC keys from the signing secret and from those it replaces, whose
// tokens stay good for as long as they are named.
func NewCodec(current config.Secret, previous ...config.Secret) (*Codec, error) {
	var c Codec
	for _, secret := range append([]config.Secret{current}, previous...) {
		if secret == "" {
			return nil, errors.New("refresh tokens: a secret is empty")
		}
		prk, err := hkdf.Extract(sha256.New, []byte(secret.Reveal()), nil)
		if err != nil {
			return nil, fmt.Errorf("derive the refresh token key: %w", err)
		}
		c.keys = append(c.keys, macKey{id: expand(prk, labelID, 1)[0], key: expand(prk, labelMAC, sha256.Size),
			own: aead(expand(prk, labelOwn, 32))})
	}
	return &c, nil
}

// expand panics only for a length no caller asks for.
func expand(prk []byte, label string, n int) []byte {
	key, err := hkdf.Expand(sha256.New, prk, label, n)
	if err != nil {
		panic("session: " + err.Error())
	}
	return key
}

// Mint makes a token with a fresh secret.
func (c *Codec) Mint(userID, sessionID uuid.UUID, generation uint32) Token {
	var t Token
	t.raw[0] = tokenVersion
	t.raw[atKeyID] = c.keys[0].id
	copy(t.raw[atUser:], userID[:])
	copy(t.raw[atSession:], sessionID[:])
	binary.BigEndian.PutUint32(t.raw[atGeneration:], generation)
	_, _ = rand.Read(t.raw[atSecret:atMAC]) // never fails: crypto/rand ends the process instead
	copy(t.raw[atMAC:], c.keys[0].mac(&t))
	return t
}

// Next mints the successor of a token and the request that puts it in its place. The caller
// adds grace window, idle limit and where the request came from.
func (c *Codec) Next(presented Token) (Token, Rotation) {
	next := c.Mint(presented.UserID(), presented.SessionID(), presented.Generation()+1)
	return next, Rotation{
		UserID:        presented.UserID(),
		SessionID:     presented.SessionID(),
		Generation:    presented.Generation(),
		PresentedHash: presented.Hash(),
		NextHash:      next.Hash(),
		SealedNext:    SealNext(presented, next),
	}
}

// Parse reads a token that this codec, or one with the same secrets, made. It looks nothing
// up. Any refusal is [ErrMalformed].
func (c *Codec) Parse(text string) (Token, error) {
	var t Token
	if len(text) != tokenLength || text[:len(tokenPrefix)] != tokenPrefix {
		return Token{}, ErrMalformed
	}
	n, err := strict.Decode(t.raw[:], []byte(text[len(tokenPrefix):]))
	if err != nil || n != tokenSize || t.raw[0] != tokenVersion {
		return Token{}, ErrMalformed
	}
	for _, k := range c.keys {
		if k.id == t.raw[atKeyID] && hmac.Equal(k.mac(&t), t.raw[atMAC:]) {
			return t, nil
		}
	}
	return Token{}, ErrMalformed
}

func (k macKey) mac(t *Token) []byte {
	h := hmac.New(sha256.New, k.key)
	_, _ = h.Write(t.raw[:atMAC])
	return h.Sum(nil)[:macSize]
}

// SealNext encrypts the successor so that only who holds the presented token can read it:
// the store cannot, nor can a copy of it.
func SealNext(presented, next Token) []byte {
	return sealer(presented).Seal(nil, nil, next.raw[:], presented.raw[:])
}

// SealReissued encrypts a reissued token for the holder of the token that it replaces. The replaced token
// was not presented, so it cannot be the key; the service's secret is. A copy of the store does not
// reveal the token.
func (c *Codec) SealReissued(next Token) []byte {
	return c.keys[0].own.Seal(nil, nil, next.raw[:], next.raw[atUser:atGeneration])
}

// OpenNext returns, byte for byte, the successor that [SealNext] or [Codec.SealReissued] was
// given.
func (c *Codec) OpenNext(presented Token, sealed []byte) (Token, error) {
	session := presented.raw[atUser:atGeneration]
	raw, err := sealer(presented).Open(nil, nil, sealed, presented.raw[:])
	for i := 0; err != nil && i < len(c.keys); i++ {
		raw, err = c.keys[i].own.Open(nil, nil, sealed, session)
	}
	if err != nil {
		return Token{}, errors.New("the sealed successor does not open with this token")
	}
	if len(raw) != tokenSize || !bytes.Equal(raw[atUser:atGeneration], session) {
		return Token{}, errors.New("the sealed successor is not a token of this session")
	}
	return Token{raw: [tokenSize]byte(raw)}, nil
}

// OpenChain walks from a replaced token to the newest one: each link opens the next.
func (c *Codec) OpenChain(presented Token, links [][]byte) (Token, error) {
	for _, sealed := range links {
		next, err := c.OpenNext(presented, sealed)
		if err != nil {
			return Token{}, err
		}
		presented = next
	}
	return presented, nil
}

// sealer seals under a token's secret, which is uniform: HKDF's extract step has nothing to
// add.
func sealer(presented Token) cipher.AEAD { return aead(expand(presented.secret(), labelSeal, 32)) }

// aead is AES-256-GCM with a random nonce. Callers that race seal different successors under
// one key, so a constant nonce would not do.
func aead(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("session: " + err.Error()) // only for a wrong key length
	}
	sealing, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("session: " + err.Error()) // only for a wrong block size
	}
	return sealing
}
