package userfile

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// HintAfter is the number of refused records, with none accepted, after which an import stops if they
// look like those of another source.
const HintAfter = 20

// look is how the export of a system is recognised: by words in its first records or its heading.
type look struct {
	source string // --from; empty: it has none
	words  *regexp.Regexp
	system string
	advice string // where there is no --from
}

// The first one that fits is meant.
var looks = sync.OnceValue(func() []look {
	// Names of members in JSON are in quotes; those of columns are alone in a line.
	name := func(names string) string { return `(?:"(?:` + names + `)"\s*:|(?m:^(?:` + names + `)$))` }
	one := func(names string) *regexp.Regexp { return regexp.MustCompile(name(names)) }
	either := func(a, b string) *regexp.Regexp {
		return regexp.MustCompile(`(?s)` + name(a) + `.*` + name(b) + `|` + name(b) + `.*` + name(a))
	}
	return []look{
		{"zitadel", one("humanUsers|hashedPassword"), "an export of Zitadel", ""},
		{"firebase", one("localId"), "an export of Firebase", ""},
		{"firebase", regexp.MustCompile(`(?mi)^[A-Z0-9]{28},[^,]*,(?:true|false),`), "a CSV of Firebase", ""},
		{"auth0", either("passwordHash", `_id|tenant|connection`), "an export of Auth0", ""},
		{"supabase", one("encrypted_password"), "the table auth.users of Supabase", ""},
		{"django", either("model", "fields"), "a dump of Django", ""},
		{"django", either("password", "date_joined|is_superuser"), "the table auth_user of Django", ""},
		{"keycloak", either("credentialData|createdTimestamp|requiredActions", "username|credentials|type"),
			"an export of Keycloak", ""},
		{"keycloak", either("realm", "displayName|notBefore|enabled"), "an export of Keycloak", ""},
		{"native", either("username", "password_hash"), "what authctl user export writes", ""},
		{"", one("user_login"), "the table wp_users of WordPress",
			"SELECT user_login AS username, user_pass AS password_hash, user_registered AS created_at"},
		{"", regexp.MustCompile(`(?i)\bNormalizedUserName\b`), "the table AspNetUsers of ASP.NET Identity", `SELECT "Id" AS id, "UserName" AS username, "PasswordHash" AS password_hash, "Email" AS email, "EmailConfirmed" AS email_verified`},
		{"", either(`providerId|provider_id`, `accountId|account_id`), "the table account of better-auth",
			"SELECT u.email AS username, a.password AS password_hash, the table user joined with account"},
	}
})

// looksLike says which other source the text looks like, and what to do. It is empty when it looks
// like none.
func looksLike(source, text string) string {
	for _, l := range looks() {
		if l.source == source && l.words.MatchString(text) {
			return "" // whatever else it looks like
		}
	}
	for _, l := range looks() {
		switch {
		case !l.words.MatchString(text):
		case l.source != "":
			return fmt.Sprintf("This looks like %s: try --from %s", l.system, l.source)
		default:
			return fmt.Sprintf("This looks like %s: make a CSV with the columns that --from native reads (%s)",
				l.system, l.advice)
		}
	}
	return ""
}

// sample keeps the beginning of the first records.
type sample struct {
	text    strings.Builder
	records int
	good    bool // one of them could be taken
}

func (s *sample) add(columns []string, raw rawRecord) {
	if s.good || s.records >= HintAfter {
		return
	}
	s.records++
	const most = 4 << 10 // bytes of each
	s.text.Write(raw.object[:min(len(raw.object), most)])
	s.text.WriteByte('\n')
	if s.records == 1 {
		s.text.WriteString(strings.Join(columns, "\n") + "\n")
		if columns == nil {
			s.text.WriteString(strings.ToLower(strings.Join(raw.fields, ",") + "\n" + strings.Join(raw.fields, "\n") +
				"\n")) // it may be a heading
		}
	}
}
