// Package helm tests the chart beside it with Helm's own library, the types of Kubernetes, and the
// settings that the binary has.
package helm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

// manifests are what the chart renders, by kind and name.
type manifests map[string]any

var profiles = []string{"small", "standard", "large"}

var load = sync.OnceValues(func() (*chart.Chart, error) { return loader.LoadDir("authctl") })

func values(t *testing.T, profile string) map[string]any {
	t.Helper()
	text, err := os.ReadFile("authctl/ci/" + profile + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// render does what helm install does before it asks the cluster.
func render(v map[string]any) (map[string]string, error) {
	c, err := load()
	if err != nil {
		return nil, err
	}
	release := chartutil.ReleaseOptions{Name: "identity", Namespace: "identity", IsInstall: true}
	all, err := chartutil.ToRenderValues(c, v, release, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: true}.Render(c, all)
}

// empty is a new value for each kind that the chart may render.
var empty = map[string]func() any{
	"apps/v1 Deployment":                      func() any { return &apps.Deployment{} },
	"autoscaling/v2 HorizontalPodAutoscaler":  func() any { return &autoscaling.HorizontalPodAutoscaler{} },
	"batch/v1 Job":                            func() any { return &batch.Job{} },
	"monitoring.coreos.com/v1 PrometheusRule": func() any { return &monitoring.PrometheusRule{} },
	"monitoring.coreos.com/v1 ServiceMonitor": func() any { return &monitoring.ServiceMonitor{} },
	"networking.k8s.io/v1 NetworkPolicy":      func() any { return &networking.NetworkPolicy{} },
	"policy/v1 PodDisruptionBudget":           func() any { return &policy.PodDisruptionBudget{} },
	"v1 Service":                              func() any { return &core.Service{} },
}

var separator = regexp.MustCompile(`(?m)^---\s*$`)

// renderProfile decodes strictly: a field that Kubernetes does not know, or knows twice, is an error.
func renderProfile(t *testing.T, profile string, change ...func(map[string]any)) manifests {
	t.Helper()
	v := values(t, profile)
	for _, c := range change {
		c(v)
	}
	files, err := render(v)
	if err != nil {
		t.Fatalf("%s: %v", profile, err)
	}
	list := manifests{}
	for name, text := range files {
		if filepath.Ext(name) != ".yaml" {
			continue
		}
		for _, document := range separator.Split(text, -1) {
			if strings.TrimSpace(document) == "" {
				continue
			}
			var what struct {
				APIVersion string `json:"apiVersion"`
				Kind       string
				Metadata   struct{ Name string }
			}
			if err := yaml.Unmarshal([]byte(document), &what); err != nil {
				t.Fatalf("%s, %s: %v\n%s", profile, name, err, document)
			}
			make, known := empty[what.APIVersion+" "+what.Kind]
			if !known {
				t.Fatalf("%s, %s: nobody checks %s %s", profile, name, what.APIVersion, what.Kind)
			}
			object := make()
			if err := yaml.UnmarshalStrict([]byte(document), object); err != nil {
				t.Fatalf("%s, %s: %v\n%s", profile, name, err, document)
			}
			key := what.Kind + " " + strings.TrimPrefix(what.Metadata.Name, "identity-authctl")
			if list[key] != nil {
				t.Errorf("%s: %s is there twice", profile, key)
			}
			list[key] = object
		}
	}
	return list
}

func get[T any](t *testing.T, m manifests, key string) T {
	t.Helper()
	object, ok := m[key].(*T)
	if !ok {
		t.Fatalf("there is no %s; there are %q", key, slices.Sorted(maps.Keys(m)))
	}
	return *object
}

// pods are the templates of the pods, by the name of what makes them.
func (m manifests) pods() map[string]core.PodTemplateSpec {
	list := map[string]core.PodTemplateSpec{}
	for key, object := range m {
		switch o := object.(type) {
		case *apps.Deployment:
			list[key] = o.Spec.Template
		case *batch.Job:
			list[key] = o.Spec.Template
		}
	}
	return list
}

func containers(pod core.PodTemplateSpec) []core.Container {
	return slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
}

func TestHelmFindsNothingToSay(t *testing.T) {
	t.Parallel()
	for _, profile := range profiles {
		linter := lint.All("authctl", values(t, profile), "identity", true)
		for _, message := range linter.Messages {
			// Only a chart in a gallery needs a picture.
			if message.Severity > support.InfoSev || !strings.Contains(message.Error(), "icon is recommended") {
				t.Errorf("%s: %s", profile, message)
			}
		}
	}
}

func TestEachProfileHasItsParts(t *testing.T) {
	t.Parallel()
	parts := func(more ...string) []string {
		list := append([]string{"Deployment -serve", "Deployment -relay", "Job -migrate", "Service ",
			"NetworkPolicy -serve", "NetworkPolicy -relay", "NetworkPolicy -migrate",
			"PodDisruptionBudget -serve", "PodDisruptionBudget -relay"}, more...)
		slices.Sort(list)
		return list
	}
	for profile, want := range map[string][]string{
		"small":    parts(),
		"standard": parts("Service -operator", "ServiceMonitor ", "PrometheusRule "),
		"large":    parts("Service -operator", "ServiceMonitor ", "PrometheusRule ", "HorizontalPodAutoscaler -serve"),
	} {
		if have := slices.Sorted(maps.Keys(renderProfile(t, profile))); !slices.Equal(have, want) {
			t.Errorf("%s has %q, want %q", profile, have, want)
		}
	}
}

func TestPodsAreConfined(t *testing.T) {
	t.Parallel()
	for _, profile := range profiles {
		for name, pod := range renderProfile(t, profile).pods() {
			spec := pod.Spec
			if yes := spec.AutomountServiceAccountToken; yes == nil || *yes {
				t.Errorf("%s, %s: it has a token for the API server", profile, name)
			}
			if yes := spec.EnableServiceLinks; yes == nil || *yes {
				t.Errorf("%s, %s: other services set its variables", profile, name)
			}
			if s := spec.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || *s.RunAsUser == 0 ||
				s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s, %s: the security context of the pod is %+v", profile, name, s)
			}
			for _, c := range containers(pod) {
				s := c.SecurityContext
				if s == nil || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation ||
					!slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) || s.Capabilities.Add != nil || s.Privileged != nil {
					t.Errorf("%s, %s: the security context of %s is %+v", profile, name, c.Name, s)
				}
				if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
					t.Errorf("%s, %s: %s has no resources", profile, name, c.Name)
				}
			}
		}
	}
}

// Each selector must find exactly the pods that it is for.
func TestSelectorsFindTheirPods(t *testing.T) {
	t.Parallel()
	for _, profile := range profiles {
		m := renderProfile(t, profile)
		selected := func(labels map[string]string) []string {
			var list []string
			for name, pod := range m.pods() {
				matches := len(labels) > 0
				for key, value := range labels {
					matches = matches && pod.Labels[key] == value
				}
				if matches {
					list = append(list, name)
				}
			}
			slices.Sort(list)
			return list
		}
		for key, object := range m {
			var labels map[string]string
			_, component, _ := strings.Cut(key, "-")
			want := []string{map[string]string{"": "Deployment -serve", "migrate": "Job -migrate"}[component]}
			if want[0] == "" {
				want[0] = "Deployment -" + component
			}
			switch o := object.(type) {
			case *apps.Deployment:
				labels = o.Spec.Selector.MatchLabels
			case *policy.PodDisruptionBudget:
				labels = o.Spec.Selector.MatchLabels
				if o.Spec.MaxUnavailable == nil || o.Spec.MinAvailable != nil {
					t.Errorf("%s: %s forbids nothing, or blocks the only pod", profile, key)
				}
			case *networking.NetworkPolicy:
				labels = o.Spec.PodSelector.MatchLabels
			case *core.Service:
				labels = o.Spec.Selector
				if component == "operator" {
					want = []string{"Deployment -relay", "Deployment -serve"}
				}
			default:
				continue
			}
			if have := selected(labels); !slices.Equal(have, want) {
				t.Errorf("%s: %s selects %q, want %q", profile, key, have, want)
			}
		}
	}
}

// variables are what the container sets, the files of secrets among them.
func variables(c core.Container) map[string]string {
	list := map[string]string{}
	for _, v := range c.Env {
		list[v.Name] = v.Value
	}
	return list
}

// environmentNames are the variables of the settings, from the page that a test compares with them.
func environmentNames(t *testing.T) map[string]bool {
	t.Helper()
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `[a-z0-9_.]+` \\| ([^|]+) \\|").FindAllStringSubmatch(string(page), -1) {
		for _, name := range regexp.MustCompile("[A-Z0-9_]+").FindAllString(row[1], -1) {
			known[name] = true
		}
	}
	if len(known) < 50 {
		t.Fatalf("only %d settings were found", len(known))
	}
	return known
}

func TestTheChartSetsOnlyWhatCanBeSet(t *testing.T) {
	t.Parallel()
	known := environmentNames(t)
	for _, profile := range profiles {
		for name, pod := range renderProfile(t, profile).pods() {
			for _, c := range containers(pod) {
				seen := map[string]bool{}
				for _, v := range c.Env {
					if seen[v.Name] {
						t.Errorf("%s, %s: %s sets %s twice", profile, name, c.Name, v.Name)
					}
					seen[v.Name] = true
					if !known[v.Name] && !strings.HasPrefix(v.Name, "OTEL_") {
						t.Errorf("%s, %s: %s sets %s, which is no setting", profile, name, c.Name, v.Name)
					}
					if strings.Contains(v.Name, "PASSWORD") && !strings.HasSuffix(v.Name, "_FILE") && !strings.HasPrefix(v.Name, "AUTH_PASSWORD_") {
						t.Errorf("%s, %s: %s is written out", profile, name, v.Name)
					}
				}
			}
		}
	}
}

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "authctl")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "authctl")
	cmd := exec.Command("go", "build", "-o", file, "./cmd/authctl")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return file, nil
})

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // Helm remarks that the chart has a link to the alerts
	code := m.Run()
	if file, err := build(); err == nil {
		_ = os.RemoveAll(filepath.Dir(file))
	}
	os.Exit(code)
}

// The binary itself reads what each container is given, in prod mode, with nothing left out but what
// is on a volume.
func TestTheBinaryTakesTheSettings(t *testing.T) {
	t.Parallel()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	certificates := makeCertificate(t)
	for _, profile := range profiles {
		m := renderProfile(t, profile)
		for name, pod := range m.pods() {
			for _, c := range containers(pod) {
				dir := t.TempDir()
				var env []string
				for key, value := range variables(c) {
					if strings.HasSuffix(key, "_FILE") && !mounted(pod, c, value) {
						t.Errorf("%s, %s: no volume has %s", profile, name, value)
					}
					if strings.Contains(key, "_TLS_") && strings.HasSuffix(key, "_FILE") {
						value = filepath.Join(certificates, filepath.Base(value))
					}
					if path, secret := strings.CutPrefix(value, "/run/secrets/authctl/"); secret {
						value = filepath.Join(dir, path)
						text := map[string]string{"database.url": "postgres://u:p@db.svc/authctl", "redis.url": "rediss://:p@redis.svc:6380"}[path]
						if text == "" {
							text = strings.Repeat("0123456789abcdef", 3)
						}
						if err := os.WriteFile(value, []byte(text+"\n"), 0o600); err != nil {
							t.Fatal(err)
						}
					}
					env = append(env, key+"="+value)
				}
				cmd := exec.CommandContext(t.Context(), binary, "config", "check")
				switch { // config check asks for what only serve needs
				case strings.HasSuffix(name, "relay"):
					env = append(env, "REDIS_ALLOW_PLAINTEXT=true")
				case !strings.HasSuffix(name, "serve"):
					env = append(env, "AUTH_TOKEN_SECRET="+strings.Repeat("s", 48), "REDIS_ALLOW_PLAINTEXT=true")
				}
				cmd.Dir, cmd.Env = dir, env
				out, err := cmd.CombinedOutput()
				if err != nil || !bytes.HasPrefix(out, []byte("the settings are fine")) {
					t.Errorf("%s, %s, %s: %v\n%s", profile, name, c.Name, err, out)
				}
				// And it is a command of the binary.
				help := exec.CommandContext(t.Context(), binary, append(slices.Clone(c.Args), "--help")...)
				if out, err := help.CombinedOutput(); err != nil {
					t.Errorf("%s, %s: %q: %v\n%s", profile, name, c.Args, err, out)
				}
			}
		}
	}
}

// makeCertificate makes tls.crt and tls.key, and an authority ca.crt, in a folder.
func makeCertificate(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"auth.example.com"},
		NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: cert},
		"ca.crt": {Type: "CERTIFICATE", Bytes: cert}, "tls.key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// mounted reports whether a file is on a volume of the container.
func mounted(pod core.PodTemplateSpec, c core.Container, file string) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m core.VolumeMount) bool {
		path, within := strings.CutPrefix(file, m.MountPath+"/")
		return within && slices.ContainsFunc(pod.Spec.Volumes, func(v core.Volume) bool {
			if v.Name != m.Name {
				return false
			}
			return v.Projected == nil || slices.ContainsFunc(v.Projected.Sources, func(s core.VolumeProjection) bool {
				return s.Secret.Items[0].Path == path && s.Secret.Name != "" && s.Secret.Items[0].Key != ""
			})
		})
	})
}

func TestEachRoleHasItsOwnSecrets(t *testing.T) {
	t.Parallel()
	m := renderProfile(t, "standard")
	for name, want := range map[string][]string{
		"Deployment -serve": {"AUTH_TOKEN_SECRET_FILE", "CACHE_REDIS_PASSWORD_FILE", "DB_POSTGRES_PASSWORD_FILE"},
		"Deployment -relay": {"AUTH_TOKEN_SECRET_FILE", "DB_POSTGRES_PASSWORD_FILE", "KAFKA_SASL_PASSWORD_FILE"},
		"Job -migrate":      {"DB_POSTGRES_PASSWORD_FILE"},
	} {
		for _, c := range containers(m.pods()[name]) {
			env := variables(c)
			var files []string
			for key := range env {
				if strings.HasSuffix(key, "_FILE") && key != "KAFKA_TLS_CA_FILE" {
					files = append(files, key)
				}
			}
			slices.Sort(files)
			_, component, _ := strings.Cut(name, "-")
			if !slices.Equal(files, want) || env["DB_POSTGRES_USER"] != "authctl_"+component {
				t.Errorf("%s, %s: it is %s with %q, want %q", name, c.Name, env["DB_POSTGRES_USER"], files, want)
			}
		}
	}
	if relay := variables(containers(m.pods()["Deployment -serve"])[0])["OUTBOX_RELAY"]; relay != "off" {
		t.Errorf("serve relays (%q) although there are relays", relay)
	}
	inline := renderProfile(t, "standard", func(v map[string]any) { v["relay"].(map[string]any)["enabled"] = false })
	if relay := variables(containers(inline.pods()["Deployment -serve"])[0])["OUTBOX_RELAY"]; relay != "inline" {
		t.Errorf("nobody relays: %q", relay)
	}
}

// Relays open the secrets of webhooks and the codes in mails with the secret of serve, and with those that
// it replaces, unless they are given another one.
func TestRelaysHaveTheSigningSecret(t *testing.T) {
	t.Parallel()
	from := func(m manifests) map[string]string {
		list := map[string]string{}
		for _, v := range m.pods()["Deployment -relay"].Spec.Volumes {
			if v.Projected == nil {
				continue
			}
			for _, s := range v.Projected.Sources {
				list[s.Secret.Items[0].Path] = s.Secret.Name + "/" + s.Secret.Items[0].Key
			}
		}
		return list
	}
	large := from(renderProfile(t, "large"))
	if large["auth.token.secret"] != "authctl/secret" || large["auth.token.previous_secrets"] != "authctl/previous" {
		t.Errorf("relays have %v", large)
	}
	own := from(renderProfile(t, "large", func(v map[string]any) {
		v["relay"].(map[string]any)["secrets"].(map[string]any)["auth.token.secret"] = map[string]any{"name": "own", "key": "secret"}
	}))
	if own["auth.token.secret"] != "own/secret" || own["database.url"] != large["database.url"] {
		t.Errorf("relays with a secret of their own have %v", own)
	}
	mails := get[networking.NetworkPolicy](t, renderProfile(t, "standard", func(v map[string]any) {
		v["relay"].(map[string]any)["secrets"].(map[string]any)["mail.url"] = map[string]any{"name": "mail", "key": "url"}
	}), "NetworkPolicy -relay")
	var ports []int32
	for _, p := range mails.Spec.Egress[1].Ports {
		ports = append(ports, p.Port.IntVal)
	}
	if !slices.Contains(ports, 443) || !slices.Contains(ports, 465) || !slices.Contains(ports, 587) {
		t.Errorf("relays that send mails may reach %v", ports)
	}
}

func TestTheSchemaComesBeforeTheServers(t *testing.T) {
	t.Parallel()
	for _, profile := range profiles {
		job := get[batch.Job](t, renderProfile(t, profile), "Job -migrate")
		if job.Annotations["helm.sh/hook"] != "pre-install,pre-upgrade" || job.Spec.Template.Spec.RestartPolicy != core.RestartPolicyNever {
			t.Errorf("%s: %v", profile, job.Annotations)
		}
		var commands []string
		for _, c := range containers(job.Spec.Template) { // one after another: all but the last are init containers
			commands = append(commands, strings.Join(c.Args, " "))
		}
		want := []string{"migrate up", "migrate grants"}
		if profile == "small" {
			want = want[:1]
		}
		if !slices.Equal(commands, want) || len(job.Spec.Template.Spec.Containers) != 1 {
			t.Errorf("%s: the job runs %q, want %q", profile, commands, want)
		}
	}
}

func TestStoppingLosesNoRequest(t *testing.T) {
	t.Parallel()
	for _, profile := range profiles {
		serve := get[apps.Deployment](t, renderProfile(t, profile), "Deployment -serve")
		rolling := serve.Spec.Strategy.RollingUpdate
		if rolling.MaxUnavailable.IntValue() != 0 || rolling.MaxSurge.IntValue() < 1 {
			t.Errorf("%s: an old pod stops before a new one serves: %+v", profile, rolling)
		}
		env := variables(serve.Spec.Template.Spec.Containers[0])
		drain, err := time.ParseDuration(env["APP_DRAIN_DELAY"])
		if err != nil || drain < 5*time.Second {
			t.Errorf("%s: app.drain_delay is %s, %v", profile, drain, err)
		}
		shutdown := 15 * time.Second // the default
		if text := env["APP_SHUTDOWN_TIMEOUT"]; text != "" {
			if shutdown, err = time.ParseDuration(text); err != nil {
				t.Fatal(err)
			}
		}
		if grace := time.Duration(*serve.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second; grace <= drain+shutdown+time.Second {
			t.Errorf("%s: killed after %s, and may need %s", profile, grace, drain+shutdown)
		}
		if (serve.Spec.Replicas == nil) != (profile == "large") {
			t.Errorf("%s: the Deployment and the autoscaler disagree about replicas", profile)
		}
	}
	// Durations as people write them.
	for drain, want := range map[string]int64{"0s": 25, "1m30s": 115, "500ms": 26, "1h0.5m": 3655, "2m0s": 145} {
		serve := get[apps.Deployment](t, renderProfile(t, "standard", func(v map[string]any) {
			v["settings"].(map[string]any)["app"].(map[string]any)["drain_delay"] = drain
		}), "Deployment -serve")
		if grace := *serve.Spec.Template.Spec.TerminationGracePeriodSeconds; grace != want {
			t.Errorf("with app.drain_delay %s the grace period is %d s, want %d", drain, grace, want)
		}
	}
}

func TestProbesFollowTheSettings(t *testing.T) {
	t.Parallel()
	for profile, want := range map[string]struct {
		scheme         core.URIScheme
		port, operator int32
	}{"small": {"HTTP", 8080, 0}, "standard": {"HTTP", 8080, 9090}, "large": {"HTTPS", 8443, 9191}} {
		m := renderProfile(t, profile)
		for _, name := range []string{"serve", "relay"} {
			c := get[apps.Deployment](t, m, "Deployment -"+name).Spec.Template.Spec.Containers[0]
			ports := map[string]int32{}
			for _, p := range c.Ports {
				ports[p.Name] = p.ContainerPort
			}
			if ports["operator"] != want.operator || name == "serve" && ports["http"] != want.port {
				t.Errorf("%s, %s: ports %v", profile, name, ports)
			}
			wantAddr := fmt.Sprintf(":%d", want.operator)
			if want.operator == 0 {
				wantAddr = "127.0.0.1:9090"
			}
			if addr := variables(c)["APP_OPERATOR_ADDR"]; addr != wantAddr {
				t.Errorf("%s, %s: the operator listener is at %s, want %s", profile, name, addr, wantAddr)
			}
			if name == "relay" {
				asks := c.ReadinessProbe.Exec != nil && slices.Equal(c.ReadinessProbe.Exec.Command, []string{"/usr/local/bin/authctl", "health"})
				if asks != (want.operator == 0) || want.operator != 0 && c.ReadinessProbe.HTTPGet.Port.StrVal != "operator" {
					t.Errorf("%s: the readiness of relay is %+v", profile, c.ReadinessProbe.ProbeHandler)
				}
				continue
			}
			for path, probe := range map[string]*core.Probe{"/readyz": c.ReadinessProbe, "/healthz": c.LivenessProbe} {
				if get := probe.HTTPGet; get.Path != path || get.Port.StrVal != "http" || get.Scheme != want.scheme {
					t.Errorf("%s: a probe asks %s %s of %s, want %s %s", profile, get.Scheme, get.Path, get.Port.StrVal, want.scheme, path)
				}
			}
		}
	}
}

func TestNetworkPoliciesOpenWhatIsNeeded(t *testing.T) {
	t.Parallel()
	m := renderProfile(t, "standard")
	for name, want := range map[string][]int32{"serve": {53, 53, 5432, 6379}, "relay": {53, 53, 5432, 9093, 443}, "migrate": {53, 53, 5432}} {
		p := get[networking.NetworkPolicy](t, m, "NetworkPolicy -"+name)
		var ports []int32
		for _, rule := range p.Spec.Egress {
			for _, port := range rule.Ports {
				ports = append(ports, port.Port.IntVal)
			}
		}
		if !slices.Equal(ports, want) {
			t.Errorf("%s may reach %v, want %v", name, ports, want)
		}
		if !slices.Equal(p.Spec.PolicyTypes, []networking.PolicyType{"Ingress", "Egress"}) {
			t.Errorf("%s: %v", name, p.Spec.PolicyTypes)
		}
		for _, rule := range p.Spec.Ingress {
			if rule.Ports[0].Port.StrVal == "operator" && len(rule.From) == 0 {
				t.Errorf("%s: everybody may call the operator listener", name)
			}
		}
		if opens := map[string]int{"serve": 2, "relay": 1, "migrate": 0}[name]; len(p.Spec.Ingress) != opens {
			t.Errorf("%s has %d rules for callers, want %d", name, len(p.Spec.Ingress), opens)
		}
	}
}

func TestPrometheusHasTheAlertsOfTheRepository(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var want monitoring.PrometheusRuleSpec
	if err := yaml.UnmarshalStrict(text, &want); err != nil {
		t.Fatal(err)
	}
	m := renderProfile(t, "standard")
	have := get[monitoring.PrometheusRule](t, m, "PrometheusRule ").Spec
	if !reflect.DeepEqual(have, want) || len(have.Groups) == 0 {
		t.Errorf("the rules are %+v", have)
	}
	monitor := get[monitoring.ServiceMonitor](t, m, "ServiceMonitor ").Spec
	service := get[core.Service](t, m, "Service -operator")
	for key, value := range monitor.Selector.MatchLabels {
		if service.Labels[key] != value {
			t.Errorf("the ServiceMonitor does not find the Service: %s", key)
		}
	}
	endpoint := monitor.Endpoints[0]
	if endpoint.Port != service.Spec.Ports[0].Name || endpoint.RelabelConfigs[0].TargetLabel != "job" || *endpoint.RelabelConfigs[0].Replacement != "authctl" {
		t.Errorf("Prometheus asks %+v", endpoint)
	}
}

func TestTheAutoscalerFollowsTheHashing(t *testing.T) {
	t.Parallel()
	scaler := get[autoscaling.HorizontalPodAutoscaler](t, renderProfile(t, "large"), "HorizontalPodAutoscaler -serve").Spec
	metric := scaler.Metrics[0].Pods
	if scaler.ScaleTargetRef.Name != "identity-authctl-serve" || metric.Metric.Name != "authctl_waiting_sign_ins" ||
		metric.Target.AverageValue.Value() != 4 || *scaler.MinReplicas != 6 || scaler.MaxReplicas != 60 {
		t.Errorf("%+v", scaler)
	}
}

// What a release packs is the whole chart, the alerts behind the link among it, with its version.
func TestTheReleasePacksTheChart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "chart.tgz")
	if out, err := exec.CommandContext(t.Context(), "go", "run", "./package", "1.2.3", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	packed, err := loader.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if packed.Metadata.Version != "1.2.3" || packed.AppVersion() != "1.2.3" || packed.Schema == nil {
		t.Errorf("%+v", packed.Metadata)
	}
	alerts := slices.ContainsFunc(packed.Files, func(f *chart.File) bool {
		return f.Name == "files/alerts.yml" && bytes.Contains(f.Data, []byte("AuthctlDown"))
	})
	if !alerts || len(packed.Templates) < 7 {
		t.Errorf("it has %d templates and the files %v", len(packed.Templates), packed.Files)
	}
	for _, f := range packed.Raw {
		if strings.HasPrefix(f.Name, "ci/") {
			t.Errorf("%s is in it", f.Name)
		}
	}
}

// What cannot work is refused before anything is installed, in words that say what to do.
func TestMistakesAreRefused(t *testing.T) {
	t.Parallel()
	at := func(v map[string]any, path ...string) map[string]any {
		for _, name := range path {
			if v[name] == nil {
				v[name] = map[string]any{}
			}
			v = v[name].(map[string]any)
		}
		return v
	}
	for want, change := range map[string]func(map[string]any){
		"app/drain_dealy":                    func(v map[string]any) { at(v, "settings", "app")["drain_dealy"] = "5s" },
		"settings/auth/password/bcrypt_cost": func(v map[string]any) { at(v, "settings", "auth", "password")["bcrypt_cost"] = 40 },
		"settings/app/data_dir":              func(v map[string]any) { at(v, "settings", "app")["data_dir"] = "/x" },
		"settings/redis/url":                 func(v map[string]any) { at(v, "settings", "redis")["url"] = "redis://x" },
		"serve/secrets/auth.token.sercet": func(v map[string]any) {
			at(v, "serve", "secrets")["auth.token.sercet"] = map[string]any{"name": "a", "key": "b"}
		},
		"serve/secrets/auth.token.secret": func(v map[string]any) { at(v, "serve", "secrets")["auth.token.secret"] = "written out" },
		"/env/0/name":                     func(v map[string]any) { v["env"] = []any{map[string]any{"name": "APP_PORT", "value": "1"}} },
		"replica":                         func(v map[string]any) { at(v, "serve")["replica"] = 3 },
		"serve has no signing secret":     func(v map[string]any) { delete(at(v, "serve", "secrets"), "auth.token.secret") },
		"serve has no database":           func(v map[string]any) { delete(at(v, "settings"), "db") },
		"set settings.auth.token.issuer":  func(v map[string]any) { delete(at(v, "settings"), "auth") },
		"would cut off requests":          func(v map[string]any) { at(v, "settings", "app")["shutdown_timeout"] = "14s" },
		"would be lost with its pod":      func(v map[string]any) { delete(at(v, "settings"), "kafka") },
		"set relay.replicas to 1": func(v map[string]any) {
			delete(at(v, "settings"), "kafka")
			at(v, "relay")["existingClaim"] = "x"
		},
		"operator.serviceMonitor needs operator.exposed": func(v map[string]any) { at(v, "operator")["exposed"] = false },
	} {
		v := values(t, "standard")
		change(v)
		_, err := render(v)
		place := strings.ReplaceAll(want, "/", ".*")
		if err == nil || !regexp.MustCompile(`(?s)`+place).MatchString(err.Error()) {
			t.Errorf("want words about %s: %v", want, err)
		}
		if errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}
