package campaign

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
)

// post sends what a browser sends for a page of an origin, with the browser's cookies. It returns
// the status and the refresh cookie that the answer sets.
func (s *server) post(origin, path string, body fields, cookie string) (int, string, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequest(http.MethodPost, s.url+api+path, bytes.NewReader(text))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Origin", origin)
	if cookie != "" {
		req.Header.Set("Cookie", "authctl="+cookie)
	}
	res, err := s.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	for _, c := range res.Cookies() {
		if c.Name == "authctl" {
			cookie = c.Value
		}
	}
	return res.StatusCode, cookie, nil
}

// foreignPagesGetNothing: a page of the service's own origin signs in and refreshes by its cookie.
// A page of another origin, for which the browser sends the same cookie, is refused and ends
// nothing.
func foreignPagesGetNothing(w *installation) error {
	const own, foreign = "http://localhost:8080", "http://evil.example"
	s := w.serve()
	d := s.register()
	status, cookie, err := s.post(own, "/login",
		fields{"username": d.name, "password": password, "transport": "cookie"}, "")
	if err != nil || status != http.StatusOK || cookie == "" {
		return fmt.Errorf("the sign-in of a page: %d, %w", status, err)
	}
	for _, path := range []string{"/refresh", "/logout"} {
		if status, _, err := s.post(foreign, path, fields{}, cookie); err != nil || status != http.StatusForbidden {
			return fmt.Errorf("%s by a page of another origin: %d, %w", path, status, err)
		}
	}
	if status, _, err = s.post(own, "/refresh", fields{}, cookie); err != nil || status != http.StatusOK {
		return fmt.Errorf("the refresh of the own page: %d, %w", status, err)
	}
	return nil
}

func TestForeignPagesGetNothing(t *testing.T) {
	t.Parallel()
	if err := foreignPagesGetNothing(newInstallation(t, genuine(t), "sqlite")); err != nil {
		t.Error(err)
	}
}
