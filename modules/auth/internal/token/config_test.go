package token

import (
	"slices"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/config"
)

func goodConfig() Config {
	return Config{Secret: testSecret, Algorithm: ES256, Issuer: "https://auth.example.com", Audience: []string{"api"},
		ClientID: "web"}
}

func TestConfigProblemsAreReportedByPath(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*Config)
		path   string
	}{
		"good":      {func(*Config) {}, ""},
		"no secret": {func(c *Config) { c.Secret = "" }, ""}, // embedded mode generates one
		"short secret": {func(c *Config) {
			c.Secret = "31 bytes are one too few, sorry"
		}, "auth.token.secret"},
		"short previous secret": {func(c *Config) {
			c.PreviousSecrets = testSecret + ",short"
		}, "auth.token.previous_secrets"},
		"an issuer with a path":  {func(c *Config) { c.Issuer = "http://localhost:8080/auth" }, ""},
		"an issuer with a slash": {func(c *Config) { c.Issuer = "https://auth.example.com/" }, ""},
		"an issuer deep below":   {func(c *Config) { c.Issuer = "https://auth.example.com/a/b-c_d.e~f/" }, ""},
		"an issuer with //": {func(c *Config) {
			c.Issuer = "https://auth.example.com/a//b"
		}, "auth.token.issuer"},
		"an issuer with ..": {func(c *Config) {
			c.Issuer = "https://auth.example.com/a/../b"
		}, "auth.token.issuer"},
		"an issuer with a %": {func(c *Config) {
			c.Issuer = "https://auth.example.com/a%2fb"
		}, "auth.token.issuer"},
		"an issuer with a blank": {func(c *Config) { c.Issuer = "https://auth.example.com/a b" }, "auth.token.issuer"},
		"an issuer as a pattern": {func(c *Config) {
			c.Issuer = "https://auth.example.com/:id/*"
		}, "auth.token.issuer"},
		"an issuer in capitals": {func(c *Config) { c.Issuer = "HTTPS://auth.example.com" }, "auth.token.issuer"},
		"an issuer's port": {func(c *Config) {
			c.Issuer = "https://auth.example.com:65536"
		}, "auth.token.issuer"},
		"an issuer with a colon":  {func(c *Config) { c.Issuer = "https://auth.example.com:" }, "auth.token.issuer"},
		"an issuer with a query":  {func(c *Config) { c.Issuer = "https://auth.example.com?x=1" }, "auth.token.issuer"},
		"an issuer with a ?":      {func(c *Config) { c.Issuer = "https://auth.example.com?" }, "auth.token.issuer"},
		"an issuer with fragment": {func(c *Config) { c.Issuer = "https://auth.example.com#x" }, "auth.token.issuer"},
		"an issuer with a user":   {func(c *Config) { c.Issuer = "https://me@auth.example.com" }, "auth.token.issuer"},
		"an issuer without host":  {func(c *Config) { c.Issuer = "https://" }, "auth.token.issuer"},
		"an issuer not a URL":     {func(c *Config) { c.Issuer = "authctl" }, "auth.token.issuer"},
		"an issuer of ftp":        {func(c *Config) { c.Issuer = "ftp://auth.example.com" }, "auth.token.issuer"},
		"an issuer not in ASCII":  {func(c *Config) { c.Issuer = "https://bücher.example" }, "auth.token.issuer"},
		"an issuer by address":    {func(c *Config) { c.Issuer = "https://[::1]:8443" }, ""},
		"no issuer":               {func(c *Config) { c.Issuer = "" }, "auth.token.issuer"},
		"two audiences":           {func(c *Config) { c.Audience = []string{"orders", "billing"} }, ""},
		"no audience":             {func(c *Config) { c.Audience = nil }, "auth.token.audience"},
		"an empty audience":       {func(c *Config) { c.Audience = []string{"orders", ""} }, "auth.token.audience"},
		"an audience twice": {func(c *Config) {
			c.Audience = []string{"orders", "orders"}
		}, "auth.token.audience"},
		"too many audiences": {func(c *Config) {
			c.Audience = strings.Split("abcdefghijklmnopq", "")
		}, "auth.token.audience"},
		"a previous one with a comma": {func(c *Config) {
			c.PreviousSecrets = "a-comma-among,thirty-two-characters"
		}, ""},
		"no client id": {func(c *Config) { c.ClientID = "" }, "auth.token.client_id"},
	} {
		c := goodConfig()
		tc.change(&c)
		var paths []string
		c.Validate(func(path, problem string) {
			paths = append(paths, path)
			if problem == "" || strings.Contains(problem, c.Secret.Reveal()) && c.Secret != "" {
				t.Errorf("%s: %q", name, problem)
			}
		})
		var want []string
		if tc.path != "" {
			want = []string{tc.path}
		}
		if !slices.Equal(paths, want) {
			t.Errorf("%s: %v; want %v", name, paths, want)
		}
	}
}

func TestSecretsAreThePresentOneAndThePrevious(t *testing.T) {
	t.Parallel()
	a, b := config.Secret(strings.Repeat("a", MinSecret)), config.Secret(strings.Repeat("b", MinSecret))
	for previous, want := range map[config.Secret][]config.Secret{
		"":                        {testSecret},
		"a":                       {testSecret, "a"},
		" " + a + ", " + b + " ,": {testSecret, a, b, a + ", " + b + " ,"}, // one secret with commas, or two
		a[1:] + "," + b[1:]:       {testSecret, a[1:] + "," + b[1:]},       // one, since half of it would be too short
		"a,b\nc\r\n":              {testSecret, "a,b", "c"},
		",\n":                     {testSecret, ","},
		"\n":                      {testSecret},
		"with spaces x":           {testSecret, "with spaces x"},
	} {
		c := goodConfig()
		c.PreviousSecrets = previous
		if got := c.Secrets(); !slices.Equal(got, want) {
			t.Errorf("%q: %d secrets; want %d", previous.Reveal(), len(got), len(want))
		}
	}
}

func TestTheKIDOfASharedSecretTellsSecretsApartAndNothingElse(t *testing.T) {
	t.Parallel()
	a, err := SharedKey(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	b, err := SharedKey(otherSecret)
	if err != nil {
		t.Fatal(err)
	}
	again, err := SharedKey(testSecret)
	if err != nil || a.KID() == b.KID() || a.KID() != again.KID() || !validKID(a.KID()) ||
		strings.Contains(a.KID(), testSecret.Reveal()[:4]) {
		t.Errorf("kids %s, %s, %s, %v", a.KID(), b.KID(), again.KID(), err)
	}
}
