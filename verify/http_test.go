package verify

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheMiddlewareAnswersAsRFC6750Asks(t *testing.T) {
	t.Parallel()
	following(t, nil, func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
		ready(t, v)
		i.endSession(id(3))
		synctest.Wait()
		good := i.token(id(1), id(2), 0)
		short := i.tokenOf(i.keys[0], id(1), id(2), 0, time.Second)
		h := v.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			claims, ok := FromContext(r.Context())
			_, _ = fmt.Fprint(w, claims.Subject, ok)
		}))
		if _, ok := FromContext(t.Context()); ok {
			t.Error("claims in a context without any")
		}
		time.Sleep(2 * time.Second)
		bearer := func(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
		for name, c := range map[string]struct {
			header http.Header
			status int
			want   string // WWW-Authenticate
		}{
			"good":       {bearer(good), 200, ""},
			"lower case": {http.Header{"Authorization": {"bearer  " + good}}, 200, ""},
			"none":       {http.Header{}, 401, "Bearer"},
			"Basic":      {http.Header{"Authorization": {"Basic YTpi"}}, 401, "Bearer"},
			"two": {http.Header{"Authorization": {"Bearer " + good, "Bearer " + good}}, 400,
				`Bearer error="invalid_request"`},
			"no token": {http.Header{"Authorization": {"Bearer"}}, 400, `Bearer error="invalid_request"`},
			"garbage": {bearer("x"), 401,
				`Bearer error="invalid_token", error_description="The access token is not valid."`},
			"hostile": {bearer("\"\x00é" + strings.Repeat("x", 100_000)), 401,
				`Bearer error="invalid_token", error_description="The access token is not valid."`},
			"expired": {bearer(short), 401,
				`Bearer error="invalid_token", error_description="The access token has expired."`},
			"ended": {bearer(i.token(id(1), id(3), 0)), 401,
				`Bearer error="invalid_token", error_description="The session of the access token has ended."`},
			"in a cookie":      {http.Header{"Cookie": {"access_token=" + good}}, 401, "Bearer"},
			"with another one": {bearer(good + ", Basic x"), 401, `Bearer error="invalid_token"`},
		} {
			rec := httptest.NewRecorder()
			req := httptest.NewRequest("GET", "/orders", nil)
			req.Header = c.header
			h.ServeHTTP(rec, req)
			got := rec.Header().Get("WWW-Authenticate")
			if rec.Code != c.status || !strings.HasPrefix(got, c.want) || (c.want == "") != (got == "") {
				t.Errorf("%s: %d, %s", name, rec.Code, got)
			}
			if rec.Code == 200 {
				if rec.Body.String() != id(1)+"true" {
					t.Errorf("%s: %s", name, rec.Body)
				}
				continue
			}
			var body map[string]string
			if json.Unmarshal(rec.Body.Bytes(), &body) != nil || body["error_description"] == "" ||
				!strings.Contains(got, body["error"]) || rec.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %s", name, rec.Body)
			}
		}

		v.cfg.Transport.(*direct).set("auth.example.com", nil)
		time.Sleep(time.Minute)
		rec := httptest.NewRecorder()
		req := httptest.NewRequest("GET", "/orders", nil)
		req.Header = bearer(good)
		h.ServeHTTP(rec, req)
		if rec.Code != 503 || rec.Header().Get("Retry-After") == "" || rec.Header().Get("WWW-Authenticate") != "" {
			t.Errorf("with the issuer away: %d %v", rec.Code, rec.Header())
		}
	})
}
