// Package username turns what a person typed into the form by which accounts are compared.
//
// Two profiles say which names may be made. "ascii", the default, takes letters, digits and
// . _ - @ +, and before the @ of an address whatever RFC 5322 allows there. "unicode" takes
// what RFC 8265 calls UsernameCaseMapped (letters and digits of any script, width and case
// mapped, NFC) and refuses names with mixed scripts, since "раypal" with a Cyrillic "ра" looks
// like another person.
//
// [Canonical] is asked when an account is made, [Lookup] when one is looked for. Lookup knows
// no profile and refuses less: an account goes on when the rules for new ones get stricter.
// Both give the same form for the same name.
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

	"github.com/google/uuid"
	"golang.org/x/text/secure/bidirule"
	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/bidi"
	"golang.org/x/text/unicode/norm"

	"github.com/toppira/authctl/platform/fault"
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

// maxBytes is the longest input that is looked at closely: normalising a megabyte is not ours
// to do.
const maxBytes = MaxLength * utf8.UTFMax

// Codes of refusals; stable, clients see them.
const (
	TooShort          = "too_short"
	TooLong           = "too_long"
	InvalidUnicode    = "invalid_unicode"
	InvalidCharacters = "invalid_characters"
	MixedScripts      = "mixed_scripts"
	LooksLikeID       = "looks_like_id"
)

var (
	errTooShort = fault.Refuse(TooShort, "must be 3 characters or more")
	errTooLong  = fault.Refuse(TooLong, "must be 255 characters or fewer")
)

// Canonical returns the canonical form of a name that an account is about to get. The error
// is always a [*fault.Refusal]. Its cost is bounded, whatever the input.
func Canonical(profile Profile, input string) (string, error) {
	if len(input) > maxBytes {
		return "", errTooLong
	}
	if !utf8.ValidString(input) {
		return "", fault.Refuse(InvalidUnicode, "is not valid UTF-8")
	}
	if p := surrounded(input); p != nil {
		return "", p
	}
	if p := checkLength(input); p != nil {
		return "", p
	}
	if profile != Unicode {
		if p := checkASCII(input); p != nil {
			return "", p
		}
	}
	name, ok := fold(input)
	if !ok {
		return "", culprit(input)
	}
	if p := checkLength(name); p != nil { // width and case mapping can change the length
		return "", p
	}
	if hasIDForm(name) {
		return "", fault.Refuse(LooksLikeID, "has the form of an account id")
	}
	for _, part := range parts(name) {
		if bidirule.DirectionString(part) == bidi.RightToLeft && !bidirule.ValidString(part) {
			return "", fault.Refuse(InvalidCharacters, "mixes characters of different writing directions")
		}
		if mixesScripts(part) {
			return "", fault.Refuse(MixedScripts, "mixes letters of different scripts")
		}
	}
	return name, nil
}

// Lookup returns the canonical form of a name that somebody typed in order to be found, such
// as to sign in, and false where no account can have it. It ignores what [Trim] removes.
func Lookup(typed string) (string, bool) {
	typed = Trim(typed)
	if len(typed) > maxBytes || !utf8.ValidString(typed) || checkLength(typed) != nil {
		return "", false
	}
	name, ok := fold(typed)
	if !ok || checkLength(name) != nil {
		return "", false
	}
	return name, true
}

// Trim removes white space and invisible characters from both ends of what was typed or
// pasted. No name of either profile can have any of them.
func Trim(typed string) string { return strings.TrimFunc(typed, invisible) }

func checkLength(name string) *fault.Refusal {
	switch n := utf8.RuneCountInString(name); {
	case n < MinLength:
		return errTooShort
	case n > MaxLength:
		return errTooLong
	}
	return nil
}

// checkASCII refuses what the profile ascii does not have. Before the last @ of an address it
// has all of atext, RFC 5322 §3.2.3: there are people called o'neill@example.com.
func checkASCII(name string) *fault.Refusal {
	at := strings.LastIndexByte(name, '@')
	address := at > 0 && at < len(name)-1
	for i, r := range name {
		inLocalPart := address && i < at
		switch {
		case asciiAllowed(r), inLocalPart && isAtext(r):
		case invisible(r):
			return culprit(name)
		case isAtext(r):
			return fault.Refuse(InvalidCharacters, "may have "+describe(r)+" only before the @ of an address")
		default:
			return fault.Refuse(InvalidCharacters,
				"may have only ASCII letters, digits and . _ - @ +, and not "+describe(r))
		}
	}
	return nil
}

func asciiAllowed(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-@+", r)
}

// isAtext reports whether the rune is of RFC 5322's atext and not a letter or digit.
func isAtext(r rune) bool { return strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r) }

// identifier is UsernameCaseMapped of RFC 8265 without the rule about writing directions,
// which [Canonical] asks of each part of a name.
var identifier = precis.NewIdentifier(precis.FoldWidth, precis.LowerCase(), precis.Norm(norm.NFC))

// fold maps a valid UTF-8 name to its canonical form. It returns false when the name has a
// character that no name may have.
func fold(input string) (string, bool) {
	if isPlainASCII(input) {
		return strings.ToLower(input), true
	}
	name, err := identifier.String(input)
	if err != nil {
		return "", false
	}
	// Mapping can leave something that maps once more (RFC 8265 §3.3 lets one repeat it a
	// few times, then refuse). Two rounds settle every real name.
	again, err := identifier.String(name)
	return name, err == nil && again == name
}

// isPlainASCII reports whether the name is of visible ASCII alone, all of which RFC 8265 takes.
func isPlainASCII(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
}

// hasIDForm reports whether a canonical name could be read as an account id, in any spelling
// that a parser of UUIDs takes: uuid.Parse, which looks at no bracket closely, or PostgreSQL,
// which takes hyphens in more places, or none.
func hasIDForm(name string) bool {
	if _, err := uuid.Parse(name); err == nil {
		return true
	}
	digits := strings.NewReplacer("-", "", "{", "", "}", "").Replace(strings.TrimPrefix(name, "urn:uuid:"))
	_, err := uuid.Parse(digits)
	return err == nil
}

// parts are what is read as one word, and so must be of one script: what is before the last @,
// and each label of the domain after it. Dots before the @ separate nothing: "sara.сох" would
// be another person than "sara.cox".
func parts(name string) []string {
	at := strings.LastIndexByte(name, '@')
	if at < 0 {
		return []string{name}
	}
	return append([]string{name[:at]}, strings.Split(name[at+1:], ".")...)
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
