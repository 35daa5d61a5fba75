package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

// TestEveryHostIsCheckedBeforeItIsDialled finds the settings that take a host by their names and
// tries the same texts with each, so that new settings are included.
func TestEveryHostIsCheckedBeforeItIsDialled(t *testing.T) {
	t.Parallel()
	takesHost := regexp.MustCompile(`(^|[._])(host|addr|address|brokers|server_name|server)$`)
	found := 0
	for _, key := range config.Keys(&settings{}) {
		if !takesHost.MatchString(key.Path) {
			continue
		}
		found++
		port := ""
		if strings.HasSuffix(key.Path, "_addr") || strings.HasSuffix(key.Path, "brokers") {
			port = ":9090"
		}
		try := func(host string) string {
			text := host + port
			if port != "" && strings.Contains(host, ":") && !strings.HasPrefix(host, "[") {
				text = "[" + host + "]" + port
			}
			var s settings
			err := config.Load(&s, config.Options{File: os.DevNull, Environ: []string{key.Env + "=" + text}})
			if err == nil {
				return ""
			}
			return err.Error()
		}
		for _, good := range []string{"localhost", "my_host", "db.example.com.", "127.0.0.1", "::1", "fe80::1%eth0"} {
			if words := try(good); words != "" {
				t.Errorf("%s: %q is refused: %s", key.Path, good, words)
			}
		}
		for _, bad := range []string{"host:6379", "https://host", "user@host", "host name", "host/path", "127.1",
			"bücher.example", "host\tname"} {
			if words := try(bad); !strings.Contains(words, key.Path) {
				t.Errorf("%s: %q is taken: %q", key.Path, bad, words)
			}
		}
		if words := try("[::1]"); port == "" && !strings.Contains(words, "without brackets") {
			t.Errorf("%s: brackets: %q", key.Path, words)
		}
	}
	if found < 5 {
		t.Errorf("only %d settings take a host", found)
	}
}

// TestEverySecretLosesTheWhiteSpaceAroundIt tries each setting that is a secret, including new
// ones.
func TestEverySecretLosesTheWhiteSpaceAroundIt(t *testing.T) {
	t.Parallel()
	load := func(key config.Key, text string) []string {
		var s settings
		path := t.TempDir() + "/secret"
		testenv.Must(t, os.WriteFile(path, []byte(text), 0o600))
		var seen []string
		for _, entry := range []string{key.Env + "=" + text, key.Env + "_FILE=" + path} {
			// Other settings may be missing; only the secret counts here.
			_ = config.Load(&s, config.Options{File: os.DevNull, Environ: []string{entry},
				Trimmed: func(path string, before config.Secret) { seen = append(seen, path) }})
		}
		return seen
	}
	for _, key := range config.Keys(&settings{}) {
		if !key.Secret {
			continue
		}
		if seen := load(key, "0123456789abcdef0123456789abcdef \n"); !slices.Equal(seen, []string{key.Path, key.Path}) {
			t.Errorf("%s: trimmed %v, want both the variable and the file trimmed", key.Path, seen)
		}
	}
}
