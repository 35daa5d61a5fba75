package mail

import (
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/config"
)

func TestTheServerIsReadFromItsURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]server{
		"smtp://mail.example.com":  {host: "mail.example.com", port: "587"},
		"smtps://mail.example.com": {host: "mail.example.com", port: "465", implicit: true},
		"smtps://u%40x:p%3A%2F%25%23%3F@mail": {host: "mail", port: "465", implicit: true, user: "u@x",
			password: "p:/%#?"},
		"smtp://localhost:1025":              {host: "localhost", port: "1025", optional: true},
		"smtp://[::1]:1025/":                 {host: "::1", port: "1025", optional: true},
		"smtp://localhost?starttls=required": {host: "localhost", port: "587"},
		"smtp://mail:25?starttls=optional":   {host: "mail", port: "25", optional: true},
	} {
		if got, err := parseServer(config.Secret(text)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"mail.example.com", "mail.example.com:587", "http://mail.example.com", "smtp://", "smtp://:587",
		"smtp://mail/x",
		"smtp://mail#x",
		"smtp://u@mail", "smtp://u:@mail", "smtp://:s3cret@mail", "smtp://u:s3cret/x@mail", "smtp://u:s3cret#x@mail",
		"smtp://u:s3cret?x@mail",
		"smtp://u:s3c@ret@mail", "smtp://u:s3cret%zz@mail", "smtp://mail:70000", "smtp://mail:0", "smtp://mail?starttls=no",
		"smtp://localhost?starttls=required;", "smtp://mail?starttls=%zz", "smtp://mail?tls=off", "smtps://mail?starttls=optional",
		"smtp://two hosts",
	} {
		if got, err := parseServer(config.Secret(text)); err == nil || strings.Contains(err.Error(), "s3c") {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

func TestSettingsThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		cfg  Config
		path string // part of the fault; empty for none
	}{
		{Config{}, ""},
		{Config{URL: "smtp://mail.example.com", From: "Example <no-reply@example.com>"}, ""},
		{Config{URL: "smtp://mail.example.com"}, "mail.from"},
		{Config{URL: "mail.example.com", From: "no-reply@example.com"}, "mail.url"},
		{Config{From: "example.com"}, "mail.from"},
		{Config{PagesURL: "https://www.example.com/account"}, ""},
		{Config{PagesURL: "/account"}, "contact.pages_url"},
		{Config{PagesURL: "https://www.example.com/?a=b"}, "contact.pages_url"},
		{Config{PagesURL: "https://www.example.com/#a"}, "contact.pages_url"},
		{Config{PagesURL: "javascript:alert(1)"}, "contact.pages_url"},
		{Config{PagesURL: "https://bücher.example/account"}, "contact.pages_url"},
		{Config{PagesURL: "https://two hosts/account"}, "contact.pages_url"},
		{Config{PagesURL: "https://www.example.com/my account"}, "contact.pages_url"},
		{Config{PagesURL: `https://www.example.com/a"b`}, "contact.pages_url"},
		{Config{PagesURL: "https://www.example.com/straße"}, "contact.pages_url"},
		{Config{PagesURL: "https://www.example.com/stra%C3%9fe/my%20account"}, ""},
		{Config{PagesURL: "HTTPS://www.example.com:8443/account/"}, ""},
		{Config{From: "Größe & Co <no-reply@bücher.example>"}, ""},
		{Config{From: "grüße@example.com"}, "mail.from"},
		{Config{From: "a@example.com\r\nBcc: eve@example.com"}, "mail.from"},
		{Config{From: "\"a\r\n b\" <a@example.com>"}, "mail.from"},
		{Config{From: "a@example.com, b@example.com"}, "mail.from"},
		{Config{From: "a@exam ple.com"}, "mail.from"},
		{Config{From: "\"a b\"@example.com"}, "mail.from"},
		{Config{From: "\"a@b\"@example.com"}, "mail.from"},
	} {
		var faults []string
		test.cfg.Validate(func(path, _ string) { faults = append(faults, path) })
		if strings.Join(faults, " ") != test.path {
			t.Errorf("%+v: %q, want %q", test.cfg, faults, test.path)
		}
	}
}

func TestASchemeThatDoesNotFitItsPortIsToldOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"smtp://mail:465": "write smtps://", "smtps://mail:587": "write smtp://",
		"smtp://u:s3cret@mail:465": "write smtps://",
		"":                         "", "smtp://mail": "", "smtps://mail": "", "smtp://mail:25": "", "smtps://mail:2465": "", "nonsense": "",
	} {
		got := ""
		Config{URL: config.Secret(text)}.Doubted(func(_, text string) { got = text })
		if (got != "") != (want != "") || !strings.Contains(got, want) || strings.Contains(got, "s3cret") {
			t.Errorf("%s: told %q, want %q", text, got, want)
		}
	}
}
