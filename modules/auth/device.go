package auth

import (
	"cmp"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mileusna/useragent"

	"github.com/toppira/authctl/platform/fault"
)

// Device is where a request comes from, as far as that is known.
type Device struct {
	Name      string     // what the client calls the device; may be empty
	UserAgent string     // the User-Agent header; may be anything
	IP        netip.Addr // may be invalid: not known
	Token     string     // Tokens.DeviceToken of an earlier sign-in
}

// DeviceTTL is how long the token of a device marks it as known.
func (s *Service) DeviceTTL() time.Duration { return s.limiter.DeviceTTL() }

// Lengths in characters beyond which a device name is refused and a user agent is cut.
const (
	maxDeviceName = 100
	maxUserAgent  = 300
)

// checkDeviceName refuses a name that a client gave, or returns nil.
func checkDeviceName(name string) *fault.Refusal {
	switch {
	case !utf8.ValidString(name):
		return fault.Refuse("invalid_unicode", "is not valid UTF-8")
	case utf8.RuneCountInString(name) > maxDeviceName:
		return fault.Refuse("too_long", "must be 100 characters or fewer")
	case strings.ContainsFunc(name, func(r rune) bool { return !mayName(r) }):
		return fault.Refuse("invalid_characters", "holds a character that cannot be shown")
	}
	return nil
}

// mayName reports whether the name of a device may have a character: one that can be seen, a space of any
// script, or one of the two joiners, which words of Persian and Hindi and many emoji need.
func mayName(r rune) bool { return unicode.IsPrint(r) || unicode.Is(unicode.Zs, r) || isJoiner(r) }

func isJoiner(r rune) bool { return r == '\u200c' || r == '\u200d' }

// clean returns the device ready to be stored and shown: named, printable, bounded.
func (d Device) clean() Device {
	d.UserAgent = d.Agent()
	d.Name = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Zs, r) {
			return ' '
		}
		return r
	}, d.Name))
	if strings.TrimFunc(d.Name, isJoiner) == "" {
		d.Name = nameOf(d.UserAgent)
	}
	return d
}

// Agent is what the client calls itself, printable and bounded.
func (d Device) Agent() string { return Printable(d.UserAgent, maxUserAgent) }

// IPText is empty if the address is not known.
func (d Device) IPText() string {
	if !d.IP.IsValid() {
		return ""
	}
	return d.IP.String()
}

// nameOf makes a short name of a user agent: "Firefox on Linux", "curl".
func nameOf(agent string) string {
	ua := useragent.Parse(agent)
	on := cmp.Or(ua.Device, ua.OS)
	switch {
	case ua.Name == "" && on == "":
		return ""
	case ua.Name == "":
		return Printable(on, maxDeviceName)
	case on == "" || ua.Bot:
		return Printable(ua.Name, maxDeviceName)
	}
	return Printable(ua.Name+" on "+on, maxDeviceName)
}

// Printable makes a text from outside safe to show: it keeps printable characters only, and at most so many.
func Printable(text string, most int) string {
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n == most {
			break
		}
		if unicode.IsPrint(r) && r != utf8.RuneError {
			b.WriteRune(r)
			n++
		}
	}
	return b.String()
}
