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
//	"adt_" + base64url( version 1 | id 16 bytes | issued 8 bytes, Unix seconds | MAC 32 bytes )
//
// The MAC covers the version, id, time and canonical name (which the token does not carry),
// so a token is worth nothing for another account.
const (
	devicePrefix  = "adt_"
	deviceVersion = 1
	deviceHead    = 1 + 16 + 8
	deviceSize    = deviceHead + sha256.Size
)

// deviceText is the length of every device token in characters.
var deviceText = len(devicePrefix) + base64.RawURLEncoding.EncodedLen(deviceSize)

// deviceSkew is how far in the future a token may have been made: by a node whose clock is
// ahead.
const deviceSkew = 5 * time.Minute

type device struct {
	id     [16]byte
	issued time.Time // to the second
}

func mintDevice(key []byte, account string, now time.Time) string {
	d := device{issued: now}
	_, _ = rand.Read(d.id[:]) // never fails (crypto/rand)
	return d.encode(key, account)
}

func (d device) encode(key []byte, account string) string {
	raw := make([]byte, 0, deviceSize)
	raw = append(raw, deviceVersion)
	raw = append(raw, d.id[:]...)
	raw = binary.BigEndian.AppendUint64(raw, uint64(d.issued.Unix()))
	raw = append(raw, deviceMAC(key, raw, account)...)
	return devicePrefix + base64.RawURLEncoding.EncodeToString(raw)
}

// parseDevice accepts exactly what encode writes. It does no I/O and its cost does not
// depend on the length of the input.
func parseDevice(key []byte, account, token string) (device, bool) {
	if len(token) != deviceText || token[:len(devicePrefix)] != devicePrefix {
		return device{}, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(token[len(devicePrefix):])
	// 57 bytes fill 76 characters to the last bit, so no two texts mean the same. The decoder
	// skips line breaks; then fewer bytes come out than must.
	if err != nil || len(raw) != deviceSize || raw[0] != deviceVersion {
		return device{}, false
	}
	if !hmac.Equal(raw[deviceHead:], deviceMAC(key, raw[:deviceHead], account)) {
		return device{}, false
	}
	return device{
		id:     [16]byte(raw[1:17]),
		issued: time.Unix(int64(binary.BigEndian.Uint64(raw[17:deviceHead])), 0),
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
