// Package campaign shows, on the real binary, over HTTP and with real engines, that sessions
// sign nobody out by accident and never outlive their end. Nothing in it knows how the service
// works inside: it holds tokens, reads the events that the service announced, and compares.
//
// A plain go test runs each scenario a few times. AUTHCTL_CAMPAIGN=long runs it for as long as
// it takes to meet what is rare, and shows that each scenario finds the mistake that it is there
// to find: it builds the binary with that mistake and expects the scenario to fail.
//
//	AUTHCTL_CAMPAIGN=long go test -timeout 60m -v ./modules/auth/campaign
//
// AUTHCTL_CAMPAIGN_BINARY names a binary to examine instead of one built from this tree.
package campaign

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// module is the module's folder.
const module = "../../.."

// long reports whether the campaign may take its time.
func long() bool { return os.Getenv("AUTHCTL_CAMPAIGN") == "long" }

// rounds is how often a scenario is run.
func rounds(short, atLength int) int {
	if long() {
		return atLength
	}
	return short
}

// scratch is this run's folder for what all tests share.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "authctl-campaign-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Scenarios wait for engines and windows more than they compute.
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", "8")
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

// builtBinary builds the binary, once.
var builtBinary = sync.OnceValues(func() (string, error) {
	if given := os.Getenv("AUTHCTL_CAMPAIGN_BINARY"); given != "" {
		return filepath.Abs(given)
	}
	path := filepath.Join(scratch, "authctl")
	return path, build(path)
})

func build(path string, flags ...string) error {
	cmd := exec.Command("go", append(append([]string{"build"}, flags...), "-o", path, "./cmd/authctl")...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build authctl: %w\n%s", err, out)
	}
	return nil
}
