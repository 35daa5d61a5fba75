package webhook

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// maxURL is the longest URL of a webhook, in bytes.
const maxURL = 2048

var (
	label  = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?$`)
	number = regexp.MustCompile(`^([0-9]+|0[xX][0-9A-Fa-f]*)$`)
)

// CheckURL says whether a text can be the URL of a webhook. It refuses forms that programs read in
// different ways. No error repeats the text, since a URL can hold credentials.
func CheckURL(text string, prod, allowPrivate bool) error {
	u, err := parseURL(text, prod)
	if err != nil {
		return err
	}
	// An address in the URL is checked now. Names are resolved when a request is made.
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		return checkAddress(ip, allowPrivate)
	}
	return nil
}

var errNoURL = errors.New("the URL cannot be understood: write it like https://example.com/webhooks")

func parseURL(text string, prod bool) (*url.URL, error) {
	if len(text) > maxURL {
		return nil, fmt.Errorf("the URL has %d bytes; at most %d are allowed", len(text), maxURL)
	}
	for _, r := range text {
		if r <= ' ' || r >= 0x7f || r == '\\' {
			return nil, errors.New("the URL has a character that must be escaped: write host names in their " +
				"ASCII form (xn--…) and other characters as %XX")
		}
	}
	if strings.Contains(text, "#") {
		return nil, errors.New("the URL has a fragment (#…), which is never sent: leave it out")
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Opaque != "" || u.Scheme == "":
		return nil, errNoURL
	case u.Scheme == "http" && prod:
		return nil, errors.New("the URL must begin with https:// in prod mode")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("the URL must begin with https://, or with http:// in dev mode")
	case u.User != nil || strings.Contains(u.Host, "@"):
		return nil, errors.New("the URL names a user: receivers check the signature instead; leave the part " +
			"before @ out")
	}
	if err := checkHost(u); err != nil {
		return nil, err
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return u, nil
}

func checkHost(u *url.URL) error {
	host := u.Hostname()
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return errors.New("the port of the URL is not a number from 1 to 65535")
		}
	}
	if strings.HasPrefix(u.Host, "[") {
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is6() || ip.Zone() != "" {
			return errors.New("the URL has no IPv6 address in its brackets")
		}
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		return nil
	}
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	for _, l := range labels {
		if len(l) > 63 || !label.MatchString(l) {
			return errors.New("the URL names no host: write it like https://example.com/webhooks")
		}
	}
	// Some resolvers read 127.1, 0x7f.1 and 2130706433 as addresses.
	if number.MatchString(labels[len(labels)-1]) || len(host) > 253 {
		return errors.New("the host of the URL is neither a name nor an address in its usual form")
	}
	return nil
}
