package verify

import (
	"net/http/httptest"
	"testing"
	"time"
)

// DemoIssuer starts an issuer for the examples, with a good token and a token of an ended session.
func DemoIssuer() (issuer, secret, good, ended string, end func()) {
	t := new(testing.T)
	i := newIssuer(t, newSigner(t, "k", "ES256"))
	srv := httptest.NewServer(i)
	i.issuer, i.base = srv.URL+"/auth", srv.URL+"/auth"
	i.endSession(id(3))
	key := i.keys[0]
	return i.issuer, "s&cret", i.tokenOf(key, id(1), id(2), 0, time.Hour), i.tokenOf(key, id(1), id(3), 0,
		time.Hour), srv.Close
}
