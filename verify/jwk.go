package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
)

const (
	maxJWKS     = 256 << 10 // bytes of a whole set
	maxJWKSKeys = 128
	minRSABits  = 3072 // the issuer makes none shorter
	maxRSABits  = 8192
)

// publicKey verifies the signatures of one algorithm.
type publicKey struct {
	kid, algorithm string
	key            crypto.PublicKey // *ecdsa.PublicKey on P-256, ed25519.PublicKey or *rsa.PublicKey
}

// keySet is the keys of a JWKS that something here can be verified with, by their kid.
type keySet map[string]publicKey

func (s keySet) kids() []string { return slices.Sorted(maps.Keys(s)) }

// verify checks a signature (RFC 7518 §3.3 and §3.4, RFC 8037 §3.1).
func (p publicKey) verify(signed string, signature []byte) bool {
	switch key := p.key.(type) {
	case *ecdsa.PublicKey:
		digest := sha256.Sum256([]byte(signed))
		der, ok := derSignature(signature)
		return ok && ecdsa.VerifyASN1(key, digest[:], der)
	case ed25519.PublicKey:
		return ed25519.Verify(key, []byte(signed), signature)
	case *rsa.PublicKey:
		digest := sha256.Sum256([]byte(signed))
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	}
	return false
}

// derSignature turns the 64 bytes of r and s into what crypto/ecdsa takes.
func derSignature(signature []byte) ([]byte, bool) {
	if len(signature) != 64 {
		return nil, false
	}
	der := make([]byte, 2, 72)
	for _, half := range [][]byte{signature[:32], signature[32:]} {
		for len(half) > 1 && half[0] == 0 {
			half = half[1:]
		}
		if half[0] >= 0x80 { // it is no negative number
			der = append(append(der, 2, byte(len(half)+1), 0), half...)
		} else {
			der = append(append(der, 2, byte(len(half))), half...)
		}
	}
	der[0], der[1] = 0x30, byte(len(der)-2)
	return der, true
}

// parseJWKS reads a JWK set (RFC 7517). Keys of other types, curves, uses and algorithms are
// left out (§5), and so are keys without a kid that a token can name. Two keys of one kid make
// the set ambiguous, and refused.
func parseJWKS(data []byte) (keySet, error) {
	if len(data) > maxJWKS {
		return nil, fmt.Errorf("longer than %d bytes", maxJWKS)
	}
	set, seen, found := keySet{}, 0, false
	err := readObject(data, func(name string, r *reader) error {
		if name != "keys" {
			return r.skip()
		}
		found = true
		return r.array(func(r *reader) error {
			if seen++; seen > maxJWKSKeys {
				return fmt.Errorf("more than %d keys", maxJWKSKeys)
			}
			key, ok, err := readJWK(r)
			if err != nil || !ok {
				return err
			}
			if _, twice := set[key.kid]; twice {
				return errors.New("two keys have one kid")
			}
			set[key.kid] = key
			return nil
		})
	})
	switch {
	case err != nil:
		return nil, err
	case !found:
		return nil, errors.New(`no "keys"`)
	}
	return set, nil
}

// readJWK reads one member of a set. It returns false for what is no key to verify with, and
// an error for what is not JSON.
func readJWK(r *reader) (publicKey, bool, error) {
	if r.peek() != '{' {
		return publicKey{}, false, r.skip()
	}
	members := map[string]string{}
	understood := true
	err := r.object(func(name string, r *reader) (err error) {
		switch name {
		case "kty", "use", "alg", "kid", "crv", "x", "y", "n", "e":
			if r.peek() != '"' {
				understood = false
				return r.skip()
			}
			members[name], err = r.str()
			return err
		case "key_ops":
			verifies := false
			from := *r
			if r.peek() != '[' || r.array(func(r *reader) error {
				op, err := r.text()
				verifies = verifies || op == "verify"
				return err
			}) != nil {
				*r = from
				verifies, err = false, r.skip()
			}
			understood = understood && verifies
			return err
		}
		return r.skip()
	})
	if err != nil || !understood {
		return publicKey{}, false, err
	}
	key, ok := publicKeyOf(members)
	return key, ok, nil
}

func publicKeyOf(j map[string]string) (publicKey, bool) {
	key := publicKey{kid: j["kid"]}
	if !validKID(key.kid) || j["use"] != "" && j["use"] != "sig" {
		return publicKey{}, false
	}
	switch {
	case j["kty"] == "EC" && j["crv"] == "P-256":
		x, errX := decodeBase64(j["x"])
		y, errY := decodeBase64(j["y"])
		if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
			return publicKey{}, false
		}
		point, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
		if err != nil {
			return publicKey{}, false
		}
		key.algorithm, key.key = "ES256", point
	case j["kty"] == "OKP" && j["crv"] == "Ed25519":
		x, err := decodeBase64(j["x"])
		if err != nil || len(x) != ed25519.PublicKeySize {
			return publicKey{}, false
		}
		key.algorithm, key.key = "EdDSA", ed25519.PublicKey(x)
	case j["kty"] == "RSA":
		n, okN := decodeUint(j["n"], minRSABits, maxRSABits)
		e, okE := decodeUint(j["e"], 2, 31)
		if !okN || !okE || e.Bit(0) == 0 || n.Bit(0) == 0 {
			return publicKey{}, false
		}
		key.algorithm, key.key = "RS256", &rsa.PublicKey{N: n, E: int(e.Int64())}
	default:
		return publicKey{}, false
	}
	return key, j["alg"] == "" || j["alg"] == key.algorithm
}

// decodeUint reads a Base64urlUInt (RFC 7518 §2), which has no leading zero byte.
func decodeUint(s string, minBits, maxBits int) (*big.Int, bool) {
	b, err := decodeBase64(s)
	if err != nil || len(b) == 0 || b[0] == 0 {
		return nil, false
	}
	n := new(big.Int).SetBytes(b)
	bits := n.BitLen()
	return n, bits >= minBits && bits <= maxBits
}
