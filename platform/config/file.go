package config

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/joho/godotenv"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// strictYAML is the decoder that Viper reads the settings file with. Viper's own would
// lower-case keys, keep the last of two, and lose lines and types. It leaves a [raw] at each
// known path and reports everything else as a fault.
type strictYAML struct {
	loader *loader
	name   string // of the file, for the faults
}

func (d strictYAML) Decoder(string) (viper.Decoder, error) { return d, nil }

// Decode fills settings. It never fails: what is wrong is among the loader's faults.
func (d strictYAML) Decode(data []byte, settings map[string]any) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	err := dec.Decode(&doc)
	switch {
	case errors.Is(err, io.EOF), err == nil && len(doc.Content) == 0:
		return nil
	case err != nil:
		d.loader.broken = true
		d.loader.fault("", d.name, "is not valid YAML: %s", yamlProblem(err))
		return nil
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		d.loader.broken = true
		d.loader.fault("", d.name, "holds more than one YAML document, or something after its end")
		return nil
	}
	found := map[string]raw{}
	switch root := doc.Content[0]; {
	case root.Kind == yaml.MappingNode:
		d.group(root, "", found)
	case isNull(root):
	default:
		d.loader.broken = true
		d.loader.fault("", d.at(root), "must begin with the name of a setting or a group")
	}
	for name, value := range nest(found) {
		settings[name] = value
	}
	return nil
}

// group reads a mapping whose keys all begin with prefix.
func (d strictYAML) group(node *yaml.Node, prefix string, found map[string]raw) {
	first := map[string]int{} // key → line
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		path, at := join(prefix, name.Value), d.at(name)
		shown := path
		if !pathPattern.MatchString(path) {
			shown = join(prefix, quote(name.Value))
		}
		if name.Kind != yaml.ScalarNode || name.Tag == "!!merge" || value.Kind == yaml.AliasNode || value.Anchor != "" {
			d.loader.fault(shown, at, "uses an anchor, an alias, a merge or a composite key of YAML, which are not "+
				"supported; a value that begins with & or * must be in quotes")
			continue
		}
		if line, seen := first[name.Value]; seen {
			d.loader.fault(shown, at, "is set twice, first on line %d", line)
			continue
		}
		first[name.Value] = name.Line

		k, isGroup := d.loader.schema.byPath[path], d.loader.schema.groups[path]
		switch {
		case strings.Contains(name.Value, ".") && (k != nil || isGroup):
			d.loader.fault(shown, at, "must be written with each name on a line of its own, indented, instead of dots")
		case isGroup && value.Kind == yaml.MappingNode:
			d.group(value, path, found)
		case isGroup && !isNull(value):
			d.loader.fault(path, at, "is a group of settings, not a value")
		case isGroup:
		case k == nil:
			d.loader.fault(shown, at, "%s", d.loader.unknown(path))
		case isNull(value): // as an empty variable of the environment: not set
		default:
			found[path] = d.value(k, value, at)
		}
	}
}

func (d strictYAML) value(k *key, node *yaml.Node, at string) raw {
	r := d.scalar(node, at)
	wanted := article(k.Type)
	if k.Secret {
		wanted = "text"
	}
	switch {
	case node.Kind == yaml.MappingNode:
		r.problem = "must be " + wanted + ", not a group of settings"
	case node.Kind == yaml.SequenceNode && !isList(k.typ):
		r.problem = "must be " + wanted + ", not a list"
	case node.Kind == yaml.SequenceNode:
		r.form = formList
		for i, item := range node.Content {
			element := d.scalar(item, at)
			if item.Kind != yaml.ScalarNode || item.Anchor != "" || isNull(item) {
				element.problem = "must be a plain value"
			}
			if element.problem != "" && r.problem == "" {
				r.problem = "(element " + strconv.Itoa(i+1) + ") " + element.problem
			}
			r.list = append(r.list, element)
		}
	}
	return r
}

func (d strictYAML) scalar(node *yaml.Node, at string) raw {
	r := raw{text: node.Value, source: at}
	if node.Kind != yaml.ScalarNode {
		return r
	}
	switch node.Tag {
	case "!!str", "!!timestamp": // a date is text to every setting there is
		r.form = formString
	case "!!int":
		r.form = formInt
	case "!!float":
		r.form = formFloat
	case "!!bool":
		r.form = formBool
	case "!!null":
	default:
		r.problem = "has a YAML tag, which is not supported; if the value begins with !, put it in quotes"
	}
	return r
}

func (d strictYAML) at(node *yaml.Node) string { return d.name + ":" + strconv.Itoa(node.Line) }

func isNull(node *yaml.Node) bool { return node.Kind == yaml.ScalarNode && node.Tag == "!!null" }

// yamlProblem is the parser's own words, without the only ones that quote the file: an
// unquoted password with a star in front is an unknown anchor to it.
func yamlProblem(err error) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if before, _, quotes := strings.Cut(text, "unknown anchor"); quotes {
		return before + "a value that begins with * must be in quotes"
	}
	return oneLine(text)
}

// readDotEnv returns the variables of a .env file, none when there is no such file.
func (l *loader) readDotEnv(path string) map[string]string {
	data, err := readLimited(path, maxFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		l.fault("", path, "cannot be read: %s", plain(err))
		return nil
	}
	data = bytes.TrimPrefix(data, []byte(byteOrderMark))
	vars, err := godotenv.UnmarshalBytes(data)
	if err != nil {
		// Its words quote the file from the mistake on, secrets and all; the line is found
		// without them.
		l.fault("", path+":"+strconv.Itoa(dotEnvLine(data)), "cannot be understood as NAME=value")
		return nil
	}
	l.faultLostDollars(path, data, vars)
	return vars
}

// dotEnvReference is how a value of a .env file refers to an earlier variable of the file. A
// backslash in front takes the meaning away.
var dotEnvReference = regexp.MustCompile(`(\\)?\$\(?\{?([A-Z0-9_]+)`)

// faultLostDollars finds values from which the parser took something: it replaces $NAME by nothing
// where the file has no NAME, as in a password with a dollar or for a variable of the environment.
func (l *loader) faultLostDollars(path string, data []byte, vars map[string]string) {
	const mark = "\x01" // not a dollar, so that the parser keeps it
	kept, err := godotenv.UnmarshalBytes(bytes.ReplaceAll(data, []byte("$"), []byte(mark)))
	if err != nil {
		return
	}
	for _, k := range l.schema.keys {
		for _, name := range []string{k.Env, k.Env + "_FILE"} {
			text := strings.ReplaceAll(kept[name], mark, "$")
			lost := text != vars[name] &&
				slices.ContainsFunc(dotEnvReference.FindAllStringSubmatch(text, -1), func(found []string) bool {
					_, set := vars[found[2]]
					return found[1] == "" && !set
				})
			if lost { // the name after the dollar may be part of a secret
				l.fault(k.Path, path+" "+name, "refers with $ to a variable that the file does not set, so nothing "+
					"would be in its place; in single quotes a $ stays as it is")
			}
		}
	}
}

// dotEnvLine finds the line of a .env file from which on it cannot be parsed: the one after
// the longest beginning that can, give or take values of many lines.
func dotEnvLine(data []byte) int {
	lines := bytes.SplitAfter(data, []byte("\n"))
	const longest = 100 // lines of one quoted value that are tried
	for start := 0; start < len(lines); {
		end := start + 1
		for ; end <= len(lines) && end-start <= longest; end++ {
			if _, err := godotenv.UnmarshalBytes(bytes.Join(lines[start:end], nil)); err == nil {
				break
			}
		}
		if end > len(lines) || end-start > longest {
			return start + 1
		}
		start = end
	}
	return len(lines)
}
