package mail

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/language"

	"github.com/toppira/authctl/modules/contact"
)

//go:embed templates
var embedded embed.FS

// layoutFile is the frame of every HTML part.
const layoutFile = "layout.html"

// maxSubject is the longest subject in bytes.
const maxSubject = 500

// Data is what a template may use. Fields that do not belong to the purpose are empty.
type Data struct {
	Purpose  string
	Language string // that of the template
	Service  string // the host and path of the issuer
	Username string
	Code     string // to type
	Link     string // of a page; its secret is in the fragment
	Minutes  int    // for how long code and link work, in whole minutes
	Hours    int    // the same in whole hours
	Time     string // of what a notice is about, in UTC
	Address  string // the IP address it was done from; may be empty
	Device   string // may be empty
	Change   string // of notice_contact: added or removed
	Changed  string // of notice_contact: the address

	Subject string            // in HTML: that of the mail
	Body    htmltemplate.HTML // in layout.html: the part of the purpose
}

// Mail is the text of a message.
type Mail struct {
	Subject string `json:"subject"`
	Text    string `json:"text"`
	HTML    string `json:"html"`

	body string // the part of HTML that is not the frame's
}

// hasCode reports whether a mail is useless without its code. It always is without its link.
func hasCode(p contact.Purpose) bool { return p == contact.PurposeVerify || p == contact.PurposeReset }

// Templates are the templates of all mails, in every language. They are tried when they are loaded.
type Templates struct {
	layout  *htmltemplate.Template
	text    map[string]*template.Template     // en/reset
	html    map[string]*htmltemplate.Template // en/reset
	loops   map[string]string                 // the [loopLines] of a template, by its place
	tags    []language.Tag                    // English first
	names   []string                          // the folder of each tag
	matcher language.Matcher
}

// LoadTemplates reads the embedded templates and, in place of each of them, the file of the same
// name in dir, and tries all of them with sample data. A language is a folder named by its tag.
// An empty dir means that nothing is replaced. service is what mails call the service.
func LoadTemplates(dir, service string) (*Templates, error) {
	sources := map[string]source{}
	if err := collect(sources, builtIn(), ".", func(name string) string { return name }); err != nil {
		return nil, fmt.Errorf("read the embedded templates: %w", err)
	}
	if dir != "" {
		place := func(name string) string { return filepath.Join(dir, name) }
		if err := collect(sources, os.DirFS(dir), ".", place); err != nil {
			return nil, fmt.Errorf("contact.templates_dir: %w", err)
		}
	}
	t := &Templates{text: map[string]*template.Template{}, html: map[string]*htmltemplate.Template{},
		loops: map[string]string{}}
	if err := errors.Join(t.parse(sources)...); err != nil {
		return nil, err
	}
	if err := errors.Join(t.try(service)...); err != nil {
		return nil, err
	}
	return t, nil
}

// source is a template before it is parsed. Faults name it by its place.
type source struct{ place, text string }

// maxTemplate is the largest template in bytes. Mail programs cut off a mail of 100 KiB.
const maxTemplate = 64 << 10

// collect reads the templates of a folder, and of the folders in the outermost one. It refuses other files,
// since nothing would use them. It follows links: in a ConfigMap that Kubernetes mounts, each folder is one.
func collect(into map[string]source, from fs.FS, folder string, place func(name string) string) error {
	list, err := fs.ReadDir(from, folder)
	if err != nil {
		return readFault("read the folder of templates", place(folder), err)
	}
	for _, entry := range list {
		name := path.Join(folder, entry.Name())
		if strings.HasPrefix(entry.Name(), ".") || strings.HasPrefix(entry.Name(), "README") {
			continue
		}
		info, err := fs.Stat(from, name)
		if err != nil {
			return readFault("read the template", place(name), err)
		}
		switch {
		case info.IsDir() && folder == ".":
			if problem := folderProblem(name); problem != "" {
				return fmt.Errorf("%s %s", place(name), problem)
			}
			if err := collect(into, from, name, place); err != nil {
				return err
			}
			continue
		case !info.Mode().IsRegular():
			return fmt.Errorf("%s is no file", place(name))
		}
		if problem := nameProblem(name); problem != "" {
			return fmt.Errorf("%s %s", place(name), problem)
		}
		if info.Size() > maxTemplate {
			return fmt.Errorf("%s has %d bytes: a template may have at most %d", place(name), info.Size(), maxTemplate)
		}
		text, err := fs.ReadFile(from, name)
		if err != nil {
			return readFault("read the template", place(name), err)
		}
		if problem := textProblem(text); problem != "" {
			return fmt.Errorf("%s %s", place(name), problem)
		}
		into[name] = source{place(name), strings.ReplaceAll(string(text), "\r\n", "\n")}
	}
	return nil
}

// readFault is why a place cannot be read.
func readFault(what, place string, err error) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok { // its path is relative to the folder
		err = path.Err
	}
	return fmt.Errorf("%s %s: %w", what, place, err)
}

// textProblem says why a text cannot be part of a mail; empty if it can.
func textProblem(text []byte) string {
	switch {
	case bytes.HasPrefix(text, []byte("\ufeff")):
		return "begins with a byte order mark: save it as UTF-8 without one"
	case !utf8.Valid(text):
		return "is not UTF-8"
	case bytes.ContainsFunc(text,
		func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune("\r\n\t", r) }):
		return "has a control character"
	}
	return ""
}

// folderProblem says why a folder of this name cannot hold templates; empty if it can.
func folderProblem(name string) string {
	tag, err := language.Parse(name)
	if err != nil {
		return "is a folder whose name is no language tag such as en, de or pt-BR"
	}
	if tag.String() != name {
		return fmt.Sprintf("is a folder that must be named %s", tag)
	}
	return ""
}

// nameProblem says why a template cannot have this name; empty if it can.
func nameProblem(name string) string {
	if name == layoutFile {
		return ""
	}
	_, file, found := strings.Cut(name, "/")
	if !found {
		return "is no template: templates are in folders of languages, such as en/reset.txt; only " + layoutFile +
			" is outside"
	}
	purpose, ending, _ := strings.Cut(file, ".")
	if !slices.Contains(contact.PurposeNames(), purpose) || ending != "txt" && ending != "html" {
		return "is no template: they are named after what a mail is for, with .txt and .html: " +
			strings.Join(contact.PurposeNames(), ", ")
	}
	return ""
}

func (t *Templates) parse(sources map[string]source) (faults []error) {
	folders := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		s := sources[name]
		id, ending := strings.TrimSuffix(name, path.Ext(name)), path.Ext(name)
		t.loops[s.place] = loopLines(s.text)
		var err error
		switch {
		case name == layoutFile:
			t.layout, err = parseHTML(s)
		case ending == ".txt":
			t.text[id], err = parseText(s)
		default:
			t.html[id], err = parseHTML(s)
		}
		if err != nil {
			faults = append(faults, templateFault(err))
		}
		if folder := path.Dir(name); folder != "." {
			folders[folder] = true
		}
		for _, other := range []string{".txt", ".html"} {
			if _, both := sources[id+other]; name != layoutFile && !both {
				faults = append(faults,
					fmt.Errorf("%s: there is no %s with it: a mail has a text part and an HTML part",
						s.place, path.Base(id)+other))
			}
		}
	}
	delete(folders, "en")
	t.names = append([]string{"en"}, slices.Sorted(maps.Keys(folders))...)
	for _, name := range t.names {
		t.tags = append(t.tags, language.Make(name))
	}
	t.matcher = language.NewMatcher(t.tags)
	return faults
}

func parseText(s source) (*template.Template, error) {
	t, err := template.New(s.place).Funcs(textFunctions).Parse(s.text)
	if err != nil {
		return nil, err
	}
	for _, one := range t.Templates() {
		if err := prepare(one.Tree); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func parseHTML(s source) (*htmltemplate.Template, error) {
	t, err := htmltemplate.New(s.place).Funcs(textFunctions).Parse(s.text)
	if err != nil {
		return nil, err
	}
	for _, one := range t.Templates() {
		if err := prepare(one.Tree); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// templateFault leaves out Go's words before the file and line.
func templateFault(err error) error {
	if html, ok := errors.AsType[*htmltemplate.Error](err); ok && html.ErrorCode == htmltemplate.ErrEndContext {
		return fmt.Errorf("%s: a tag, a quote, a comment or a script in it does not end", html.Name)
	}
	return errors.New(strings.TrimPrefix(strings.TrimPrefix(err.Error(), "html/template:"), "template: "))
}

// try makes each mail with sample data, with and without the optional parts, so that every branch of a
// template runs. A mail without its code or link would lock its reader out.
func (t *Templates) try(service string) (faults []error) {
	said := map[string]bool{} // a fault of the layout is one of every mail
	for _, id := range slices.Sorted(maps.Keys(t.text)) {
		folder, purpose := path.Split(id)
		for _, sample := range samples(contact.Purpose(purpose), service) {
			problems := t.tryOne(strings.TrimSuffix(folder, "/"), id, sample)
			for _, problem := range problems {
				if !said[problem.Error()] {
					faults = append(faults, problem)
				}
				said[problem.Error()] = true
			}
			if problems != nil {
				break // the others say the same
			}
		}
	}
	return faults
}

func (t *Templates) tryOne(folder, id string, sample Data) (faults []error) {
	mail, err := t.make(folder, sample)
	if err != nil {
		return []error{err}
	}
	if !strings.Contains(mail.HTML, strings.TrimSpace(mail.body)) {
		return []error{fmt.Errorf("%s: the frame does not show what is in it: use {{.Body}}", t.layout.Name())}
	}
	coded := hasCode(contact.Purpose(sample.Purpose))
	for _, part := range []struct{ place, text, link string }{
		{t.text[id].Name(), mail.Text, sample.Link},
		{t.html[id].Name(), mail.HTML, htmltemplate.HTMLEscapeString(sample.Link)},
	} {
		if coded && !strings.Contains(part.text, sample.Code) {
			faults = append(faults, fmt.Errorf("%s: the mail does not show the code: use {{.Code}}", part.place))
		}
		if !strings.Contains(part.text, part.link) {
			faults = append(faults, fmt.Errorf("%s: the mail does not show the link: use {{.Link}}", part.place))
		}
	}
	if coded && strings.Contains(mail.Subject, sample.Code) ||
		sample.Link != "" && strings.Contains(mail.Subject, sample.Link) {
		faults = append(faults, fmt.Errorf("%s: the subject shows the code or the link, and mail servers log subjects",
			t.text[id].Name()))
	}
	return faults
}

// samples are the forms that the data of a mail can have.
func samples(p contact.Purpose, service string) []Data {
	full := Sample(p, service)
	bare, short := full, full
	bare.Address, bare.Device = "", ""
	short.Service, short.Username = "s", "u" // as templates may cut or index them
	list := []Data{full, bare, short}
	if !hasCode(p) { // a notice
		bare.Link, bare.Minutes, bare.Hours = "", 0, 0
		list = append(list, bare)
		if full.Change != "" {
			full.Change = "removed"
			list = append(list, full)
		}
	}
	return list
}

const samplePages = "https://auth.example.com/account"

// Sample is data to try a template with.
func Sample(p contact.Purpose, service string) Data {
	d := Data{
		Purpose: string(p), Service: service, Username: "alice", Link: samplePages + "/undo" +
			"#token=act_SAMPLEsampleSAMPLEsampleSAMPLEsampleSAMPLEs", Minutes: 72 * 60, Hours: 72,
		Time: "2026-11-29 14:05 UTC", Address: "203.0.113.7", Device: "Firefox, Linux",
	}
	switch p {
	case contact.PurposeVerify:
		d.Code, d.Link = "SMPL-C0DE", strings.Replace(d.Link, "undo", "verify", 1)
		d.Hours, d.Minutes = 24, 24*60
	case contact.PurposeReset:
		d.Code, d.Link = "SMPL-C0DE", strings.Replace(d.Link, "undo", "reset", 1)
		d.Hours, d.Minutes = 0, 15
	case contact.PurposeNoticeContact:
		d.Change, d.Changed = "added", "alice@example.net"
	}
	if hasCode(p) {
		d.Time, d.Address, d.Device = "", "", ""
	}
	return d
}

// Languages lists the languages of the templates, English first.
func (t *Templates) Languages() []string { return slices.Clone(t.names) }

// Make makes the mail of the data in the language that comes closest to the preferred one, which is a
// language tag or an Accept-Language header. The default is English.
func (t *Templates) Make(preferred string, d Data) (Mail, error) {
	return t.make(t.choose(preferred, d.Purpose), d)
}

// choose returns the folder to take a template from.
func (t *Templates) choose(preferred, purpose string) string {
	wanted, _, err := language.ParseAcceptLanguage(preferred)
	if err != nil || len(wanted) == 0 {
		return t.names[0]
	}
	_, at, confidence := t.matcher.Match(wanted...)
	if _, there := t.text[t.names[at]+"/"+purpose]; confidence == language.No || !there {
		return t.names[0]
	}
	return t.names[at]
}

func (t *Templates) make(folder string, d Data) (Mail, error) {
	id := folder + "/" + d.Purpose
	text, html := t.text[id], t.html[id]
	if text == nil || html == nil {
		return Mail{}, fmt.Errorf("there is no template %s", id)
	}
	d.Language = folder
	var whole, body, page part
	if err := text.Execute(&whole, d); err != nil {
		return Mail{}, t.makeFault(text.Name(), err)
	}
	head, rest, _ := strings.Cut(whole.String(), "\n")
	subject, found := strings.CutPrefix(head, "Subject:")
	mail := Mail{Subject: strings.TrimSpace(subject), Text: strings.TrimLeft(rest, "\n")}
	switch {
	case !found || !strings.HasPrefix(rest, "\n"):
		return Mail{}, fmt.Errorf("%s:1: the template must begin with a line such as Subject: Your code, and an "+
			"empty line", text.Name())
	case mail.Subject == "" || len(mail.Subject) > maxSubject:
		return Mail{}, fmt.Errorf("%s:1: the subject has %d bytes, it must have 1 to %d", text.Name(),
			len(mail.Subject), maxSubject)
	case strings.ContainsFunc(mail.Subject, unicode.IsControl):
		return Mail{}, fmt.Errorf("%s:1: the subject has a control character or a line break", text.Name())
	}
	d.Subject = mail.Subject
	if err := html.Execute(&body, d); err != nil {
		return Mail{}, t.makeFault(html.Name(), err)
	}
	d.Body = htmltemplate.HTML(body.String()) //nolint:gosec // a template has just escaped it
	if err := t.layout.Execute(&page, d); err != nil {
		return Mail{}, t.makeFault(t.layout.Name(), err)
	}
	mail.HTML, mail.body = page.String(), body.String()
	return mail, nil
}

// Export writes the embedded templates to a folder, for an operator to change. It overwrites nothing. With an error it
// returns those that were written before.
func Export(dir string) (written []string, err error) {
	err = fs.WalkDir(builtIn(), ".", func(name string, entry fs.DirEntry, err error) error {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return os.MkdirAll(path, 0o777) //nolint:gosec // no secret, and serve may be another user
		}
		text, err := fs.ReadFile(builtIn(), name)
		if err != nil {
			return err
		}
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666) //nolint:gosec // as the folder
		if err != nil {
			return err
		}
		_, err = file.Write(text)
		if err = errors.Join(err, file.Close()); err != nil {
			return errors.Join(err, os.Remove(path))
		}
		written = append(written, path)
		return nil
	})
	if err != nil {
		err = fmt.Errorf("write the templates: %w", err)
	}
	return written, err
}

// builtIn are the embedded templates.
func builtIn() fs.FS {
	folder, err := fs.Sub(embedded, "templates")
	if err != nil {
		panic(err) // only for a name that is none
	}
	return folder
}
