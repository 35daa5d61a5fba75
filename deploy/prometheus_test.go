package deploy

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"go.yaml.in/yaml/v3"

	"github.com/toppira/authctl/platform/testenv"
)

// promtool runs Prometheus's own rule tests: each alert has series that make it fire, and others
// that do not.
func TestEachAlertFiresAndDoesNotFire(t *testing.T) {
	t.Parallel()
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	var tests struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	for file, into := range map[string]any{"prometheus/alerts.yml": &rules, "prometheus/alerts_test.yml": &tests} {
		if err := yaml.Unmarshal([]byte(read(t, file)), into); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, one := range tests.Tests {
		for _, alert := range one.AlertRuleTest {
			if len(alert.ExpAlerts) > 0 {
				fires[alert.Alertname] = true
			} else {
				silent[alert.Alertname] = true
			}
		}
	}
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			if !fires[rule.Alert] || !silent[rule.Alert] {
				t.Errorf("alerts_test.yml lacks series that make %s fire, or series that do not", rule.Alert)
			}
			if whole.MatchString(rule.Expr) {
				t.Errorf("%s adds up several installations: %s", rule.Alert, rule.Expr)
			}
		}
	}
	promtool := testenv.Program(t, "it comes with Debian's package prometheus", "promtool")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// exposition is what a process exports: the values of each label, by metric.
type exposition map[string]map[string][]string

var (
	sample  = regexp.MustCompile(`(?m)^([a-z_]+)(?:\{([^}]*(?:"[^"]*"[^}]*)*)\})? `)
	label   = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
	matcher = regexp.MustCompile(`([a-z_]+)(=~|=|!~|!=)"([^"]*)"`)
	chosen  = regexp.MustCompile(`([a-z_]+)\{([^}]*)\}`)
	whole   = regexp.MustCompile(`\b(sum|min|max)( by \([^n][^)]*\))? ?\(`)
	grouped = regexp.MustCompile(`by \(([^)]*)\)`)
)

// scrape reads the metrics of a process once they are available.
func scrape(t *testing.T, addr string) exposition {
	t.Helper()
	var text string
	eventually(t, addr+" shows its metrics", func() bool {
		res, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		all, err := io.ReadAll(res.Body)
		text = string(all)
		return err == nil && res.StatusCode == http.StatusOK
	})
	shown := exposition{}
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		if shown[m[1]] == nil {
			shown[m[1]] = map[string][]string{}
		}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			shown[m[1]][l[1]] = append(shown[m[1]][l[1]], l[2])
		}
	}
	return shown
}

// lacks lists what a query uses and the process does not export.
func (e exposition) lacks(query string) (missing []string) {
	scraped := []string{"job", "instance", "namespace"} // labels that Prometheus adds
	known := slices.Clone(scraped)
	for _, m := range chosen.FindAllStringSubmatch(query, -1) {
		labels, ok := e[m[1]]
		if !ok {
			missing = append(missing, m[1])
			continue
		}
		known = slices.AppendSeq(known, maps.Keys(labels))
		for _, one := range matcher.FindAllStringSubmatch(m[2], -1) {
			name, value := one[1], one[3]
			if slices.Contains(scraped, name) {
				continue
			}
			if labels[name] == nil {
				missing = append(missing, m[1]+"{"+name+"}")
				continue
			}
			if name == "status" { // labels of answers that have not occurred yet
				continue
			}
			fits := regexp.MustCompile("^(?:" + value + ")$")
			if !slices.ContainsFunc(labels[name], fits.MatchString) {
				missing = append(missing, fmt.Sprintf("%s{%s=%q}", m[1], name, value))
			}
		}
	}
	for _, m := range grouped.FindAllStringSubmatch(query, -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			if !slices.Contains(known, name) {
				missing = append(missing, "label "+name)
			}
		}
	}
	return missing
}

// Every panel of the dashboards uses metrics, labels and routes that serve and relay export.
func TestEveryPanelShowsSomething(t *testing.T) {
	t.Parallel()
	db := newRolesDatabase(t)
	ports := []int{testenv.FreePort(t), testenv.FreePort(t), testenv.FreePort(t), testenv.FreePort(t),
		testenv.FreePort(t)}
	addr := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	redis := miniredis.RunT(t)
	db.start(t, t.TempDir(), "authctl_serve", []string{
		"APP_HOST=127.0.0.1", fmt.Sprintf("APP_PORT=%d",
			ports[0]), "APP_OPERATOR_ADDR=" + addr(1), "REDIS_URL=redis://" + redis.Addr(),
	}, "serve")
	db.start(t, t.TempDir(), "authctl_relay", []string{"APP_OPERATOR_ADDR=" + addr(2)}, "relay")
	db.start(t, t.TempDir(), "authctl_serve", []string{
		"APP_HOST=127.0.0.1", fmt.Sprintf("APP_PORT=%d", ports[3]), "APP_OPERATOR_ADDR=" + addr(4),
	}, "serve")
	scrape(t, addr(1))
	c := client{t, "http://" + addr(0)}
	eventually(t, "the API answers", func() bool {
		res, err := http.Get(c.base + "/readyz")
		if err == nil {
			_ = res.Body.Close()
		}
		return err == nil && res.StatusCode == http.StatusOK
	})
	// The series of requests begin with the first answer.
	person := map[string]any{"username": "alice", "password": "a quite good password"}
	tokens := c.call("POST", "/api/v1/auth/register", "", person, 201)
	c.call("POST", "/api/v1/auth/login", "", person, 200)
	c.call("POST", "/api/v1/auth/refresh", "", map[string]any{"refresh_token": tokens["refresh_token"]}, 200)
	c.call("POST", "/oauth2/introspect", "", nil, 401)

	relay := scrape(t, addr(2))
	eventually(t, "the relay shows how many relays there are, and its targets", func() bool {
		relay = scrape(t, addr(2))
		return relay["authctl_outbox_relays"] != nil && relay["authctl_outbox_target_held_keys"] != nil &&
			relay["authctl_outbox_target_latency_seconds_bucket"] != nil
	})
	serve := scrape(t, addr(1))
	for name, labels := range scrape(t, addr(4)) { // metrics of a server without Redis alone
		if serve[name] == nil {
			serve[name] = labels
		}
	}
	files, err := filepath.Glob("grafana/*.json")
	if err != nil || len(files) < 4 {
		t.Fatalf("dashboards %v, %v", files, err)
	}
	uids := map[string]bool{}
	for _, file := range files {
		var dashboard struct {
			UID, Title string
			Panels     []struct {
				ID      int
				Title   string
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal([]byte(read(t, file)), &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if dashboard.UID == "" || uids[dashboard.UID] {
			t.Errorf("%s has no uid of its own", file)
		}
		uids[dashboard.UID] = true
		from := serve
		if file == "grafana/relay.json" {
			from = relay
		}
		ids := map[int]bool{}
		for _, panel := range dashboard.Panels {
			if len(panel.Targets) == 0 || ids[panel.ID] {
				t.Errorf("%s, %s: no query, or no id of its own", file, panel.Title)
			}
			ids[panel.ID] = true
			for _, target := range panel.Targets {
				if strings.Count(target.Expr, "{job=~") != strings.Count(target.Expr, `namespace=~"$namespace"`) {
					t.Errorf("%s, %s: %s shows all installations together", file, panel.Title, target.Expr)
				}
				if !chosen.MatchString(target.Expr) {
					t.Errorf("%s, %s: %s selects no metric", file, panel.Title, target.Expr)
				}
				for _, missing := range from.lacks(target.Expr) {
					t.Errorf("%s, %s: no process exports %s", file, panel.Title, missing)
				}
			}
		}
	}
	for _, wrong := range []string{
		`authctl_nothing{job="x"}`, `authctl_http_requests_total{colour="red"}`,
		`sum by (colour) (authctl_http_requests_total{job="x"})`,
		`authctl_http_request_duration_seconds_bucket{route="/api/v2/auth/login"}`,
	} {
		if len(serve.lacks(wrong)) == 0 {
			t.Errorf("%s is accepted", wrong)
		}
	}
}
