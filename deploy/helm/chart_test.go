// Package helm tests the chart with Helm's own library, the types of Kubernetes, and the settings of the
// binary.
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

	"github.com/itchyny/gojq"
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
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

// manifests are the rendered objects, by kind and name.
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

// render does what helm install does before it contacts the cluster.
func render(v map[string]any) (map[string]string, error) { return renderAs("identity", v) }

func renderAs(name string, v map[string]any) (map[string]string, error) {
	c, err := load()
	if err != nil {
		return nil, err
	}
	release := chartutil.ReleaseOptions{Name: name, Namespace: "identity", IsInstall: true}
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
	return decode(t, profile, files)
}

// decode decodes strictly: a field that Kubernetes does not know, or that occurs twice, is an error.
func decode(t *testing.T, profile string, files map[string]string) manifests {
	t.Helper()
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
			}
			if err := yaml.Unmarshal([]byte(document), &what); err != nil {
				t.Fatalf("%s, %s: %v\n%s", profile, name, err, document)
			}
			make, known := empty[what.APIVersion+" "+what.Kind]
			if !known {
				t.Fatalf("%s, %s: no test knows %s %s", profile, name, what.APIVersion, what.Kind)
			}
			object := make()
			if err := yaml.UnmarshalStrict([]byte(document), object); err != nil {
				t.Fatalf("%s, %s: %v\n%s", profile, name, err, document)
			}
			key := what.Kind + " " + strings.TrimPrefix(object.(meta.Object).GetName(), "identity-authctl")
			if list[key] != nil {
				t.Errorf("%s: %s occurs twice", profile, key)
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

// pods returns the pod templates, by the name of their owner.
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
			// Only charts in a gallery need an icon.
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
				t.Errorf("%s, %s: enableServiceLinks is on", profile, name)
			}
			if s := spec.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || *s.RunAsUser == 0 ||
				s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s, %s: the security context of the pod is %+v", profile, name, s)
			}
			for _, c := range containers(pod) {
				s := c.SecurityContext
				if s == nil || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation ||
					!slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) || s.Capabilities.Add != nil ||
					s.Privileged != nil {
					t.Errorf("%s, %s: the security context of %s is %+v", profile, name, c.Name, s)
				}
				if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
					t.Errorf("%s, %s: %s has no resources", profile, name, c.Name)
				}
			}
		}
	}
}

// OpenShift gives each namespace a range of users, and refuses a pod that names another one.
func TestTheClusterMayChooseTheUser(t *testing.T) {
	t.Parallel()
	for _, profile := range profiles {
		m := renderProfile(t, profile, func(v map[string]any) { v["user"] = nil })
		for name, pod := range m.pods() {
			s := pod.Spec.SecurityContext
			if s.RunAsUser != nil || s.RunAsGroup != nil || s.FSGroup != nil || s.RunAsNonRoot == nil ||
				!*s.RunAsNonRoot {
				t.Errorf("%s, %s: the security context is %+v", profile, name, s)
			}
			// The files are root's. Only a group that the cluster gives the pod could read what others may not.
			for _, v := range pod.Spec.Volumes {
				if v.Projected != nil && *v.Projected.DefaultMode&0o004 == 0 {
					t.Errorf("%s, %s: the pod may not read its secrets: %o", profile, name, *v.Projected.DefaultMode)
				}
			}
		}
	}
}

// The cluster autoscaler leaves a node alone whose pods have an emptyDir, unless they say that it may go.
func TestPodsHoldOnToNoNode(t *testing.T) {
	t.Parallel()
	const may = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
	for _, profile := range profiles {
		for name, pod := range renderProfile(t, profile).pods() {
			for _, v := range pod.Spec.Volumes {
				if v.EmptyDir != nil && pod.Annotations[may] != v.Name {
					t.Errorf("%s, %s: it keeps its node for %s: %v", profile, name, v.Name, pod.Annotations)
				}
			}
		}
	}
	own := renderProfile(t, "large", func(v map[string]any) {
		v["podAnnotations"] = map[string]any{may: "data,more"}
	}).pods()["Deployment -serve"]
	if own.Annotations[may] != "data,more" {
		t.Errorf("the annotations are %v", own.Annotations)
	}
}

// A spread constraint of a pod replaces those of the scheduler, which spread over zones as well.
func TestReplicasPreferDifferentZones(t *testing.T) {
	t.Parallel()
	m := renderProfile(t, "standard")
	for _, component := range []string{"serve", "relay"} {
		spec := get[apps.Deployment](t, m, "Deployment -"+component).Spec
		apart := spec.Template.Spec.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution
		term := apart[0].PodAffinityTerm
		if term.TopologyKey != core.LabelTopologyZone || !reflect.DeepEqual(term.LabelSelector, spec.Selector) {
			t.Errorf("%s: %+v", component, term)
		}
		spread := spec.Template.Spec.TopologySpreadConstraints
		if len(spread) != 1 || spread[0].TopologyKey != core.LabelHostname ||
			!reflect.DeepEqual(spread[0].LabelSelector, spec.Selector) {
			t.Errorf("%s: %+v", component, spread)
		}
	}
	own := renderProfile(t, "standard", func(v map[string]any) {
		v["affinity"] = map[string]any{"nodeAffinity": map[string]any{}}
	}).pods()["Deployment -serve"].Spec.Affinity
	if own.NodeAffinity == nil || own.PodAntiAffinity != nil {
		t.Errorf("the affinity is %+v", own)
	}
}

// Kubernetes takes names that YAML reads as numbers and the like, unless they are in quotes.
func TestNamesAreText(t *testing.T) {
	t.Parallel()
	secret := map[string]any{"name": "0777", "key": "1e3"}
	m := renderProfile(t, "small", func(v map[string]any) {
		v["serviceAccountName"], v["priorityClassName"] = "123", "null"
		v["image"] = map[string]any{"pullSecrets": []any{"1e3", "true"}}
		v["serve"].(map[string]any)["secrets"] = map[string]any{"auth.token.secret": secret}
		v["serve"].(map[string]any)["autoscaling"] = map[string]any{"enabled": true, "metric": "12"}
		v["relay"].(map[string]any)["existingClaim"], v["relay"].(map[string]any)["replicas"] = "2024", 1
	})
	for name, pod := range m.pods() {
		if pod.Spec.ServiceAccountName != "123" || pod.Spec.PriorityClassName != "null" ||
			len(pod.Spec.ImagePullSecrets) != 2 || pod.Spec.ImagePullSecrets[0].Name != "1e3" {
			t.Errorf("%s: %+v", name, pod.Spec)
		}
	}
	claim := m.pods()["Deployment -relay"].Spec.Volumes[0].PersistentVolumeClaim
	files := m.pods()["Deployment -serve"].Spec.Volumes[1].Projected.Sources[0].Secret
	if claim.ClaimName != "2024" || files.Name != "0777" || files.Items[0].Key != "1e3" {
		t.Errorf("%+v, %+v", claim, files)
	}
}

// Kubernetes replaces $(NAME) in the value of a variable, and $$ by $.
func TestDollarsOfSettingsStay(t *testing.T) {
	t.Parallel()
	const from = `"{{ A }} $(APP_MODE) $$ $B" <no-reply@example.com>`
	m := renderProfile(t, "standard", func(v map[string]any) {
		v["settings"].(map[string]any)["mail"] = map[string]any{"from": from}
	})
	for _, v := range m.pods()["Deployment -relay"].Spec.Containers[0].Env {
		if v.Name == "MAIL_FROM" && v.Value != strings.ReplaceAll(from, "$", "$$") {
			t.Errorf("mail.from becomes %s", v.Value)
		}
	}
	if have := variables(m.pods()["Deployment -relay"].Spec.Containers[0])["MAIL_FROM"]; have != from {
		t.Errorf("mail.from becomes %s", have)
	}
}

// Each selector must match exactly the intended pods.
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
					t.Errorf("%s: %s must set maxUnavailable alone", profile, key)
				}
				if p := o.Spec.UnhealthyPodEvictionPolicy; p == nil || *p != policy.AlwaysAllow {
					t.Errorf("%s: %s blocks a node whose pods are not ready", profile, key)
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

// variables are the ones that the container sets, including files of secrets, as Kubernetes passes them on.
func variables(c core.Container) map[string]string {
	list := map[string]string{}
	for _, v := range c.Env {
		list[v.Name] = strings.ReplaceAll(v.Value, "$$", "$")
	}
	return list
}

// environmentNames are the variables of the settings, from the page that another test compares with
// them.
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
					if !known[v.Name] && !strings.HasPrefix(v.Name, "OTEL_") && v.Name != "PGSSLROOTCERT" {
						t.Errorf("%s, %s: %s sets %s, which is no setting", profile, name, c.Name, v.Name)
					}
					if strings.Contains(v.Name, "PASSWORD") && !strings.HasSuffix(v.Name, "_FILE") &&
						!strings.HasPrefix(v.Name, "AUTH_PASSWORD_") {
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
	log.SetOutput(io.Discard) // Helm remarks that the link to the alerts leads out of the chart
	code := m.Run()
	if file, err := build(); err == nil {
		_ = os.RemoveAll(filepath.Dir(file))
	}
	os.Exit(code)
}

// The binary itself reads the environment and arguments of each container in prod mode. Files on
// volumes are left out.
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
					if strings.HasPrefix(value, "/etc/authctl/") {
						value = filepath.Join(certificates, filepath.Base(value))
					}
					if path, secret := strings.CutPrefix(value, "/run/secrets/authctl/"); secret {
						value = filepath.Join(dir, path)
						text := map[string]string{"database.url": "postgres://u:p@db.svc/authctl",
							"redis.url": "rediss://:p@redis.svc:6380"}[path]
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
				switch { // config check also requires what only serve needs
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
				// The command must exist too.
				help := exec.CommandContext(t.Context(), binary, append(slices.Clone(c.Args), "--help")...)
				if out, err := help.CombinedOutput(); err != nil {
					t.Errorf("%s, %s: %q: %v\n%s", profile, name, c.Args, err, out)
				}
			}
		}
	}
}

// makeCertificate writes tls.crt, tls.key and an authority ca.crt into a folder.
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
			for key, value := range env {
				if strings.HasPrefix(value, "/run/secrets/authctl/") {
					files = append(files, key)
				}
			}
			slices.Sort(files)
			_, component, _ := strings.Cut(name, "-")
			if !slices.Equal(files, want) || env["DB_POSTGRES_USER"] != "authctl_"+component {
				t.Errorf("%s, %s: role %s with %q, want %q", name, c.Name, env["DB_POSTGRES_USER"], files, want)
			}
		}
	}
	if relay := variables(containers(m.pods()["Deployment -serve"])[0])["OUTBOX_RELAY"]; relay != "off" {
		t.Errorf("serve relays (%q) although relays exist", relay)
	}
	inline := renderProfile(t, "standard", func(v map[string]any) { v["relay"].(map[string]any)["enabled"] = false })
	if relay := variables(containers(inline.pods()["Deployment -serve"])[0])["OUTBOX_RELAY"]; relay != "inline" {
		t.Errorf("nothing relays: %q", relay)
	}
}

// Relays open the secrets of webhooks and the codes in mails with serve's secret and its
// predecessors, unless they have a secret of their own.
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
		t.Errorf("relays get %v", large)
	}
	own := from(renderProfile(t, "large", func(v map[string]any) {
		v["relay"].(map[string]any)["secrets"].(map[string]any)["auth.token.secret"] = map[string]any{"name": "own",
			"key": "secret"}
	}))
	if own["auth.token.secret"] != "own/secret" || own["database.url"] != large["database.url"] {
		t.Errorf("relays with a secret of their own get %v", own)
	}
	mails := get[networking.NetworkPolicy](t, renderProfile(t, "standard", func(v map[string]any) {
		v["relay"].(map[string]any)["secrets"].(map[string]any)["mail.url"] = map[string]any{"name": "mail",
			"key": "url"}
	}), "NetworkPolicy -relay")
	var ports []int32
	for _, p := range mails.Spec.Egress[1].Ports {
		ports = append(ports, p.Port.IntVal)
	}
	if !slices.Contains(ports, 443) || !slices.Contains(ports, 465) || !slices.Contains(ports, 587) {
		t.Errorf("relays that send mails can reach %v", ports)
	}
}

func TestTheSchemaComesBeforeTheServers(t *testing.T) {
	t.Parallel()
	for _, profile := range profiles {
		job := get[batch.Job](t, renderProfile(t, profile), "Job -migrate")
		if job.Annotations["helm.sh/hook"] != "pre-install,pre-upgrade" ||
			job.Spec.Template.Spec.RestartPolicy != core.RestartPolicyNever {
			t.Errorf("%s: %v", profile, job.Annotations)
		}
		var commands []string
		for _, c := range containers(job.Spec.Template) { // in order: all but the last are init containers
			commands = append(commands, strings.Join(c.Args, " "))
		}
		want := []string{"migrate up", "migrate grants"}
		if profile == "small" {
			want = want[:1]
		}
		if !slices.Equal(commands, want) || len(job.Spec.Template.Spec.Containers) != 1 {
			t.Errorf("%s: the job runs %q, want %q", profile, commands, want)
		}
		// Without Helm the page applies first what has this label.
		var first []string
		for key, object := range renderProfile(t, profile) {
			if object.(meta.Object).GetLabels()["app.kubernetes.io/component"] == "migrate" {
				first = append(first, key)
			}
		}
		if slices.Sort(first); !slices.Equal(first, []string{"Job -migrate", "NetworkPolicy -migrate"}) {
			t.Errorf("%s: %q come first", profile, first)
		}
	}
}

// The page of a restore makes a Job of the Deployment of serve and of the one that migrates.
func TestTheFenceIsServeWithTheRoleOfTheMigration(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile(`(?s)\| jq '(.*?)'`).FindSubmatch(page)
	if program == nil {
		t.Fatal("the page has no program for jq")
	}
	jq, err := gojq.Parse(string(program[1]))
	if err != nil {
		t.Fatal(err)
	}
	for profile, secrets := range map[string][]string{
		"small": {"authctl/auth.token.secret", "authctl/db.postgres.password"},
		"standard": {"authctl/auth.token.secret", "authctl-redis/cache.redis.password",
			"authctl-database-migrate/db.postgres.password"},
		"large": {"authctl/auth.token.previous_secrets", "authctl/auth.token.secret", "authctl-serve/redis.url",
			"authctl-migrate/database.url"},
	} {
		m := renderProfile(t, profile)
		serve, migrate := get[apps.Deployment](t, m, "Deployment -serve"), get[batch.Job](t, m, "Job -migrate")
		list, err := yaml.Marshal(map[string]any{"items": []any{serve, migrate}})
		if err != nil {
			t.Fatal(err)
		}
		var items any
		if err := yaml.Unmarshal(list, &items); err != nil {
			t.Fatal(err)
		}
		result, _ := jq.RunWithContext(t.Context(), items).Next()
		if err, failed := result.(error); failed {
			t.Fatalf("%s: %v", profile, err)
		}
		out, err := yaml.Marshal(result)
		if err != nil {
			t.Fatal(err)
		}
		var fence batch.Job
		if err := yaml.UnmarshalStrict(out, &fence); err != nil {
			t.Fatalf("%s: %v\n%s", profile, err, out)
		}
		pod := fence.Spec.Template
		c := pod.Spec.Containers[0]
		if !slices.Equal(c.Args, []string{"restore", "fence", "--yes"}) || c.StartupProbe != nil ||
			c.ReadinessProbe != nil || c.LivenessProbe != nil || pod.Spec.RestartPolicy != core.RestartPolicyNever {
			t.Errorf("%s: %+v", profile, pod.Spec)
		}
		var have []string
		for _, v := range pod.Spec.Volumes {
			if v.Projected != nil {
				for _, s := range v.Projected.Sources {
					have = append(have, s.Secret.Name+"/"+s.Secret.Items[0].Path)
				}
			}
		}
		if !slices.Equal(have, secrets) {
			t.Errorf("%s: it has the secrets %q, want %q", profile, have, secrets)
		}
		// All others are those of serve.
		env, owner := variables(c), variables(migrate.Spec.Template.Spec.Containers[0])
		for name, value := range variables(serve.Spec.Template.Spec.Containers[0]) {
			if strings.HasPrefix(name, "DB_") || strings.HasPrefix(name, "DATABASE_") {
				value = owner[name]
			}
			if env[name] != value {
				t.Errorf("%s: %s is %q, want %q", profile, name, env[name], value)
			}
		}
	}
}

// answers is how many seconds a relay may wait for answers to what it has sent.
const answers = 130

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
			t.Errorf("%s: the pod is killed after %s, but may need %s", profile, grace, drain+shutdown)
		}
		relay := get[apps.Deployment](t, renderProfile(t, profile), "Deployment -relay")
		if grace := *relay.Spec.Template.Spec.TerminationGracePeriodSeconds; grace < answers {
			t.Errorf("%s: a relay is killed after %d s, but its answers may take %d s", profile, grace, answers)
		}
		// With externalTrafficPolicy Local the last pod of a node gets requests while it counts as ready.
		ready := serve.Spec.Template.Spec.Containers[0].ReadinessProbe
		fails := time.Duration((ready.FailureThreshold-1)*ready.PeriodSeconds) * time.Second
		if profile == "large" && fails < drain || profile != "large" && ready.FailureThreshold != 2 {
			t.Errorf("%s: a pod that stops for %s counts as failed after %s", profile, drain, fails)
		}
		if (serve.Spec.Replicas == nil) != (profile == "large") {
			t.Errorf("%s: the Deployment and the autoscaler disagree about replicas", profile)
		}
	}
	inline := get[apps.Deployment](t, renderProfile(t, "standard", func(v map[string]any) {
		v["relay"].(map[string]any)["enabled"] = false
	}), "Deployment -serve")
	if grace := *inline.Spec.Template.Spec.TerminationGracePeriodSeconds; grace < 20+answers {
		t.Errorf("a serve that relays is killed after only %d s", grace)
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
	for profile, want := range map[string]string{"standard": "curl -s http://", "large": "curl -sk https://"} {
		files, err := render(values(t, profile))
		if err != nil || !strings.Contains(files["authctl/templates/NOTES.txt"], want) {
			t.Errorf("%s: the notes do not ask by %s: %v", profile, want, err)
		}
	}
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
				asks := c.ReadinessProbe.Exec != nil &&
					slices.Equal(c.ReadinessProbe.Exec.Command, []string{"/usr/local/bin/authctl", "health"})
				if asks != (want.operator == 0) || want.operator != 0 &&
					c.ReadinessProbe.HTTPGet.Port.StrVal != "operator" {
					t.Errorf("%s: the readiness of relay is %+v", profile, c.ReadinessProbe.ProbeHandler)
				}
				continue
			}
			for path, probe := range map[string]*core.Probe{"/readyz": c.ReadinessProbe, "/healthz": c.LivenessProbe} {
				if get := probe.HTTPGet; get.Path != path || get.Port.StrVal != "http" || get.Scheme != want.scheme {
					t.Errorf("%s: a probe asks %s %s of %s, want %s %s", profile, get.Scheme, get.Path,
						get.Port.StrVal, want.scheme, path)
				}
			}
		}
	}
}

func TestNetworkPoliciesOpenWhatIsNeeded(t *testing.T) {
	t.Parallel()
	m := renderProfile(t, "standard")
	for name, want := range map[string][]int32{
		"serve": {53, 53, 5353, 5353, 5432, 6379}, "relay": {53, 53, 5353, 5353, 5432, 9093, 443},
		"migrate": {53, 53, 5353, 5353, 5432},
	} {
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
				t.Errorf("%s: any pod may call the operator listener", name)
			}
		}
		if opens := map[string]int{"serve": 2, "relay": 1, "migrate": 0}[name]; len(p.Spec.Ingress) != opens {
			t.Errorf("%s has %d rules for callers, want %d", name, len(p.Spec.Ingress), opens)
		}
	}
}

// A load balancer has the addresses of clients, which are in no namespace.
func TestTheLoadBalancerReachesThePods(t *testing.T) {
	t.Parallel()
	m := renderProfile(t, "large")
	service := get[core.Service](t, m, "Service ").Spec
	clients := get[networking.NetworkPolicy](t, m, "NetworkPolicy -serve").Spec.Ingress[0]
	if service.Type != core.ServiceTypeLoadBalancer || service.ExternalTrafficPolicy != "Local" ||
		len(clients.From) == 0 || clients.From[0].IPBlock == nil {
		t.Errorf("%+v, %+v", service, clients)
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
	if endpoint.Port != service.Spec.Ports[0].Name || endpoint.RelabelConfigs[0].TargetLabel != "job" ||
		*endpoint.RelabelConfigs[0].Replacement != "authctl" {
		t.Errorf("Prometheus scrapes %+v", endpoint)
	}
}

func TestTheAutoscalerFollowsTheHashing(t *testing.T) {
	t.Parallel()
	scaler := get[autoscaling.HorizontalPodAutoscaler](t, renderProfile(t, "large"),
		"HorizontalPodAutoscaler -serve").Spec
	metric := scaler.Metrics[0].Pods
	if scaler.ScaleTargetRef.Name != "identity-authctl-serve" || metric.Metric.Name != "authctl_waiting_sign_ins" ||
		metric.Target.AverageValue.Value() != 4 || *scaler.MinReplicas != 6 || scaler.MaxReplicas != 60 {
		t.Errorf("%+v", scaler)
	}
}

// The chart's names are valid in a cluster for every release name that Helm allows.
func TestEveryReleaseNameMakesNamesThatAClusterTakes(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a1-", 17) + "zz" // 53 characters, the longest that Helm allows
	for release, want := range map[string]string{
		"identity": "identity-authctl", "authctl": "authctl", "my.authctl.eu": "my-authctl-eu",
		"team.identity": "team-identity-authctl",
		"2nd":           "authctl-2nd", "2.authctl": "authctl-2-authctl", long: strings.TrimSuffix(long[:50], "-"),
		strings.Repeat("a", 48) + "--b": strings.Repeat("a", 48), "2024": "authctl-2024", "1e3": "authctl-1e3",
		"0777": "authctl-0777", "true": "true-authctl", "null": "null-authctl",
	} {
		if err := chartutil.ValidateReleaseName(release); err != nil {
			t.Fatalf("%s: %v", release, err)
		}
		files, err := renderAs(release, values(t, "large"))
		if err != nil {
			t.Fatalf("%s: %v", release, err)
		}
		objects := decode(t, release, files)
		for key, object := range objects {
			name, labels := object.(meta.Object).GetName(), object.(meta.Object).GetLabels()
			if found := validation.IsDNS1035Label(name); len(found) > 0 || !strings.HasPrefix(name, want) {
				t.Errorf("%s: %s is called %s: %v", release, key, name, found)
			}
			if have := labels["app.kubernetes.io/instance"]; have != release {
				t.Errorf("%s: the instance of %s is %s", release, key, have)
			}
			for label, value := range labels {
				if found := validation.IsValidLabelValue(value); len(found) > 0 {
					t.Errorf("%s: the label %s of %s: %v", release, label, key, found)
				}
			}
		}
		if len(objects) < 9 {
			t.Errorf("%s: %d objects", release, len(objects))
		}
	}
}

// An upgrade must not change a Deployment's selector, nor the labels that it selects.
func TestSelectorsDoNotDependOnTheVersion(t *testing.T) {
	t.Parallel()
	selectors := func(change ...func(map[string]any)) (all []map[string]string) {
		m := renderProfile(t, "standard", change...)
		for _, name := range []string{"serve", "relay"} {
			all = append(all, get[apps.Deployment](t, m, "Deployment -"+name).Spec.Selector.MatchLabels)
		}
		return all
	}
	changed := selectors(func(v map[string]any) {
		v["image"] = map[string]any{"tag": "9.9.9"}
		v["podLabels"] = map[string]any{"team": "identity"}
		v["operator"] = map[string]any{"port": 9191}
	})
	if before := selectors(); !reflect.DeepEqual(before, changed) || len(before[0]) != 3 {
		t.Errorf("%v became %v", before, changed)
	}
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range selectors()[0] {
		if strings.Contains(value, c.Metadata.Version) {
			t.Errorf("the selector %s has the version", key)
		}
	}
}

// A release packs the whole chart with its version, including the alerts, which are a link in the
// repository.
func TestTheReleasePacksTheChart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "chart.tgz")
	if out, err := exec.CommandContext(t.Context(), "go", "run", "./package", "1.2.3",
		file).CombinedOutput(); err != nil {
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

// Helm takes a key with nothing below it, whose values are all comments, for null.
func TestLabelsAndAnnotationsMayBeLeftEmpty(t *testing.T) {
	t.Parallel()
	list := renderProfile(t, "standard", func(v map[string]any) { v["podAnnotations"], v["podLabels"] = nil, nil })
	for name, pod := range list.pods() {
		if len(pod.Annotations) != 1 || pod.Labels["app.kubernetes.io/name"] != "authctl" {
			t.Errorf("%s: %v, %v", name, pod.Annotations, pod.Labels)
		}
	}
}

// Values that cannot work are refused before the installation, with a message that says what to do.
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
		"'/relay': missing property 'secrets'": func(v map[string]any) {
			at(v, "relay")["secrets"] = nil
		},
		"'/relay': missing property 'settings'": func(v map[string]any) {
			at(v, "relay")["settings"] = nil
		},
		"'': missing property 'settings'": func(v map[string]any) {
			v["settings"] = nil
		},
		"'/networkPolicy': missing property 'enabled'": func(v map[string]any) {
			at(v, "networkPolicy")["enabled"] = nil
		},
		"'': missing property 'operator'": func(v map[string]any) { v["operator"] = nil },
		"app/drain_dealy":                 func(v map[string]any) { at(v, "settings", "app")["drain_dealy"] = "5s" },
		"settings/auth/password/bcrypt_cost": func(v map[string]any) {
			at(v, "settings", "auth", "password")["bcrypt_cost"] = 40
		},
		"settings/app/data_dir": func(v map[string]any) { at(v, "settings", "app")["data_dir"] = "/x" },
		"settings/redis/url": func(v map[string]any) {
			at(v, "settings", "redis")["url"] = "redis://x"
		},
		"serve/secrets/auth.token.sercet": func(v map[string]any) {
			at(v, "serve", "secrets")["auth.token.sercet"] = map[string]any{"name": "a", "key": "b"}
		},
		"serve/secrets/auth.token.secret": func(v map[string]any) {
			at(v, "serve", "secrets")["auth.token.secret"] = "written out"
		},
		"/env/0/name": func(v map[string]any) {
			v["env"] = []any{map[string]any{"name": "APP_PORT", "value": "1"}}
		},
		"replica": func(v map[string]any) { at(v, "serve")["replica"] = 3 },
		"serve has no signing secret": func(v map[string]any) {
			delete(at(v, "serve", "secrets"), "auth.token.secret")
		},
		"serve has no database":          func(v map[string]any) { delete(at(v, "settings"), "db") },
		"set settings.auth.token.issuer": func(v map[string]any) { delete(at(v, "settings"), "auth") },
		"would cut off requests": func(v map[string]any) {
			at(v, "settings", "app")["shutdown_timeout"] = "14s"
		},
		"would be lost with its pod": func(v map[string]any) { delete(at(v, "settings"), "kafka") },
		"set relay.replicas to 1": func(v map[string]any) {
			delete(at(v, "settings"), "kafka")
			at(v, "relay")["existingClaim"] = "x"
		},
		"or leave the claim out": func(v map[string]any) { at(v, "relay")["existingClaim"] = "x" },
		"kafka.brokers has kafka-0 without a port": func(v map[string]any) {
			at(v, "settings", "kafka")["brokers"] = []any{"kafka-0"}
		},
		"app.port is 0":        func(v map[string]any) { at(v, "settings", "app")["port"] = 0 },
		"serve/maxUnavailable": func(v map[string]any) { at(v, "serve")["maxUnavailable"] = "101%" },
		"serve/autoscaling/target": func(v map[string]any) {
			at(v, "serve", "autoscaling")["target"] = "0"
		},
		"externalTrafficPolicy is for": func(v map[string]any) {
			at(v, "serve", "service")["externalTrafficPolicy"] = "Local"
		},
		"/volumes/0/name": func(v map[string]any) {
			v["volumes"] = []any{map[string]any{"name": "secrets", "emptyDir": map[string]any{}}}
		},
		"/volumeMounts/0/mountPath": func(v map[string]any) {
			v["volumeMounts"] = []any{map[string]any{"name": "ca", "mountPath": "/data"}}
		},
		"app.port and operator.port are both 9090": func(v map[string]any) { at(v, "settings", "app")["port"] = 9090 },
		"podLabels has app.kubernetes.io/component": func(v map[string]any) {
			at(v, "podLabels")["app.kubernetes.io/component"] = "x"
		},
		"minReplicas is above maxReplicas": func(v map[string]any) {
			at(v, "serve")["autoscaling"] = map[string]any{"enabled": true, "minReplicas": 11}
		},
		"operator.serviceMonitor needs operator.exposed": func(v map[string]any) {
			at(v, "operator")["exposed"] = false
		},
		"operator.prometheusRule needs operator.exposed": func(v map[string]any) {
			at(v, "operator")["exposed"], at(v, "operator")["serviceMonitor"] = false, false
		},
	} {
		v := values(t, "standard")
		change(v)
		_, err := render(v)
		place := strings.ReplaceAll(want, "/", ".*")
		if err == nil || !regexp.MustCompile(`(?s)`+place).MatchString(err.Error()) {
			t.Errorf("want a message about %s: %v", want, err)
		}
		if errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}
