package password

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"github.com/toppira/authctl/platform/fault"
)

// Codes of refusals; stable, clients see them.
const (
	TooShort         = "too_short"
	TooLong          = "too_long"
	InvalidUnicode   = "invalid_unicode"
	TooCommon        = "too_common"
	ContainsUsername = "contains_username"
	ContainsContext  = "contains_context"
	Breached         = "breached"
)

// MaxLength is the most code points that a password may have.
const MaxLength = 256

// maxTyped bounds the bytes that are looked at: 256 characters take fewer, however they are
// decomposed.
const maxTyped = 4096

// policy is which passwords may be set: NIST SP 800-63B-4 §3.1.1.2. Length counts, being
// known to attackers does, and what it is composed of does not.
type policy struct {
	minLength int
	common    *blocklist
	breached  *breached // nil: not asked
	context   []string
}

func newPolicy(cfg Config, context []string) (*policy, error) {
	p := &policy{minLength: cfg.MinLength, common: newBlocklist()}
	for _, text := range append([]string{"authctl"}, context...) {
		p.context = append(p.context, words(text)...)
	}
	if cfg.BreachedFile != "" {
		var err error
		if p.breached, err = openBreached(cfg.BreachedFile); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *policy) close() error {
	if p.breached == nil {
		return nil
	}
	return p.breached.close()
}

func (p *policy) check(typed, username string) error {
	if len(typed) > maxTyped {
		return fault.Refuse(TooLong, "must be 256 characters or fewer")
	}
	if !utf8.ValidString(typed) {
		return fault.Refuse(InvalidUnicode, "is not valid UTF-8")
	}
	password := norm.NFC.String(typed)
	// Normalising makes one character of several, and rarely several of one. Neither may
	// make a password longer than it was typed, or too long.
	length := min(utf8.RuneCountInString(typed), utf8.RuneCountInString(password))
	if length < p.minLength {
		return fault.Refuse(TooShort, "must be "+plural(p.minLength)+" or more")
	}
	if length > MaxLength {
		return fault.Refuse(TooLong, "must be 256 characters or fewer")
	}
	folded := fold(password)
	own := words(username)
	if p.addsNothing(folded, own) {
		return fault.Refuse(ContainsUsername, "is little more than the username")
	}
	if p.addsNothing(folded, append(own, p.context...)) {
		return fault.Refuse(ContainsContext, "is little more than the name of this service or the username")
	}
	known, err := p.common.has(folded)
	if err != nil {
		return err
	}
	if known || patterned(folded) {
		return fault.Refuse(TooCommon, "is among the passwords that are tried first")
	}
	if p.breached != nil {
		// Its hashes are of passwords with their case. What was leaked in plain letters is
		// no better in full-width ones.
		for _, spelling := range slices.Compact([]string{password, plain(password)}) {
			known, err := p.breached.has(spelling)
			if err != nil {
				return err
			}
			if known {
				return fault.Refuse(Breached, "has appeared in a data breach")
			}
		}
	}
	return nil
}

// fold returns the text in the form in which passwords are compared with words: Unicode's
// NFKC_Casefold. "ＰａｓｓＷｏｒｄ" is as easy to guess as "password". The password is hashed as it was typed.
func fold(text string) string {
	return norm.NFKC.String(cases.Fold().String(plain(text)))
}

// plain returns the text in NFKC, without the characters that nobody sees.
func plain(text string) string {
	return norm.NFKC.String(strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return -1
		}
		return r
	}, text))
}

// addsNothing reports whether the password holds one of the words and what is left without
// them, and without digits and punctuation at its ends, is too short to count by itself. So
// "alice2024!" is refused to alice, and "alice likes wet weather" is not.
func (p *policy) addsNothing(password string, context []string) bool {
	const enough = 8 // whatever more the whole must have
	left := password
	slices.SortFunc(context, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, word := range context {
		left = strings.ReplaceAll(left, word, "")
	}
	return left != password && utf8.RuneCountInString(strings.TrimFunc(left, decoration)) < min(p.minLength, enough)
}

// words are the text itself and its parts, folded, leaving out what is so short that it is in
// many passwords by chance.
func words(text string) []string {
	text = fold(text)
	found := strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	found = slices.DeleteFunc(found, func(s string) bool { return utf8.RuneCountInString(s) < 4 })
	if utf8.RuneCountInString(text) >= 3 {
		found = append(found, text)
	}
	return found
}

// decoration is what people put at the end of a word to make it a password.
func decoration(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsMark(r) }

// patterned reports whether a short ASCII password is mostly runs: of one character
// ("aaaaaaaaa"), of neighbours ("23456789"), or of up to four that repeat ("abcdabcd").
// Lists hold only the most usual of them.
func patterned(password string) bool {
	if len(password) >= 16 || strings.ContainsFunc(password, func(r rune) bool { return r >= utf8.RuneSelf }) {
		return false
	}
	for period := 1; period <= 4 && period < len(password); period++ {
		if password[period:] == password[:len(password)-period] {
			return true
		}
	}
	// A run counts for two characters: where it starts and where it goes.
	count := 0
	for i := range password {
		if i >= 2 {
			step, before := int(password[i])-int(password[i-1]), int(password[i-1])-int(password[i-2])
			if step == before && step >= -1 && step <= 1 {
				continue
			}
		}
		count++
	}
	return count <= len(password)/2
}

func plural(n int) string {
	if n == 1 {
		return "1 character"
	}
	return strconv.Itoa(n) + " characters"
}
