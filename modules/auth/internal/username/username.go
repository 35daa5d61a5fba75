// Package username turns what a person typed into the form by which accounts are compared.
//
// Two profiles exist. "ascii", the default, takes letters, digits and . _ - @ + and
// compares without case: simple to say, simple to type, nothing to confuse. "unicode"
// takes what RFC 8265 calls UsernameCaseMapped (letters and digits of any script, width
// and case mapped, NFC) and refuses names that mix scripts, since "раypal" with a Cyrillic
// "ра" looks like another person.
//
// The canonical form is what is unique in the database. It is computed here, in Go, so
// that it is the same on every database. Canonical is idempotent: a canonical name is its
// own canonical form.
package username

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
)

// Profile chooses which names there may be.
type Profile string

const (
	ASCII   Profile = "ascii"
	Unicode Profile = "unicode"
)

// The length of a name in code points, before and after mapping.
const (
	MinLength = 3
	MaxLength = 255
)

// Codes of [Problem]; stable, clients see them.
const (
	TooShort          = "too_short"
	TooLong           = "too_long"
	InvalidUnicode    = "invalid_unicode"
	InvalidCharacters = "invalid_characters"
	MixedScripts      = "mixed_scripts"
)

// Problem says why a name is not acceptable: a stable code and words for a person.
type Problem struct {
	Code   string
	Detail string
}

func (p *Problem) Error() string { return "username " + p.Code + ": " + p.Detail }

// Canonical returns the form of the name that is compared and stored as unique. The error
// is always a *[Problem]. Its cost is bounded: longer input than a name can have is refused
// before anything looks at it closely.
func Canonical(profile Profile, input string) (string, error) {
	// The bytes first: normalising a megabyte, or bytes that are not UTF-8, is not ours to do.
	if len(input) > MaxLength*utf8.UTFMax {
		return "", &Problem{TooLong, "must be 255 characters or fewer"}
	}
	if !utf8.ValidString(input) {
		return "", &Problem{InvalidUnicode, "is not valid UTF-8"}
	}
	if err := checkLength(input); err != nil {
		return "", err
	}
	if profile == Unicode {
		return canonicalUnicode(input)
	}
	for _, r := range input {
		if !asciiAllowed(r) {
			return "", &Problem{InvalidCharacters, "may hold only ASCII letters, digits and . _ - @ +"}
		}
	}
	return strings.ToLower(input), nil
}

func checkLength(name string) error {
	switch n := utf8.RuneCountInString(name); {
	case n < MinLength:
		return &Problem{TooShort, "must be 3 characters or more"}
	case n > MaxLength:
		return &Problem{TooLong, "must be 255 characters or fewer"}
	}
	return nil
}

func asciiAllowed(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-@+", r)
}

func canonicalUnicode(input string) (string, error) {
	name, err := precis.UsernameCaseMapped.String(input)
	if err != nil {
		return "", &Problem{InvalidCharacters, "holds a character that names may not have"}
	}
	// Mapping can leave something that maps once more (RFC 8265 §3.3 lets one repeat it a
	// few times, then refuse). Two rounds settle every real name.
	again, err := precis.UsernameCaseMapped.String(name)
	if err != nil || again != name {
		return "", &Problem{InvalidCharacters, "holds a character that names may not have"}
	}
	// precis accepts the empty string, and width or case mapping can change the length.
	if err := checkLength(name); err != nil {
		return "", err
	}
	if mixesScripts(name) {
		return "", &Problem{MixedScripts, "mixes letters of different scripts"}
	}
	return name, nil
}

// mixesScripts reports whether the letters come from scripts that no one language writes
// together. It is the "highly restrictive" level of UTS 39 §5.2: one script, or Latin with
// the scripts of Japanese, Chinese (with Bopomofo) or Korean.
func mixesScripts(name string) bool {
	var seen []string
	for _, r := range name {
		// Finding the script of a rune is dear; most are of one seen before.
		if shared(r) || slices.ContainsFunc(seen, func(s string) bool { return unicode.Is(unicode.Scripts[s], r) }) {
			continue
		}
		script := scriptOf(r)
		seen = append(seen, script)
		if script == "" || len(seen) > 1 && !writtenTogether(seen) {
			return true
		}
	}
	return false
}

func writtenTogether(scripts []string) bool {
	for _, together := range [][]string{
		{"Latin", "Han", "Hiragana", "Katakana"},
		{"Latin", "Han", "Bopomofo"},
		{"Latin", "Han", "Hangul"},
	} {
		if !slices.ContainsFunc(scripts, func(s string) bool { return !slices.Contains(together, s) }) {
			return true
		}
	}
	return false
}

// shared reports whether every script uses the rune: digits, punctuation, and marks that
// take the script of their letter.
func shared(r rune) bool { return unicode.In(r, unicode.Common, unicode.Inherited) }

// scriptOf returns the name of the rune's script, "" when Go's tables do not know it yet: it
// mixes with none.
func scriptOf(r rune) string {
	for name, table := range unicode.Scripts {
		if unicode.Is(table, r) {
			return name
		}
	}
	return ""
}
