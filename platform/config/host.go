package config

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// HostProblem says why text is not a host that a connection can be made to. It is empty for an IP
// address (IPv6 without brackets, a zone is allowed) or a DNS name. Every setting that takes a
// host is checked with it, so that authctl config check finds the mistake before anything
// connects. The text continues the path of the setting and quotes nothing that could be a password.
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
			return "has a zone that is not the name of an interface"
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

// nameProblem checks a DNS name by RFC 1123, also allowing the underscores of container networks
// and service discovery, and one dot at the end of a fully qualified name.
func nameProblem(text string) string {
	name := strings.TrimSuffix(text, ".")
	if len(name) > 253 {
		return "is longer than a DNS name can be"
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		switch {
		case label == "":
			return "is not a DNS name: there is nothing between two of its dots"
		case len(label) > 63:
			return "is not a DNS name: " + quote(label) + " is longer than 63 characters"
		case strings.HasPrefix(label, "-"), strings.HasSuffix(label, "-"):
			return "is not a DNS name: " + quote(label) + " begins or ends with a hyphen"
		}
		for _, r := range label {
			switch {
			case r > 0x7f:
				return "must be ASCII; write an international name in its xn-- form"
			case !isLabel(r):
				return "is not a DNS name: it has the character " + quote(string(r))
			}
		}
	}
	// No top-level domain is a number. Such a text is a malformed IPv4 address (127.1,
	// 10.0.0.256, 192.168.001.1), and DNS cannot know it.
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "looks like an IPv4 address but is not one; write it as in 192.0.2.1"
	}
	return ""
}

// IsThisMachine reports whether a host is this machine by its name or its address.
func IsThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func isLabel(r rune) bool {
	return r == '-' || r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
}

// URLHostProblem is [HostProblem] for the host of a URL and its port, if it has one.
func URLHostProblem(u *url.URL) string {
	if u.Port() == "" && !strings.HasSuffix(u.Host, ":") {
		return HostProblem(u.Hostname())
	}
	return AddressProblem(u.Host, false)
}

// AddressProblem is [HostProblem] for host and port together, as in localhost:9090 or
// [::1]:9090. With toListen the host may be empty, meaning every interface, and the port 0, meaning any that is free.
func AddressProblem(text string, toListen bool) string {
	if strings.Contains(text, "://") {
		return "must be host:port, without a scheme"
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "must be host:port; an IPv6 address goes in brackets, as in [::1]:9090"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || port != strconv.FormatUint(n, 10) || n == 0 && !toListen {
		return "must end in a port from 1 to 65535"
	}
	if host == "" && toListen {
		return ""
	}
	return HostProblem(host)
}
