package token

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/toppira/authctl/platform/config"
)

// MinSecret is the fewest bytes of a secret: HMAC with SHA-256 must not have a shorter key
// (RFC 7518 §3.2), and whatever else is derived from the secret is no stronger than it.
const MinSecret = 32

// Config is auth.token.* and the lifetime of access tokens.
type Config struct {
	Secret          config.Secret `config:"auth.token.secret" doc:"Protects the signing keys at rest and the refresh tokens, and with HS256 signs the access tokens. At least 32 bytes, for example from: openssl rand -base64 48. Dev mode creates one at the first start; prod mode requires one."`
	PreviousSecrets config.Secret `config:"auth.token.previous_secrets" doc:"Other secrets that are accepted while auth.token.secret is being replaced, separated by commas, or by line breaks if a secret contains a comma."`
	Algorithm       string        `config:"auth.token.algorithm" default:"ES256" oneof:"ES256,EdDSA,RS256,HS256" doc:"How access tokens are signed. HS256 is for consumers that already share auth.token.secret; it has no JWKS entry and no key rotation. New keys are for this algorithm; the key in use stays until it is rotated."`
	Issuer          string        `config:"auth.token.issuer" default:"http://localhost:8080" doc:"The URL of this service for its clients: iss of every access token, issuer of the RFC 8414 metadata, ce_source of every event."`
	Audience        []string      `config:"auth.token.audience" default:"authctl" doc:"aud of every access token: the services that the tokens are for. One audience is a string in the token, several are an array. This service accepts its tokens while one of their audiences is in the list."`
	ClientID        string        `config:"auth.token.client_id" default:"authctl" doc:"client_id of every access token (RFC 9068): the application people sign in to."`
	// Untrimmed are secrets as earlier versions took them, with the white space around them. They
	// are accepted like previous ones.
	Untrimmed []config.Secret `config:"-"`
	AccessTTL time.Duration   `config:"auth.access_token_ttl" default:"5h" min:"1s" max:"24h" doc:"How long an access token lives, but never longer than its session."`
}

// Validate reports what single values cannot show.
func (c Config) Validate(report func(path, problem string)) {
	if c.Secret != "" && len(c.Secret.Reveal()) < MinSecret {
		report("auth.token.secret", "is shorter than 32 bytes; make one with: openssl rand -base64 48")
	}
	for _, secret := range c.previous() {
		if len(secret) < MinSecret {
			report("auth.token.previous_secrets",
				"has a secret shorter than 32 bytes; they are separated by commas, or by line breaks; one that "+
					"contains a comma can be there twice, on two lines")
			break
		}
	}
	// RFC 8414 §2. Plain http is for development and for what a proxy hides.
	u, err := url.Parse(c.Issuer)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" ||
		u.Fragment != "" || u.ForceQuery {
		report("auth.token.issuer", "must be a URL such as https://auth.example.com, without user, query or fragment")
	} else if !plainPath(u.EscapedPath()) {
		report("auth.token.issuer", "has a path that proxies and clients may write in more than one way: use letters, "+
			"digits and . _ ~ - between single slashes")
	} else if !strings.HasPrefix(c.Issuer, u.Scheme) {
		report("auth.token.issuer", "must begin with "+u.Scheme+":// in small letters")
	} else if problem := config.URLHostProblem(u); problem != "" {
		report("auth.token.issuer", "has a host that "+problem)
	}
	if problem := audienceProblem(c.Audience); problem != "" {
		report("auth.token.audience", problem)
	}
	if c.ClientID == "" {
		report("auth.token.client_id", "must not be empty")
	}
}

// plainPath reports whether a URL's path has but one spelling, and none that a router takes
// for a pattern.
func plainPath(path string) bool {
	for i, segment := range strings.Split(path, "/") {
		plain := !strings.ContainsFunc(segment, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
				strings.ContainsRune("._~-", r))
		})
		last := strings.Count(path, "/") == i
		if !plain || segment == "." || segment == ".." || segment == "" && i > 0 && !last {
			return false
		}
	}
	return true
}

// audienceProblem says why no token can have these audiences, or nothing.
func audienceProblem(audiences []string) string {
	switch {
	case len(audiences) == 0, slices.Contains(audiences, ""):
		return "must not be empty"
	case len(audiences) > maxAudiences:
		return fmt.Sprintf("has more than %d audiences", maxAudiences)
	}
	for i, audience := range audiences {
		if slices.Contains(audiences[:i], audience) {
			return audience + " is named twice"
		}
	}
	return ""
}

// Secrets lists every secret in force, the present one first.
func (c Config) Secrets() []config.Secret {
	all := []config.Secret{c.Secret}
	for _, secret := range c.previous() {
		all = append(all, config.Secret(secret))
	}
	return append(all, c.Untrimmed...)
}

func (c Config) previous() []string {
	separator := ","
	if strings.Contains(c.PreviousSecrets.Reveal(), "\n") {
		separator = "\n"
	}
	var list []string
	for secret := range strings.SplitSeq(c.PreviousSecrets.Reveal(), separator) {
		if secret = strings.TrimSpace(secret); secret != "" {
			list = append(list, secret)
		}
	}
	// A file with one secret has lost its line break, and its secret may contain a comma. It does if no part is long
	// enough to be a secret.
	whole := strings.TrimSpace(c.PreviousSecrets.Reveal())
	if separator == "\n" || len(list) == 0 || list[0] == whole {
		return list
	}
	if !slices.ContainsFunc(list, func(secret string) bool { return len(secret) >= MinSecret }) {
		list = nil
	}
	return append(list, whole)
}

// Verifier returns the verifier of the tokens that this configuration issues, with a cache.
func (c Config) Verifier(now func() time.Time, key func(kid string) (PublicKey, bool)) *Verifier {
	return &Verifier{Issuer: c.Issuer, Audiences: c.Audience, Now: now, Key: key,
		Cache: NewCache(DefaultCacheEntries)}
}
