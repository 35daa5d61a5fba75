package session_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/platform/config"
)

const (
	secretA = config.Secret("a secret of thirty-two characters")
	secretB = config.Secret("another secret of many characters")
)

func newCodec(t testing.TB, current config.Secret, previous ...config.Secret) *session.Codec {
	t.Helper()
	codec, err := session.NewCodec(current, previous...)
	if err != nil {
		t.Fatal(err)
	}
	return codec
}

func TestATokenSaysWhatItWasMintedWith(t *testing.T) {
	t.Parallel()
	codec := newCodec(t, secretA)
	user, sid := uuid.New(), uuid.New()
	minted := codec.Mint(user, sid, 7)
	text := minted.Encode()
	if !strings.HasPrefix(text, "art_") || len(text) != 119 {
		t.Errorf("token is %d characters and begins with %q", len(text), text[:4])
	}
	got, err := codec.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if got != minted || got.UserID() != user || got.SessionID() != sid || got.Generation() != 7 ||
		got.Hash() != minted.Hash() {
		t.Error("the parsed token differs from the minted one")
	}
}

func TestTwoTokensNeverShareASecret(t *testing.T) {
	t.Parallel()
	codec := newCodec(t, secretA)
	user, sid := uuid.New(), uuid.New()
	seen := map[session.Hash]bool{}
	for range 1000 {
		seen[codec.Mint(user, sid, 1).Hash()] = true
	}
	if len(seen) != 1000 {
		t.Errorf("1000 tokens have %d secrets", len(seen))
	}
}

func TestAnyChangedBitIsRefused(t *testing.T) {
	t.Parallel()
	codec := newCodec(t, secretA)
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(codec.Mint(uuid.New(), uuid.New(), 1).Encode(),
		"art_"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for bit := range 8 {
			changed := bytes.Clone(raw)
			changed[i] ^= 1 << bit
			if _, err := codec.Parse("art_" +
				base64.RawURLEncoding.EncodeToString(changed)); !errors.Is(err, session.ErrMalformed) {
				t.Fatalf("byte %d bit %d changed: %v", i, bit, err)
			}
		}
	}
}

func TestOtherSpellingsOfATokenAreRefused(t *testing.T) {
	t.Parallel()
	codec := newCodec(t, secretA)
	text := codec.Mint(uuid.New(), uuid.New(), 1).Encode()
	body := text[4:]
	last := body[len(body)-1]
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	slack := alphabet[strings.IndexByte(alphabet, last)|1] // the lowest bit lies beyond the last byte
	for name, other := range map[string]string{
		"empty":                "",
		"prefix only":          "art_",
		"no prefix":            body,
		"other prefix":         "ART_" + body,
		"padded":               text + "=",
		"longer":               text + "A",
		"shorter":              text[:len(text)-1],
		"space before":         " " + text,
		"line break after":     text + "\n",
		"line break in place":  text[:60] + "\n" + text[61:],
		"line break as filler": text[:60] + "\r\n" + text[60:],
		"slack bits":           text[:len(text)-1] + string(slack),
		"standard alphabet":    "art_" + strings.NewReplacer("-", "+", "_", "/").Replace(body) + "+",
		"all zero":             "art_" + strings.Repeat("A", len(body)),
	} {
		if _, err := codec.Parse(other); !errors.Is(err, session.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTokensOutliveTheReplacementOfTheSecret(t *testing.T) {
	t.Parallel()
	old, both, fresh := newCodec(t, secretA), newCodec(t, secretB, secretA), newCodec(t, secretB)
	before, after := old.Mint(uuid.New(), uuid.New(), 1).Encode(), both.Mint(uuid.New(), uuid.New(), 1).Encode()
	for name, tc := range map[string]struct {
		codec *session.Codec
		text  string
		good  bool
	}{
		"old token while both are configured": {both, before, true},
		"new token while both are configured": {both, after, true},
		"new token when the old one is gone":  {fresh, after, true},
		"old token when the old one is gone":  {fresh, before, false},
		"new token on a server not yet told":  {old, after, false},
	} {
		if _, err := tc.codec.Parse(tc.text); (err == nil) != tc.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSecretsThatShareAKeyIDBothWork(t *testing.T) {
	t.Parallel()
	// A key id is one byte, so at least two of 257 secrets share one.
	ids := map[byte]config.Secret{}
	for i := range 257 {
		secret := config.Secret(fmt.Sprintf("%s %d", secretA, i))
		text := newCodec(t, secret).Mint(uuid.Nil, uuid.Nil, 1).Encode()
		raw, _ := base64.RawURLEncoding.DecodeString(text[4:])
		twin, taken := ids[raw[1]]
		if !taken {
			ids[raw[1]] = secret
			continue
		}
		if _, err := newCodec(t, twin, secret).Parse(text); err != nil {
			t.Errorf("the token of the second of two secrets with one key id: %v", err)
		}
		return
	}
	t.Fatal("no two of 257 secrets share a key id")
}

func TestAnEmptySecretMakesNoCodec(t *testing.T) {
	t.Parallel()
	if _, err := session.NewCodec(""); err == nil {
		t.Error("an empty secret was taken")
	}
	if _, err := session.NewCodec(secretA, ""); err == nil {
		t.Error("an empty previous secret was taken")
	}
}

func TestTheSuccessorOpensOnlyWithItsPredecessor(t *testing.T) {
	t.Parallel()
	codec := newCodec(t, secretA)
	presented := codec.Mint(uuid.New(), uuid.New(), 3)
	next, rotation := codec.Next(presented)
	if next.Generation() != 4 || rotation.NextHash != next.Hash() || rotation.PresentedHash != presented.Hash() {
		t.Error("the successor does not follow the presented token")
	}
	got, err := codec.OpenNext(presented, rotation.SealedNext)
	if err != nil || got.Encode() != next.Encode() {
		t.Fatalf("opened another successor, or none: %v", err)
	}
	if _, err := codec.OpenNext(next, rotation.SealedNext); err == nil {
		t.Error("the successor opened itself")
	}
	sibling := codec.Mint(presented.UserID(), presented.SessionID(), 3)
	if _, err := codec.OpenNext(sibling, rotation.SealedNext); err == nil {
		t.Error("another token of the same generation opened it")
	}
	for i := range rotation.SealedNext {
		changed := bytes.Clone(rotation.SealedNext)
		changed[i] ^= 1
		if _, err := codec.OpenNext(presented, changed); err == nil {
			t.Fatalf("opened with byte %d changed", i)
		}
	}
	if bytes.Equal(session.SealNext(presented, next), rotation.SealedNext) {
		t.Error("sealed twice alike: the nonce repeats")
	}
}

func TestAReissuedTokenOpensForItsSessionAlone(t *testing.T) {
	t.Parallel()
	before := newCodec(t, secretA)
	old := before.Mint(uuid.New(), uuid.New(), 3)
	fresh := before.Mint(old.UserID(), old.SessionID(), 4)
	sealed := before.SealReissued(fresh)
	for _, codec := range []*session.Codec{before, newCodec(t, secretB, secretA)} {
		if got, err := codec.OpenNext(old, sealed); err != nil || got.Encode() != fresh.Encode() {
			t.Errorf("opened another token, or none: %v", err)
		}
		if _, err := codec.OpenNext(codec.Mint(old.UserID(), uuid.New(), 3), sealed); err == nil {
			t.Error("another session's token opened it")
		}
	}
	if _, err := newCodec(t, secretB).OpenNext(old, sealed); err == nil {
		t.Error("it opened without the secret")
	}
}

func TestATokenPrintsRedacted(t *testing.T) {
	t.Parallel()
	token := newCodec(t, secretA).Mint(uuid.New(), uuid.New(), 1)
	asJSON, err := json.Marshal(map[string]any{"token": token, "pointer": &token})
	if err != nil {
		t.Fatal(err)
	}
	printed := fmt.Sprintf("%v %+v %#v %s %q %x %d %v", token, token, token, token, token, token, token,
		[]any{&token, struct{ T session.Token }{token}})
	if strings.ContainsAny(strings.ReplaceAll(printed, "[redacted]", ""), "0123456789") ||
		strings.Contains(string(asJSON), "art_") {
		t.Errorf("a token shows: %s %s", printed, asJSON)
	}
}

func TestASessionAcceptsItsCurrentTokenAndThoseAhead(t *testing.T) {
	t.Parallel()
	codec := newCodec(t, secretA)
	user, sid := uuid.New(), uuid.New()
	current := codec.Mint(user, sid, 5)
	s := session.Session{ID: sid, UserID: user, Generation: 5, Hash: current.Hash()}
	for name, tc := range map[string]struct {
		token session.Token
		want  bool
	}{
		"current":         {current, true},
		"ahead":           {codec.Mint(user, sid, 6), true},
		"same generation": {codec.Mint(user, sid, 5), false},
		"older":           {codec.Mint(user, sid, 4), false},
		"other session":   {codec.Mint(user, uuid.New(), 6), false},
		"other user":      {codec.Mint(uuid.New(), sid, 6), false},
	} {
		if got := s.Accepts(tc.token); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	codec := newCodec(f, secretA, secretB)
	f.Add(codec.Mint(uuid.New(), uuid.New(), 1).Encode())
	f.Add(newCodec(f, secretB).Mint(uuid.New(), uuid.New(), 1<<31).Encode())
	f.Add("art_" + strings.Repeat("A", 115))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := codec.Parse(text)
		if err != nil {
			if !errors.Is(err, session.ErrMalformed) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if token.Encode() != text {
			t.Fatalf("%q re-encodes to %q", text, token.Encode())
		}
	})
}

// The sealed form comes from the store, which this code does not trust.
func FuzzOpenNext(f *testing.F) {
	codec := newCodec(f, secretA)
	presented := codec.Mint(uuid.New(), uuid.New(), 1)
	_, rotation := codec.Next(presented)
	f.Add(rotation.SealedNext)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		if _, err := codec.OpenNext(presented, sealed); err == nil && !bytes.Equal(sealed, rotation.SealedNext) {
			t.Fatal("a forged successor opened")
		}
	})
}
