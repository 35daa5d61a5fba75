package config

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

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
