package contact

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"github.com/toppira/authctl/platform/fault"
)

// Lengths in bytes, RFC 5321 §4.5.3.1.
const (
	maxAddress = 254
	maxLocal   = 64
)

// domains maps the domain of an address to its ASCII form in lower case, RFC 5891.
var domains = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))

// atext is what RFC 5322 §3.2.3 allows in a word besides letters and digits.
const atext = "!#$%&'*+-/=?^_`{|}~"

// parseAddress returns an e-mail address as messages are sent to it, and the canonical form by which
// addresses are compared: computed here, so that it is the same on every database. Quoted local
// parts are refused, since programs disagree about them. The error is a [*fault.Refusal].
func parseAddress(text string) (address, canonical string, err error) {
	switch {
	case len(text) > 4*maxAddress:
		return "", "", fault.Refuse("too_long", "must be 254 bytes or fewer")
	case !utf8.ValidString(text):
		return "", "", fault.Refuse("invalid_unicode", "is not valid UTF-8")
	}
	if strings.TrimSpace(text) != text {
		return "", "", fault.Refuse("invalid_address", "has white space at its beginning or end")
	}
	at := strings.LastIndexByte(text, '@')
	if at < 1 || at == len(text)-1 {
		return "", "", fault.Refuse("invalid_address", "must have the form name@example.com")
	}
	local, domain := norm.NFC.String(text[:at]), text[at+1:]
	for _, r := range local {
		if unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return "", "", fault.Refuse("invalid_address", "has an invisible character before the @")
		}
		if strings.ContainsRune(atext, r) || r == '.' || unicode.In(r, unicode.L, unicode.M, unicode.Nd) {
			continue
		}
		return "", "", fault.Refuse("invalid_address",
			"has a character before the @ that is not a letter, a digit or one of . "+atext+
				" (quotes and spaces are not supported)")
	}
	if strings.Contains(local, "=?") {
		// RFC 2047: programs that decode it everywhere would send to another address, which its text names.
		return "", "", fault.Refuse("invalid_address", "has =? before the @, which mail programs decode")
	}
	if strings.HasPrefix(local, ".") || strings.HasSuffix(local, ".") || strings.Contains(local, "..") {
		return "", "", fault.Refuse("invalid_address", "has a dot before the @ with nothing next to it")
	}
	ascii, err := domains.ToASCII(domain)
	if err != nil || strings.HasSuffix(ascii, ".") || !strings.Contains(ascii, ".") && ascii != "localhost" ||
		isNumber(ascii) {
		return "", "", fault.Refuse("invalid_address", "has no valid domain, such as example.com, after the @")
	}
	address, canonical = local+"@"+ascii, fold(local)+"@"+ascii
	if len(local) > maxLocal || len(address) > maxAddress || len(canonical) > maxAddress {
		return "", "", fault.Refuse("too_long", "must be 254 bytes or fewer, with 64 before the @")
	}
	return address, canonical, nil
}

// fold is the form of a local part that is compared. Folding may change the order of combining marks, and
// with it the composed letters, so it is repeated until nothing changes.
func fold(local string) string {
	for {
		folded := norm.NFC.String(cases.Fold().String(local))
		if folded == local {
			return folded
		}
		local = folded
	}
}

// isNumber reports whether the last label of a domain is a number: no top-level domain is one, and
// programs take it for an IP address.
func isNumber(domain string) bool {
	last := domain[strings.LastIndexByte(domain, '.')+1:]
	return strings.Trim(last, "0123456789") == ""
}
