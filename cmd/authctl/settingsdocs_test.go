package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

const yamlHead = `# Every setting with its default. Keep the groups; remove the # in front of a setting to
# change it. An unknown name is refused.
#
# The environment overrides this file, under the name given with each setting, and flags
# override both. Keep secrets out of this file: NAME_FILE in the environment
# names a file that holds one.
`

// settingsYAML is a settings file that documents every setting. Each is commented out at its default, so that a copy
// of the file does not pin today's defaults.
func settingsYAML(t *testing.T, keys []config.Key) []byte {
	var b bytes.Buffer
	b.WriteString(yamlHead)
	for _, top := range settingsTree(keys) {
		b.WriteByte('\n')
		top.writeYAML(t, &b, 0)
	}
	return b.Bytes()
}

// settingsMarkdown is the reference: how settings are given, and a table for each group at the top.
func settingsMarkdown(_ *testing.T, keys []config.Key) []byte {
	var b bytes.Buffer
	b.WriteString(markdownHead)
	for _, top := range settingsTree(keys) {
		fmt.Fprintf(&b, "\n## %s\n\n", top.name)
		b.WriteString("| Setting | Environment | Type | Default | Meaning |\n|---|---|---|---|---|\n")
		top.writeRows(&b)
	}
	return b.Bytes()
}

const markdownHead = `# Configuration

Settings come from these layers; later ones override earlier ones:

1. the defaults below;
2. the settings file: the file in ` + "`--config`" + `, or ` + "`config.yaml`" + ` in the working folder if it exists;
3. ` + "`.env`" + ` in the working folder, only in dev mode (` + "`NAME=value`" + ` lines; ` + "`$NAME`" + ` is an earlier line's value, except in single quotes);
4. the environment;
5. flags.

The environment name of a setting is its path in capitals with ` + "`_`" + ` for the dots. An empty variable counts as unset, and so does a name without a value in the file.

A secret may be in a file that ` + "`NAME_FILE`" + ` names. White space around a secret is no part of it, nor is a byte order mark at its beginning. ` + "`NAME`" + ` and ` + "`NAME_FILE`" + ` together are refused, and so is ` + "`NAME_FILE`" + ` for a setting that is not a secret.

Durations have a unit: ` + "`300ms`, `90s`, `15m`, `720h`" + `. Lists are separated by commas, without brackets and quotes; in the file they may be YAML lists. Quotes around a value of the environment, and white space at an end of one, are refused, except for secrets. White space around an element of a list is ignored, but a list of commas and white space alone is refused.

Settings are checked at start, and all errors are reported together: unknown or repeated names, wrong types, values that are not allowed.
`

// branch is a setting, or a group of them in the order in which they first appear.
type branch struct {
	name     string
	key      config.Key // without a path: it is a group
	children []*branch
}

// settingsTree gathers the settings under their groups, which the structs may interleave.
func settingsTree(keys []config.Key) []*branch {
	root := &branch{}
	for _, k := range keys {
		at := root
		for part := range strings.SplitSeq(k.Path, ".") {
			i := slices.IndexFunc(at.children, func(c *branch) bool { return c.name == part })
			if i < 0 {
				i, at.children = len(at.children), append(at.children, &branch{name: part})
			}
			at = at.children[i]
		}
		at.key = k
	}
	return root.children
}

func (b *branch) writeYAML(t *testing.T, w *bytes.Buffer, depth int) {
	indent := strings.Repeat("  ", depth)
	if b.key.Path == "" {
		fmt.Fprintf(w, "%s%s:\n", indent, b.name)
		for i, c := range b.children {
			if i > 0 {
				w.WriteByte('\n')
			}
			c.writeYAML(t, w, depth+1)
		}
		return
	}
	for _, line := range wrapBytes(b.key.Doc, 92-len(indent)) {
		fmt.Fprintf(w, "%s# %s\n", indent, line)
	}
	facts := append([]string{b.key.Env}, kindOf(b.key, func(s string) string { return s })...)
	for _, line := range wrapBytes(strings.Join(facts, " · "), 92-len(indent)) {
		fmt.Fprintf(w, "%s# %s\n", indent, line)
	}
	fmt.Fprintf(w, "%s#%s: %s\n", indent, b.name, yamlDefault(t, b.key))
}

func (b *branch) writeRows(w *bytes.Buffer) {
	if b.key.Path == "" {
		for _, c := range b.children {
			c.writeRows(w)
		}
		return
	}
	k := b.key
	env := "`" + k.Env + "`"
	if k.Secret {
		env += ", `" + k.Env + "_FILE`"
	}
	value := "empty"
	if text := cmp.Or(k.Default, k.Value); text != "" {
		value = "`" + text + "`"
	}
	kind := strings.Join(kindOf(k, func(s string) string { return "`" + s + "`" }), ", ")
	cells := []string{"`" + k.Path + "`", env, kind, value, k.Doc}
	for i, cell := range cells {
		cells[i] = strings.ReplaceAll(cell, "|", `\|`)
	}
	fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
}

// kindOf is the type and the limits in words; code marks what is written literally.
func kindOf(k config.Key, code func(string) string) []string {
	words := []string{k.Type}
	switch {
	case k.Min != "" && k.Max != "":
		words = append(words, code(k.Min)+" to "+code(k.Max))
	case k.Min != "":
		words = append(words, code(k.Min)+" or more")
	case k.Max != "":
		words = append(words, code(k.Max)+" or less")
	}
	if k.OneOf != nil {
		shown := make([]string, len(k.OneOf))
		for i, v := range k.OneOf {
			if shown[i] = "empty"; v != "" {
				shown[i] = code(v)
			}
		}
		last := len(shown) - 1
		words = append(words, strings.Join(shown[:last], ", ")+" or "+shown[last])
	}
	return words
}

// yamlDefault is the default as YAML that loads as what it is.
func yamlDefault(t *testing.T, k config.Key) string {
	node := &yaml.Node{Kind: yaml.ScalarNode, Value: cmp.Or(k.Default, k.Value)}
	switch k.Type {
	case "list":
		node = &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for text := range strings.FieldsFuncSeq(k.Default, func(r rune) bool { return r == ',' }) {
			node.Content = append(node.Content, textNode(text))
		}
	case "text", "secret":
		node = textNode(k.Default)
	}
	text, err := yaml.Marshal(node)
	if err != nil {
		t.Fatalf("the default of %s: %v", k.Path, err)
	}
	return strings.TrimSpace(string(text))
}

// textNode is a YAML string, in quotes when it would read as something else without.
func textNode(text string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(text)
	n.Tag = "!!str"
	return n
}

// wrapBytes breaks text into lines of at most width bytes, where there are spaces to break at.
func wrapBytes(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// documented has defaults that are hard to write in YAML.
type documented struct {
	settings
	Colon  string   `config:"odd.colon" default:"a: b #c" doc:"Needs quotes."`
	Number string   `config:"odd.number" default:"0123" doc:"Text that looks like a number."`
	Yes    string   `config:"odd.yes" default:"true" doc:"Text that looks like a truth."`
	Stars  []string `config:"odd.stars" default:"*,127.0.0.1:9092,1" doc:"Elements that look like something else."`
	Late   int      `config:"app.late" doc:"Of a group that came earlier."`
}

func TestTheDocumentedFileLoadsAsTheDefaults(t *testing.T) {
	t.Parallel()
	text := string(settingsYAML(t, config.Keys(&documented{})))
	load := func(text string) *documented {
		t.Helper()
		d, path := &documented{}, filepath.Join(t.TempDir(), "config.yaml")
		testenv.Must(t, os.WriteFile(path, []byte(text), 0o600))
		if err := config.Load(d, config.Options{File: path}); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		return d
	}
	defaults, asWritten := load(""), load(text)
	if !reflect.DeepEqual(asWritten, defaults) {
		t.Errorf("the documented file gives %+v, want %+v", asWritten, defaults)
	}
	// Without the # before each name, all settings come from the file.
	every := load(regexp.MustCompile(`(?m)^( *)#(\w)`).ReplaceAllString(text, "$1$2"))
	for path, source := range every.Sources {
		if source == "default" {
			t.Errorf("%s is not in the documented file", path)
		}
	}
	every.Sources = defaults.Sources
	for i, k := range config.Keys(every) {
		if want := config.Keys(defaults)[i]; !reflect.DeepEqual(k, want) {
			t.Errorf("the file gives %+v, want %+v", k, want)
		}
	}
}
