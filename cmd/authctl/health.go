package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// healthTimeout is how long health waits for the answer: less than the default of container engines
// for a health check, and more than /readyz takes.
const healthTimeout = 4 * time.Second

func newHealth(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Ask the process on this machine whether it is ready",
		Long: `Ask the serve or relay process that runs on this machine with the same settings whether it can
do its work. Use it as the health check of a container or a service manager. The settings alone
say where to ask.

It asks /readyz of the operator listener (app.operator_addr) or, if that is off, of the public
one (app.host, app.port, app.tls). The exit code is 0 when the process is ready and 1 when it
is not, does not answer within four seconds, or cannot be found.`,
		Example: "  authctl health",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.health(cmd.Context(), cmd.OutOrStdout())
		},
	}
}

// readinessReport is the answer of /readyz: in detail from the operator listener, one word or a
// problem document from the public one.
type readinessReport struct {
	Ready    bool   `json:"ready"`
	Stopping bool   `json:"stopping,omitempty"`
	Detail   string `json:"detail,omitempty"`
	Checks   []struct {
		Name     string `json:"name"`
		OK       bool   `json:"ok"`
		Critical bool   `json:"critical"`
		Error    string `json:"error,omitempty"`
	} `json:"checks,omitempty"`
}

func (g *global) health(ctx context.Context, w io.Writer) error {
	s, err := g.load(settings{keyless: true}, nil)
	if err != nil {
		return err
	}
	url, err := s.readinessURL()
	if err != nil {
		return err
	}
	report, err := askReadiness(ctx, url)
	if err != nil {
		return err
	}
	if err := g.tell(w, report, report.words()); err != nil {
		return err
	}
	if !report.Ready {
		return silent{errors.New("not ready")}
	}
	return nil
}

func (r readinessReport) words() string {
	words := "ready"
	switch {
	case r.Stopping:
		words = "not ready: it is stopping"
	case !r.Ready && r.Detail != "":
		words = "not ready: " + r.Detail
	case !r.Ready:
		words = "not ready"
	}
	for _, check := range r.Checks {
		if !check.OK {
			words += fmt.Sprintf("\n%s: %s", check.Name, check.Error)
		}
	}
	return words
}

// readinessURL is the URL of /readyz of a process with these settings.
func (s settings) readinessURL() (string, error) {
	const anyPort = "%s is 0, any free port: set it to a port"
	if addr := s.Operator.OperatorAddr; addr != "" && addr != "off" {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return "", fmt.Errorf("app.operator_addr: %w", err)
		}
		if port == "0" {
			return "", fmt.Errorf("the port of "+anyPort, "app.operator_addr")
		}
		return "http://" + net.JoinHostPort(reachable(host), port) + "/readyz", nil
	}
	if s.HTTP.Port == 0 {
		return "", fmt.Errorf(anyPort, "app.port")
	}
	scheme := "http"
	if s.servesTLS() {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(reachable(s.HTTP.Host), strconv.Itoa(s.HTTP.Port)) + "/readyz", nil
}

// reachable is the host by which this machine reaches a listener on host: the loopback address, if
// it listens on every interface.
func reachable(host string) string {
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "", err == nil && ip.Unmap().Is4() && ip.Unmap().IsUnspecified():
		return "127.0.0.1"
	case err == nil && ip.IsUnspecified():
		return "::1"
	}
	return host
}

func askReadiness(ctx context.Context, url string) (readinessReport, error) {
	var report readinessReport
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return report, fmt.Errorf("ask %s: %w", url, err)
	}
	client := http.Client{Transport: &http.Transport{
		Proxy: nil, // the request stays on this machine, whatever HTTP_PROXY says
		// The certificate is for the name that clients use. The request holds nothing secret.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}}
	response, err := client.Do(request)
	if err != nil {
		return report, fmt.Errorf("nothing answers: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusServiceUnavailable {
		return report, fmt.Errorf("%s answers %s: check that authctl listens there", url, response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20)) // not after 101, where no context ends it
	if err != nil {
		return report, fmt.Errorf("ask %s: %w", url, err)
	}
	_ = json.Unmarshal(body, &report) // the status decides
	report.Ready = response.StatusCode == http.StatusOK
	return report, nil
}
