package username

import (
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// canonical returns the form, or the code of the problem.
func canonical(t testing.TB, profile Profile, input string) (name, code string) {
	t.Helper()
	name, err := Canonical(profile, input)
	if err == nil {
		return name, ""
	}
	var problem *Problem
	if !errors.As(err, &problem) || name != "" {
		t.Fatalf("%q: %q, %v", input, name, err)
	}
	return "", problem.Code
}

func TestNamesOfASCII(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ input, want, code string }{
		{"alice", "alice", ""},
		{"ALICE", "alice", ""},
		{"Alice.B_c-d+e@example.ORG", "alice.b_c-d+e@example.org", ""},
		{"007", "007", ""},
		{"...", "...", ""},
		{strings.Repeat("A", 255), strings.Repeat("a", 255), ""},
		{"", "", TooShort},
		{"ab", "", TooShort},
		{strings.Repeat("a", 256), "", TooLong},
		{strings.Repeat("a", 1<<20), "", TooLong},
		{strings.Repeat("\xff", 1<<20), "", TooLong},
		{"ali ce", "", InvalidCharacters},
		{" alice", "", InvalidCharacters},
		{"alice\n", "", InvalidCharacters},
		{"ali\x00ce", "", InvalidCharacters},
		{"alice\x7f", "", InvalidCharacters},
		{"ali/ce", "", InvalidCharacters},
		{"alicé", "", InvalidCharacters},
		{"\u212aelvin", "", InvalidCharacters}, // KELVIN SIGN, whose lower case is k
		{"ａlice", "", InvalidCharacters},
		{"ali\u200bce", "", InvalidCharacters},
		{"ali\xffce", "", InvalidUnicode},
		{"ali\xc0\xaece", "", InvalidUnicode},
		{"ali\xed\xa0\x80ce", "", InvalidUnicode},
	} {
		if name, code := canonical(t, ASCII, test.input); name != test.want || code != test.code {
			t.Errorf("%.40q: %q %q, want %q %q", test.input, name, code, test.want, test.code)
		}
	}
}

func TestNamesOfUnicode(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ input, want, code string }{
		{"alice", "alice", ""},
		{"ALICE", "alice", ""},
		{"Alice.B_c-d+e@example.ORG", "alice.b_c-d+e@example.org", ""},
		{"José", "josé", ""},
		{"Jose\u0301", "josé", ""},
		{"ＡＬＩＣＥ", "alice", ""}, // wide
		{"ﾊﾝｶｸ", "ハンカク", ""},   // narrow
		{"Ἀθηνᾶ", "ἀθηνᾶ", ""},
		{"Борис", "борис", ""},
		{"山田太郎", "山田太郎", ""},
		{"ヤマダ太郎san", "ヤマダ太郎san", ""}, // as Japanese is written
		{"김철수kim", "김철수kim", ""},
		{"ㄅㄆㄇ漢a", "ㄅㄆㄇ漢a", ""},
		{"דוד123", "דוד123", ""},
		{"123דוד", "", InvalidCharacters}, // RFC 5893: it would be shown in another order
		{"раypal", "", MixedScripts},      // Cyrillic ра
		{"аlice", "", MixedScripts},       // Cyrillic а
		{"αlice", "", MixedScripts},
		{"ハングル한글", "", MixedScripts},
		{"alice১২৩", "", MixedScripts},
		{"ラーメン・太郎", "ラーメン・太郎", ""}, // marks that scripts share
		{"ab", "", TooShort},
		{"", "", TooShort},
		{strings.Repeat("é", 255), strings.Repeat("é", 255), ""},
		{strings.Repeat("é", 256), "", TooLong},
		{"e\u0301e\u0301", "", TooShort}, // two characters, of four code points
		{"ali ce", "", InvalidCharacters},
		{"ali\u200bce", "", InvalidCharacters},
		{"ali\u202ece", "", InvalidCharacters},
		{"ali\u00adce", "", InvalidCharacters},
		{"alice😀", "", InvalidCharacters},
		{"ali\u2028ce", "", InvalidCharacters},
		{"ﬁona", "", InvalidCharacters}, // a ligature has a compatibility equivalent
		{"ⅣⅣⅣ", "", InvalidCharacters},
		{"ali\xffce", "", InvalidUnicode},
	} {
		if name, code := canonical(t, Unicode, test.input); name != test.want || code != test.code {
			t.Errorf("%.40q: %q %q, want %q %q", test.input, name, code, test.want, test.code)
		}
	}
}

// Every name that is accepted is its own canonical form, is UTF-8 of an allowed length, and
// has nothing in it that is invisible; and case does not tell names apart.
func FuzzCanonical(f *testing.F) {
	for _, name := range []string{"alice", "ALICE", "Jose\u0301", "ＡＬＩＣＥ", "раypal", "ß", "ſſſ", "İİİ", "ΑΣΣ", "ﾊﾞﾊﾞﾊﾞ", "a\u0345bc", "\u1e9e\u1e9e\u1e9e", "ab\xff", "ⅷⅷⅷ"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, input string) {
		for _, profile := range []Profile{ASCII, Unicode} {
			name, code := canonical(t, profile, input)
			if code != "" {
				continue
			}
			if again, code := canonical(t, profile, name); again != name || code != "" {
				t.Fatalf("%s: %q is %q and that is %q %s", profile, input, name, again, code)
			}
			if n := utf8.RuneCountInString(name); !utf8.ValidString(name) || n < MinLength || n > MaxLength {
				t.Fatalf("%s: %q is %q", profile, input, name)
			}
			if strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || unicode.IsUpper(r) }) {
				t.Fatalf("%s: %q is %q", profile, input, name)
			}
		}
		// What ASCII accepts, Unicode accepts as the same name: the profile can be widened.
		if name, code := canonical(t, ASCII, input); code == "" {
			if wide, code := canonical(t, Unicode, input); wide != name || code != "" {
				t.Fatalf("%q is %q in ASCII and %q %s in Unicode", input, name, wide, code)
			}
		}
	})
}
