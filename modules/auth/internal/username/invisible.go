package username

import (
	"cmp"
	"fmt"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/runenames"

	"github.com/toppira/authctl/platform/fault"
)

// invisibles are the code points, besides white space, that cannot be seen and come with text
// that was pasted: zero width spaces, the byte order mark, marks of the writing direction.
// Joiners (U+200C, U+200D) are not among them: at the end of a word they can belong to it.
var invisibles = &unicode.RangeTable{R16: []unicode.Range16{
	{Lo: 0x00ad, Hi: 0x00ad, Stride: 1},
	{Lo: 0x061c, Hi: 0x061c, Stride: 1},
	{Lo: 0x180e, Hi: 0x180e, Stride: 1},
	{Lo: 0x200b, Hi: 0x200b, Stride: 1},
	{Lo: 0x200e, Hi: 0x200f, Stride: 1},
	{Lo: 0x202a, Hi: 0x202e, Stride: 1},
	{Lo: 0x2060, Hi: 0x206f, Stride: 1},
	{Lo: 0xfeff, Hi: 0xfeff, Stride: 1},
}, LatinOffset: 1}

// invisible reports whether the rune is Unicode's White_Space or one of [invisibles].
func invisible(r rune) bool { return unicode.IsSpace(r) || unicode.Is(invisibles, r) }

// controls are names of characters that Unicode calls just <control>.
var controls = map[rune]string{
	0x00: "NULL", 0x07: "BELL", 0x08: "BACKSPACE", '\t': "TAB", '\n': "LINE FEED", 0x0b: "LINE TABULATION",
	0x0c: "FORM FEED", '\r': "CARRIAGE RETURN", 0x1b: "ESCAPE", 0x7f: "DELETE", 0x85: "NEXT LINE",
}

// describe names a character by code point and name, as people can look it up: a refused
// character often cannot be seen, or looks like one that would do.
func describe(r rune) string {
	name := cmp.Or(controls[r], runenames.Name(r))
	switch {
	case r == 0xfeff:
		name += " (byte order mark)"
	case name == "<control>":
		name = "CONTROL CHARACTER"
	case name == "":
		return fmt.Sprintf("U+%04X", r)
	}
	return fmt.Sprintf("U+%04X %s", r, name)
}

// surrounded refuses a name that begins or ends with what cannot be seen. To sign in, it would
// be found without.
func surrounded(name string) *fault.Refusal {
	first, _ := utf8.DecodeRuneInString(name)
	last, _ := utf8.DecodeLastRuneInString(name)
	switch {
	case invisible(first):
		return fault.Refuse(InvalidCharacters, "begins with "+describe(first)+", which cannot be seen; leave it out")
	case invisible(last):
		return fault.Refuse(InvalidCharacters, "ends with "+describe(last)+", which cannot be seen; leave it out")
	}
	return nil
}

// culprit says which character of a name is refused by [fold]. Some are refused in certain
// places only; they are named when nothing else is found.
func culprit(name string) *fault.Refusal {
	for _, inContext := range []bool{false, true} {
		for _, r := range name {
			switch _, err := identifier.String(string(r)); {
			case err == nil, contextual(r) != inContext:
			case invisible(r) || !unicode.IsGraphic(r):
				return fault.Refuse(InvalidCharacters, "has "+describe(r)+" in it, which cannot be seen; leave it out")
			case inContext:
				return fault.Refuse(InvalidCharacters, "has "+describe(r)+" in a place where names may not have it")
			default:
				return fault.Refuse(InvalidCharacters, "has "+describe(r)+" in it, which names may not have")
			}
		}
	}
	return fault.Refuse(InvalidCharacters, "has a character in it that names may not have")
}

// contextual reports whether the rune is allowed in some places alone (RFC 5892, appendix A).
func contextual(r rune) bool {
	switch r {
	case 0x200c, 0x200d, 0xb7, 0x375, 0x5f3, 0x5f4, 0x30fb:
		return true
	}
	return r >= 0x660 && r <= 0x669 || r >= 0x6f0 && r <= 0x6f9
}
