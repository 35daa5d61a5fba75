package authhttp

import (
	"cmp"
	"net/http"
	"time"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// deviceCookie has the token that marks the device as known, for browsers on the same site. Programs get and send it
// in a header.
const deviceCookie = "authctl_device"

// fromDevice is what a request says of the device that it comes from.
type fromDevice struct {
	Peer        httpserver.Peer
	DeviceToken string `header:"Auth-Device" example:"adt_AQ" doc:"The token that an earlier sign-in on this device returned. With it, failures of strangers do not delay the owner."`
	Cookie      string `cookie:"authctl_device" example:"adt_AQ" doc:"The same token, as browsers send it."`
}

// device is that device, with the name that the client gives it.
func (f fromDevice) device(name string) auth.Device {
	d := deviceOf(f.Peer)
	d.Name, d.Token = name, cmp.Or(f.DeviceToken, f.Cookie)
	return d
}

func deviceOf(p httpserver.Peer) auth.Device { return auth.Device{UserAgent: p.UserAgent, IP: p.IP} }

// signedIn is the answer to a sign-in.
type signedIn struct {
	DeviceToken string       `header:"Auth-Device" example:"adt_AQ" doc:"Send it with the next sign-in from this device."`
	Cookie      *http.Cookie `cookie:"authctl_device" doc:"The same token for browsers on the same site."`
	Refresh     *http.Cookie `cookie:"__Host-authctl" doc:"The refresh token, if it is kept in the cookie."`
	Body        Tokens
}

// signedIn is the answer with these tokens, and the refresh token in the cookie or in the body.
func (a *api) signedIn(t auth.Tokens, cookie bool) signedIn {
	answer := signedIn{DeviceToken: t.DeviceToken, Body: tokensOf(t)}
	if cookie {
		answer.Refresh, answer.Body.RefreshToken = a.keep(t), ""
	}
	if t.DeviceToken != "" {
		answer.Cookie = &http.Cookie{ //nolint:gosec // Secure is what the issuer's scheme says
			Name: deviceCookie, Value: t.DeviceToken, Path: a.opt.mount() + "/api/v1/auth/",
			MaxAge:   int(a.svc.DeviceTTL() / time.Second),
			HttpOnly: true, Secure: a.opt.SecureCookies, SameSite: http.SameSiteStrictMode,
		}
	}
	return answer
}
