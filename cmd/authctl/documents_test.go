package main

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

func TestTheTagsOfTheSettingsAreSound(t *testing.T) {
	t.Parallel()
	if err := config.Check(&settings{}); err != nil {
		t.Error(err)
	}
}

func TestTheDocumentsOfTheSettingsAreUpToDate(t *testing.T) {
	t.Parallel()
	for path, write := range map[string]func(*testing.T, []config.Key) []byte{
		"../../config.yaml":           settingsYAML,
		"../../docs/configuration.md": settingsMarkdown,
	} {
		want := write(t, config.Keys(&settings{}))
		if *update {
			testenv.Must(t, os.WriteFile(path, want, 0o644))
			continue
		}
		have, err := os.ReadFile(path)
		testenv.Must(t, err)
		if !bytes.Equal(have, want) {
			t.Errorf("%s is out of date; write it again with: go test ./cmd/authctl -run Documents -update", path)
		}
	}
}

func TestNoSettingIsCalledRemoved(t *testing.T) {
	t.Parallel()
	for _, key := range config.Keys(&settings{}) {
		if now := removedSettings()[key.Path]; now != "" {
			t.Errorf("%s is a setting, and the list of removed ones says of it: %s", key.Path, now)
		}
	}
}

func TestTheSettingsFileOfTheRepositorySetsNothing(t *testing.T) {
	t.Parallel()
	var file, none settings
	testenv.Must(t, config.Load(&file, config.Options{File: "../../config.yaml"}))
	testenv.Must(t, config.Load(&none, config.Options{File: os.DevNull}))
	want := config.Keys(&none)
	for i, key := range config.Keys(&file) {
		if key.Value != want[i].Value || key.Source != "default" {
			t.Errorf("%s is %q from %s", key.Path, key.Value, key.Source)
		}
	}
}

// everyCommand calls fn with the root and with each command below it.
func everyCommand(cmd *cobra.Command, fn func(*cobra.Command)) {
	fn(cmd)
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			everyCommand(sub, fn)
		}
	}
}

// authctl session revoke --user "$USER_ID" must not mean all users when the variable is unset.
func TestAFlagWithoutAValueIsAMisuse(t *testing.T) {
	t.Parallel()
	everyCommand(newRoot(), func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() != "string" {
				return
			}
			args := strings.Fields(cmd.CommandPath())[1:]
			for range strings.Count(cmd.Use, " ") {
				args = append(args, "x")
			}
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), append(args, "--"+f.Name+"="), nil, &stdout, &stderr); code != exitMisused {
				t.Errorf("%s --%s= ends with %d: %s", cmd.CommandPath(), f.Name, code, stderr.String())
			}
		})
	})
}

func TestEveryHelpPageTeaches(t *testing.T) {
	t.Parallel()
	everyCommand(newRoot(), func(cmd *cobra.Command) {
		path := strings.Fields(cmd.CommandPath())[1:]
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), append(path, "--help"), nil, &stdout, &stderr); code != exitDone ||
			stderr.Len() > 0 {
			t.Errorf("%v --help: exit code %d, %s", path, code, &stderr)
		}
		page := stdout.String()
		for _, part := range []string{cmd.Short, "Usage:", "Examples:\n" + cmd.Example} {
			if part == "" || !strings.Contains(page, part) && (cmd.Long == "" || part != cmd.Short) {
				t.Errorf("the help page of %v lacks %q", path, part)
			}
		}
		if !strings.Contains(cmd.Example, cmd.CommandPath()) && cmd.HasParent() && !cmd.HasSubCommands() {
			t.Errorf("the examples of %v show another command: %s", path, cmd.Example)
		}
		for line := range strings.Lines(page) {
			if len([]rune(line)) > 160 {
				t.Errorf("a line of the help page of %v is too long: %s", path, line)
			}
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%v: --%s is not explained", path, f.Name)
			}
		})
	})
}

// Each line of an example must parse, including the names of its flags and the number of its
// arguments.
func TestEveryExampleIsALineThatWorks(t *testing.T) {
	t.Parallel()
	everyCommand(newRoot(), func(cmd *cobra.Command) {
		for line := range strings.Lines(strings.ReplaceAll(cmd.Example, "\\\n", " ")) {
			calls := authctlCalls(line)
			if len(calls) == 0 {
				t.Errorf("an example of %q calls nothing: %s", cmd.CommandPath(), line)
			}
			for _, words := range calls {
				root := newRoot()
				target, rest, err := root.Find(words)
				if err != nil {
					t.Errorf("%s: %v", line, err)
					continue
				}
				if err := target.ParseFlags(rest); errors.Is(err, pflag.ErrHelp) {
					continue
				} else if err != nil {
					t.Errorf("%s: %v", line, err)
					continue
				}
				args := target.Flags().Args()
				if strings.Contains(line, "xargs") { // xargs adds an argument
					if !strings.Contains(line, "xargs -r") {
						t.Errorf("%s: without -r it is misused where nothing is listed", line)
					}
					if err := target.ValidateArgs(append(args, "one")); err == nil {
						continue
					}
				}
				if target.Args != nil {
					if err := target.ValidateArgs(args); err != nil {
						t.Errorf("%s: %v", line, err)
					}
				}
				if target.HasSubCommands() && target.HasParent() && target.Name() != "completion" {
					t.Errorf("%s: it names a group, not a command", line)
				}
			}
		}
	})
}

var (
	separators = regexp.MustCompile(`[|()<>;]`)
	quoted     = regexp.MustCompile(`'[^']*'|"[^"]*"`)
)

// authctlCalls returns the words after each authctl of a shell line.
func authctlCalls(line string) (calls [][]string) {
	line = quoted.ReplaceAllString(line, "quoted")
	for part := range strings.SplitSeq(separators.ReplaceAllString(line, "|"), "|") {
		if _, words, found := strings.Cut(" "+part, " authctl"); found {
			calls = append(calls, strings.Fields(words))
		}
	}
	return calls
}

func TestCompletionKnowsEveryCommand(t *testing.T) {
	t.Parallel()
	everyCommand(newRoot(), func(cmd *cobra.Command) {
		if !cmd.HasSubCommands() {
			return
		}
		var stdout, stderr bytes.Buffer
		run(t.Context(), append([]string{"__complete"}, append(strings.Fields(cmd.CommandPath())[1:], "")...), nil,
			&stdout, &stderr)
		for _, sub := range cmd.Commands() {
			if !sub.Hidden && !strings.Contains(stdout.String(), sub.Name()+"\t") {
				t.Errorf("%s is not completed with %s", cmd.CommandPath(), sub.Name())
			}
		}
	})
}
