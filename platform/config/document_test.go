package config

import (
	"errors"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// documented has defaults that are hard to write in YAML.
type documented struct {
	settings
	Colon  string   `config:"odd.colon" default:"a: b #c" doc:"Needs quotes."`
	Number string   `config:"odd.number" default:"0123" doc:"Text that looks like a number."`
	Yes    string   `config:"odd.yes" default:"true" doc:"Text that looks like a truth."`
	Stars  []string `config:"odd.stars" default:"*,127.0.0.1:9092,1" doc:"Elements that look like something else."`
	Late   int      `config:"app.late" doc:"Of a group that came earlier. The words go on for so long that they take more than one line in the file, which is what this one is for."`
}

func TestDocumentsNameEverySettingTheSameWayEveryTime(t *testing.T) {
	t.Parallel()
	var yml, md []byte
	for range 2 {
		var errYAML, errMarkdown error
		yml, errYAML = YAML(&documented{})
		md, errMarkdown = Markdown(&documented{})
		if err := errors.Join(errYAML, errMarkdown); err != nil {
			t.Fatal(err)
		}
		golden(t, "documented.yaml", string(yml))
		golden(t, "documented.md", string(md))
	}
	for _, k := range Keys(&documented{}) {
		for name, text := range map[string]string{"YAML": string(yml), "Markdown": string(md)} {
			if !strings.Contains(text, k.Env) {
				t.Errorf("%s lacks %s", name, k.Path)
			}
		}
	}
}

func TestTheDocumentedFileLoadsAsTheDefaults(t *testing.T) {
	t.Parallel()
	written, err := YAML(&documented{})
	if err != nil {
		t.Fatal(err)
	}
	load := func(text string) *documented {
		t.Helper()
		d := &documented{}
		if err := Load(d, Options{File: write(t, "config.yaml", text)}); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		return d
	}
	defaults, asWritten := load(""), load(string(written))
	if !reflect.DeepEqual(asWritten, defaults) {
		t.Errorf("the documented file gives %+v, want %+v", asWritten, defaults)
	}
	// Without the # before each name, all settings come from the file.
	every := load(regexp.MustCompile(`(?m)^( *)#(\w)`).ReplaceAllString(string(written), "$1$2"))
	for path, source := range every.Sources {
		if source == sourceDefault {
			t.Errorf("%s is not in the documented file", path)
		}
	}
	every.Sources = defaults.Sources
	for i, k := range Keys(every) {
		if want := Keys(defaults)[i]; !reflect.DeepEqual(k, want) {
			t.Errorf("the file gives %+v, want %+v", k, want)
		}
	}
}

// FuzzFile: a file either has faults or gives settings within their limits. It never causes a
// panic, and no fault quotes a secret.
func FuzzFile(f *testing.F) {
	f.Add("app:\n  port: 8080\n  origins: [a, b]\ndb: {url: hunter2, postgres: {host: x}}\n")
	f.Add("app:\n  port: &a 1\n  ttl: *a\n<<: {}\n? [x]\n: !y z\n---\n")
	f.Add("db:\n  url: [hunter2]\n  size: 0x10\nratio: .inf\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := &settings{}
		sch, err := schemaOf(s)
		if err != nil {
			t.Fatal(err)
		}
		l := &loader{schema: sch}
		err = l.load(s, "config.yaml", []byte(text), Options{})
		if faults, ok := errors.AsType[Faults](err); err != nil && (!ok || len(faults) == 0) {
			t.Fatalf("the error is %v", err)
		}
		if err != nil {
			if msg := err.Error(); !utf8.ValidString(msg) || strings.Count(msg, "\n") > len(l.faults) {
				t.Errorf("a fault has more than one line: %q", msg)
			}
			return
		}
		if s.App.Port < 1 || s.App.Port > 65535 || s.App.TTL < 1 || s.Ratio < 0 || s.Ratio > 1 {
			t.Errorf("settings outside their limits: %+v", s)
		}
	})
}

// FuzzDotEnv: a file is accepted, or refused with one of its line numbers.
func FuzzDotEnv(f *testing.F) {
	f.Add("A=1\nexport B='x y'\n# c\nC=\"$A\\n\"\n")
	f.Add("A='\n\nB\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<12 {
			return
		}
		path := write(t, ".env", text)
		l := &loader{schema: &schema{}}
		l.readDotEnv(path)
		if len(l.faults) == 0 {
			return
		}
		if line := dotEnvLine([]byte(text)); line < 1 || line > strings.Count(text, "\n")+1 {
			t.Errorf("the fault is on line %d of %q", line, text)
		}
	})
}
