package throttle

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/config"
)

func TestDeviceTokensKeepTheirForm(t *testing.T) {
	t.Parallel()
	key, err := derive("0123456789abcdef0123456789abcdef", "device")
	if err != nil {
		t.Fatal(err)
	}
	d := device{id: [16]byte(bytes.Repeat([]byte{7}, 16)), issued: time.Unix(1_764_000_000, 0),
		owner: fingerprint("owner")}
	const golden = "adt_AgcHBwcHBwcHBwcHBwcHBwcAAAAAaSSBADPUTs92pUVly3fPFJXPo_25bBS6I9ywpeBCILHyvry4TyUpdDBTfcwnqye6sHurZw"
	if got := d.encode(key, "alice"); got != golden {
		t.Fatalf("%s, want %s: existing tokens would no longer be known", got, golden)
	}
}

func TestOnlyExactDeviceTokensAreTaken(t *testing.T) {
	t.Parallel()
	key := []byte("key")
	good := mintDevice(key, "alice", ownerOf("alice"), time.Now())
	if _, ok := parseDevice(key, "alice", good); !ok {
		t.Fatal("a good token is refused")
	}
	for what, token := range map[string]string{
		"nothing":            "",
		"another prefix":     "art_" + good[4:],
		"cut short":          good[:len(good)-1],
		"padded":             good + "=",
		"with a line break":  good[:20] + "\n" + good[20:],
		"other alphabet":     good[:20] + "+" + good[21:],
		"a break for a byte": good[:len(good)-1] + "\n",
		"very long":          good + strings.Repeat("A", 1<<20),
		"zeroes":             "adt_" + base64.RawURLEncoding.EncodeToString(make([]byte, deviceSize)),
	} {
		if _, ok := parseDevice(key, "alice", token); ok {
			t.Errorf("taken: %s", what)
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(good[4:])
	if err != nil {
		t.Fatal(err)
	}
	for n := range raw {
		raw[n] ^= 1
		if _, ok := parseDevice(key, "alice", "adt_"+base64.RawURLEncoding.EncodeToString(raw)); ok {
			t.Errorf("accepted with byte %d changed", n)
		}
		raw[n] ^= 1
	}
	if _, ok := parseDevice(key, "alicf", good); ok {
		t.Error("accepted for another account")
	}
	if _, ok := parseDevice([]byte("kez"), "alice", good); ok {
		t.Error("accepted under another key")
	}
}

func TestDeviceTokensAgeAndOutliveAChangeOfSecret(t *testing.T) {
	t.Parallel()
	c := newClock()
	limiter := func(secret config.Secret, previous ...config.Secret) *Limiter {
		l, err := New(defaults(t), Options{Secret: secret, PreviousSecrets: previous, Now: c.now})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	before := limiter("old")
	a := Attempt{Account: "alice", Address: address(1), DeviceToken: remember(t, before, "alice", address(1))}
	valid := func(l *Limiter) bool { _, ok := l.device(a); return ok }
	if !valid(before) || !valid(limiter("new", "old")) {
		t.Error("not known under its own secret, or the previous one")
	}
	if valid(limiter("new")) {
		t.Error("known under a removed secret")
	}
	c.advance(180*24*time.Hour - time.Second)
	if !valid(before) {
		t.Error("not known before it expires")
	}
	c.advance(2 * time.Second)
	if valid(before) {
		t.Error("known after 180 days")
	}
	c.advance(-181 * 24 * time.Hour)
	if valid(before) {
		t.Error("known a day before it was issued")
	}
}

func FuzzDeviceTokenReencodesToTheSame(f *testing.F) {
	key := []byte("key")
	f.Add(mintDevice(key, "alice", ownerOf("alice"), time.Unix(1_764_000_000, 0)), "alice")
	f.Add("adt_", "")
	f.Add("adt_"+strings.Repeat("A", deviceText-4), "alice")
	f.Add(strings.Repeat("\n", 80), "bob")
	f.Fuzz(func(t *testing.T, token, account string) {
		if d, ok := parseDevice(key, account, token); ok && d.encode(key, account) != token {
			t.Fatalf("%q was accepted, but encode writes something else", token)
		}
		// A token made with this key must be accepted for its own account only.
		d := device{issued: time.Unix(int64(len(token)), 0)}
		copy(d.id[:], token)
		copy(d.owner[:], account)
		made := d.encode(key, account)
		if got, ok := parseDevice(key, account, made); !ok || got != d {
			t.Fatalf("%q comes back as %v, %t", made, got, ok)
		}
		if _, ok := parseDevice(key, account+"x", made); ok {
			t.Fatal("accepted for another account")
		}
	})
}
