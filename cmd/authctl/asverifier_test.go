package main

import (
	"cmp"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/testenv"
)

// says starts a server that gives every request the same answer. BASE in the text is its own URL.
func says(t *testing.T, text string) (base string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch text {
		case "elsewhere":
			w.Header().Set("Location", "http://evil/")
			w.WriteHeader(http.StatusFound)
		case "away":
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			_, _ = io.WriteString(w, strings.ReplaceAll(text, "BASE", "http://"+r.Host)) // the command may have gone
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// The command trusts the metadata of a server no more than a verifier would: it takes no other
// issuer, reads no files of this machine and follows no redirects.
func TestAVerifierBelievesNoMetadata(t *testing.T) {
	t.Parallel()
	const noEndpoint = "not the URL of an endpoint"
	for text, want := range map[string]string{
		"": "answered no JSON", "<!doctype html>": "answered no JSON", "[]": "answered no JSON",
		`{"issuer":"BASE","jwks_u`:                "answered no JSON",
		`{"issuer":"BASE","jwks_uri":"BASE/k"} x`: "answered no JSON",
		"{}":                "no issuer or no jwks_uri",
		`{"issuer":"BASE"}`: "no issuer or no jwks_uri",
		`{"issuer":"http://evil","jwks_uri":"http://evil/k"}`:                  `add --issuer "http://evil"`,
		`{"issuer":"BASE.evil","jwks_uri":"BASE/k"}`:                           "add --issuer",
		`{"issuer":"BASE","jwks_uri":"/etc/hostname"}`:                         noEndpoint,
		`{"issuer":"BASE","jwks_uri":"file:///etc/hostname"}`:                  noEndpoint,
		`{"issuer":"BASE","jwks_uri":"http://a:b@evil/k"}`:                     noEndpoint,
		`{"issuer":"BASE","jwks_uri":"BASE/k","revocation_feed_endpoint":"x"}`: noEndpoint,
		"elsewhere": "redirects are not followed", "away": "answered 503 Service Unavailable",
		strings.Repeat(" ", 5<<20): "larger than 4096 KiB",
	} {
		report, err := asVerifier{url: says(t, text) + "/"}.inspect(t.Context(), "x.y.z")
		if err == nil || !strings.Contains(err.Error(), want) || report.Valid {
			t.Errorf("%.80s: %+v, %v; want %s", text, report, err, want)
		}
	}
	base := says(t, `{"issuer":"BASE","jwks_uri":"BASE/k"}`)
	_, err := asVerifier{url: base, issuer: "http://named"}.inspect(t.Context(), "x.y.z")
	if err == nil || !strings.Contains(err.Error(), `not "http://named"`) {
		t.Errorf("another issuer than the one named: %v", err)
	}
}

// Who asks one server wants to know what that one says, and may not even reach the others.
func TestTheServerThatIsNamedIsAsked(t *testing.T) {
	t.Parallel()
	const metadata = `{"issuer":"https://auth.invalid/path","jwks_uri":"https://auth.invalid/path/keys",` +
		`"revocation_feed_endpoint":"https://auth.invalid/path/feed"}`
	var asked []string
	one := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		text := map[string]string{"/keys": `{"keys":[]}`,
			"/feed": `{"cursor":"a","as_of":"2026-01-02T15:04:05Z","revocations":[]}`}[r.URL.Path]
		_, _ = io.WriteString(w, cmp.Or(text, metadata)) // the command may have gone
	}))
	defer one.Close()
	v := asVerifier{url: one.URL, issuer: "https://auth.invalid/path"}
	if report, err := v.inspect(t.Context(), "x.y.z"); err != nil || report.Valid {
		t.Errorf("%+v, %v", report, err)
	}
	v.client = "orders"
	if err := v.apply(t.Context(), v.onServer("https://auth.invalid/path/feed"), "s", &auth.TokenReport{}); err != nil {
		t.Error(err)
	}
	want := []string{"/.well-known/oauth-authorization-server", "/keys", "/feed", "/feed"}
	if !slices.Equal(asked, want) {
		t.Errorf("asked %q", asked)
	}
	if got := v.onServer("https://auth.invalid/pathological"); got != "https://auth.invalid/pathological" {
		t.Errorf("an endpoint elsewhere became %s", got)
	}
}

// A verifier that uses https sends nothing in the clear.
func TestAVerifierStaysWithHTTPS(t *testing.T) {
	t.Parallel()
	v := asVerifier{url: "https://auth.example.com"}
	server := authorizationServer{Issuer: v.url, JWKSURI: v.url + "/k", Feed: v.url + "/f"}
	if err := v.check(server); err != nil {
		t.Error(err)
	}
	server.Feed = "http://auth.example.com/f"
	if err := v.check(server); err == nil {
		t.Error("the credentials would be sent in the clear")
	}
}

// An answer that does not say what has ended must not be read as "nothing has ended".
func TestAnAnswerThatTellsNothingIsNone(t *testing.T) {
	t.Parallel()
	const at = `"as_of":"2026-01-02T15:04:05Z"`
	for text, want := range map[string]string{
		`{}`: "does not tell it", `{"error":"x"}`: "does not tell it", `[]`: "answered no JSON",
		`{"cursor":"a","revocations":[]}`:                                      "does not tell it",
		`{` + at + `,"revocations":[]}`:                                        "does not tell it",
		`{"cursor":"a","more":true,` + at + `}`:                                "does not tell it", // and no next page
		`{"cursor":"a",` + at + `,"revocations":[{"type":"planet"}]}`:          "unknown type",
		`{"cursor":"a",` + at + `,"revocations":[{"type":"session","sid":"1"}`: "answered no JSON",
		`{"cursor":"a",` + at + `,"revocations":[]}`:                           "",
	} {
		report := auth.TokenReport{Valid: true, Verdict: "valid", Claims: map[string]any{"sid": "s", "sub": "u"}}
		err := asVerifier{client: "orders"}.apply(t.Context(), says(t, text)+"/feed?realm=one", "secret", &report)
		switch {
		case want == "" && (err != nil || !strings.Contains(report.Verdict, "2026-01-02")):
			t.Errorf("%s: %v, %s", text, err, report.Verdict)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v; want %s", text, err, want)
		}
	}
}

// What is known may be old although the answer is new.
func TestWhatIsKnownOfAnotherTimeIsToldOf(t *testing.T) {
	t.Parallel()
	for off, want := range map[time.Duration]bool{0: false, -time.Hour: true, time.Hour: true} {
		text := `{"cursor":"a","as_of":"` + time.Now().Add(off).Format(time.RFC3339Nano) + `","revocations":[]}`
		report := auth.TokenReport{Valid: true, Verdict: "valid"}
		testenv.Must(t, (asVerifier{client: "orders"}).apply(t.Context(), says(t, text), "secret", &report))
		if told := strings.Contains(report.Verdict, "1h0m0s off the clock here"); told != want || !report.Valid {
			t.Errorf("%v: %s", off, report.Verdict)
		}
	}
}

// A snapshot is as old as its first page. What has ended since comes with the cursor, and a verifier asks for that at
// once.
func TestTheNewestEndsAreAskedForToo(t *testing.T) {
	t.Parallel()
	feed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := `{"cursor":"a","as_of":"2026-01-02T15:04:05Z","revocations":[]}`
		if r.FormValue("after") == "a" {
			text = `{"cursor":"b","as_of":"2026-01-02T15:04:06Z","revocations":[{"type":"session","sid":"s"}]}`
		}
		_, _ = io.WriteString(w, text) // the command may have gone
	}))
	defer feed.Close()
	report := auth.TokenReport{Valid: true, Verdict: "valid", Claims: map[string]any{"sid": "s", "sub": "u"}}
	if err := (asVerifier{client: "orders"}).apply(t.Context(), feed.URL, "secret", &report); err != nil || report.Valid {
		t.Errorf("%+v, %v", report, err)
	}
}

// The secret of the client goes to the feed and nowhere else.
func TestCredentialsAreNotSentElsewhere(t *testing.T) {
	t.Parallel()
	var told atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { told.Add(1) }))
	defer elsewhere.Close()
	feed := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer feed.Close()
	err := asVerifier{client: "orders"}.apply(t.Context(), feed.URL, "secret", &auth.TokenReport{})
	if err == nil || told.Load() > 0 {
		t.Errorf("%v, and another server was asked %d times", err, told.Load())
	}
}
