package auth

import (
	"strings"
	"testing"
)

// A device is named by its owner, in any script, and apps send that name without asking: it must not keep
// anybody from signing in.
func TestADeviceIsNamedInAnyScript(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"Alice’s phone":          "Alice’s phone",
		"👩\u200d💻 laptop":        "👩\u200d💻 laptop",
		"❤\ufe0f":                "❤\ufe0f",
		"لپ\u200cتاپ":            "لپ\u200cتاپ", // "laptop" in Persian
		"太郎の\u3000iPhone":        "太郎の iPhone",
		"iPhone\u00a0de Zoé":     "iPhone de Zoé",
		" \u2003phone\u00a0":     "phone",
		"":                       "curl",
		" \u3000":                "curl",
		"\u200d\u200c":           "curl",
		" \u200d ":               "curl",
		strings.Repeat("日", 100): strings.Repeat("日", 100),
	} {
		if refused := checkDeviceName(name); refused != nil {
			t.Errorf("%+q is refused: %v", name, refused)
		}
		if got := (Device{Name: name, UserAgent: "curl/8.0"}).clean().Name; got != want {
			t.Errorf("%+q is named %+q, want %+q", name, got, want)
		}
	}
	for name, code := range map[string]string{
		"a\nb": "invalid_characters", "a\x00": "invalid_characters", "\x1b[2J": "invalid_characters",
		"a\u202eb": "invalid_characters", "a\u2028b": "invalid_characters", "a\u00adb": "invalid_characters",
		"a\u200bb": "invalid_characters", "a\ufeffb": "invalid_characters", "a\U000e0041": "invalid_characters",
		"a\xff": "invalid_unicode", strings.Repeat("日", 101): "too_long",
	} {
		if refused := checkDeviceName(name); refused == nil || refused.Code != code {
			t.Errorf("%+q: %v, want %s", name, refused, code)
		}
	}
}
