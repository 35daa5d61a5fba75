package telemetry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/platform/telemetry"
)

func ok(context.Context) error { return nil }

func TestOnlyACriticalCheckDecidesReadiness(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	var database atomic.Pointer[error]
	now := time.Unix(0, 0)
	r := telemetry.ReadinessAt(func() time.Time { return now },
		telemetry.Check{Name: "database", Critical: true, Probe: func(context.Context) error {
			if err := database.Load(); err != nil {
				return *err
			}
			return nil
		}},
		telemetry.Check{Name: "kafka", Probe: func(context.Context) error { return away }},
	)
	results, ready := r.Report(t.Context())
	if !ready || len(results) != 2 || results[0].Name != "database" || results[0].Err != nil ||
		!errors.Is(results[1].Err, away) {
		t.Errorf("with Kafka away: %v %+v", ready, results)
	}
	database.Store(&away)
	if _, ready := r.Report(t.Context()); !ready {
		t.Error("an answer is not kept at all")
	}
	now = now.Add(251 * time.Millisecond)
	if _, ready := r.Report(t.Context()); ready {
		t.Error("ready without its database")
	}
	database.Store(nil)
	now = now.Add(251 * time.Millisecond)
	if _, ready := r.Report(t.Context()); !ready {
		t.Error("not ready again although the database is back")
	}
}

func TestAnAnswerHoldsForAsLongAsItsCheckSaysUnlessItIsBad(t *testing.T) {
	t.Parallel()
	var bad atomic.Bool
	var probes atomic.Int64
	now := time.Unix(0, 0)
	r := telemetry.ReadinessAt(func() time.Time { return now },
		telemetry.Check{Name: "database", Critical: true, Holds: 3 * time.Second,
			Probe: func(context.Context) error {
				probes.Add(1)
				if bad.Load() {
					return errors.New("full")
				}
				return nil
			}})
	want := func(ready bool, n int64) {
		t.Helper()
		if _, got := r.Report(t.Context()); got != ready || probes.Load() != n {
			t.Errorf("ready %v after %d probes, want %v after %d", got, probes.Load(), ready, n)
		}
	}
	want(true, 1)
	bad.Store(true)
	now = now.Add(2999 * time.Millisecond)
	want(true, 1)
	now = now.Add(2 * time.Millisecond)
	want(false, 2)
	bad.Store(false)
	now = now.Add(251 * time.Millisecond) // a bad answer is checked again soon
	want(true, 3)
}

func TestManyAskersShareOneProbe(t *testing.T) {
	t.Parallel()
	var runs atomic.Int32
	release := make(chan struct{})
	// The clock stands still: an asker that comes late on a busy machine would be one of the next probe.
	r := telemetry.ReadinessAt(func() time.Time { return time.Unix(0, 0) },
		telemetry.Check{Name: "database", Critical: true, Probe: func(context.Context) error {
			runs.Add(1)
			<-release
			return nil
		}})
	var askers sync.WaitGroup
	for range 50 {
		askers.Go(func() {
			if _, ready := r.Report(t.Context()); !ready {
				t.Error("not ready")
			}
		})
	}
	close(release)
	askers.Wait()
	if n := runs.Load(); n != 1 {
		t.Errorf("%d probes for 50 askers", n)
	}
}

func TestAProbeThatHangsOrPanicsHasFailed(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	r := telemetry.NewReadiness(
		telemetry.Check{Name: "hangs", Critical: true, Probe: func(context.Context) error { <-release; return nil }},
		telemetry.Check{Name: "panics", Probe: func(context.Context) error { panic("oops") }},
		telemetry.Check{Name: "well", Probe: ok},
	)
	results, ready := r.Report(t.Context())
	if ready || results[0].Err == nil || results[1].Err == nil || results[2].Err != nil {
		t.Errorf("%v %+v", ready, results)
	}
}

type operator struct {
	*telemetry.Operator
	url string
}

func start(t *testing.T, opt telemetry.OperatorOptions) operator {
	t.Helper()
	o, err := telemetry.Listen(telemetry.Config{OperatorAddr: "127.0.0.1:0"}, opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return operator{o, "http://" + o.Addr().String()}
}

func (o operator) do(t *testing.T, method, path, body string, change func(*http.Request)) (int, string) {
	t.Helper()
	request, err := http.NewRequest(method, o.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(request)
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func TestOperatorsSeeMetricsProfilesAndReadiness(t *testing.T) {
	t.Parallel()
	level := zap.NewAtomicLevel()
	var stopping atomic.Bool
	o := start(t, telemetry.OperatorOptions{
		Registry: telemetry.NewRegistry(telemetry.Build{Version: "v1.2.3", Commit: "abc"}),
		Readiness: telemetry.NewReadiness(
			telemetry.Check{Name: "database", Critical: true, Probe: ok},
			telemetry.Check{Name: "kafka", Probe: func(context.Context) error {
				return errors.New("dial tcp: refused")
			}}),
		Stopping: stopping.Load,
		Level:    &level,
	})
	status, body := o.do(t, "GET", "/metrics", "", nil)
	for _, want := range []string{`authctl_build_info{commit="abc",go_version="go`, `version="v1.2.3"} 1`,
		"go_goroutines", "process_open_fds"} {
		if status != 200 || !strings.Contains(body, want) {
			t.Errorf("metrics without %s (%d)", want, status)
		}
	}
	for path, want := range map[string]int{"/debug/pprof/": 200, "/debug/pprof/goroutine?debug=1": 200,
		"/debug/pprof/cmdline": 404, "/healthz": 200, "/nowhere": 404} {
		if status, _ := o.do(t, "GET", path, "", nil); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	var report struct {
		Ready    bool
		Stopping bool
		Checks   []struct {
			Name, Error  string
			OK, Critical bool
		}
	}
	status, body = o.do(t, "GET", "/readyz", "", nil)
	if err := json.Unmarshal([]byte(body), &report); err != nil || status != 200 || !report.Ready ||
		len(report.Checks) != 2 || report.Checks[1].Error != "dial tcp: refused" || !report.Checks[0].OK {
		t.Errorf("readyz %d %s", status, body)
	}
	stopping.Store(true)
	if status, body := o.do(t, "GET", "/readyz", "", nil); status != 503 || !strings.Contains(body, `"stopping":true`) {
		t.Errorf("readyz during a stop: %d %s", status, body)
	}
	if status, _ := o.do(t, "PUT", "/log/level", `{"level":"debug"}`, nil); status != 200 ||
		level.Level() != zap.DebugLevel {
		t.Errorf("log level %v (%d)", level.Level(), status)
	}
}

func TestAPanicOfTheOperatorListenerIsLogged(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.InfoLevel)
	o := start(t, telemetry.OperatorOptions{Log: zap.New(core), Stopping: func() bool { panic("boom") }})
	if response, err := http.Get("http://" + o.Addr().String() + "/readyz"); err == nil {
		_ = response.Body.Close()
		t.Errorf("a panic answered %s", response.Status)
	}
	lines := logs.FilterMessage("operator_http_failed").All()
	if len(lines) != 1 || !strings.Contains(fmt.Sprint(lines[0].ContextMap()["error"]), "boom") {
		t.Errorf("the log has %v", logs.All())
	}
}

func TestABrowserCannotBeUsedToReachALoopbackOperator(t *testing.T) {
	t.Parallel()
	o := start(t, telemetry.OperatorOptions{})
	for name, change := range map[string]func(*http.Request){
		"rebound name":  func(r *http.Request) { r.Host = "evil.example:9090" },
		"foreign page":  func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
		"opaque origin": func(r *http.Request) { r.Header.Set("Origin", "null") },
	} {
		if status, _ := o.do(t, "GET", "/healthz", "", change); status != 403 {
			t.Errorf("%s: %d", name, status)
		}
	}
	for _, host := range []string{"localhost:9090", "127.0.0.1", "[::1]:9090"} {
		if status, _ := o.do(t, "GET", "/healthz", "", func(r *http.Request) { r.Host = host }); status != 200 {
			t.Errorf("%s: %d", host, status)
		}
	}
}

func TestATakenAddressIsATypedError(t *testing.T) {
	t.Parallel()
	o := start(t, telemetry.OperatorOptions{})
	_, err := telemetry.Listen(telemetry.Config{OperatorAddr: o.Addr().String()}, telemetry.OperatorOptions{})
	var taken *telemetry.AddrError
	if !errors.As(err, &taken) || !taken.InUse || !strings.Contains(err.Error(), "APP_OPERATOR_ADDR") {
		t.Errorf("error %v", err)
	}
}

func TestNoOperatorListenerWhenOff(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"", "off"} {
		o, err := telemetry.Listen(telemetry.Config{OperatorAddr: addr}, telemetry.OperatorOptions{})
		if o != nil || err != nil {
			t.Errorf("%q: %v %v", addr, o, err)
		}
	}
}

func TestConfigRefusesWhatIsNoAddress(t *testing.T) {
	t.Parallel()
	for addr, good := range map[string]bool{
		"": true, "off": true, "127.0.0.1:9090": true, ":9090": true, "[::1]:0": true,
		"9090": false, "127.0.0.1": false, "127.0.0.1:http": false, "127.0.0.1:70000": false,
	} {
		problems := 0
		telemetry.Config{OperatorAddr: addr}.Validate(func(string, string) { problems++ })
		if (problems == 0) != good {
			t.Errorf("%q: %d problems", addr, problems)
		}
	}
}
