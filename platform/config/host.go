package config

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// HostProblem says why text is no host that a connection can be made to, or nothing when it is
// one: an IP address (IPv6 without brackets, a zone allowed) or a DNS name. Every setting that
// takes a host goes through it, so that what it refuses is refused by authctl config check and
// not when somebody dials. It reads on after the path of the setting and repeats nothing that
// could be a password.
func HostProblem(text string) string {
	switch {
	case text == "":
		return "must name a host"
	case strings.Contains(text, "://"):
		return "must be a host alone, without a scheme"
	case strings.Contains(text, "@"):
		return "must be a host alone, without a user or a password"
	case strings.ContainsAny(text, " \t\r\n\v\f"):
		return "has white space in it"
	case strings.ContainsAny(text, "/?#\\"):
		return "must be a host alone, without a path"
	case strings.Contains(text, ","):
		return "must be one host, not a list"
	case strings.Contains(text, "*"):
		return "must be one host, not a pattern"
	}
	if ip, err := netip.ParseAddr(text); err == nil {
		if strings.ContainsFunc(ip.Zone(), func(r rune) bool { return r != '.' && !isLabel(r) }) {
			return "has a zone that is no name of an interface"
		}
		return ""
	}
	if inner := strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"); inner != text {
		if _, err := netip.ParseAddr(inner); err == nil {
			return "must be written without brackets: " + inner
		}
	}
	if host, port, err := net.SplitHostPort(text); err == nil && HostProblem(host) == "" {
		return "must be a host alone; the port " + quote(port) + " has a setting of its own"
	}
	if strings.ContainsAny(text, ":[]%") {
		return "is neither an IP address nor a DNS name: " + quote(text)
	}
	return nameProblem(text)
}

// nameProblem looks at a DNS name: RFC 1123, with the underscores that container networks and
// service discovery use. One dot at the end says that the name is complete.
func nameProblem(text string) string {
	name := strings.TrimSuffix(text, ".")
	if len(name) > 253 {
		return "is longer than a DNS name can be"
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		switch {
		case label == "":
			return "is no DNS name: there is nothing between two of its dots"
		case len(label) > 63:
			return "is no DNS name: " + quote(label) + " is longer than 63 characters"
		case strings.HasPrefix(label, "-"), strings.HasSuffix(label, "-"):
			return "is no DNS name: " + quote(label) + " begins or ends with a hyphen"
		}
		for _, r := range label {
			switch {
			case r > 0x7f:
				return "must be ASCII; write an international name in its xn-- form"
			case !isLabel(r):
				return "is no DNS name: it has the character " + quote(string(r))
			}
		}
	}
	// No top-level domain is a number; such a text is an IPv4 address gone wrong (127.1,
	// 10.0.0.256, 192.168.001.1), and asking DNS for it could only fail.
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "looks like an IPv4 address and is none; write it as in 192.0.2.1"
	}
	return ""
}

func isLabel(r rune) bool {
	return r == '-' || r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
}

// AddressProblem is [HostProblem] for a host and a port in one, as in localhost:9090 or
// [::1]:9090. The host may be empty where anyHost says that it means every interface.
func AddressProblem(text string, anyHost bool) string {
	if strings.Contains(text, "://") {
		return "must be host:port, without a scheme"
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "must be host:port; an IPv6 address goes in brackets, as in [::1]:9090"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || port != strconv.FormatUint(n, 10) {
		return "must end in a port from 0 to 65535"
	}
	if host == "" && anyHost {
		return ""
	}
	return HostProblem(host)
}
