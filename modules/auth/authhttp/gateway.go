package authhttp

import (
	"context"
	"net/url"
	"strings"

	"github.com/toppira/authctl/modules/auth"
)

// checked tells a gateway who the caller is.
type checked struct {
	User     string `header:"Auth-User" required:"true" format:"uuid" example:"0199b7f2-6f3e-7c1d-9a55-0c8c5b1f6a10" doc:"The account's id, never used for another account."`
	Session  string `header:"Auth-Session" required:"true" format:"uuid" example:"0199b7f2-6f3f-7000-8000-5b1f6a100c8c" doc:"The session of the access token."`
	Username string `header:"Auth-Username" required:"true" pattern:"^([A-Za-z0-9._~-]|%[0-9A-F]{2})+$" example:"alice%40example.com" doc:"As it was typed, in UTF-8; every byte but letters, digits and - . _ ~ is percent-encoded."`
}

func (a *api) check(_ context.Context, who auth.Caller, _ struct{}) (checked, error) {
	return checked{
		User: who.User.ID.String(), Session: who.SessionID.String(), Username: percentEncode(who.User.Username),
	}, nil
}

// percentEncode leaves the unreserved characters of RFC 3986 as they are. Decoders of URLs and of forms read the
// result alike, since it has no +.
func percentEncode(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") }
