package seal

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/config"
)

const (
	first  = config.Secret("the first secret, long enough 1234567890")
	second = config.Secret("the second secret, long enough 123456789")
)

func box(t *testing.T, purpose string, secrets ...config.Secret) *Box {
	t.Helper()
	b, err := New(purpose, secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWhatIsSealedOpensForItsPurposeAndNameAlone(t *testing.T) {
	t.Parallel()
	sealed := box(t, "a", first).Seal([]byte("plain text"), "name")
	if bytes.Contains(sealed, []byte("plain")) {
		t.Errorf("the sealed value shows the plain one: %q", sealed)
	}
	for _, test := range []struct {
		what          string
		b             *Box
		sealed        []byte
		name          string
		opens, reseal bool
	}{
		{"the same", box(t, "a", first), sealed, "name", true, false},
		{"with a newer secret in front", box(t, "a", second, first), sealed, "name", true, true},
		{"another secret", box(t, "a", second), sealed, "name", false, false},
		{"another purpose", box(t, "b", first), sealed, "name", false, false},
		{"another name", box(t, "a", first), sealed, "nam", false, false},
		{"changed", box(t, "a", first), append(bytes.Clone(sealed[:len(sealed)-1]), sealed[len(sealed)-1]^1), "name",
			false, false},
		{"cut", box(t, "a", first), sealed[:5], "name", false, false},
		{"empty", box(t, "a", first), nil, "name", false, false},
		{"of a later version", box(t, "a", first), append([]byte{2}, sealed[1:]...), "name", false, false},
	} {
		plain, reseal, err := test.b.Open(test.sealed, test.name)
		if (err == nil) != test.opens || reseal != test.reseal || test.opens && string(plain) != "plain text" {
			t.Errorf("%s: %q, reseal %v, %v", test.what, plain, reseal, err)
		}
	}
	if _, _, err := box(t, "a", second).Open(sealed, "name"); !errors.Is(err, ErrOtherSecret) {
		t.Errorf("the error of another secret is %v", err)
	}
	if bytes.Equal(sealed, box(t, "a", first).Seal([]byte("plain text"), "name")) {
		t.Error("the same value is sealed the same way twice")
	}
}

func TestABoxNeedsSecretsThatAreLongEnough(t *testing.T) {
	t.Parallel()
	if _, err := New("a"); err == nil {
		t.Error("a box without a secret")
	}
	if _, err := New("a", first, config.Secret(strings.Repeat("x", MinSecret-1))); err == nil {
		t.Error("a box with a short secret")
	}
}
