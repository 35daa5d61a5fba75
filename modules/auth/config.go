package auth

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/modules/auth/internal/throttle"
	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/modules/auth/internal/username"
)

// DefaultIssuer is auth.token.issuer when it is not set, on any port: several processes on one
// machine and database must accept each other's tokens.
const DefaultIssuer = "http://localhost:8080"

// Config is auth.*.
type Config struct {
	RefreshTokenTTL time.Duration    `config:"auth.refresh_token_ttl" default:"120h" min:"1s" max:"8760h" doc:"How long a session lives without a refresh, but never beyond auth.session_max_age."`
	SessionMaxAge   time.Duration    `config:"auth.session_max_age" default:"720h" min:"1s" max:"17520h" doc:"Longest life of a session, however often it is refreshed."`
	RefreshGrace    time.Duration    `config:"auth.refresh_grace" default:"10s" min:"0s" max:"60s" doc:"For this long after a refresh, the replaced refresh token still yields the newest one of its session, so that parallel refreshes, lost answers and late duplicates sign nobody out. The time counts from the refresh that replaced the token and is never extended."`
	MaxSessions     int              `config:"auth.max_sessions_per_user" default:"50" min:"1" max:"1000" doc:"Most sessions a user may have."`
	SessionLimit    string           `config:"auth.session_limit" default:"evict-oldest" oneof:"evict-oldest,reject-new" doc:"What happens at the limit: evict-oldest ends the least recently used session, reject-new refuses the sign-in."`
	UsernameProfile username.Profile `config:"auth.username_profile" default:"ascii" oneof:"ascii,unicode" doc:"Which usernames are allowed. ascii: letters, digits and . _ - @ +, with more before the @ of an address. unicode: RFC 8265 UsernameCaseMapped without mixed scripts."`
	Registration    string           `config:"auth.registration" default:"open" oneof:"open,closed" doc:"Who creates accounts. open: everybody may register. closed: every registration is refused, and only authctl user create and user import create accounts."`
	Clients         []string         `config:"auth.clients" doc:"Clients that may call /oauth2/*, as id:sha256 pairs. After the last colon is the SHA-256 of the client's secret in hexadecimal; the id itself may contain colons. Compute it with: printf %s \"$SECRET\" | sha256sum"`

	Token    token.Config
	Password password.Config
	Throttle throttle.Config
}

// registrationClosed is the value of auth.registration that refuses every registration.
const registrationClosed = "closed"

// Validate reports problems that concern more than one value.
func (c Config) Validate(report func(path, problem string)) {
	first := map[string]int{}
	for i, client := range c.Clients {
		id, _, err := parseClient(client)
		if err != nil {
			report("auth.clients", fmt.Sprintf("(element %d) %s", i+1, err))
			continue
		}
		if at, seen := first[id]; seen {
			report("auth.clients", fmt.Sprintf("(element %d) has the same id as element %d: %q", i+1, at+1, id))
			continue
		}
		first[id] = i
	}
}

// parseClient takes "id:sha256-hex-of-secret" apart, at its last colon. The characters of an
// id are those of RFC 6749 Appendix A.1.
func parseClient(text string) (id string, hash []byte, err error) {
	at := strings.LastIndexByte(text, ':')
	if at < 1 {
		return "", nil, errors.New("is not id:sha256-hex-of-secret")
	}
	id = text[:at]
	if strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", nil, errors.New("has an id with characters other than printable ASCII")
	}
	hash, err = hex.DecodeString(text[at+1:])
	if err != nil || len(hash) != sha256.Size {
		return "", nil, errors.New("is not id:sha256-hex-of-secret: 64 hexadecimal digits must follow the " +
			"last colon, the SHA-256 of the secret and not the secret")
	}
	return id, hash, nil
}
