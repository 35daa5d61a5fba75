package authhttp

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/httpserver/httpservertest"
	"github.com/toppira/authctl/platform/testenv"
)

func gateway() string {
	req := http.Request{Header: http.Header{}}
	req.SetBasicAuth("gateway", clientSecret)
	return req.Header.Get("Authorization")
}

// revocations asks the feed as a client.
func (s *site) revocations(query string, headers ...string) answer {
	s.t.Helper()
	return s.do("GET", "/oauth2/revocations"+query, nil, append([]string{"Authorization", gateway()}, headers...)...)
}

func TestRevocationsAreToldByTheRulesOfTheWire(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		_, victim := s.register()
		first := s.revocations("")
		if first.StatusCode != 200 || first.Header.Get("Cache-Control") != "no-store" ||
			first.json["more"] != false || len(first.json["revocations"].([]any)) != 0 {
			t.Fatalf("%d %v %s", first.StatusCode, first.Header, first.text)
		}
		s.expect(s.do("POST", "/api/v1/auth/logout", map[string]string{"refresh_token": victim.str("refresh_token")}),
			204, "")
		told := s.revocations("?after=" + url.QueryEscape(first.str("cursor")) +
			"&wait=30&verifier=orders-3&version=1.0&keys=a,b")
		list := told.json["revocations"].([]any)
		if told.StatusCode != 200 || len(list) != 1 {
			t.Fatalf("%d %s", told.StatusCode, told.text)
		}
		if one := list[0].(map[string]any); one["type"] != "session" || one["sid"] != victim.str("session_id") ||
			one["kept_sid"] != nil || one["session_epoch"] != nil {
			t.Errorf("the answer has %v", one)
		}
		before, _ := time.Parse(time.RFC3339, first.str("as_of"))
		after, err := time.Parse(time.RFC3339, told.str("as_of"))
		if err != nil || after.Before(before) || !strings.HasSuffix(told.str("as_of"), "Z") {
			t.Errorf("as of %s, then %s", first.str("as_of"), told.str("as_of"))
		}
		nothing := s.revocations("?after=" + told.str("cursor"))
		if nothing.StatusCode != 200 || len(nothing.json["revocations"].([]any)) != 0 {
			t.Errorf("%d %s", nothing.StatusCode, nothing.text)
		}
	})
}

func TestAFollowerThatAsksWronglyIsTold(t *testing.T) {
	t.Parallel()
	s := newSite(t, httpservertest.Fiber)
	for query, want := range map[string]string{
		"?wait=31": "invalid_request", "?wait=-1": "invalid_request", "?wait=x": "invalid_request",
		"?wait=1.5": "invalid_request",
		"?wait=030": "invalid_request", "?wait=%2B1": "invalid_request", "?wait=1_0": "invalid_request",
		"?wait=%D9%A3":               "invalid_request",
		"?wait=18446744073709551617": "invalid_request", "?wait=1&wait=1": "invalid_request",
		"?wait=%201": "invalid_request",
		"?after=" + strings.Repeat("A",
			9000): "invalid_request", "?after=AQ%3D%3D": "invalid_request", "?after=%D9%A3": "invalid_request",
		"?after=!": "invalid_request", "?after=AQ": "invalid_request", "?after=AgAA": "cursor_gone",
		"?since=1": "invalid_request",
		"?verifier=" + strings.Repeat("x",
			101): "invalid_request", "?verifier=%0A": "invalid_request", "?version=%C3%A4": "invalid_request",
		"?instance=" + strings.Repeat("x", 65): "invalid_request", "?instance=%0A": "invalid_request",
		"?keys=a%20b": "invalid_request", "?keys=" + strings.Repeat("a,", 32) + "a": "invalid_request",
	} {
		status := 400
		if want == "cursor_gone" {
			status = 410
		}
		for _, accept := range []string{"application/json", "text/event-stream"} {
			if a := s.revocations(query, "Accept", accept); a.StatusCode != status || a.str("error") != want {
				t.Errorf("%s for %s: %d %s", query, accept, a.StatusCode, a.text)
			}
		}
	}
	if a := s.revocations("?wait=0", "Accept", "text/event-stream"); a.StatusCode != 400 {
		t.Errorf("events without a wait: %d %s", a.StatusCode, a.text)
	}
	stranger := s.do("GET", "/oauth2/revocations", nil)
	if stranger.StatusCode != 401 || stranger.str("error") != "invalid_client" ||
		stranger.Header.Get("WWW-Authenticate") == "" {
		t.Errorf("a stranger: %d %s", stranger.StatusCode, stranger.text)
	}
	if a := s.do("GET", "/.well-known/oauth-authorization-server",
		nil); a.str("revocation_feed_endpoint") != issuer+"/oauth2/revocations" {
		t.Errorf("the metadata: %s", a.text)
	}
}

func TestWhoAcceptsEventsGetsThem(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"text/event-stream": true, "Text/Event-Stream": true, " text/event-stream ; charset=utf-8": true,
		"text/event-stream;q=0.001": true,
		"*/*, text/event-stream":    true, "application/json, text/event-stream": true,
		"application/json;q=0.5,text/event-stream": true,
		"": false, "*/*": false, "text/*": false, "application/json": false, "text/event-stream-x": false,
		"x/text/event-stream":   false,
		"text/event-stream;q=0": false, "text/event-stream; q=0.000": false, "text/event-stream;Q=0": false,
		"text/event-stream;q=x":   false,
		"text/event-stream;q=NaN": false, "text/event-stream;q=-1": false,
		"application/json, text/event-stream;q=0.9": false, "text/event-stream;q=0.2, application/json;q=0.3": false,
	} {
		if got := (revocationsInput{Accept: accept}).streams(); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}

// events reads a stream of server-sent events.
type events struct {
	t     *testing.T
	res   *http.Response
	lines *bufio.Scanner
}

func (s *site) events(query, lastID string) events {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.base+"/oauth2/revocations"+query, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", gateway())
	req.Header.Set("Accept", "text/event-stream")
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = res.Body.Close() })
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 4<<20)
	return events{s.t, res, lines}
}

// next returns the fields of the next event and its data.
func (e events) next() (name, id string, page Revocations) {
	e.t.Helper()
	for e.lines.Scan() {
		line := e.lines.Text()
		field, value, _ := strings.Cut(line, ": ")
		switch field {
		case "event":
			name = value
		case "id":
			id = value
		case "data":
			if err := json.Unmarshal([]byte(value), &page); err != nil {
				e.t.Fatalf("%q: %v", value, err)
			}
		case "":
			return name, id, page
		default:
			e.t.Errorf("an unknown line: %q", line)
		}
	}
	e.t.Fatal("the stream has ended")
	return name, id, page
}

func TestRevocationsComeAsEvents(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, newSite func(*testing.T) *site) {
		s := newSite(t)
		_, victim := s.register()
		stream := s.events("?wait=1", "")
		if stream.res.StatusCode != 200 || stream.res.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%d %v", stream.res.StatusCode, stream.res.Header)
		}
		name, id, page := stream.next()
		if name != "revocations" || id != page.Cursor || len(page.Revocations) != 0 || page.Revocations == nil {
			t.Errorf("the snapshot: %s %s %+v", name, id, page)
		}
		// With nothing new there is still an event, with a newer time.
		_, _, idle := stream.next()
		if len(idle.Revocations) != 0 || idle.AsOf <= page.AsOf {
			t.Errorf("as of %s, then %s", page.AsOf, idle.AsOf)
		}
		s.expect(s.do("POST", "/api/v1/auth/logout", map[string]string{"refresh_token": victim.str("refresh_token")}),
			204, "")
		for page = idle; len(page.Revocations) == 0; {
			_, _, page = stream.next()
		}
		if page.Revocations[0].SessionID != victim.str("session_id") {
			t.Errorf("the event has %+v", page.Revocations)
		}
		_ = stream.res.Body.Close()
		// A follower that comes back continues where it was, as browsers do by themselves.
		again := s.events("?wait=1", idle.Cursor)
		if _, _, page := again.next(); len(page.Revocations) != 1 {
			t.Errorf("a follower that comes back gets %+v", page)
		}
		_ = again.res.Body.Close()
		testenv.Eventually(t, "the followers have gone", func() bool { return s.svc.Followers() == 0 })
	})
}
