package mail

import (
	"net/mail"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/contact"
)

const service = "auth.example.com"

func loadTemplates(t *testing.T, dir string) *Templates {
	t.Helper()
	all, err := LoadTemplates(dir, service)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// folderOf writes files into a new folder and returns it.
func folderOf(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestEachPurposeHasAMailInEachLanguage(t *testing.T) {
	t.Parallel()
	all := loadTemplates(t, "")
	if got := all.Languages(); !slices.Equal(got, []string{"en", "de"}) {
		t.Errorf("the languages are %q", got)
	}
	for _, purpose := range contact.Purposes() {
		subjects := map[string]bool{}
		for _, lang := range all.Languages() {
			d := Sample(purpose, service)
			made, err := all.Make(lang, d)
			if err != nil {
				t.Fatal(err)
			}
			subjects[made.Subject] = true
			for part, text := range map[string]string{"text": made.Text, "html": made.HTML} {
				for what, want := range map[string]string{"code": d.Code, "link": d.Link, "service": service,
					"time":    d.Time,
					"address": d.Address, "device": d.Device, "changed contact": d.Changed} {
					if !strings.Contains(text, want) {
						t.Errorf("%s %s: the %s part has no %s:\n%s", lang, purpose, part, what, text)
					}
				}
				if strings.Contains(text, "<no value>") || strings.Contains(text, "{{") {
					t.Errorf("%s %s: %s", lang, purpose, text)
				}
			}
			for line := range strings.Lines(made.Text) {
				if len([]rune(line)) > 80 && !strings.Contains(line, "https://") && !strings.Contains(line, service) {
					t.Errorf("%s %s: a long line: %s", lang, purpose, line)
				}
			}
			if !strings.Contains(made.HTML, `<html lang="`+lang+`">`) {
				t.Errorf("%s %s is not marked as such", lang, purpose)
			}
			// A mail loads nothing, so that nobody learns that it was opened.
			if found := regexp.MustCompile(`(?i)<(img|link|script|iframe)|url\(|@import`).FindString(made.HTML); found != "" {
				t.Errorf("%s %s loads something: %s", lang, purpose, found)
			}
		}
		if len(subjects) != 2 {
			t.Errorf("%s has the subjects %v", purpose, subjects)
		}
	}
}

// A notice without a link to undo the change, as after a command, does not mention one.
func TestANoticeMayHaveNoLinkNoAddressAndNoDevice(t *testing.T) {
	t.Parallel()
	all := loadTemplates(t, "")
	for _, lang := range all.Languages() {
		d := Sample(contact.PurposeNoticePassword, service)
		d.Link, d.Address, d.Device = "", "", ""
		made, err := all.Make(lang, d)
		if err != nil {
			t.Fatal(err)
		}
		if text := made.Text + made.HTML; strings.Contains(text, "72") || strings.Contains(text, "href") ||
			regexp.MustCompile(`(IP address|IP-Adresse|Device|Gerät)(:|</th>)`).MatchString(text) {
			t.Errorf("%s: %s", lang, text)
		}
	}
}

func TestTheLanguageIsTheOneThatComesClosest(t *testing.T) {
	t.Parallel()
	all := loadTemplates(t, folderOf(t, map[string]string{
		"fr/reset.txt":  "Subject: Nouveau mot de passe\n\n{{.Code}} {{.Link}}\n",
		"fr/reset.html": "{{.Code}} {{.Link}}",
	}))
	for preferred, want := range map[string]string{
		"": "en", "en": "en", "de": "de", "de-AT": "de", "de-CH,de;q=0.9,en;q=0.8": "de", "fr-CA": "fr", "ja": "en",
		"ja, de;q=0.1": "de", "xx-!!": "en", "en-GB,de": "en", "*": "en",
	} {
		if got := all.choose(preferred, "reset"); got != want {
			t.Errorf("%.40q gets %s, want %s", preferred, got, want)
		}
	}
	if got := all.choose("fr", "verify"); got != "en" {
		t.Errorf("a purpose without a French mail comes in %s", got)
	}
}

func TestTemplatesAreReplacedFileByFile(t *testing.T) {
	t.Parallel()
	all := loadTemplates(t, folderOf(t, map[string]string{
		"en/reset.txt": "Subject: Ours for {{.Service}}\r\n\r\nours {{.Code}} {{.Link}}",
		"layout.html":  "<title>our frame</title>{{.Body}}",
		".hidden":      "", "README.md": "how we write",
	}))
	reset, err := all.Make("en", Sample(contact.PurposeReset, service))
	if err != nil || reset.Subject != "Ours for "+service ||
		!strings.HasPrefix(reset.Text, "ours SMPL-C0DE https://") ||
		!strings.HasPrefix(reset.HTML, "<title>our frame</title><p>Hello alice,") {
		t.Errorf("%+v, %v", reset, err)
	}
	german, err := all.Make("de", Sample(contact.PurposeReset, service))
	if err != nil || !strings.HasPrefix(german.Text, "Guten Tag alice,") ||
		!strings.HasPrefix(german.HTML, "<title>our frame</title>") {
		t.Errorf("%+v, %v", german, err)
	}
}

// Kubernetes mounts a ConfigMap as links to a hidden folder, also for subfolders.
func TestTemplatesAreFoundBehindLinks(t *testing.T) {
	t.Parallel()
	dir := folderOf(t, map[string]string{
		"..2026/en/reset.txt": "Subject: Ours\n\n{{.Code}} {{.Link}}",
		"..2026/layout.html":  "<title>our frame</title>{{.Body}}",
	})
	for name, to := range map[string]string{"..data": "..2026", "en": "..data/en",
		"layout.html": "..data/layout.html"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	reset, err := loadTemplates(t, dir).Make("en", Sample(contact.PurposeReset, service))
	if err != nil || reset.Subject != "Ours" || !strings.HasPrefix(reset.HTML, "<title>our frame") {
		t.Errorf("%+v, %v", reset, err)
	}
}

// Loops that end, and Go's functions for texts, work as they do elsewhere.
func TestTemplatesMayLoopAndPrint(t *testing.T) {
	t.Parallel()
	all := loadTemplates(t, folderOf(t, map[string]string{
		"en/reset.txt": `Subject: One

{{.Code}} {{.Link}} {{range 72}}-{{end}} {{printf "100%% 2026 %-8s|" .Username}} {{print 1 2}} {{html "<"}}` +
			`{{define "a"}}{{if .}}({{template "a" slice . 1}}){{end}}{{end}}{{template "a" "xyz"}}`,
		"en/reset.html": `{{.Code}} {{.Link}} {{range 72}}-{{end}} {{printf "%5.1f" 2.25}} {{"<b>" | html}}`,
	}))
	made, err := all.Make("en", Sample(contact.PurposeReset, service))
	if err != nil || !strings.HasSuffix(made.Text, strings.Repeat("-", 72)+" 100% 2026 alice   | 1 2 &lt;((()))") ||
		!strings.Contains(made.HTML, strings.Repeat("-", 72)+"   2.2 &lt;b&gt;") {
		t.Errorf("%q %q, %v", made.Text, made.HTML, err)
	}
}

func TestABrokenTemplateIsRefusedByFileAndLine(t *testing.T) {
	t.Parallel()
	const good = "Subject: One\n\n{{.Code}} {{.Link}}"
	long := "{{range 1000}}" + strings.Repeat("longer ", 100) + "{{end}}"
	for _, test := range []struct{ name, text, problem string }{
		{"en/reset.txt", good + "\n{{if}}", "en/reset.txt:4: missing value for if"},
		{"en/reset.txt", good + "\n{{.Nobody}}", "en/reset.txt:4:2: "},
		{"en/reset.html", "{{.Code}}\n{{.Link}}\n{{end}}", "en/reset.html:3: unexpected {{end}}"},
		{"en/reset.html", "{{.Code}} <a href='{{.Link}}", "en/reset.html: a tag, a quote, a comment or a script"},
		// In a branch that no sample takes.
		{"en/reset.txt", good + `{{if eq .Username "bob"}}{{.Kode}}{{end}}`, "en/reset.txt:3:46: there is no field .Kode"},
		{"en/reset.html", "{{.Code}} {{.Link}}\n{{define \"a\"}}{{with $x := $.Nobody}}{{end}}{{end}}",
			"en/reset.html:2:"},
		{"en/reset.txt", good + `{{if eq .Username "bob"}}{{.Code.Length}}{{end}}`, "there is no field .Code.Length"},
		{"en/reset.txt", good + `{{if eq .Username "bob"}}{{(print .Code).Length}}{{end}}`, "there is no field .Length"},
		{"en/reset.txt", good + "{{slice .Username 0 3}}", "en/reset.txt:3:21: "}, // of a name that is shorter
		{"layout.html", "\n{{.Body", "layout.html:2: "},
		{"layout.html", "{{.Subject}}", "layout.html: the frame does not show what is in it: use {{.Body}}"},
		{"en/reset.txt", "Subject: One\n\n{{.Link}}", "en/reset.txt: the mail does not show the code: use {{.Code}}"},
		{"en/reset.html", "{{.Code}}", "en/reset.html: the mail does not show the link: use {{.Link}}"},
		{"de/notice_password.txt", "Subject: One\n\nNichts", "de/notice_password.txt: the mail does not show the link"},
		{"en/reset.txt", "Subject: {{.Code}}\n\n{{.Code}} {{.Link}}", "en/reset.txt: the subject shows the code"},
		{"en/reset.txt", "{{.Code}} {{.Link}}", "en/reset.txt:1: the template must begin with a line such as Subject:"},
		{"en/reset.txt", "Subject:\n\n{{.Code}} {{.Link}}", "en/reset.txt:1: the subject has 0 bytes"},
		{"en/reset.txt", "Subject: a\u0007b\n\n{{.Code}} {{.Link}}", "en/reset.txt has a control character"},
		{"en/reset.txt", "Subject: " + strings.Repeat("x", 600) + "\n\n{{.Code}} {{.Link}}",
			"en/reset.txt:1: the subject has 600 bytes"},
		{"en/rest.txt", good, "en/rest.txt is no template"},
		{"en/reset.md", good, "en/reset.md is no template"},
		{"reset.txt", good, "reset.txt is no template"},
		{"fr/reset.txt/x", good, "is no file"},
		{"en/reset.html", "{{.Code}} {{.Link}}\xff", "en/reset.html is not UTF-8"},
		{"en/reset.txt", good + "\x00", "en/reset.txt has a control character"},
		{"en/reset.txt", "\ufeff" + good, "en/reset.txt begins with a byte order mark"},
		{"en/reset.txt", good + strings.Repeat("x", maxTemplate), "en/reset.txt has 65"},
		{"en/reset.txt", "", "en/reset.txt:1: the template must begin with a line such as Subject:"},
		// In a branch that only some mails take.
		{"en/notice_password.txt", good + "{{if not .Device}}{{.Devise}}{{end}}", "en/notice_password.txt:3:"},
		{"en/notice_contact.html", `{{.Link}}{{if eq .Change "removed"}}{{.Chance}}{{end}}`,
			"en/notice_contact.html:1:"},
		{"en/notice_password.txt", "Subject: One\n\n{{if .Address}}{{.Link}}{{end}}",
			"en/notice_password.txt: the mail does not show the link"},
		{"fr/reset.txt", good, "fr/reset.txt: there is no reset.html with it"},
		{"en/reset.txt", good + long, "en/reset.txt:3: what it makes is longer than"},
		{"en/reset.html", "{{.Code}} {{.Link}}" + long,
			"en/reset.html:1: what it makes is longer than"},
		{"layout.html", "{{.Body}}" + long, "layout.html:1: what it makes is longer than"},
		// Loops that write nothing.
		{"en/reset.txt", good + "{{range 1000000000000}}{{end}}", "en/reset.txt:3: it does not end within"},
		{"en/reset.txt", good + "{{if true}}{{range 1000000000000}}{{continue}}{{end}}{{end}}",
			"en/reset.txt:3: it does not end within"},
		{"en/reset.html", "{{.Code}} {{.Link}}{{with .Code}}{{else}}{{end}}{{range 1000000000000}}{{range 0}}{{end}}{{end}}",
			"en/reset.html:1: it does not end within"},
		{"layout.html", "{{.Body}}{{with 1}}{{range 1000000000000}}{{end}}{{end}}", "layout.html:1: it does not end within"},
		{"en/reset.txt", good + `{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`,
			"en/reset.txt:3: it does not end within"},
		{"en/reset.txt", good + `{{define "a"}}{{if lt (len .) 60}}{{template "a" print . 1}}{{template "a" print . 1}}` +
			`{{end}}{{end}}{{template "a" ""}}`, "en/reset.txt:3: it does not end within"},
		{"en/reset.html", `{{.Code}} {{.Link}}{{define "a"}}{{if lt (len .) 60}}{{template "a" print . 1}}` +
			`{{template "a" print . 1}}{{end}}{{end}}{{template "a" ""}}`, "en/reset.html:1: it does not end within"},
		{"en/reset.txt", good + "\n{{- range 2}}\n{{end}}\n{{range 1000000000000}}{{end}}", "en/reset.txt:4,6: it does not end"},
		// Texts that grow and are never shown.
		{"en/reset.txt", good + `{{$x := "grow"}}` + strings.Repeat("{{$x = print $x $x}}", 200),
			"what it makes is longer than"},
		{"en/reset.html", `{{.Code}} {{.Link}}{{$x := "\\"}}` + strings.Repeat("{{$x = js $x}}", 200),
			"what it makes is longer than"},
		{"en/reset.txt", good + `{{$x := printf "%999999d%*d" 1 1 1}}`, "a width has at most three digits"},
		{"en/reset.txt", good + `{{index .Username 500}}`, "en/reset.txt:3:21: "},
		{"en/reset.txt", good + `{{call .Username}}`, "en/reset.txt:3:21: "},
		{"en/reset.html", `{{.Code}} {{.Link}}{{template "nowhere"}}`, "en/reset.html"},
	} {
		dir := folderOf(t, map[string]string{test.name: test.text})
		_, err := LoadTemplates(dir, service)
		if err == nil || !strings.Contains(err.Error(), test.problem) {
			t.Errorf("%s %q: %v, want %s", test.name, test.text, err, test.problem)
		} else if strings.Count(err.Error(), test.problem) > 1 && test.problem != "en/reset.html: " {
			t.Errorf("%s %q: the same is said twice: %v", test.name, test.text, err)
		} else if test.name != "fr/reset.txt/x" && !strings.Contains(test.problem, "en/reset.html: ") &&
			!strings.Contains(err.Error(), filepath.Join(dir, test.name)) {
			t.Errorf("%s: the file is not named: %v", test.name, err)
		}
	}
	for name, problem := range map[string]string{
		"english!/reset.txt": "english! is a folder whose name is no language tag",
		"EN/reset.txt":       "EN is a folder that must be named en",
		"pt-br/reset.txt":    "pt-br is a folder that must be named pt-BR", "en/old/reset.txt": "en/old is no file",
	} {
		dir := folderOf(t, map[string]string{name: good})
		if _, err := LoadTemplates(dir, service); err == nil ||
			!strings.Contains(err.Error(), filepath.Join(dir, problem)) {
			t.Errorf("%s: %v, want %s", name, err, problem)
		}
	}
	dangling := folderOf(t, map[string]string{"en/README": ""})
	if err := os.Symlink("nowhere", filepath.Join(dangling, "en", "reset.txt")); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadTemplates(dangling, service); err == nil ||
		!strings.Contains(err.Error(), "read the template "+filepath.Join(dangling, "en", "reset.txt")+": ") {
		t.Errorf("a link to nowhere: %v", err)
	}
	_, err := LoadTemplates(filepath.Join(t.TempDir(), "missing"), service)
	if err == nil || !strings.Contains(err.Error(), "contact.templates_dir") {
		t.Errorf("a missing folder: %v", err)
	}
}

// Names that people or devices give themselves become neither markup nor headers.
func TestWhatOthersWriteIsEscaped(t *testing.T) {
	t.Parallel()
	m := newMailer(t, Config{From: "Größe & Co <no-reply@example.com>"}, Options{DataDir: t.TempDir()})
	message := contact.Message{Purpose: contact.PurposeNoticePassword, Recipient: "alice@example.com",
		UserID:   uuid.New(),
		Username: `<script>alert(1)</script>"&`, LinkToken: "act_undo", At: time.Now(), Address: "203.0.113.7",
		Device: "Call-us at https://evil.example\r\nBcc: eve@example.com", ExpiresAt: time.Now().Add(72 * time.Hour)}
	made, err := m.templates.Make("", m.data(message, testIssuer, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(made.HTML, "<script") || strings.Contains(made.HTML+made.Text, "evil") ||
		!strings.Contains(made.Text, "Call-us\n") {
		t.Errorf("%s\n%s", made.HTML, made.Text)
	}
	mail1, err := m.envelope(uuid.New(), message, testIssuer, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	read, err := mail.ReadMessage(strings.NewReader(string(mail1.text)))
	if err != nil || read.Header.Get("Bcc") != "" || len(read.Header["From"]) != 1 {
		t.Errorf("%v, %v", read.Header, err)
	}
	if from, err := read.Header.AddressList("From"); err != nil || from[0].Name != "Größe & Co" {
		t.Errorf("%v, %v", from, err)
	}
	for _, to := range []string{"a@example.com\r\nBcc: eve@example.com", "a@example.com, eve@example.com",
		"Eve <a@example.com>", ""} {
		message.Recipient = to
		if mail, err := m.envelope(uuid.New(), message, testIssuer, time.Now()); outcome(err) != "refused" {
			t.Errorf("%q: %s, %v", to, mail.text, err)
		}
	}
}

// Links come from the settings. Their secret is in the fragment, which no server sees.
func TestLinksComeFromTheSettings(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ pages, want string }{
		{"", testIssuer + "/account/"}, {"https://www.example.com/me", "https://www.example.com/me/"},
		{"https://www.example.com/me/", "https://www.example.com/me/"},
	} {
		m := newMailer(t, Config{PagesURL: test.pages}, Options{DataDir: t.TempDir()})
		for purpose, page := range map[contact.Purpose]string{contact.PurposeVerify: "verify",
			contact.PurposeReset:          "reset",
			contact.PurposeNoticePassword: "undo", contact.PurposeNoticeNewDevice: "undo"} {
			d := m.data(contact.Message{Purpose: purpose, LinkToken: "act_secret"}, testIssuer, time.Now())
			if d.Link != test.want+page+"#token=act_secret" {
				t.Errorf("%s: %s", purpose, d.Link)
			}
		}
	}
}

// A relay need not know the issuer: the link has that of the server that wrote the message.
func TestALinkIsOfTheServerThatWroteTheMessage(t *testing.T) {
	t.Parallel()
	m := newMailer(t, Config{}, Options{DataDir: t.TempDir()})
	message := contact.Message{Purpose: contact.PurposeReset, LinkToken: "act_secret"}
	d := m.data(message, "https://id.example.org/auth", time.Now())
	if d.Link != "https://id.example.org/auth/account/reset#token=act_secret" || d.Service != "id.example.org/auth" {
		t.Errorf("%+v", d)
	}
}

func TestHowLongACodeWorksIsWhatWasPromised(t *testing.T) {
	t.Parallel()
	m := newMailer(t, Config{}, Options{DataDir: t.TempDir()})
	now := time.Now()
	for valid, want := range map[time.Duration][2]int{15 * time.Minute: {15, 0}, 24 * time.Hour: {1440, 24},
		72 * time.Hour: {4320, 72}} {
		// The event is written slightly after the challenge.
		message := contact.Message{Purpose: contact.PurposeReset, ExpiresAt: now.Add(valid - time.Second)}
		d := m.data(message, testIssuer, now)
		if d.Minutes != want[0] || d.Hours != want[1] {
			t.Errorf("%v: %d minutes, %d hours", valid, d.Minutes, d.Hours)
		}
	}
}

func TestADeviceIsNamedInWordsOfOurOwn(t *testing.T) {
	t.Parallel()
	for agent, want := range map[string]string{
		"": "",
		"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0": "Firefox, Linux",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/143.0.0.0 " +
			"Safari/537.36 Edg/143.0.0.0": "Edge, Windows",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 " +
			"Mobile/15E148 Safari/604.1": "Safari, iPhone",
		"Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/143.0.0.0 Mobile " +
			"Safari/537.36": "Chrome, Android",
		"curl/8.5.0": "curl", "okhttp/4.12.0": "okhttp", "http://evil.example": "http", "<b>": "",
		"Firefox http://evil.example": "Firefox",
	} {
		if got := deviceName(agent); got != want {
			t.Errorf("%q is %q, want %q", agent, got, want)
		}
	}
}

func TestExportedTemplatesAreTheBuiltInOnes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	written, err := Export(dir)
	if err != nil || len(written) != 1+2*2*len(contact.Purposes()) {
		t.Fatalf("%q, %v", written, err)
	}
	one, two := loadTemplates(t, ""), loadTemplates(t, dir)
	for _, purpose := range contact.Purposes() {
		for _, lang := range one.Languages() {
			a, errA := one.Make(lang, Sample(purpose, service))
			b, errB := two.Make(lang, Sample(purpose, service))
			if errA != nil || errB != nil || a != b {
				t.Errorf("%s %s: %v, %v", lang, purpose, errA, errB)
			}
		}
	}
	if _, err := Export(dir); err == nil {
		t.Error("files are overwritten")
	}
}
