package username

import (
	"cmp"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"golang.org/x/text/secure/precis"

	"github.com/toppira/authctl/platform/fault"
)

// canonical returns the canonical form, or the code of the problem.
func canonical(t testing.TB, profile Profile, input string) (name, code string) {
	t.Helper()
	name, err := Canonical(profile, input)
	if err == nil {
		return name, ""
	}
	var problem *fault.Refusal
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
		{"abc", "abc", ""},
		{"o'neill@example.com", "o'neill@example.com", ""},
		{"O'Neill+Shop@Example.com", "o'neill+shop@example.com", ""},
		{"!#$%&'*+-/=?^_`{|}~@example.com", "!#$%&'*+-/=?^_`{|}~@example.com", ""},
		{"a/b@c@example.com", "a/b@c@example.com", ""},
		{"o'neill", "", InvalidCharacters},
		{"o'neill@", "", InvalidCharacters},
		{"alice@o'neill.com", "", InvalidCharacters},
		{"a/b@c/d@example.com/e", "", InvalidCharacters},
		{"ali,ce@example.com", "", InvalidCharacters},
		{`ali"ce@example.com`, "", InvalidCharacters},
		{`ali\ce@example.com`, "", InvalidCharacters},
		{"ali<ce>@example.com", "", InvalidCharacters},
		{"ali:ce@example.com", "", InvalidCharacters},
		{"ali ce@example.com", "", InvalidCharacters},
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
		{"ヤマダ太郎san", "ヤマダ太郎san", ""}, // ordinary Japanese
		{"김철수kim", "김철수kim", ""},
		{"ㄅㄆㄇ漢a", "ㄅㄆㄇ漢a", ""},
		{"דוד123", "דוד123", ""},
		{"123דוד", "", InvalidCharacters}, // RFC 5893: it would be displayed in another order
		{"раypal", "", MixedScripts},      // Cyrillic ра
		{"аlice", "", MixedScripts},       // Cyrillic а
		{"αlice", "", MixedScripts},
		{"ハングル한글", "", MixedScripts},
		{"alice১২৩", "", MixedScripts},
		{"ラーメン・太郎", "ラーメン・太郎", ""}, // marks that several scripts share
		{"иван@example.com", "иван@example.com", ""},
		{"ИВАН+shop@example.com", "", MixedScripts},
		{"alice@пример.рф", "alice@пример.рф", ""},
		{"иван@mail.пример.рф", "иван@mail.пример.рф", ""},
		{"иван@почта.example", "иван@почта.example", ""},
		{"山田@ヤマダ.example", "山田@ヤマダ.example", ""},
		{"дима@ヤマダ.한국", "дима@ヤマダ.한국", ""},
		{"דוד@example.com", "דוד@example.com", ""},
		{"محمد@example.com", "محمد@example.com", ""},
		{"alice@דוד.example", "alice@דוד.example", ""},
		{"аlice@example.com", "", MixedScripts}, // Cyrillic а
		{"alice@exаmple.com", "", MixedScripts},
		{"alice@example.cоm", "", MixedScripts},
		{"sara.сох", "", MixedScripts}, // a dot before the @ does not separate scripts
		{"sara.сох@example.com", "", MixedScripts},
		{"иван@alice@example.com", "", MixedScripts}, // the last @ counts
		{"123דוד@example.com", "", InvalidCharacters},
		{"иван＠example.com", "иван@example.com", ""}, // a wide @ counts as one
		{"иван2024", "иван2024", ""},
		{"иван_и-мария", "иван_и-мария", ""},
		{"e\u0323\u0301le\u0300ve", "ẹ\u0301lève", ""}, // a mark belongs to the script of its letter
		{"太郎さんカナ", "太郎さんカナ", ""},
		{"ㄅㄆ漢字", "ㄅㄆ漢字", ""},
		{"한자漢字", "한자漢字", ""},
		{"ひらㄅㄆ", "", MixedScripts},
		{"한글ひら", "", MixedScripts},
		{"αβγ漢字", "", MixedScripts},
		{"o'neill@example.com", "o'neill@example.com", ""},
		{"abc", "abc", ""},
		{"日本語", "日本語", ""},
		{"日本", "", TooShort},
		{strings.Repeat("𠮷", 255), strings.Repeat("𠮷", 255), ""}, // of four bytes each
		{strings.Repeat("𠮷", 256), "", TooLong},
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

// No name may look like an id to any code here: uuid.Parse accepts four spellings and ignores what
// encloses an id, and PostgreSQL accepts more.
func TestNamesOfTheFormOfAnID(t *testing.T) {
	t.Parallel()
	const id = "0192f0a1-7b1c-7d3e-8f00-00000000abcd"
	bare := strings.ReplaceAll(id, "-", "")
	wide := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r > ' ' && r <= '~' {
				return r - '!' + '！'
			}
			return r
		}, s)
	}
	for _, profile := range []Profile{ASCII, Unicode} {
		for _, name := range []string{
			id, bare, strings.ToUpper(id), strings.ToUpper(bare),
			"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
			"." + id + ".", "a" + id + "b", "-" + id + "-",
			"0192-f0a1-7b1c-7d3e-8f00-0000-0000-abcd", "-" + bare, bare + "-", "0192f0a17b1c-7d3e-8f0000000000abcd",
		} {
			if name, code := canonical(t, profile, name); code != LooksLikeID {
				t.Errorf("%s: %q %q", profile, name, code)
			}
		}
		for _, name := range []string{
			id + "@example.com", bare + "0", bare[1:], id[:35], "g" + id[1:], "user-" + id, id + "-2",
			strings.Repeat("a", 33),
		} {
			if name, code := canonical(t, profile, name); code != "" {
				t.Errorf("%s: %q %q", profile, name, code)
			}
		}
	}
	for _, name := range []string{
		"{" + id + "}", "{" + bare + "}", "urn:uuid:" + id, "URN:UUID:" + strings.ToUpper(id), "urn:uuid:" + bare,
		"(" + id + ")",
		wide(id), wide(strings.ToUpper(bare)), wide("{" + id + "}"), wide("urn:uuid:" +
			id), "０" + id[1:], "é" + id[1:] + "a",
	} {
		want := LooksLikeID
		if strings.HasPrefix(name, "é") {
			want = "" // 38 bytes, but no hexadecimal digit where an id begins
		}
		if name, code := canonical(t, Unicode, name); code != want {
			t.Errorf("%q %q", name, code)
		}
	}
}

// The refusal names the character, which matters most where nobody can see it.
func TestRefusedCharactersAreNamed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, ascii, unicode string }{
		{"alice ", "ends with U+0020 SPACE, which cannot be seen; leave it out", ""},
		{"alice\t", "ends with U+0009 TAB, which cannot be seen; leave it out", ""},
		{"alice\r\n", "ends with U+000A LINE FEED, which cannot be seen; leave it out", ""},
		{"\u00a0alice", "begins with U+00A0 NO-BREAK SPACE, which cannot be seen; leave it out", ""},
		{"alice\u200b", "ends with U+200B ZERO WIDTH SPACE, which cannot be seen; leave it out", ""},
		{"\ufeffalice", "begins with U+FEFF ZERO WIDTH NO-BREAK SPACE (byte order mark), which cannot be seen; leave it out", ""},
		{"alice\u3000", "ends with U+3000 IDEOGRAPHIC SPACE, which cannot be seen; leave it out", ""},
		{"\u202aalice\u202c", "begins with U+202A LEFT-TO-RIGHT EMBEDDING, which cannot be seen; leave it out", ""},
		{"   ", "begins with U+0020 SPACE, which cannot be seen; leave it out", ""},
		{"ali\u200bce", "has U+200B ZERO WIDTH SPACE in it, which cannot be seen; leave it out", ""},
		{"ali ce", "has U+0020 SPACE in it, which cannot be seen; leave it out", ""},
		{
			"ali\x1bce", "may have only ASCII letters, digits and . _ - @ +, and not U+001B ESCAPE",
			"has U+001B ESCAPE in it, which cannot be seen; leave it out",
		},
		{
			"ali\x01ce", "may have only ASCII letters, digits and . _ - @ +, and not U+0001 CONTROL CHARACTER",
			"has U+0001 CONTROL CHARACTER in it, which cannot be seen; leave it out",
		},
		{
			"ali€ce", "may have only ASCII letters, digits and . _ - @ +, and not U+20AC EURO SIGN",
			"has U+20AC EURO SIGN in it, which names may not have",
		},
		{
			"ali·ce·", "may have only ASCII letters, digits and . _ - @ +, and not U+00B7 MIDDLE DOT",
			"has U+00B7 MIDDLE DOT in a place where names may not have it",
		},
		{"o'neill", "may have U+0027 APOSTROPHE only before the @ of an address", "-"},
		{"123דוד", "may have only ASCII letters, digits and . _ - @ +, and not U+05D3 HEBREW LETTER DALET",
			"mixes characters of different writing directions"},
	} {
		for profile, want := range map[Profile]string{ASCII: test.ascii, Unicode: cmp.Or(test.unicode, test.ascii)} {
			if want == "-" {
				continue
			}
			_, err := Canonical(profile, test.name)
			problem, ok := errors.AsType[*fault.Refusal](err)
			if !ok || problem.Code != InvalidCharacters || problem.Detail != want {
				t.Errorf("%s: %q: %v\nwant %s", profile, test.name, err, want)
			}
		}
	}
}

// White space around a name does not matter at sign-in, whatever the profile.
func TestLookup(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ typed, want string }{
		{"alice", "alice"},
		{"ALICE ", "alice"},
		{"\t\u00a0alice\r\n", "alice"},
		{"\ufeffalice\u200b", "alice"},
		{"\u202aalice\u202c\u3000", "alice"},
		{"ＡＬＩＣＥ", "alice"},
		{"Jose\u0301\u2028", "josé"},
		{"о'нил@example.com", "о'нил@example.com"},
		// Names that registering refuses today but once accepted.
		{"0192F0A1-7b1c-7d3e-8f00-00000000abcd", "0192f0a1-7b1c-7d3e-8f00-00000000abcd"},
		{"раypal", "раypal"},
		{strings.Repeat(" ", 500) + "alice", "alice"},
		{strings.Repeat("a", 255), strings.Repeat("a", 255)},
		{strings.Repeat("a", 256), ""},
		{"ab", ""},
		{" a ", ""},
		{"", ""},
		{"  ", ""},
		{"ali ce", ""},
		{"ali\u200bce", ""},
		{"ali\x00ce", ""},
		{"alice\xff", ""},
		{"\xffalice", ""},
		{strings.Repeat("\xff", 1<<20), ""},
	} {
		if name, ok := Lookup(test.typed); name != test.want || ok != (test.want != "") {
			t.Errorf("%.40q: %q %v, want %q", test.typed, name, ok, test.want)
		}
	}
}

// Every accepted name is its own canonical form, is UTF-8 of an allowed length, and has nothing
// invisible in it. Names that differ only in case are the same.
func FuzzCanonical(f *testing.F) {
	for _, name := range []string{"alice", "ALICE", "Jose\u0301", "ＡＬＩＣＥ", "раypal", "ß", "ſſſ", "İİİ", "ΑΣΣ",
		"ﾊﾞﾊﾞﾊﾞ", "a\u0345bc", "\u1e9e\u1e9e\u1e9e", "ab\xff", "ⅷⅷⅷ", "о'нил@example.com", "דוד@example.com",
		"0192f0a1-7b1c-7d3e-8f00-00000000abcd"} {
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
			if found, ok := Lookup("\u00a0" + input + "\t"); !ok || found != name {
				t.Fatalf("%s: %q is %q, but looked up as %q", profile, input, name, found)
			}
			if _, err := uuid.Parse(name); err == nil {
				t.Fatalf("%s: %q is %q, which is an id", profile, input, name)
			}
			if strings.ContainsFunc(name, invisible) ||
				strings.ContainsFunc(
					name,
					func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || unicode.IsUpper(r) },
				) {
				t.Fatalf("%s: %q is %q", profile, input, name)
			}
		}
		// What the ASCII profile accepts, the Unicode profile accepts as the same name, so a
		// deployment can widen the profile.
		if name, code := canonical(t, ASCII, input); code == "" {
			if wide, code := canonical(t, Unicode, input); wide != name || code != "" {
				t.Fatalf("%q is %q in ASCII, but %q %s in Unicode", input, name, wide, code)
			}
		}
		// An account keeps its name: the lookup finds what UsernameCaseMapped makes of it.
		if checkLength(input) != nil {
			return
		}
		if name, err := precis.UsernameCaseMapped.String(input); err == nil && checkLength(name) == nil {
			if again, err := precis.UsernameCaseMapped.String(name); err == nil && again == name {
				if found, ok := Lookup(input); !ok || found != name {
					t.Fatalf("%q is %q, but looked up as %q", input, name, found)
				}
			}
		}
	})
}
