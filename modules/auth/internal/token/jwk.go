package token

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxJWKS     = 256 << 10 // bytes of a whole set
	maxJWKSKeys = 128
)

// jwk is the public half of a key (RFC 7517, RFC 7518 §6, RFC 8037 §2). Of what is written,
// no member could hold a private one.
type jwk struct {
	KeyType   string `json:"kty"`
	Use       string `json:"use,omitempty"`
	Algorithm string `json:"alg,omitempty"`
	KID       string `json:"kid,omitempty"`
	Curve     string `json:"crv,omitempty"`
	X         string `json:"x,omitempty"`
	Y         string `json:"y,omitempty"`
	N         string `json:"n,omitempty"`
	E         string `json:"e,omitempty"`
	K         string `json:"k,omitempty"` // only ever read: see publicKey
}

func (p PublicKey) jwk() (jwk, error) {
	j := jwk{Use: "sig", Algorithm: p.algorithm, KID: p.kid}
	switch k := p.key.(type) {
	case *ecdsa.PublicKey:
		point, err := k.Bytes() // uncompressed: 4, x, y
		if err != nil {
			return jwk{}, fmt.Errorf("encode the public key: %w", err)
		}
		j.KeyType, j.Curve, j.X, j.Y = "EC", "P-256", encodeBase64(point[1:33]), encodeBase64(point[33:])
	case ed25519.PublicKey:
		j.KeyType, j.Curve, j.X = "OKP", "Ed25519", encodeBase64(k)
	case *rsa.PublicKey:
		j.KeyType, j.N, j.E = "RSA", encodeBase64(k.N.Bytes()), encodeBase64(big.NewInt(int64(k.E)).Bytes())
	default:
		return jwk{}, errors.New("encode the public key: it has no public form")
	}
	return j, nil
}

// thumbprint hashes the required members in lexicographic order (RFC 7638 §3).
func (j jwk) thumbprint() [sha256.Size]byte {
	switch j.KeyType {
	case "EC":
		return sha256.Sum256([]byte(`{"crv":"` + j.Curve + `","kty":"EC","x":"` + j.X + `","y":"` + j.Y + `"}`))
	case "OKP":
		return sha256.Sum256([]byte(`{"crv":"` + j.Curve + `","kty":"OKP","x":"` + j.X + `"}`))
	}
	return sha256.Sum256([]byte(`{"e":"` + j.E + `","kty":"RSA","n":"` + j.N + `"}`))
}

// publicKey returns false for a key that nothing here could be verified with: of another
// type, curve, use or algorithm, or not a key at all.
func (j jwk) publicKey() (PublicKey, bool) {
	if j.Use != "" && j.Use != "sig" {
		return PublicKey{}, false
	}
	var key any
	var algorithm string
	switch {
	case j.KeyType == "EC" && j.Curve == "P-256":
		x, errX := decodeBase64(j.X)
		y, errY := decodeBase64(j.Y)
		if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
			return PublicKey{}, false
		}
		point, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
		if err != nil {
			return PublicKey{}, false
		}
		key, algorithm = point, ES256
	case j.KeyType == "OKP" && j.Curve == "Ed25519":
		x, err := decodeBase64(j.X)
		if err != nil || len(x) != ed25519.PublicKeySize {
			return PublicKey{}, false
		}
		key, algorithm = ed25519.PublicKey(x), EdDSA
	case j.KeyType == "RSA":
		// Sets of others are read too, hence RFC 7518's least, 2048 bits, and not ours.
		n, errN := decodeUint(j.N, 2048, 8192)
		e, errE := decodeUint(j.E, 2, 31)
		if errN != nil || errE != nil || e.Bit(0) == 0 || n.Bit(0) == 0 {
			return PublicKey{}, false
		}
		key, algorithm = &rsa.PublicKey{N: n, E: int(e.Int64())}, RS256
	case j.KeyType == "oct":
		// Symmetric, and so a secret: in nobody's published set, but in the file of an operator
		// who looks into what is signed with it. It serves HS256 and nothing else.
		k, err := decodeBase64(j.K)
		if err != nil || len(k) < MinSecret {
			return PublicKey{}, false
		}
		key, algorithm = k, HS256
	default:
		return PublicKey{}, false
	}
	if j.Algorithm != "" && j.Algorithm != algorithm {
		return PublicKey{}, false
	}
	p, err := newPublicKey(j.KID, algorithm, key)
	return p, err == nil
}

// decodeUint reads a Base64urlUInt (RFC 7518 §2), which has no leading zero byte.
func decodeUint(s string, minBits, maxBits int) (*big.Int, error) {
	b, err := decodeBase64(s)
	if err != nil {
		return nil, err
	}
	n := new(big.Int).SetBytes(b)
	if bits := n.BitLen(); bits < minBits || bits > maxBits || b[0] == 0 {
		return nil, errors.New("out of range")
	}
	return n, nil
}

// MarshalJWK encodes the public members of one key.
func MarshalJWK(p PublicKey) ([]byte, error) {
	j, err := p.jwk()
	if err != nil {
		return nil, err
	}
	return json.Marshal(j)
}

// MarshalJWKS encodes the public members of the keys as a JWK set, in the order of their
// kids, and its strong entity tag (RFC 9110 §8.8.3): the same keys give the same bytes on
// every node. Keys without a public form (HS256) are left out.
func MarshalJWKS(keys []PublicKey) (body []byte, etag string, err error) {
	set := struct {
		Keys []jwk `json:"keys"`
	}{Keys: []jwk{}}
	for _, p := range keys {
		if p.algorithm == HS256 {
			continue
		}
		j, err := p.jwk()
		if err != nil {
			return nil, "", err
		}
		set.Keys = append(set.Keys, j)
	}
	slices.SortFunc(set.Keys, func(a, b jwk) int { return strings.Compare(a.KID, b.KID) })
	if body, err = json.Marshal(set); err != nil {
		return nil, "", fmt.Errorf("encode the key set: %w", err)
	}
	sum := sha256.Sum256(body)
	return body, `"` + encodeBase64(sum[:16]) + `"`, nil
}

// Set is the keys of a JWKS that something here can be verified with. The zero Set is empty.
type Set struct{ keys []PublicKey }

// ParseJWKS reads a JWK set, or a single JWK, of at most 256 KiB and 128 keys. Keys of other
// types, curves, uses and algorithms are left out (RFC 7517 §5). Two keys of one kid make the
// set ambiguous, and refused.
func ParseJWKS(data []byte) (Set, error) {
	if len(data) > maxJWKS {
		return Set{}, fmt.Errorf("read the key set: longer than %d bytes", maxJWKS)
	}
	var raw struct {
		Keys    *[]jsontext.Value `json:"keys"`
		KeyType string            `json:"kty"`
	}
	// A byte order mark is what editors leave in files.
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if err := jsonv2.Unmarshal(data, &raw); err != nil {
		return Set{}, errors.New("read the key set: not a JSON object with an array \"keys\", each name once")
	}
	if raw.Keys == nil && raw.KeyType != "" {
		raw.Keys = &[]jsontext.Value{data}
	}
	if raw.Keys == nil {
		return Set{}, errors.New("read the key set: no \"keys\"")
	}
	if len(*raw.Keys) > maxJWKSKeys {
		return Set{}, fmt.Errorf("read the key set: more than %d keys", maxJWKSKeys)
	}
	var set Set
	for _, one := range *raw.Keys {
		var j jwk
		if jsonv2.Unmarshal(one, &j) != nil {
			continue // not a key that can be understood
		}
		p, ok := j.publicKey()
		if !ok {
			continue
		}
		if _, twice := set.Key(p.kid); twice {
			return Set{}, errors.New("read the key set: two keys have one kid")
		}
		set.keys = append(set.keys, p)
	}
	return set, nil
}

// Empty reports whether nothing can be verified with the set.
func (s Set) Empty() bool { return len(s.keys) == 0 }

// Key finds a key by its kid; keys without one are never found.
func (s Set) Key(kid string) (PublicKey, bool) {
	i := slices.IndexFunc(s.keys, func(p PublicKey) bool { return p.kid == kid && kid != "" })
	if i < 0 {
		return PublicKey{}, false
	}
	return s.keys[i], true
}
