package config

import (
	"bytes"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

const yamlHead = `# Every setting with its default. Keep the groups; remove the # in front of a setting to
# change it. An unknown name is refused.
#
# The environment overrides this file, under the name given with each setting, and flags
# override both. Keep secrets out of this file: NAME_FILE in the environment
# names a file that holds one.
`

// YAML returns a settings file that documents every setting of the struct that target
// points to. Each setting is commented out at its default, so that a copy of the file does not
// pin today's defaults.
func YAML(target any) ([]byte, error) {
	s, err := schemaOf(target)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(yamlHead)
	for _, top := range s.tree() {
		b.WriteByte('\n')
		if err := top.writeYAML(&b, 0); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// Markdown returns the reference of every setting of the struct that target points to:
// how settings are given, and a table for each group at the top.
func Markdown(target any) ([]byte, error) {
	s, err := schemaOf(target)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(markdownHead)
	for _, top := range s.tree() {
		fmt.Fprintf(&b, "\n## %s\n\n", top.name)
		b.WriteString("| Setting | Environment | Type | Default | Meaning |\n|---|---|---|---|---|\n")
		top.writeRows(&b)
	}
	return b.Bytes(), nil
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

Durations have a unit: ` + "`300ms`, `90s`, `15m`, `720h`" + `. Lists are separated by commas, without brackets and quotes; in the file they may be YAML lists. Quotes around a value of the environment, and white space at an end of one, are refused, except for secrets.

Settings are checked at start, and all errors are reported together: unknown or repeated names, wrong types, values that are not allowed.
`

// branch is a setting, or a group of them in the order in which they first appear.
type branch struct {
	name     string
	key      *key // nil for a group
	children []*branch
}

// tree gathers the settings under their groups, which the structs may interleave.
func (s *schema) tree() []*branch {
	root := &branch{}
	for _, k := range s.keys {
		at := root
		for part := range strings.SplitSeq(k.Path, ".") {
			at = at.child(part)
		}
		at.key = k
	}
	return root.children
}

func (b *branch) child(name string) *branch {
	for _, c := range b.children {
		if c.name == name {
			return c
		}
	}
	c := &branch{name: name}
	b.children = append(b.children, c)
	return c
}

func (b *branch) writeYAML(w *bytes.Buffer, depth int) error {
	indent := strings.Repeat("  ", depth)
	if b.key == nil {
		fmt.Fprintf(w, "%s%s:\n", indent, b.name)
		for i, c := range b.children {
			if i > 0 {
				w.WriteByte('\n')
			}
			if err := c.writeYAML(w, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	k := b.key
	for _, line := range wrap(k.Doc, 92-len(indent)) {
		fmt.Fprintf(w, "%s# %s\n", indent, line)
	}
	facts := append([]string{k.Env}, k.kind(func(s string) string { return s })...)
	for _, line := range wrap(strings.Join(facts, " · "), 92-len(indent)) {
		fmt.Fprintf(w, "%s# %s\n", indent, line)
	}
	value, err := k.yamlDefault()
	if err != nil {
		return fmt.Errorf("default of %s: %w", k.Path, err)
	}
	fmt.Fprintf(w, "%s#%s: %s\n", indent, b.name, value)
	return nil
}

func (b *branch) writeRows(w *bytes.Buffer) {
	if b.key == nil {
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
	def := "empty"
	if text := k.defaultText(); text != "" {
		def = "`" + text + "`"
	}
	kind := strings.Join(k.kind(func(s string) string { return "`" + s + "`" }), ", ")
	cells := []string{"`" + k.Path + "`", env, kind, def, k.Doc}
	for i, cell := range cells {
		cells[i] = strings.ReplaceAll(cell, "|", `\|`)
	}
	fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
}

// kind is the type and the limits in words; code marks what is written literally.
func (k *key) kind(code func(string) string) []string {
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
		words = append(words, choice(shown))
	}
	return words
}

// defaultText is the default as a person would write it, the zero value's included.
func (k *key) defaultText() string {
	if k.Default != "" {
		return k.Default
	}
	value, _ := k.parse(k.fallback())
	return show(value)
}

// yamlDefault is the default as YAML that loads as what it is.
func (k *key) yamlDefault() (string, error) {
	value, problem := k.parse(k.fallback())
	if problem != "" {
		return "", fmt.Errorf("it %s", problem)
	}
	node := yaml.Node{Kind: yaml.ScalarNode, Value: k.defaultText()}
	switch {
	case isList(k.typ):
		node = yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for i := range value.Len() {
			node.Content = append(node.Content, textNode(show(value.Index(i))))
		}
	case k.Type == "text", k.Secret:
		node = *textNode(k.Default)
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	if err := enc.Encode(&node); err != nil {
		return "", err
	}
	return strings.TrimSpace(b.String()), nil
}

// textNode is a YAML string, in quotes when it would read as something else without.
func textNode(text string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(text)
	n.Tag = "!!str"
	return n
}

// wrap breaks text into lines of at most width bytes, where there are spaces to break at.
func wrap(text string, width int) []string {
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
