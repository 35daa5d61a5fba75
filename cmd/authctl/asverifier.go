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
	issuer     string // empty: url
	audience   string
}

// clientSecretEnv is where the secret of the client may be.
const clientSecretEnv = "AUTHCTL_CLIENT_SECRET"

// fetchTimeout bounds everything that is fetched.
const fetchTimeout = 30 * time.Second

// oldKnowledge is much older than what the feed tells: a page of a snapshot is at most ten seconds old.
const oldKnowledge = time.Minute

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
	server.JWKSURI, server.Feed = v.onServer(server.JWKSURI), v.onServer(server.Feed)
	if err := v.check(server); err != nil {
		return auth.TokenReport{}, fmt.Errorf("the metadata at %s: %w", place, err)
	}
	data, err := fetchBody(ctx, server.JWKSURI, "", "", maxKeySet)
	if err != nil {
		return auth.TokenReport{}, fmt.Errorf("fetch the JWK set: %w", err)
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
		report.Verdict += "; the service has no client that may ask what has ended"
		return report, nil
	}
	if err := v.apply(ctx, server.Feed, secret, &report); err != nil {
		return auth.TokenReport{}, err // no verdict: the session may have ended
	}
	return report, nil
}

// onServer is where an endpoint of the issuer is on the one server that is asked.
func (v asVerifier) onServer(endpoint string) string {
	rest, below := strings.CutPrefix(endpoint, strings.TrimRight(v.issuer, "/")+"/")
	if v.issuer == "" || !below {
		return endpoint
	}
	return strings.TrimRight(v.url, "/") + "/" + rest
}

// check refuses metadata that a verifier refuses (RFC 8414 §3.3): of another issuer, or with
// endpoints that are not URLs of one.
func (v asVerifier) check(server authorizationServer) error {
	switch named := strings.TrimRight(v.url, "/"); {
	case server.Issuer == "" || server.JWKSURI == "":
		return errors.New("there is no issuer or no jwks_uri")
	case v.issuer != "" && server.Issuer != v.issuer:
		return fmt.Errorf("the issuer is %q, not %q", server.Issuer, v.issuer)
	case v.issuer == "" && strings.TrimRight(server.Issuer, "/") != named:
		return fmt.Errorf("the issuer is %q, not %q; if that URL is one of its servers, add --issuer %q",
			server.Issuer, named, server.Issuer)
	}
	for name, endpoint := range map[string]string{"jwks_uri": server.JWKSURI, "revocation_feed_endpoint": server.Feed} {
		u, err := url.Parse(endpoint)
		if endpoint == "" || err == nil && u.Host != "" && u.User == nil && u.Fragment == "" &&
			(u.Scheme == "https" || u.Scheme == "http" && strings.HasPrefix(v.url, "http:")) {
			continue
		}
		return fmt.Errorf("%s is %q, which is not the URL of an endpoint", name, endpoint)
	}
	return nil
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
	from, err := url.Parse(feed)
	if err != nil {
		return err // it was parsed before
	}
	query := from.Query()
	over, kept, highest := "", "", int64(0)
	current := false // the snapshot is whole; it is as old as its first page
	for {
		var page revocations
		if err := fetchJSON(ctx, from.String(), v.client, secret, &page); err != nil {
			return fmt.Errorf("fetch what has ended: %w", err)
		}
		if page.Cursor == "" || page.AsOf.IsZero() || page.More && page.Cursor == query.Get("after") {
			return fmt.Errorf("fetch what has ended: %s answered something that does not tell it", from)
		}
		for _, one := range page.Revocations {
			switch one.Type {
			case "session":
				if one.SessionID == claim("sid") {
					over = "session revoked"
				}
			case "key":
				if one.KeyID == fmt.Sprint(report.Header["kid"]) {
					over = "signing key revoked"
				}
			case "account":
				if one.Subject == claim("sub") && one.SessionEpoch > highest {
					highest, kept = one.SessionEpoch, one.KeptSID
				}
			default:
				return fmt.Errorf("fetch what has ended: an end of the unknown type %q; use a newer authctl", one.Type)
			}
		}
		if !page.More && current {
			if over == "" && epoch < highest && kept != claim("sid") {
				over = "session revoked, with others of the account"
			}
			known := ", as a verifier knows at " + page.AsOf.UTC().Format(time.RFC3339)
			if off := time.Since(page.AsOf).Abs().Round(time.Second); off > oldKnowledge {
				known += fmt.Sprintf(", %v off the clock here: one of the two clocks is wrong, or something in "+
					"between keeps old answers", off)
			}
			if over != "" {
				report.Valid, report.Verdict = false, over+known
			} else {
				report.Verdict += known
			}
			return nil
		}
		current = current || !page.More
		query.Set("after", page.Cursor)
		from.RawQuery = query.Encode()
	}
}

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
		return "", fmt.Errorf("--as-verifier is %q; it takes the URL of the issuer, such as https://auth.example.com",
			issuer)
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	return u.Scheme + "://" + u.Host + "/.well-known/oauth-authorization-server" + path, nil
}

// direct follows no redirects, which could lead credentials elsewhere. Verifiers do not either.
var direct = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// fetchBody gets a body of at most limit bytes, as a client where it has an id.
func fetchBody(ctx context.Context, from, client, secret string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	if client != "" {
		req.SetBasicAuth(url.QueryEscape(client), url.QueryEscape(secret))
	}
	res, err := direct.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	switch place := res.Header.Get("Location"); {
	case res.StatusCode == http.StatusOK:
	case place != "":
		return nil, fmt.Errorf("%s answered %d and leads to %q; redirects are not followed: name the URL that it "+
			"leads to", from, res.StatusCode, place)
	default:
		return nil, fmt.Errorf("%s answered %d %s", from, res.StatusCode, http.StatusText(res.StatusCode))
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer of %s: %w", from, err)
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("the answer of %s is larger than %d KiB", from, limit>>10)
	}
	return data, nil
}

func fetchJSON(ctx context.Context, from, client, secret string, into any) error {
	data, err := fetchBody(ctx, from, client, secret, 4<<20)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s answered no JSON: %w", from, err)
	}
	return nil
}
