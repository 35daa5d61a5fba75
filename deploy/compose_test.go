// Package deploy tests the files of this folder: the compose files against the binary's settings,
// and the database roles with the running binary.
package deploy

import (
	"encoding/json"
	"fmt"
	"go/version"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"
)

type composeFile struct {
	Services map[string]service
	Networks map[string]struct{ Internal bool }
}

type service struct {
	Image       string
	Build       string
	Command     any
	Environment map[string]string
	Networks    []string
	Ports       []string
	Restart     string
	Healthcheck map[string]any
	ReadOnly    bool     `yaml:"read_only"`
	CapDrop     []string `yaml:"cap_drop"`
	Privileged  bool
	SecurityOpt []string `yaml:"security_opt"`
	StopGrace   string   `yaml:"stop_grace_period"`
}

// ours reports whether the service runs authctl.
func (s service) ours() bool { return s.Image == "authctl:local" }

func readCompose(t *testing.T, path string) (composeFile, string) {
	t.Helper()
	text := read(t, path)
	var file composeFile
	if err := yaml.Unmarshal([]byte(text), &file); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return file, text
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// variable is ${NAME}, ${NAME:-default} or ${NAME:?complaint} in a compose file.
var variable = regexp.MustCompile(`\$\{([A-Z_]+)(?:(:[-?])([^}]*))?\}`)

func TestComposeHasNoCredentialOfItsOwn(t *testing.T) {
	t.Parallel()
	file, text := readCompose(t, "../docker-compose.yml")
	demanded := map[string]bool{}
	for _, m := range variable.FindAllStringSubmatch(text, -1) {
		name, operator := m[1], m[2]
		if strings.Contains(name, "SECRET") || strings.Contains(name, "PASSWORD") {
			if operator == ":-" {
				t.Errorf("%s has a default in docker-compose.yml", name)
			}
			demanded[name] = demanded[name] || operator == ":?"
		}
	}
	for name, yes := range demanded {
		if !yes {
			t.Errorf("nothing stops docker compose when %s is not set", name)
		}
	}
	for name, s := range file.Services {
		for key, value := range s.Environment {
			if (strings.Contains(key, "SECRET") || strings.Contains(key, "PASSWORD")) && !variable.MatchString(value) {
				t.Errorf("%s: %s is written out", name, key)
			}
		}
	}

	var empty []string
	for line := range strings.Lines(read(t, "../.env.example")) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), "="); found && !strings.HasPrefix(name, "#") {
			if name == "AUTH_TOKEN_ISSUER" { // secrets have no value, and nothing that somebody could guess
				continue
			}
			if value != "" {
				t.Errorf("%s has a value in .env.example", name)
			}
			empty = append(empty, name)
		}
	}
	slices.Sort(empty)
	if want := slices.Sorted(maps.Keys(demanded)); !slices.Equal(empty, want) {
		t.Errorf(".env.example asks for %q, docker-compose.yml for %q", empty, want)
	}
}

func TestComposeServicesAreConfined(t *testing.T) {
	t.Parallel()
	file, _ := readCompose(t, "../docker-compose.yml")
	for name, s := range file.Services {
		if s.Privileged || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s may gain privileges", name)
		}
		if s.ours() && (!s.ReadOnly || !slices.Contains(s.CapDrop, "ALL")) {
			t.Errorf("%s may write to its image or keeps capabilities", name)
		}
		if s.Restart == "" {
			t.Errorf("%s does not say whether it is started again", name)
		}
		if s.Restart != "no" && !s.ours() && s.Healthcheck == nil { // our own services have one in the image
			t.Errorf("%s has no health check", name)
		}
		for _, port := range s.Ports {
			if port = interpolate(port, nil); !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s listens beyond this machine: %s", name, port)
			}
		}
	}
}

func TestImagesArePinnedAndTheSameEverywhere(t *testing.T) {
	t.Parallel()
	exact := regexp.MustCompile(`^[a-z/]+:[0-9]+\.[0-9]+(\.[0-9]+)?$`)
	images := map[string]string{} // image name to version
	for _, path := range []string{"../docker-compose.yml", "engines.yml"} {
		file, _ := readCompose(t, path)
		for name, s := range file.Services {
			if s.ours() {
				continue
			}
			if !exact.MatchString(s.Image) {
				t.Errorf("%s: %s runs %s, which is no exact version", path, name, s.Image)
			}
			image, _, _ := strings.Cut(s.Image, ":")
			if other, seen := images[image]; seen && other != s.Image {
				t.Errorf("%s: %s runs %s, elsewhere it is %s", path, name, s.Image, other)
			}
			images[image] = s.Image
		}
	}
	pom := regexp.MustCompile(`<artifactId>kafka_[^<]*</artifactId>\s*<version>([^<]*)<`).FindStringSubmatch(read(t,
		"kafka/pom.xml"))
	if pom == nil || images["apache/kafka"] != "apache/kafka:"+pom[1] {
		t.Errorf("the image is %s, the Maven artifacts are %q", images["apache/kafka"], pom)
	}
}

func TestTheImageIsBuiltWithAFittingGo(t *testing.T) {
	t.Parallel()
	wanted := regexp.MustCompile(`(?m)^go ([0-9.]+)$`).FindStringSubmatch(read(t, "../go.mod"))
	used := regexp.MustCompile(`golang:([0-9.]+)`).FindStringSubmatch(read(t, "../Dockerfile"))
	if wanted == nil || used == nil {
		t.Fatal("go.mod or Dockerfile has no version of Go")
	}
	if version.Compare("go"+used[1], "go"+wanted[1]) < 0 {
		t.Errorf("Dockerfile builds with Go %s, go.mod wants %s", used[1], wanted[1])
	}
}

// environmentNames are those of the settings that the binary has.
func environmentNames(t *testing.T) map[string]bool {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binary(t), "config", "show", "-o", "json").Output()
	if err != nil {
		t.Fatalf("authctl config show: %v", err)
	}
	var settings []struct{ Env string }
	if err := json.Unmarshal(out, &settings); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, s := range settings {
		known[s.Env] = true
	}
	return known
}

func TestComposeSetsOnlySettingsThatExist(t *testing.T) {
	t.Parallel()
	known := environmentNames(t)
	file, _ := readCompose(t, "../docker-compose.yml")
	for name, s := range file.Services {
		if !s.ours() {
			continue
		}
		for key := range s.Environment {
			if !known[key] {
				t.Errorf("%s: there is no setting %s", name, key)
			}
		}
	}
}

func TestTheImageAsksAuthctlWhetherItIsReady(t *testing.T) {
	t.Parallel()
	text := read(t, "../Dockerfile")
	if !regexp.MustCompile(`(?m)^HEALTHCHECK .*\\\n +CMD \["/usr/local/bin/authctl", "health"\]$`).MatchString(text) {
		t.Error("the health check of the image is not authctl health, which follows the settings")
	}
	if strings.Contains(text, "wget") || strings.Contains(text, "busybox") {
		t.Error("the image has another program than authctl")
	}
	file, _ := readCompose(t, "../docker-compose.yml")
	for name, s := range file.Services {
		if s.ours() && s.Healthcheck != nil {
			t.Errorf("%s has its own health check, but only that of the image follows the settings", name)
		}
	}
}

func TestComposeServesWithSettingsThatProductionModeAccepts(t *testing.T) {
	t.Parallel()
	file, _ := readCompose(t, "../docker-compose.yml")
	secrets := map[string]string{
		"AUTH_TOKEN_ISSUER": "https://auth.example.com", "AUTH_TOKEN_SECRET": strings.Repeat("s",
			64), "DB_SERVE_PASSWORD": "p", "CACHE_REDIS_PASSWORD": "p",
	}
	cmd := exec.CommandContext(t.Context(), binary(t), "config", "check")
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"HOME=" + cmd.Dir}
	for key, value := range file.Services["serve"].Environment {
		cmd.Env = append(cmd.Env, key+"="+interpolate(value, secrets))
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// The secrets of webhooks and the contents of mails are sealed with the servers' secret, and
// receivers are outside of the internal network.
func TestComposeRelaysCanSendWebhooksAndMails(t *testing.T) {
	t.Parallel()
	file, _ := readCompose(t, "../docker-compose.yml")
	relay, serve := file.Services["relay"], file.Services["serve"]
	values := map[string]string{"AUTH_TOKEN_SECRET": "s", "AUTH_TOKEN_ISSUER": "https://auth.example.com"}
	for name, want := range values {
		relays, serves := interpolate(relay.Environment[name], values), interpolate(serve.Environment[name], values)
		if relays != want || serves != want {
			t.Errorf("%s is %q for relays and %q for serve", name, relays, serves)
		}
	}
	if !slices.ContainsFunc(relay.Networks, func(name string) bool { return !file.Networks[name].Internal }) {
		t.Errorf("relays reach nothing outside: %q", relay.Networks)
	}
}

func interpolate(text string, values map[string]string) string {
	return variable.ReplaceAllStringFunc(text, func(v string) string {
		m := variable.FindStringSubmatch(v)
		if value := values[m[1]]; value != "" || m[2] != ":-" {
			return value
		}
		return m[3]
	})
}

// scratch is a folder that exists while the test binary runs.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "authctl-deploy-test-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

var build = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "authctl")
	out, err := exec.Command("go", "build", "-o", path, "../cmd/authctl").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return path, err
})

// binary builds authctl, once for all tests.
func binary(t *testing.T) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatalf("build authctl: %v", err)
	}
	return path
}
