package contact

import (
	"bytes"
	"encoding/base64"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/config"
)

const (
	testSecret  config.Secret = "0123456789abcdef0123456789abcdef"
	otherSecret config.Secret = "fedcba9876543210fedcba9876543210"
)

func newTestSealer(t *testing.T, secrets ...config.Secret) *Sealer {
	t.Helper()
	s, err := NewSealer(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAMessageIsSealedToItsEvent(t *testing.T) {
	t.Parallel()
	s := newTestSealer(t, testSecret)
	m := Message{
		Purpose: PurposeReset, Language: "de", Recipient: "alice@example.com", UserID: uuid.New(),
		ContactID: uuid.New(), Username: "alice",
		Code: "ABCD-EFGH", LinkToken: "act_link", ChallengeID: uuid.New(),
		ExpiresAt: time.Now().UTC().Truncate(time.Second),
	}
	e, err := s.Event(m, "https://auth.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if e.Type != EventMessage || e.Key != "mail:"+m.UserID.String()+":"+m.ContactID.String() {
		t.Errorf("the event is %s of %s", e.Type, e.Key)
	}
	got, err := s.Open(e.ID, e.Data)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("opened %+v, %v; want %+v", got, err, m)
	}
	for _, secret := range []string{m.Code, m.LinkToken, m.Recipient} {
		if bytes.Contains(e.Data, []byte(secret)) ||
			bytes.Contains(e.Data, []byte(base64.StdEncoding.EncodeToString([]byte(secret)))) {
			t.Errorf("%s is in the event: %s", secret, e.Data)
		}
	}
	if _, err := s.Open(uuid.New(), e.Data); !errors.Is(err, ErrSealed) {
		t.Errorf("it opens as another event: %v", err)
	}
	if _, err := newTestSealer(t, otherSecret).Open(e.ID, e.Data); !errors.Is(err, ErrSealed) {
		t.Errorf("another secret opens it: %v", err)
	}
	if _, err := newTestSealer(t, otherSecret, testSecret).Open(e.ID, e.Data); err != nil {
		t.Errorf("a replaced secret does not open it: %v", err)
	}
	again, err := s.Event(m, "https://auth.example.com")
	if err != nil || bytes.Equal(again.Data, e.Data) {
		t.Errorf("two messages are sealed alike: %v", err)
	}
	for _, data := range []string{``, `{}`, `{"sealed":"AAAA"}`,
		strings.Replace(string(e.Data), `"sealed":"`, `"sealed":"AAAA`, 1)} {
		if _, err := s.Open(e.ID, []byte(data)); err == nil {
			t.Errorf("%q opens", data)
		}
	}
}

func TestMessagesToNobodyShareAFewKeys(t *testing.T) {
	t.Parallel()
	s := newTestSealer(t, testSecret)
	keys := map[string]bool{}
	for range 2000 {
		e, err := s.Event(Message{Purpose: PurposeNone, UserID: uuid.New()}, "https://auth.example.com")
		if err != nil {
			t.Fatal(err)
		}
		keys[e.Key] = true
	}
	if len(keys) > 256 {
		t.Errorf("%d keys", len(keys))
	}
}
