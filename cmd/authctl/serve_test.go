package main

import (
	"net"
	"testing"

	"github.com/toppira/authctl/modules/auth"
)

func TestTheMetadataNamesThePortThatIsServed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ issuer, certificate, want string }{
		{auth.DefaultIssuer, "", "http://localhost:8081"},
		{auth.DefaultIssuer, "cert.pem", "https://localhost:8081"},
		{"https://auth.example.com", "", "https://auth.example.com"},
	} {
		a := &app{}
		a.Auth.Token.Issuer, a.HTTP.TLS.CertFile = test.issuer, test.certificate
		if got := a.baseURL(&net.TCPAddr{Port: 8081}); got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
	}
}
