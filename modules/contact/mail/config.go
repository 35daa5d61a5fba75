package mail

import (
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"net/url"
	"strings"
	"unicode"

	"golang.org/x/net/idna"

	"github.com/toppira/authctl/platform/config"
)

// Config is mail.*, and the settings of contact.* for mails and their pages.
type Config struct {
	URL          config.Secret `config:"mail.url" doc:"The SMTP server as one URL: smtp://USER:PASSWORD@HOST:PORT with STARTTLS (port 587), or smtps://… with TLS from the start (port 465). Its certificate is verified. ?starttls=optional also sends without TLS when the server offers none, but no password. STARTTLS is optional for a host of this machine, too. If empty, each mail becomes a file in the folder mail of app.data_dir."`
	From         string        `config:"mail.from" doc:"The sender of mails, such as: Example <no-reply@example.com>. Needed with mail.url."`
	CAFile       string        `config:"mail.ca_file" doc:"Certificates in PEM form that the SMTP server's certificate is verified with, in place of the system's."`
	PagesURL     string        `config:"contact.pages_url" doc:"The URL of the pages that the links in mails lead to; /verify, /reset and /undo are added. If empty, the service's own pages: /account at auth.token.issuer."`
	Pages        string        `config:"contact.pages" default:"on" oneof:"on,off" doc:"Whether the service has pages of its own at /account/verify, /account/reset and /account/undo. Turn them off when contact.pages_url names others."`
	TemplatesDir string        `config:"contact.templates_dir" doc:"A folder with templates for mails that replace the built-in ones file by file, or add languages. authctl mail templates writes the built-in ones."`
}

// Sends reports whether an SMTP server is set.
func (c Config) Sends() bool { return c.URL != "" }

// Server is the address of the SMTP server; empty if none is set.
func (c Config) Server() string {
	if s, err := parseServer(c.URL); c.Sends() && err == nil {
		return net.JoinHostPort(s.host, s.port)
	}
	return ""
}

// HasPages reports whether the service has pages of its own.
func (c Config) HasPages() bool { return c.Pages == "on" }

// Validate reports faults that types and ranges cannot exclude. It never shows a part of a URL.
func (c Config) Validate(report func(path, problem string)) {
	if c.Sends() {
		if _, err := parseServer(c.URL); err != nil {
			report("mail.url", err.Error())
		}
		if c.From == "" {
			report("mail.from", "must be set with mail.url: an address that the SMTP server sends for")
		}
	}
	if c.From != "" {
		if _, err := parseFrom(c.From); err != nil {
			report("mail.from", err.Error())
		}
	}
	if c.PagesURL != "" {
		u, err := url.Parse(c.PagesURL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil ||
			u.RawQuery != "" || u.Fragment != "" || u.ForceQuery || !strings.EqualFold(u.String(), c.PagesURL) {
			report("contact.pages_url", "must be a URL such as https://www.example.com/account, without user, query "+
				"or fragment, and with %XX for blanks, quotes and what is not ASCII: mails show it as text")
		} else if problem := config.URLHostProblem(u); problem != "" {
			report("contact.pages_url", "has a host that "+problem)
		}
	}
}

// Doubted reports a scheme that servers mostly do not speak on the port.
func (c Config) Doubted(report func(path, text string)) {
	switch s, err := parseServer(c.URL); {
	case err != nil:
	case !s.implicit && s.port == "465":
		report("mail.url", "begins with smtp:// and has port 465, where servers mostly begin with TLS: write smtps://")
	case s.implicit && s.port == "587":
		report("mail.url", "begins with smtps:// and has port 587, where servers mostly have STARTTLS: write smtp://")
	}
}

// CheckFiles reports templates and authorities that mails could not be made or sent with.
func (c Config) CheckFiles(report func(path, problem string)) {
	if _, err := LoadTemplates(c.TemplatesDir, "authctl"); err != nil {
		text := strings.TrimPrefix(err.Error(), "contact.templates_dir: ")
		report("contact.templates_dir", "cannot be used: "+strings.ReplaceAll(text, "\n", "; "))
	}
	if c.CAFile != "" {
		if _, err := readCAs(c.CAFile); err != nil {
			report("mail.ca_file", "cannot be used: "+err.Error())
		}
	}
}

// PagesAt is the URL to which /verify, /reset and /undo are added, for the service of an issuer.
func (c Config) PagesAt(issuer string) string {
	if c.PagesURL != "" {
		return strings.TrimRight(c.PagesURL, "/")
	}
	return strings.TrimRight(issuer, "/") + "/account"
}

// parseFrom reads mail.from. It may be empty if no server is set.
func parseFrom(text string) (*netmail.Address, error) {
	if text == "" {
		return &netmail.Address{Name: "authctl", Address: "no-reply@localhost"}, nil
	}
	from, err := netmail.ParseAddress(text)
	if err != nil {
		return nil, errors.New("must be an address, or a name and an address: Example <no-reply@example.com>")
	}
	if strings.ContainsFunc(text, unicode.IsControl) {
		return nil, errors.New("has a control character or a line break")
	}
	at := strings.LastIndexByte(from.Address, '@')
	domain, err := idna.Lookup.ToASCII(from.Address[at+1:])
	if err != nil {
		return nil, errors.New("has no valid domain after the @")
	}
	from.Address = from.Address[:at+1] + domain
	if strings.ContainsAny(from.Address[:at], " \t\"\\(),:;<>@[]") {
		return nil, errors.New("must have no quotes before the @")
	}
	if !isASCII(from.Address) {
		return nil, errors.New("must have only ASCII before the @: few servers send for other addresses")
	}
	return from, nil
}

func isASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII })
}

// server is the SMTP server of mail.url.
type server struct {
	host, port     string
	user, password string // empty: without AUTH
	implicit       bool   // TLS from the start
	optional       bool   // STARTTLS only if it is offered
}

// parseServer reads mail.url. Its errors never repeat a part of it, since it holds a password.
func parseServer(text config.Secret) (server, error) {
	const form = "must be a URL such as smtp://USER:PASSWORD@mail.example.com:587 or smtps://…:465, without a path; " +
		"in USER and PASSWORD write each of % / ? # @ : as %25 %2F %3F %23 %40 %3A"
	u, err := url.Parse(text.Reveal())
	if err != nil || u.Scheme != "smtp" && u.Scheme != "smtps" || u.Host == "" || u.Path != "" && u.Path != "/" ||
		u.Fragment != "" || u.Opaque != "" || strings.Count(text.Reveal(), "@") > 1 {
		return server{}, errors.New(form)
	}
	s := server{host: u.Hostname(), port: u.Port(), implicit: u.Scheme == "smtps"}
	if problem := config.HostProblem(s.host); problem != "" {
		return server{}, fmt.Errorf("has a host that %s", problem)
	}
	if s.port == "" {
		s.port = "587"
		if s.implicit {
			s.port = "465"
		}
	}
	if problem := config.AddressProblem(u.Host, false); u.Port() != "" && problem != "" {
		return server{}, fmt.Errorf("has an address that %s", problem)
	}
	if u.User != nil {
		s.user = u.User.Username()
		s.password, _ = u.User.Password()
		if s.user == "" || s.password == "" {
			return server{}, errors.New("must have both a user and a password, or neither")
		}
	}
	s.optional = config.IsThisMachine(s.host)
	options, err := url.ParseQuery(u.RawQuery)
	if err != nil { // u.Query would leave the option out
		return server{}, errors.New(form)
	}
	for name, values := range options {
		if name != "starttls" || s.implicit || len(values) != 1 || values[0] != "optional" && values[0] != "required" {
			return server{}, errors.New("takes one option, with smtp:// alone: ?starttls=required or " +
				"?starttls=optional")
		}
		s.optional = values[0] == "optional"
	}
	return s, nil
}
