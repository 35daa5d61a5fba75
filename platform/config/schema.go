package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Key describes one setting for config show, the documented config.yaml and the reference.
type Key struct {
	Path    string   `json:"path"`
	Env     string   `json:"env"`
	Type    string   `json:"type"` // text, secret, true or false, whole number, number, duration, list
	Default string   `json:"default"`
	Doc     string   `json:"doc"`
	Min     string   `json:"min,omitempty"`
	Max     string   `json:"max,omitempty"`
	OneOf   []string `json:"one_of,omitempty"`
	Secret  bool     `json:"secret,omitempty"`
	Value   string   `json:"value"`            // now in the struct; redacted for a secret
	Source  string   `json:"source,omitempty"` // known when the struct has a [Sources] field
}

// Keys lists every setting of the struct that target points to, in the order of its fields.
// It panics when the tags are wrong, which [Check] reports in a test and [Load] at start.
func Keys(target any) []Key {
	s, err := schemaOf(target)
	if err != nil {
		panic(err)
	}
	v := reflect.ValueOf(target).Elem()
	var sources Sources
	if s.sources != nil {
		sources = v.FieldByIndex(s.sources).Interface().(Sources)
	}
	keys := make([]Key, 0, len(s.keys))
	for _, k := range s.keys {
		key := k.Key
		key.Value = show(v.FieldByIndex(k.index))
		key.Source = sources[key.Path]
		keys = append(keys, key)
	}
	return keys
}

// Check reports every mistake in the tags of a settings struct: a type that cannot be
// loaded, a path or an environment name used twice, a default that breaks its own limits, a
// secret with a default, a setting without a doc. Call it in a test.
func Check(target any) error {
	_, err := schemaOf(target)
	return err
}

// WithDefaults fills in the defaults of the tags where a number, a duration or a text is zero and
// may not be zero. It is for structs that were not loaded, as in a test.
func WithDefaults[T any](settings T) T {
	s, err := schemaOf(&settings)
	if err != nil {
		panic(err)
	}
	v := reflect.ValueOf(&settings).Elem()
	for _, k := range s.keys {
		field := v.FieldByIndex(k.index)
		if !field.IsZero() || field.Kind() == reflect.Bool || isNumber(k.typ) && k.limits(field) == "" {
			continue
		}
		value, _ := k.parse(k.fallback())
		field.Set(value)
	}
	return settings
}

// schema is a settings struct as its tags describe it.
type schema struct {
	keys    []*key
	sources []int // index of the [Sources] field; nil when there is none
	byPath  map[string]*key
	byEnv   map[string]bool
	groups  map[string]bool // every proper prefix of a path: "db", "db.postgres"
}

type key struct {
	Key
	index    []int
	typ      reflect.Type
	min, max reflect.Value // invalid when there is no limit
}

var pathPattern = regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$`)

func schemaOf(target any) (*schema, error) {
	t := reflect.TypeOf(target)
	if t == nil || t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct || reflect.ValueOf(target).IsNil() {
		return nil, fmt.Errorf("config: %T is not a pointer to a struct", target)
	}
	s := &schema{byPath: map[string]*key{}, byEnv: map[string]bool{}, groups: map[string]bool{}}
	var mistakes []error
	mistake := func(k *key, format string, args ...any) {
		mistakes = append(mistakes, fmt.Errorf("config: setting %s "+format, append([]any{k.Path}, args...)...))
	}
	s.collect(t.Elem(), "", nil, mistake)

	envOwner := map[string]string{}
	for _, k := range s.keys {
		names := []string{k.Env}
		if k.Secret {
			names = append(names, k.Env+"_FILE")
		}
		for _, name := range names {
			if owner, taken := envOwner[name]; taken {
				mistake(k, "and %s both have the environment name %s", owner, name)
			}
			envOwner[name] = k.Path
		}
		if s.groups[k.Path] {
			mistake(k, "is a group of settings as well")
		}
	}
	return s, errors.Join(mistakes...)
}

// isGroup reports whether a field is a struct that holds settings, rather than a setting.
func isGroup(f reflect.StructField) bool {
	return f.Type.Kind() == reflect.Struct && !isText(f.Type) && f.Tag.Get("config") != "-"
}

func (s *schema) collect(t reflect.Type, prefix string, index []int, mistake func(*key, string, ...any)) {
	for i := range t.NumField() {
		f := t.Field(i)
		at := append(slices.Clone(index), i)
		path := f.Tag.Get("config")
		switch {
		case f.Type == reflect.TypeFor[Sources]():
			s.sources = at
		case isGroup(f) && (f.IsExported() || f.Anonymous):
			s.collect(f.Type, join(prefix, path), at, mistake)
		case path == "" || path == "-":
		default:
			s.add(f, join(prefix, path), at, mistake)
		}
	}
}

func (s *schema) add(f reflect.StructField, path string, index []int, mistake func(*key, string, ...any)) {
	k := &key{index: index, typ: f.Type, Key: Key{
		Path:    path,
		Env:     envName(path),
		Type:    typeName(f.Type),
		Default: f.Tag.Get("default"),
		Doc:     f.Tag.Get("doc"),
		Min:     f.Tag.Get("min"),
		Max:     f.Tag.Get("max"),
		Secret:  isSecret(f.Type),
	}}
	if list, ok := f.Tag.Lookup("oneof"); ok {
		k.OneOf = strings.Split(list, ",")
	}
	switch {
	case !f.IsExported():
		mistake(k, "is an unexported field")
		return
	case k.Type == "":
		mistake(k, "has type %s, which cannot be loaded", f.Type)
		return
	case s.byPath[path] != nil:
		mistake(k, "is declared twice")
		return
	}
	s.keys = append(s.keys, k)
	s.byPath[path] = k
	s.byEnv[k.Env] = true
	for group := path; strings.Contains(group, "."); {
		group = group[:strings.LastIndexByte(group, '.')]
		s.groups[group] = true
	}

	if !pathPattern.MatchString(path) {
		mistake(k, "is not a path of lower-case names")
	}
	if k.Doc == "" {
		mistake(k, "has no doc")
	}
	if k.Secret && k.Default != "" {
		mistake(k, "is a secret and has a default")
	}
	if k.Secret && k.OneOf != nil {
		mistake(k, "is a secret and has oneof")
	}
	for _, limit := range []struct {
		name, text string
		value      *reflect.Value
	}{{"min", k.Min, &k.min}, {"max", k.Max, &k.max}} {
		if limit.text == "" {
			continue
		}
		if !isNumber(k.typ) {
			mistake(k, "has %s, which only numbers and durations have", limit.name)
			continue
		}
		value, problem := parseScalar(k.typ, raw{text: limit.text})
		if problem != "" {
			mistake(k, "has a %s that %s", limit.name, problem)
			continue
		}
		*limit.value = value
	}
	if _, problem := k.parse(k.fallback()); problem != "" {
		mistake(k, "has a default that %s", problem)
	}
}

// envName is the name of a setting in the environment.
func envName(path string) string { return strings.ToUpper(strings.ReplaceAll(path, ".", "_")) }

// fallback is the value when no layer names one: the default of the tag, or the zero value, which
// must also be within the limits.
func (k *key) fallback() raw { return raw{text: k.Default, source: sourceDefault} }

// parse parses a value and checks its limits. The problem continues the path and does not quote
// a secret.
func (k *key) parse(r raw) (value reflect.Value, problem string) {
	if r.problem != "" {
		return value, r.problem
	}
	if problem := k.shapeProblem(r); problem != "" {
		return value, problem
	}
	value, problem = k.parseAny(r)
	switch {
	case problem == "":
		return value, k.limits(value)
	case k.Secret:
		// The parser's words may quote the value.
		return value, "must be text; put it in quotes, or in " + k.Env + "_FILE"
	}
	return value, problem
}

// shapeProblem says why text cannot be meant as it is: a list in the syntax of JSON, or quotes that
// docker --env-file and the like do not remove. Each would otherwise be part of a value. A secret
// may be any text.
func (k *key) shapeProblem(r raw) (problem string) {
	text := strings.TrimSpace(r.text)
	switch {
	case r.form == formList || r.source == sourceDefault || k.Secret && !isList(k.typ):
		return ""
	case isList(k.typ) && strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]"):
		return "is a list in brackets, which only the settings file may have, without quotes around it; elsewhere " +
			"write the elements with commas between them, without brackets and quotes"
	case isQuoted(text):
		return "has quotes around it, which would be part of the value; remove them"
	}
	return ""
}

func isQuoted(text string) bool {
	return len(text) > 1 && (text[0] == '"' || text[0] == '\'') && text[len(text)-1] == text[0]
}

func (k *key) parseAny(r raw) (value reflect.Value, problem string) {
	if r.source == sourceDefault && r.text == "" {
		return reflect.Zero(k.typ), ""
	}
	if !isList(k.typ) {
		return parseScalar(k.typ, r)
	}
	elements := r.list
	if r.form != formList {
		for text := range strings.SplitSeq(r.text, ",") {
			if text = strings.TrimSpace(text); text != "" {
				elements = append(elements, raw{text: text})
			}
		}
		if len(elements) == 0 && r.text != "" { // such as a line break: to leave out Kafka for it is not meant
			return value, "has no element: there are only commas and white space"
		}
	}
	list := reflect.MakeSlice(k.typ, 0, len(elements))
	for i, element := range elements {
		if element.text == "" {
			return value, fmt.Sprintf("(element %d) is empty", i+1)
		}
		v, problem := parseScalar(k.typ.Elem(), element)
		if problem != "" {
			return value, fmt.Sprintf("(element %d) %s", i+1, problem)
		}
		list = reflect.Append(list, v)
	}
	return list, ""
}

func (k *key) limits(v reflect.Value) (problem string) {
	if k.min.IsValid() && less(v, k.min) {
		return fmt.Sprintf("must be at least %s, not %s", k.Min, show(v))
	}
	if k.max.IsValid() && less(k.max, v) {
		return fmt.Sprintf("must be at most %s, not %s", k.Max, show(v))
	}
	if problem := k.repeated(v); problem != "" {
		return problem
	}
	if k.OneOf == nil {
		return ""
	}
	each := []reflect.Value{v}
	if isList(k.typ) {
		each = each[:0]
		for i := range v.Len() {
			each = append(each, v.Index(i))
		}
	}
	for _, v := range each {
		if text := show(v); !slices.Contains(k.OneOf, text) {
			return fmt.Sprintf("must be %s, not %s%s", choice(k.OneOf), quote(text), meant(nearest(text, k.OneOf)))
		}
	}
	return ""
}

// repeated refuses a list that has an element twice, since one of the two is a mistake.
func (k *key) repeated(v reflect.Value) (problem string) {
	if !isList(k.typ) {
		return ""
	}
	first := map[any]int{}
	for i := range v.Len() {
		element := any(show(v.Index(i)))
		if k.Secret {
			element = v.Index(i).Interface() // as text all secrets are the same
		}
		if at, seen := first[element]; seen {
			return fmt.Sprintf("(element %d) is the same as element %d", i+1, at+1)
		}
		first[element] = i
	}
	return ""
}

// octal is a number that may not mean what it looks like: in YAML 1.1, 017 is 15.
var octal = regexp.MustCompile(`^[-+]?0[0-9]`)

// parseScalar parses a value of type t, which is not a list.
func parseScalar(t reflect.Type, r raw) (v reflect.Value, problem string) {
	v = reflect.New(t).Elem()
	if r.form == formList {
		return v, "must be " + article(typeName(t)) + ", not a list"
	}
	wrong := func(hint string) (reflect.Value, string) {
		return v, "must be " + article(typeName(t)) + hint + ", not " + quote(r.text)
	}
	switch {
	case isText(t):
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(r.text)); err != nil {
			return v, fmt.Sprintf("cannot be understood: %s", oneLine(err.Error()))
		}
	case t == reflect.TypeFor[time.Duration]():
		d, err := time.ParseDuration(r.text)
		if _, bare := strconv.ParseFloat(r.text, 64); err != nil && bare == nil {
			return v, fmt.Sprintf("needs a unit: %ss, %sm or %sh", r.text, r.text, r.text)
		}
		if err != nil {
			return wrong(" such as 300ms, 90s, 15m or 720h (there is no unit for days)")
		}
		v.SetInt(int64(d))
	case t.Kind() == reflect.String:
		if r.form != formText && r.form != formString {
			return v, "must be text; put " + quote(r.text) + " in quotes"
		}
		if problem := textProblem(r.text); problem != "" && !isSecret(t) {
			return v, problem
		}
		v.SetString(r.text)
	case t.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(r.text)
		if err != nil {
			return wrong("")
		}
		if r.form != formText && r.form != formBool {
			return wrong(" without quotes")
		}
		v.SetBool(b)
	case (r.form == formInt || r.form == formFloat) && octal.MatchString(r.text):
		return wrong(" without a zero in front, with which it is octal to some readers of YAML")
	case isInt(t):
		n, err := strconv.ParseInt(r.text, 10, t.Bits())
		switch {
		case errors.Is(err, strconv.ErrRange):
			return v, "is too large a number: " + quote(r.text)
		case err != nil && strings.HasPrefix(r.text, "tcp://"):
			return wrong(" (Kubernetes sets such variables for services; enableServiceLinks: false stops it)")
		case err != nil:
			return wrong("")
		case r.form == formString:
			return wrong(" without quotes")
		}
		v.SetInt(n)
	default: // a float: typeName allows no other type
		f, err := strconv.ParseFloat(r.text, t.Bits())
		switch {
		case err != nil || math.IsNaN(f) || math.IsInf(f, 0):
			return wrong("")
		case r.form == formString:
			return wrong(" without quotes")
		}
		v.SetFloat(f)
	}
	return v, ""
}

// textProblem says why no setting has such a text: names, addresses, paths and URLs that end in a
// blank or a line break come from a file that was read as a whole, and match nothing.
func textProblem(text string) string {
	switch {
	case !utf8.ValidString(text):
		return "must be valid UTF-8"
	case strings.ContainsFunc(text, unicode.IsControl):
		return "has a line break or another control character"
	case strings.Contains(text, byteOrderMark):
		return "has a byte order mark in it, which cannot be seen"
	case strings.TrimSpace(text) != text:
		return "has white space at its beginning or its end"
	}
	return ""
}

func isSecret(t reflect.Type) bool {
	secret := reflect.TypeFor[Secret]()
	return t == secret || t.Kind() == reflect.Slice && t.Elem() == secret
}

// isText reports whether a type parses itself.
func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func isList(t reflect.Type) bool { return t.Kind() == reflect.Slice && !isText(t) }

func isInt(t reflect.Type) bool { return t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64 }

func isNumber(t reflect.Type) bool {
	return !isText(t) && (isInt(t) || t.Kind() == reflect.Float32 || t.Kind() == reflect.Float64)
}

// typeName names the type for people, or is "" for one that cannot be loaded.
func typeName(t reflect.Type) string {
	switch {
	case isSecret(t):
		return "secret"
	case isList(t):
		if typeName(t.Elem()) == "" || isList(t.Elem()) {
			return ""
		}
		return "list"
	case isText(t), t.Kind() == reflect.String:
		return "text"
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case isInt(t):
		return "whole number"
	case isNumber(t):
		return "number"
	}
	return ""
}

func article(name string) string {
	if name == "text" || name == "true or false" {
		return name
	}
	return "a " + name
}

func less(a, b reflect.Value) bool {
	if a.CanInt() {
		return a.Int() < b.Int()
	}
	return a.Float() < b.Float()
}

// show formats a value as a person would write it; a secret stays hidden.
func show(v reflect.Value) string {
	if isList(v.Type()) {
		texts := make([]string, v.Len())
		for i := range texts {
			texts[i] = show(v.Index(i))
		}
		return strings.Join(texts, ",")
	}
	switch x := v.Interface().(type) {
	case Secret:
		return x.String()
	case time.Duration:
		return showDuration(x)
	case encoding.TextMarshaler:
		text, err := x.MarshalText()
		if err != nil {
			return ""
		}
		return string(text)
	default:
		return fmt.Sprint(x)
	}
}

// showDuration is time.Duration's own text without its zeros: 5h rather than 5h0m0s.
func showDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// quote shows what somebody wrote, on one line and shortened. It leaves out what looks like an
// address with credentials.
func quote(text string) string {
	if strings.Contains(text, "@") {
		return "what is there"
	}
	const most = 60
	if len(text) > most {
		return strconv.QuoteToASCII(text[:most]) + "…"
	}
	return strconv.QuoteToASCII(text)
}

// oneLine makes text from elsewhere fit for a fault.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.Join(strings.Fields(text), " "))
}

// choice lists values: "debug, info or warn".
func choice(values []string) string {
	shown := make([]string, len(values))
	for i, v := range values {
		shown[i] = v
		if v == "" {
			shown[i] = "empty"
		}
	}
	if len(shown) == 1 {
		return shown[0]
	}
	return strings.Join(shown[:len(shown)-1], ", ") + " or " + shown[len(shown)-1]
}

func meant(word string) string {
	if word == "" {
		return ""
	}
	return "; did you mean " + word + "?"
}

// didYouMean suggests a setting or a group for a path that is neither.
func (s *schema) didYouMean(path string) string {
	name := path[strings.LastIndexByte(path, '.')+1:]
	var known, namesakes []string // namesakes have the right name in another group
	for _, k := range s.keys {
		if strings.EqualFold(k.Env, name) {
			return meant(k.Path)
		}
		known = append(known, k.Path)
		if strings.HasSuffix("."+k.Path, "."+name) {
			namesakes = append(namesakes, k.Path)
		}
		for group := k.Path; strings.Contains(group, "."); {
			group = group[:strings.LastIndexByte(group, '.')]
			known = append(known, group)
		}
	}
	if near := nearest(path, known); near != "" {
		return meant(near)
	}
	if len(namesakes) == 1 {
		return meant(namesakes[0])
	}
	return ""
}

// nearest is the candidate that differs by a typing error or in case.
func nearest(word string, candidates []string) string {
	word = strings.ToLower(word)
	last := word[strings.LastIndexByte(word, '.')+1:]
	if len(word) > 200 {
		return ""
	}
	best, bestDistance := "", 2+len(last)/3 // one more than counts as a typing error
	for _, candidate := range candidates {
		if d := distance(word, candidate); candidate != "" && d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	return best
}

// distance counts the letters to change, add or leave out (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
