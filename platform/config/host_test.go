package config

import (
	"net"
	"strings"
	"testing"
)

func TestAHostIsAnAddressOrANameAndNothingElse(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		"localhost", "redis", "my_redis", "db-1.example.com", "db.example.com.", "DB.Example.COM",
		"xn--bcher-kva.example",
		"127.0.0.1", "0.0.0.0", "::1", "::", "fe80::1%eth0", "2001:db8::7", "::ffff:192.0.2.1", "1password", "a1.2b",
		strings.Repeat("a", 63) + ".example",
	} {
		if problem := HostProblem(good); problem != "" {
			t.Errorf("%q %s", good, problem)
		}
		// An accepted host can be part of an address.
		if host, _, err := net.SplitHostPort(net.JoinHostPort(good, "1")); err != nil || host != good {
			t.Errorf("%q does not survive in an address: %q, %v", good, host, err)
		}
	}
	for bad, want := range map[string]string{
		"":                                   "must name a host",
		"redis:6379":                         `the port "6379"`,
		"10.0.0.1:5432":                      `the port "5432"`,
		"[::1]:5432":                         `the port "5432"`,
		"[::1]":                              "without brackets: ::1",
		"[::]":                               "without brackets: ::",
		"[fe80::1%eth0]":                     "without brackets: fe80::1%eth0",
		"[::1":                               "without brackets",
		"redis://redis":                      "without a scheme",
		"http://127.0.0.1/":                  "without a scheme",
		"//redis":                            "without a path",
		"redis/0":                            "without a path",
		"redis?x":                            "without a path",
		"user:hunter2@redis":                 "without a user",
		" redis":                             "white space",
		"redis ":                             "white space",
		"re dis":                             "white space",
		"redis\n":                            "white space",
		"h1,h2":                              "not a list",
		"*":                                  "not a pattern",
		"*.example.com":                      "not a pattern",
		"redis..example":                     "nothing between",
		".example.com":                       "nothing between",
		"redis..":                            "nothing between",
		".":                                  "nothing between",
		"-redis":                             "hyphen",
		"redis-.example":                     "hyphen",
		"bücher.example":                     "xn--",
		"re$dis":                             `the character "$"`,
		"redis\x00":                          `the character "\x00"`,
		"127.1":                              "looks like an IPv4 address",
		"10.0.0.256":                         "looks like an IPv4 address",
		"192.168.001.1":                      "looks like an IPv4 address",
		"5432":                               "looks like an IPv4 address",
		"1.2.3.4.":                           "looks like an IPv4 address",
		"1.2.3.4.5":                          "looks like an IPv4 address",
		"1::2::3":                            "neither",
		"redis:":                             `the port ""`,
		"127.0.0.1%eth0":                     "neither",
		"redis%eth0":                         "neither",
		strings.Repeat("a", 64):              "longer than 63",
		strings.Repeat("abcd.", 60) + "name": "longer than a DNS name",
	} {
		problem := HostProblem(bad)
		if !strings.Contains(problem, want) {
			t.Errorf("%q: %q, want something with %q", bad, problem, want)
		}
		if strings.Contains(problem, "hunter2") {
			t.Errorf("%q shows a password", problem)
		}
	}
}

func TestAnAddressIsAHostAndAPort(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"127.0.0.1:9090": "", "localhost:0": "", "[::1]:9090": "", "[fe80::1%eth0]:9090": "", ":9090": "",
		"kafka:65535": "",
		"9090":        "must be host:port", "kafka": "must be host:port", "::1:9090": "must be host:port",
		"":       "must be host:port",
		"kafka:": "port", "kafka:http": "port", "kafka:65536": "port", "kafka:-1": "port", "kafka:+1": "port",
		"kafka:09":          "port",
		"http://kafka:9092": "scheme", "[[::1]]:9090": "must be host:port", "kafka :9092": "white space",
		"kafka:9092 ":             "port",
		"user:hunter2@kafka:9092": "must be host:port", "127.1:9090": "IPv4",
	} {
		problem := AddressProblem(text, true)
		if (problem == "") != (want == "") || !strings.Contains(problem, want) || strings.Contains(problem, "hunter2") {
			t.Errorf("%q: %q, want something with %q", text, problem, want)
		}
	}
	for _, text := range []string{":9092", "kafka:0"} {
		if AddressProblem(text, false) == "" {
			t.Errorf("%s is accepted as an address to dial", text)
		}
	}
}

// FuzzHost: an accepted host can be dialled unchanged, and a refusal stays on one line.
func FuzzHost(f *testing.F) {
	for _, seed := range []string{"redis", "[::1]", "a:1", "x@y", "1.2.3.4", "é", "fe80::1%x y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		problem := HostProblem(text)
		if strings.ContainsAny(problem, "\n\r\x1b") {
			t.Errorf("%q: %q", text, problem)
		}
		if problem != "" {
			return
		}
		if host, port, err := net.SplitHostPort(net.JoinHostPort(text, "1")); err != nil || host != text ||
			port != "1" {
			t.Errorf("%q is accepted, but becomes %q", text, host)
		}
	})
}
