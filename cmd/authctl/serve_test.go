package main

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/testenv"
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

// When the last of what serve starts cannot start, what runs already has ended before that is
// closed which it runs on.
func TestAFailedStartWaitsForTheRelay(t *testing.T) {
	for range 5 {
		o := &serveOptions{global: &global{set: []string{
			"app.data_dir=" + t.TempDir(), fmt.Sprint("app.port=", testenv.FreePort(t)), "auth.password.bcrypt_cost=4",
			"app.operator_addr=203.0.113.1:9", // of no machine: RFC 5737
		}}}
		if err := o.run(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "203.0.113.1") {
			t.Fatalf("it ended with: %v", err)
		}
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if strings.Contains(string(stacks), "relayInline") {
			t.Fatalf("the relay still runs:\n%s", stacks)
		}
	}
}
