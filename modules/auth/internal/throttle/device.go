package throttle

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/toppira/authctl/platform/config"
)

// A device token says that its bearer has signed in to the account before; it never signs
// anyone in. Written out:
//
//	"adt_" + base64url( version 2 | id 16 bytes | issued 8 bytes, Unix seconds |
//	                    owner 16 bytes | MAC 32 bytes )
//
// The owner is a [fingerprint] of the account with the name and of its password: when either
// changes, the token is worth nothing. The MAC covers all before it and the canonical name
// (which the token does not carry), so a token is worth nothing for another name either.
// Version 1 had no owner and is no longer accepted.
const (
	devicePrefix  = "adt_"
	deviceVersion = 2
	deviceIssued  = 1 + 16
	deviceOwner   = deviceIssued + 8
	deviceHead    = deviceOwner + 16
	deviceSize    = deviceHead + sha256.Size
)

// deviceEncoding has one text for each token: it refuses unused bits that are set.
var deviceEncoding = base64.RawURLEncoding.Strict()

// deviceText is the length of every device token in characters.
var deviceText = len(devicePrefix) + deviceEncoding.EncodedLen(deviceSize)

// deviceSkew is how far in the future a token may have been made: by a node whose clock is
// ahead.
const deviceSkew = 5 * time.Minute

type device struct {
	id     [16]byte
	issued time.Time // to the second
	owner  [16]byte
}

// fingerprint stands for an owner in tokens and in the names of counters. It hides nothing that
// the bearer of a token does not know, and says nothing to anybody else.
func fingerprint(owner string) [16]byte {
	sum := sha256.Sum256([]byte("authctl device owner v1\x00" + owner))
	return [16]byte(sum[:16])
}

func mintDevice(key []byte, account, owner string, now time.Time) string {
	d := device{issued: now, owner: fingerprint(owner)}
	_, _ = rand.Read(d.id[:]) // never fails (crypto/rand)
	return d.encode(key, account)
}

func (d device) encode(key []byte, account string) string {
	raw := make([]byte, 0, deviceSize)
	raw = append(raw, deviceVersion)
	raw = append(raw, d.id[:]...)
	raw = binary.BigEndian.AppendUint64(raw, uint64(d.issued.Unix()))
	raw = append(raw, d.owner[:]...)
	raw = append(raw, deviceMAC(key, raw, account)...)
	return devicePrefix + deviceEncoding.EncodeToString(raw)
}

// parseDevice accepts exactly what encode writes. It does no I/O and its cost does not
// depend on the length of the input.
func parseDevice(key []byte, account, token string) (device, bool) {
	if len(token) != deviceText || token[:len(devicePrefix)] != devicePrefix {
		return device{}, false
	}
	raw, err := deviceEncoding.DecodeString(token[len(devicePrefix):])
	// The decoder skips line breaks; then fewer bytes come out than must.
	if err != nil || len(raw) != deviceSize || raw[0] != deviceVersion {
		return device{}, false
	}
	if !hmac.Equal(raw[deviceHead:], deviceMAC(key, raw[:deviceHead], account)) {
		return device{}, false
	}
	return device{
		id:     [16]byte(raw[1:deviceIssued]),
		issued: time.Unix(int64(binary.BigEndian.Uint64(raw[deviceIssued:deviceOwner])), 0),
		owner:  [16]byte(raw[deviceOwner:deviceHead]),
	}, true
}

func deviceMAC(key, head []byte, account string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(head) // of fixed length, so head and name cannot run into each other
	mac.Write([]byte(account))
	return mac.Sum(nil)
}

func derive(secret config.Secret, purpose string) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, []byte(secret.Reveal()), nil, "authctl throttle "+purpose+" v1", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive the %s key: %w", purpose, err)
	}
	return key, nil
}
