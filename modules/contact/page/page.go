// Package page has the pages that the links in mails lead to: /account/verify, /account/reset and
// /account/undo. A link's secret is in the fragment of its address. A script in the page sends it,
// and only when a person presses the button: a mail scanner that fetches or renders the page
// changes nothing.
//
// Pages are one file each, with their style and script in them, and load nothing else. Their
// content security policy allows just that.
package page

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"

	"golang.org/x/text/language"

	"github.com/toppira/authctl/platform/httpserver"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
)

// Routes are the pages of a service with this name.
func Routes(service string) []httpserver.Route {
	var routes []httpserver.Route
	for _, name := range []string{"verify", "reset", "undo"} {
		byLanguage := map[language.Tag][]byte{}
		for _, w := range all {
			byLanguage[w.tag] = render(name, service, w)
		}
		routes = append(routes, httpserver.Page("/account/"+name, func(preferred string) []byte {
			return byLanguage[choose(preferred)]
		}))
	}
	return routes
}

// choose returns the language that comes closest to a tag or an Accept-Language header.
func choose(preferred string) language.Tag {
	wanted, _, err := language.ParseAcceptLanguage(preferred)
	if err != nil || len(wanted) == 0 {
		return all[0].tag
	}
	_, at, _ := matcher.Match(wanted...)
	return all[at].tag
}

var matcher = func() language.Matcher {
	var tags []language.Tag
	for _, w := range all {
		tags = append(tags, w.tag)
	}
	return language.NewMatcher(tags)
}()

var form = template.Must(template.New("page").Parse(pageHTML))

func render(name, service string, w words) []byte {
	own := w.pages[name]
	var text bytes.Buffer
	err := form.Execute(&text, map[string]any{
		"Page": name, "Service": service, "Language": w.tag.String(), "Title": own.title, "Paragraphs": own.paragraphs,
		"Act": own.act, "Done": own.done, "Words": w.common, "Codes": w.codes,
		"CSS": template.CSS(pageCSS), "Script": template.JS(pageJS), //nolint:gosec // they are ours
	})
	if err != nil {
		panic(fmt.Sprintf("page: %v", err)) // it is part of the binary, and a test renders it
	}
	return text.Bytes()
}
