package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/auth"
)

// asVerifier verifies a token as another service would that verifies tokens itself: it fetches the
// metadata, the keys and, as a client of auth.clients, what has ended.
type asVerifier struct {
	url        string
	client     string // id; empty: what has ended is not known
	secretFile string
	audience   string
}

// clientSecretEnv is where the secret of the client may be.
const clientSecretEnv = "AUTHCTL_CLIENT_SECRET"

// fetchTimeout bounds everything that is fetched.
const fetchTimeout = 30 * time.Second

// authorizationServer is what a verifier needs of RFC 8414.
type authorizationServer struct {
	Issuer  string `json:"issuer"`
	JWKSURI string `json:"jwks_uri"`
	Feed    string `json:"revocation_feed_endpoint"`
}

// revocations is one answer of the feed.
type revocations struct {
	Cursor      string    `json:"cursor"`
	AsOf        time.Time `json:"as_of"`
	More        bool      `json:"more"`
	Revocations []struct {
		Type         string `json:"type"`
		SessionID    string `json:"sid"`
		Subject      string `json:"sub"`
		SessionEpoch int64  `json:"session_epoch"`
		KeptSID      string `json:"kept_sid"`
		KeyID        string `json:"kid"`
	} `json:"revocations"`
}

func (v asVerifier) inspect(ctx context.Context, text string) (auth.TokenReport, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	secret, err := v.secret()
	if err != nil {
		return auth.TokenReport{}, err
	}
	place, err := metadataURL(v.url)
	if err != nil {
		return auth.TokenReport{}, misuse{err}
	}
	var server authorizationServer
	if err := fetchJSON(ctx, place, "", "", &server); err != nil {
		return auth.TokenReport{}, fmt.Errorf("fetch the metadata: %w", err)
	}
	data, err := readKeySet(ctx, server.JWKSURI)
	if err != nil {
		return auth.TokenReport{}, err
	}
	keys, err := auth.ParseKeySet(data)
	if err != nil {
		return auth.TokenReport{}, fmt.Errorf("the JWK set %s: %w", server.JWKSURI, err)
	}
	report := auth.InspectToken(text, keys, auth.Expectation{Issuer: server.Issuer, Audience: v.audience}, time.Now())
	switch {
	case !report.Valid:
		return report, nil
	case v.client == "":
		report.Verdict += "; what has ended is not known without --client"
		return report, nil
	case server.Feed == "":
		report.Verdict += "; the service has no clients who may know what has ended"
		return report, nil
	}
	return report, v.apply(ctx, server.Feed, secret, &report)
}

// apply reads what has ended and checks the token against it.
func (v asVerifier) apply(ctx context.Context, feed, secret string, report *auth.TokenReport) error {
	claim := func(name string) string { return fmt.Sprint(report.Claims[name]) }
	epoch := int64(0)
	if n, ok := report.Claims["session_epoch"].(json.Number); ok {
		var err error
		if epoch, err = n.Int64(); err != nil {
			return fmt.Errorf("read session_epoch: %w", err)
		}
	}
	over, kept, highest := "", "", int64(0)
	for next := feed; ; {
		var page revocations
		if err := fetchJSON(ctx, next, v.client, secret, &page); err != nil {
			return fmt.Errorf("fetch what has ended: %w", err)
		}
		for _, one := range page.Revocations {
			switch {
			case one.Type == "session" && one.SessionID == claim("sid"):
				over = "session revoked"
			case one.Type == "key" && one.KeyID == fmt.Sprint(report.Header["kid"]):
				over = "signing key revoked"
			case one.Type == "account" && one.Subject == claim("sub") && one.SessionEpoch > highest:
				highest, kept = one.SessionEpoch, one.KeptSID
			}
		}
		if !page.More {
			if over == "" && epoch < highest && kept != claim("sid") {
				over = "session revoked, with others of the account"
			}
			known := ", as a verifier knows at " + page.AsOf.UTC().Format(time.RFC3339)
			if over != "" {
				report.Valid, report.Verdict = false, over+known
			} else {
				report.Verdict += known
			}
			return nil
		}
		next = feed + "?after=" + url.QueryEscape(page.Cursor)
	}
}

// secret reads the client's secret.
func (v asVerifier) secret() (string, error) {
	switch {
	case v.client == "":
		return "", nil
	case v.secretFile != "":
		text, err := os.ReadFile(v.secretFile)
		if err != nil {
			return "", fmt.Errorf("read the secret of the client: %w", err)
		}
		return strings.TrimSpace(string(text)), nil
	}
	if secret := os.Getenv(clientSecretEnv); secret != "" {
		return secret, nil
	}
	return "", misuse{errors.New("--client needs its secret: use --client-secret-file FILE, or set " + clientSecretEnv)}
}

// metadataURL is where RFC 8414 §3.1 puts the metadata of an issuer.
func metadataURL(issuer string) (string, error) {
	u, err := url.Parse(issuer)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("--as-verifier is %q; it takes the URL of the issuer, such as https://auth.example.com", issuer)
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	return u.Scheme + "://" + u.Host + "/.well-known/oauth-authorization-server" + path, nil
}

// fetchJSON gets JSON of a bounded size, as a client where it has an id.
func fetchJSON(ctx context.Context, from, client, secret string, into any) error {
	const limit = 4 << 20
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	if client != "" {
		req.SetBasicAuth(url.QueryEscape(client), url.QueryEscape(secret))
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", from, res.Status)
	}
	decoder := json.NewDecoder(io.LimitReader(res.Body, limit))
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("%s answered no JSON: %w", from, err)
	}
	return nil
}
