package deploy

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// workflow is the part of GitHub's workflow format that ours use. deploy/lint.sh has actionlint
// check the rest.
type workflow struct {
	Name        string
	On          any
	Permissions map[string]string
	Concurrency any
	Env         map[string]string
	Jobs        map[string]job
}

type job struct {
	Strategy    any
	Needs       string
	RunsOn      string `yaml:"runs-on"`
	Timeout     int    `yaml:"timeout-minutes"`
	Permissions map[string]string
	Env         map[string]string
	Steps       []step
}

type step struct {
	ID, Name, If, Uses, Run string
	With, Env               map[string]string
	WorkingDirectory        string `yaml:"working-directory"`
}

func readWorkflow(t *testing.T, path string) workflow {
	t.Helper()
	decoder := yaml.NewDecoder(bytes.NewReader([]byte(read(t, path))))
	decoder.KnownFields(true)
	var w workflow
	if err := decoder.Decode(&w); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return w
}

// runs is all the shell that the steps of a job run.
func (j job) runs() string {
	text := ""
	for _, s := range j.Steps {
		text += s.Run + "\n"
	}
	return text
}

func (j job) uses(action string) bool {
	return slices.ContainsFunc(j.Steps, func(s step) bool { return strings.HasPrefix(s.Uses, action+"@") })
}

func TestWorkflowsAreSound(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../.github/workflows/*.yml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%q, %v", files, err)
	}
	pinned := regexp.MustCompile(`uses: [a-z/-]+@[0-9a-f]{40} # v[0-9.]+\n`)
	script := regexp.MustCompile(`(?:\./)?(deploy/[a-z]+\.sh|\.ci/run)`)
	for _, file := range files {
		w := readWorkflow(t, file)
		if w.Permissions == nil || len(w.Permissions) > 0 {
			t.Errorf("%s: its jobs have rights that they do not name", file)
		}
		text := read(t, file)
		if all := strings.Count(text, "uses: "); all != len(pinned.FindAllString(text, -1)) {
			t.Errorf("%s: an action is not pinned to a commit, with its version", file)
		}
		for name, j := range w.Jobs {
			if j.Timeout == 0 || j.RunsOn == "" || j.Permissions["contents"] == "" {
				t.Errorf("%s: %s has no timeout, no machine or no permissions", file, name)
			}
			for _, s := range j.Steps {
				if (s.Uses == "") == (s.Run == "") {
					t.Errorf("%s: a step of %s runs %q and uses %q", file, name, s.Run, s.Uses)
				}
				for _, m := range script.FindAllStringSubmatch(s.Run, -1) {
					if info, err := os.Stat("../" + m[1]); err != nil || info.Mode()&0o111 == 0 {
						t.Errorf("%s: %s runs %s: %v", file, name, m[1], err)
					}
				}
				// Values from outside reach a script as shell variables, never as part of its text.
				if strings.Contains(s.Run, "${{") {
					t.Errorf("%s: %s writes an expression into a script: %s", file, name, s.Run)
				}
			}
		}
	}
}

func TestAReleaseSaysHowItWasBuilt(t *testing.T) {
	t.Parallel()
	jobs := readWorkflow(t, "../.github/workflows/release.yml").Jobs
	for _, name := range []string{"release", "image"} {
		j := jobs[name]
		if j.Needs != "test" || !strings.Contains(jobs["test"].runs(), ".ci/run") {
			t.Errorf("%s does not wait for the tests", name)
		}
		if !j.uses("actions/attest-build-provenance") || j.Permissions["id-token"] != "write" ||
			j.Permissions["attestations"] != "write" {
			t.Errorf("%s does not say how it was built", name)
		}
	}
	if len(jobs["test"].Permissions) != 1 || jobs["test"].Permissions["contents"] != "read" {
		t.Errorf("the tests may %v", jobs["test"].Permissions)
	}
	image := jobs["image"].runs()
	for _, want := range []string{"--platform linux/amd64,linux/arm64", "--provenance mode=max", "--sbom true",
		`sign --yes --recursive "$IMAGE@$DIGEST"`} {
		if !strings.Contains(image, want) {
			t.Errorf("the image is made without %s", want)
		}
	}
}

func TestTheImageIsForEveryPlatformAndSaysWhatItIs(t *testing.T) {
	t.Parallel()
	text := read(t, "../Dockerfile")
	for _, want := range []string{"FROM --platform=$BUILDPLATFORM golang:",
		"GOOS=$TARGETOS GOARCH=$TARGETARCH deploy/build.sh"} {
		if !strings.Contains(text, want) {
			t.Errorf("Dockerfile lacks %s", want)
		}
	}
	_, last, _ := strings.Cut(text, "\nFROM gcr.io/distroless")
	for _, label := range []string{"title", "description", "source", "documentation", "licenses", "version",
		"revision"} {
		if !regexp.MustCompile(`org\.opencontainers\.image\.` + label + `="[^"]+"`).MatchString(last) {
			t.Errorf("the image has no label %s", label)
		}
	}
	runs := readWorkflow(t, "../.github/workflows/release.yml").Jobs["image"].runs()
	for _, m := range regexp.MustCompile(`--build-arg ([A-Z]+)=`).FindAllStringSubmatch(runs, -1) {
		if !regexp.MustCompile(`(?m)^ARG .*\b` + m[1] + `=`).MatchString(last) {
			t.Errorf("the release sets %s, which Dockerfile does not take", m[1])
		}
	}
}
