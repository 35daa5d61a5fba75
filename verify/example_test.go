package verify_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/toppira/authctl/verify"
)

func orders(issuer, secret string, use func(h http.Handler)) error {
	mux := http.NewServeMux()
	v, err := verify.New(verify.Config{
		Issuer: issuer, Audience: "orders", // auth.token.issuer, and one of auth.token.audience
		Client: verify.Client{ID: "orders", Secret: secret}, // one of auth.clients
	})
	if err != nil {
		return err
	}
	defer v.Close()
	mux.Handle("/orders", v.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := verify.FromContext(r.Context())
		fmt.Fprintln(w, "orders of", claims.Subject)
	})))
	use(mux)
	return nil
}

// The lines with which the README begins.
func Example() {
	issuer, secret, good, ended, end := verify.DemoIssuer()
	defer end()
	err := orders(issuer, secret, func(h http.Handler) {
		for _, token := range []string{good, ended, ""} {
			rec := httptest.NewRecorder()
			req := httptest.NewRequest("GET", "/orders", nil)
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			h.ServeHTTP(rec, req)
			fmt.Println(rec.Code, strings.TrimSpace(rec.Body.String()))
		}
	})
	fmt.Println(err)
	// Output:
	// 200 orders of 018f3c5e-7b6a-7000-8000-000000000001
	// 401 {"error":"invalid_token","error_description":"The session of the access token has ended."}
	// 401 {"error_description":"This needs an access token: Authorization: Bearer."}
	// <nil>
}

// Without net/http, and with the errors told apart.
func ExampleVerifier_Check() {
	issuer, secret, good, ended, end := verify.DemoIssuer()
	defer end()
	v, err := verify.New(verify.Config{
		Issuer: issuer, Audience: "orders", Client: verify.Client{ID: "orders", Secret: secret},
		Stale: verify.Introspect, MaxLag: 5 * time.Second,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer v.Close()
	for _, token := range []string{good, ended, "x"} {
		claims, err := v.Check(context.Background(), token)
		switch {
		case err == nil:
			fmt.Println("welcome", claims.Subject)
		case verify.Unknowable(err):
			fmt.Println("try again later")
		case errors.Is(err, verify.ErrRevoked):
			fmt.Println("sign in again")
		default:
			fmt.Println(err)
		}
	}
	// Output:
	// welcome 018f3c5e-7b6a-7000-8000-000000000001
	// sign in again
	// malformed token: 0 dots, not two
}

// With a Kafka client of one's own, in place of the feed.
func ExampleVerifier_Apply() {
	issuer, _, good, _, end := verify.DemoIssuer()
	defer end()
	v, err := verify.New(verify.Config{Issuer: issuer, Audience: "orders", Stale: verify.Accept})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer v.Close()
	_, err = v.Check(context.Background(), good)
	fmt.Println(err)

	// A record of the topic: two of its headers, and its value.
	headers := map[string]string{"ce_type": "auth.SessionRevoked.v1", "ce_source": issuer}
	value := []byte(`{"user_id":"018f3c5e-7b6a-7000-8000-000000000001","sid":"018f3c5e-7b6a-7000-8000-000000000002",
		"reason":"logout","occurred_at":"2026-11-28T20:00:00Z","expires_at":"2026-11-29T01:01:00Z"}`)
	if err := v.Apply(verify.Event{Type: headers["ce_type"], Source: headers["ce_source"], Data: value}); err != nil {
		fmt.Println(err)
	}
	_, err = v.Check(context.Background(), good)
	fmt.Println(err)
	// Output:
	// <nil>
	// revoked: the session has ended
}
