// Package config fills a settings struct from its layers and refuses what it cannot
// understand.
//
// A setting is a struct field with tags, declared in the package that uses it:
//
//	Port int `config:"app.port" default:"8080" min:"1" max:"65535" doc:"Port of the API."`
//
// A struct field with a config tag prefixes the paths of its children; one without, embedded
// or not, is transparent. A struct may have a method Validate(report func(path, problem
// string)) for rules between settings; it sees the values and names paths the way the
// struct's own tags do. A method CheckFiles of the same form opens the files that settings name
// (see [CheckFiles]).
//
// The layers, each overriding the ones before: defaults from the tags, the YAML file, .env (in
// dev mode), the environment, flags. The environment name of a setting is its path in capitals
// with _ for the dots, and an empty variable counts as unset. NAME_FILE names a file that holds a
// secret. White space around a secret is not part of it, because editors, echo and base64 may
// leave a line break at the end of one copy and not of another; neither is a byte order mark.
//
// Load refuses an unknown or repeated key, a wrong type and a value out of bounds, and reports
// all of them at once, each with its source. No fault quotes the value of a secret.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/viper"
)

// Options name the layers above the defaults.
type Options struct {
	File     string            // the YAML file, which must exist; "" takes ./config.yaml if there is one
	Environ  []string          // NAME=value, as of os.Environ; nil is an empty environment
	DotEnv   string            // path of .env, read when app.mode is dev and the file exists; "" for none
	Override map[string]string // from flags: path → text. Secrets are refused here
	Removed  map[string]string // settings of earlier releases: path → what holds now, "it is 5s now"

	// Remark is called for what is not a fault but probably a mistake: a variable that looks like
	// one of ours, a setting that another one overrides. It is also called when the load fails,
	// since such a variable is often the reason. It may be nil.
	Remark func(Remark)
	// Trimmed is called for a secret with more white space around it than one line break at the
	// end of a file. before is the secret as earlier versions read it.
	Trimmed func(path string, before Secret)
}

// Fault is one thing wrong with the settings.
type Fault struct {
	Path    string `json:"path"`    // of the setting; empty for a whole file
	Source  string `json:"source"`  // "config.yaml:12", "environment DB_POSTGRES_PORT", ".env APP_PORT", "flag", "default"
	Problem string `json:"problem"` // continues the path: "must be …"
}

func (f Fault) String() string {
	switch {
	case f.Path == "":
		return f.Source + " " + f.Problem
	case f.Source == "" || f.Source == sourceDefault:
		return f.Path + " " + f.Problem
	}
	return f.Path + " " + f.Problem + " (" + f.Source + ")"
}

// Faults lists everything that is wrong with the settings. It is never empty.
type Faults []Fault

func (f Faults) Error() string {
	if len(f) == 1 {
		return "settings: " + f[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "settings: %d faults", len(f))
	for _, fault := range f {
		b.WriteString("\n  " + fault.String())
	}
	return b.String()
}

// Sources maps each path to where its value came from. [Load] fills a field of this type in a
// settings struct, and [Keys] then tells the source of each value.
type Sources map[string]string

const (
	sourceDefault = "default"
	sourceFlag    = "flag"

	defaultFile = "config.yaml"
	modePath    = "app.mode" // what decides whether .env is read
	modeDev     = "dev"

	maxFile   = 1 << 20 // bytes of a settings file or .env
	maxSecret = 1 << 16 // bytes of a file that holds a secret
)

// Load fills the struct that target points to. The error is [Faults] when the settings are
// wrong, and then *target is as it was; any other error is a mistake in the struct's tags
// (see [Check]).
func Load(target any, opt Options) error {
	s, err := schemaOf(target)
	if err != nil {
		return err
	}
	l := &loader{schema: s, removed: opt.Removed}
	name, data := l.readFile(opt.File)
	return l.load(target, name, data, opt)
}

// raw is a value as a layer gives it, before it is parsed. To Viper it is an opaque leaf: Viper
// decides which layer wins, and never converts.
type raw struct {
	text    string
	list    []raw // the elements, when form is formList
	form    form
	source  string
	problem string // why a value that the layer names could not be read
}

// form is the type that the layer gives the value. Only YAML has types.
type form int

const (
	formText   form = iota // the environment, flags: could be anything
	formString             // a YAML string
	formInt
	formFloat
	formBool
	formList
)

type loader struct {
	schema  *schema
	removed map[string]string
	faults  Faults
	remarks []Remark
	broken  bool // the file could not be parsed, so its settings are unknown
}

func (l *loader) fault(path, source, format string, args ...any) {
	f := Fault{Path: path, Source: source, Problem: fmt.Sprintf(format, args...)}
	if !slices.Contains(l.faults, f) { // an embedded struct's Validate is its parent's too
		l.faults = append(l.faults, f)
	}
}

func (l *loader) load(target any, name string, data []byte, opt Options) error {
	v := l.layers(name, data, opt)
	if opt.Remark != nil {
		defer func() {
			for _, r := range l.remarks {
				opt.Remark(r)
			}
		}()
	}

	// A copy is filled, so that a faulty load changes nothing.
	dst := reflect.ValueOf(target).Elem()
	filled := reflect.New(dst.Type()).Elem()
	filled.Set(dst)
	sources := Sources{}
	faulty := map[string]bool{}
	for _, k := range l.schema.keys {
		r, _ := v.Get(k.Path).(raw)
		sources[k.Path] = r.source
		field := filled.FieldByIndex(k.index)
		if k.Secret && r.problem == "" && r.form != formList {
			before := r.text
			if r.text = trimSecret(before); r.text == "" && before != "" {
				r.problem = "holds nothing but white space"
			}
			if r.text != before && opt.Trimmed != nil {
				opt.Trimmed(k.Path, Secret(before))
			}
			if isQuoted(r.text) { // possible in a secret, but more likely a mistake
				l.remarks = append(l.remarks, Remark{Name: k.Path, Source: r.source, Likely: true,
					Text: "has quotes around it, which are part of the secret; remove them if they are not meant"})
			}
		}
		value, problem := k.parse(r)
		if problem != "" {
			l.fault(k.Path, r.source, "%s", problem)
			faulty[k.Path] = true
			value, _ = k.parse(k.fallback()) // lets Validate see something sensible
		}
		field.Set(value)
	}
	if l.schema.sources != nil {
		filled.FieldByIndex(l.schema.sources).Set(reflect.ValueOf(sources))
	}
	remark := func(path, text string) {
		if source := sources[path]; source != sourceDefault && source != "" {
			l.remarks = append(l.remarks, Remark{Name: path, Source: source, Text: text, Likely: true})
		}
	}
	each(filled.Addr(), "", func(path, by string) { remark(path, "has no effect: "+by+" overrides it") },
		overrider.Overridden)
	each(filled.Addr(), "", remark, doubter.Doubted)
	if !l.broken {
		each(filled.Addr(), "", func(path, problem string) {
			if !faulty[path] {
				l.fault(path, sources[path], "%s", problem)
			}
		}, validator.Validate)
	}
	if len(l.faults) > 0 {
		return l.faults
	}
	dst.Set(filled)
	return nil
}

// layers stacks the layers in a Viper, whose Get then returns the raw value that wins.
func (l *loader) layers(name string, data []byte, opt Options) *viper.Viper {
	v := viper.NewWithOptions(viper.WithDecoderRegistry(strictYAML{l, name}))
	v.SetConfigType("yaml")
	for _, k := range l.schema.keys {
		v.SetDefault(k.Path, k.fallback())
	}
	_ = v.ReadConfig(bytes.NewReader(data)) // strictYAML reports its faults itself

	env := l.environment("environment ", environMap(opt.Environ))
	flags := l.flags(opt.Override)
	mode, _ := v.Get(modePath).(raw)
	for _, layer := range []map[string]raw{env, flags} {
		if r, set := layer[modePath]; set {
			mode = r
		}
	}
	if mode.text == modeDev && opt.DotEnv != "" {
		dotEnv := l.environment(opt.DotEnv+" ", l.readDotEnv(opt.DotEnv))
		if r, set := dotEnv[modePath]; set && r.text != modeDev {
			// The file is read because the mode is dev, so it cannot change the mode: its author
			// would expect neither that the rest is used nor that it is ignored.
			l.fault(modePath, r.source, "may only be dev in a file that is read in dev mode alone; set %s in the "+
				"environment", l.schema.byPath[modePath].Env)
		}
		_ = v.MergeConfigMap(nest(dotEnv))
	}
	_ = v.MergeConfigMap(nest(env))
	for path, r := range flags {
		v.Set(path, r)
	}
	return v
}

// environment finds the settings among variables: NAME, and NAME_FILE for a secret.
func (l *loader) environment(label string, vars map[string]string) map[string]raw {
	l.remarkStrangers(strings.TrimSpace(label), vars)
	layer := map[string]raw{}
	for _, k := range l.schema.keys {
		name, file := k.Env, k.Env+"_FILE"
		text, path := vars[name], vars[file]
		if l.schema.byEnv[file] {
			path = "" // another setting that happens to end in _FILE
		}
		switch {
		case path != "" && !k.Secret:
			l.fault(k.Path, label+file, "is not a secret, and only secrets are read from a file; set %s", name)
		case path != "" && text != "":
			layer[k.Path] = raw{source: label + file,
				problem: fmt.Sprintf("is set by %s and by %s; keep one", name, file)}
		case path != "":
			r := raw{source: label + file}
			r.text, r.problem = readSecret(path)
			layer[k.Path] = r
		case text != "":
			layer[k.Path] = raw{text: text, source: label + name}
		}
	}
	return layer
}

// readSecret returns the content of the file without the line break that editors and echo leave
// at the end.
func readSecret(path string) (text, problem string) {
	data, err := readLimited(path, maxSecret)
	if err != nil {
		return "", "cannot be read from its file: " + plain(err)
	}
	text = strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if trimSecret(text) == "" {
		return "", "is named by a file that is empty"
	}
	return text, ""
}

// trimSecret removes the white space around a secret, and the byte order mark that some editors and
// shells put at the beginning of a file. Only ASCII white space: other may be the bytes of a key.
func trimSecret(text string) string {
	return strings.Trim(strings.TrimPrefix(text, byteOrderMark), " \t\r\n\v\f")
}

const byteOrderMark = "\ufeff"

func (l *loader) flags(override map[string]string) map[string]raw {
	layer := map[string]raw{}
	for _, path := range slices.Sorted(maps.Keys(override)) {
		switch k := l.schema.byPath[path]; {
		case k == nil:
			l.fault(path, sourceFlag, "%s", l.unknown(path))
		case k.Secret: // arguments show in the process list and in shell histories
			l.fault(path, sourceFlag, "is a secret and cannot be given as a flag; set %s or %s_FILE", k.Env, k.Env)
		default:
			layer[path] = raw{text: override[path], source: sourceFlag}
		}
	}
	return layer
}

// unknown says what is wrong with a path that is no setting.
func (l *loader) unknown(path string) string {
	if now, removed := l.removed[path]; removed {
		return "was removed: " + now + ". Take it out"
	}
	return "is not a setting" + l.schema.didYouMean(path)
}

// readFile returns the settings file, or nothing when there is none.
func (l *loader) readFile(file string) (name string, data []byte) {
	name = cmp.Or(file, defaultFile)
	data, err := readLimited(name, maxFile)
	switch {
	case err == nil:
		return name, data
	case file == "" && errors.Is(err, fs.ErrNotExist):
		return name, nil
	}
	l.broken = true
	l.fault("", name, "cannot be read: %s", plain(err))
	return name, nil
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it is larger than %d bytes", limit)
	}
	return data, nil
}

// plain is the text of a file's error without the path: the fault names it already, and what was
// given as the path of a secret's file may be the secret itself.
func plain(err error) string {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err.Error()
	}
	return err.Error()
}

func environMap(environ []string) map[string]string {
	vars := make(map[string]string, len(environ))
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if _, seen := vars[name]; !seen { // the first counts, as for os.Getenv
			vars[name] = value
		}
	}
	return vars
}

// nest turns paths into nested maps, as Viper keeps them.
func nest(flat map[string]raw) map[string]any {
	root := map[string]any{}
	for path, r := range flat {
		parts := strings.Split(path, ".")
		at := root
		for _, part := range parts[:len(parts)-1] {
			next, ok := at[part].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[part] = next
			}
			at = next
		}
		at[parts[len(parts)-1]] = r
	}
	return root
}

// What structs may have besides settings: see the package.
type (
	validator interface {
		Validate(report func(path, problem string))
	}
	checker interface {
		CheckFiles(report func(path, problem string))
	}
)

// each calls a method of the structs inside the one that ptr points to, and of that one, if they have it. prefix joins
// the config tags of the enclosing structs, and is part of the paths that report gets.
func each[T any](
	ptr reflect.Value, prefix string, report func(path, text string), method func(T, func(path, text string)),
) {
	v := ptr.Elem()
	for i := range v.NumField() {
		if f := v.Type().Field(i); isGroup(f) && f.IsExported() {
			each(v.Field(i).Addr(), join(prefix, f.Tag.Get("config")), report, method)
		}
	}
	if s, ok := ptr.Interface().(T); ok {
		method(s, func(path, text string) { report(join(prefix, path), text) })
	}
}

// CheckFiles opens the files that the settings name, which Load does not do: it may run where
// they are not. target points to a loaded struct. A struct inside it may have a method
// CheckFiles(report func(path, problem string)), with paths as for Validate.
func CheckFiles(target any) Faults {
	sources := map[string]string{}
	for _, k := range Keys(target) {
		sources[k.Path] = k.Source
	}
	var faults Faults
	each(reflect.ValueOf(target), "", func(path, problem string) {
		faults = append(faults, Fault{Path: path, Source: sources[path], Problem: problem})
	}, checker.CheckFiles)
	return faults
}

func join(prefix, path string) string {
	if prefix == "" || path == "" {
		return prefix + path
	}
	return prefix + "." + path
}
