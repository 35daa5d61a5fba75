package password

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/toppira/authctl/platform/fault"
)

func newTestPolicy(t testing.TB, cfg Config, context ...string) *policy {
	t.Helper()
	p, err := newPolicy(cfg.withDefaults(), context)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.close() })
	return p
}

// code is the code of the problem, "" for none.
func code(t testing.TB, err error) string {
	t.Helper()
	var problem *fault.Refusal
	switch {
	case err == nil:
		return ""
	case errors.As(err, &problem):
		return problem.Code
	}
	t.Fatal(err)
	return ""
}

func TestWhichPasswordsAreTaken(t *testing.T) {
	t.Parallel()
	p := newTestPolicy(t, Config{}, "https://auth.example-bank.com")
	for _, test := range []struct{ password, username, want string }{
		// The length counts in code points, both as typed and as hashed.
		{"", "alice", TooShort},
		{"7 chars", "alice", TooShort},
		{"8 chars!", "alice", ""},
		{"pässwör", "alice", TooShort},
		{"zäunköni", "alice", ""},
		{"🔑🔒🗝🔓🔐🛡🧿🧱", "alice", ""},
		{strings.Repeat("🔑", 64), "alice", ""},
		{strings.Repeat("🔑", 256), "alice", ""},
		{strings.Repeat("🔑", 257), "alice", TooLong},
		{strings.Repeat("e\u0301", 7), "alice", TooShort}, // 14 typed, 7 in characters
		{strings.Repeat("e\u0301", 256), "alice", ""},     // 512 typed
		{strings.Repeat("e\u0301", 257), "alice", TooLong},
		{strings.Repeat("\u0958", 256), "alice", ""},     // 512 when normalised
		{strings.Repeat("\u0958", 4), "alice", TooShort}, // 8 when normalised
		{strings.Repeat("x", 1<<20), "alice", TooLong},
		{"        ", "alice", TooCommon},
		{"\t a b  c ", "alice", ""},
		{" leading and trailing ", "alice", ""},
		{"no\x00trouble", "alice", ""},
		{"bad\xffbyte12", "alice", InvalidUnicode},
		{"\xed\xa0\x80surrogate", "alice", InvalidUnicode},

		// Common ones.
		{"password", "alice", TooCommon},
		{"PASSWORD", "alice", TooCommon},
		{"Password123!", "alice", TooCommon},
		{"12345678", "alice", TooCommon},
		{"iloveyou", "alice", TooCommon},
		{"qwertyuiop", "alice", TooCommon},
		{"Dragon2024", "alice", TooCommon},
		{"dragon-wings-44", "alice", ""},
		{"ｐａｓｓｗｏｒｄ", "alice", TooCommon},
		{"ＰａｓｓＷｏｒｄ１２３！", "alice", TooCommon},
		{"𝐩𝐚𝐬𝐬𝐰𝐨𝐫𝐝", "alice", TooCommon},
		{"ⓟⓐⓢⓢⓦⓞⓡⓓ", "alice", TooCommon},
		{"paſſword", "alice", TooCommon},
		{"pass\u200bword", "alice", TooCommon},
		{"pass\u00adword\ufe0f", "alice", TooCommon},
		{"１２３４５６７８", "alice", TooCommon},
		{"ａｂｃｄａｂｃｄ", "alice", TooCommon},
		{"ｐässwort und ｔext", "alice", ""},
		{"dragon77035", "alice", ""}, // five digits
		{"correct horse battery staple", "alice", ""},

		// Patterns, in short ones.
		{"aaaaaaaa", "alice", TooCommon},
		{"abcdefghi", "alice", TooCommon},
		{"fedcba987", "alice", TooCommon},
		{"xyzxyzxyz", "alice", TooCommon},
		{"aaaabbbb", "alice", TooCommon},
		{strings.Repeat("a", 72), "alice", ""},
		{"hello-1234-world", "alice", ""},

		// The username and its parts.
		{"alice123", "alice", ContainsUsername},
		{"ALICE-2024!", "alice", ContainsUsername},
		{"Alice.Smith1", "alice.smith@example.org", ContainsUsername},
		{"!smith99!", "alice.smith@example.org", ContainsUsername},
		{"alicealice", "alice", ContainsUsername},
		{"alice likes wet weather", "alice", ""},
		{"my-name-is-bob-x", "bob", ""},
		{"bob12345", "bob", ContainsUsername},
		{"ab123cdefg", "123", ContainsUsername},
		{"josé-2024", "José", ContainsUsername},
		{"jose\u0301-2024", "José", ContainsUsername},
		{"josé-2024", "Jose\u0301", ContainsUsername},
		{"ａｌｉｃｅ２０２４", "alice", ContainsUsername},
		{"alice-2024", "ＡＬＩＣＥ", ContainsUsername},
		{"νικος-2024", "ΝΙΚΟΣ", ContainsUsername},
		{"a\u200dlice2024", "alice", ContainsUsername},

		// The name of the service.
		{"authctl-2024", "alice", ContainsContext},
		{"Example2024", "alice", ContainsContext},
		{"ｅｘａｍｐｌｅ２０２４", "alice", ContainsContext},
		{"alice-example", "alice", ContainsUsername + "|" + ContainsContext},
		{"an example of rain", "alice", ""},
	} {
		got := code(t, p.check(test.password, test.username))
		if got != test.want && !slices.Contains(strings.Split(test.want, "|"), got) {
			t.Errorf("%.40q by %q: %q, want %q", test.password, test.username, got, test.want)
		}
	}
}

func TestTheSettingsOfThePolicyCount(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		cfg      Config
		password string
		want     string
	}{
		{Config{MinLength: 1}, "x", ""},
		{Config{MinLength: 4}, "love", TooCommon},
		{Config{MinLength: 15}, "fourteen chars", TooShort},
		{Config{MinLength: 15}, "alice is fifteen", ""},
		{Config{}, "alice123", ContainsUsername},
	} {
		if got := code(t, newTestPolicy(t, test.cfg).check(test.password, "alice")); got != test.want {
			t.Errorf("%+v, %q: %q, want %q", test.cfg, test.password, got, test.want)
		}
	}
	var problem *fault.Refusal
	if err := newTestPolicy(t, Config{MinLength: 12}).check("short", "alice"); !errors.As(err, &problem) ||
		problem.Detail != "must be 12 characters or more" {
		t.Errorf("%v", err)
	}
}

func TestTheBuiltInListIsWhole(t *testing.T) {
	t.Parallel()
	b := newBlocklist()
	lines, err := b.lines()
	if err != nil {
		t.Fatal(err)
	}
	text := make([]byte, lines.size)
	if _, err := lines.text.ReadAt(text, 0); err != nil {
		t.Fatal(err)
	}
	all := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(all) < 30_000 {
		t.Errorf("only %d passwords", len(all))
	}
	if !slices.IsSorted(all) {
		t.Error("it is not sorted")
	}
	for i, password := range all {
		if password != strings.ToLower(norm.NFC.String(password)) || len(password) >= maxLine || password == "" {
			t.Errorf("%q could never be found", password)
		}
		if i%97 != 0 && i != len(all)-1 {
			continue
		}
		if known, err := b.has(password); !known || err != nil {
			t.Errorf("%q: %v, %v", password, known, err)
		}
		if known, err := b.has(password + "\u00e9xz9ä"); known || err != nil {
			t.Errorf("%q with a tail: %v, %v", password, known, err)
		}
	}
}

// No input panics or is slow, and no problem quotes the password.
func FuzzCheck(f *testing.F) {
	for _, password := range []string{"", "password", "Alice123!", "\xff", strings.Repeat("\u0301", 300), "aaaaaaaaa",
		"İİİİİİİİ", "ﷺﷺﷺﷺﷺﷺﷺﷺ"} {
		f.Add(password, "alice")
	}
	p := newTestPolicy(f, Config{}, "https://auth.example.com")
	f.Fuzz(func(t *testing.T, password, username string) {
		err := p.check(password, username)
		got := code(t, err)
		if got == "" {
			if !utf8.ValidString(password) || utf8.RuneCountInString(password) < 8 {
				t.Fatalf("%q was accepted", password)
			}
			return
		}
		if utf8.RuneCountInString(password) > 40 && strings.Contains(err.Error(), password) {
			t.Fatalf("the problem quotes the password: %v", err)
		}
		// Case and normal form make no difference, except for letters without a counterpart.
		if again := code(t, p.check(norm.NFC.String(password), username)); again != got && got != TooLong &&
			again != TooLong && got != TooShort && again != TooShort {
			t.Fatalf("%q: %s, and normalised %s", password, got, again)
		}
	})
}
