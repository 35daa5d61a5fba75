package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/toppira/authctl/platform/config"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 345678901, time.FixedZone("", 3600))

func clockAtNoon() time.Time { return noon }

// open makes a logger to a buffer, and to a file if cfg names one.
func open(t testing.TB, cfg Config, opt Options) (*zap.Logger, *bytes.Buffer) {
	t.Helper()
	var console bytes.Buffer
	if opt.Console == nil {
		opt.Console = &console
	}
	if opt.Now == nil {
		opt.Now = clockAtNoon
	}
	log, file, err := New(cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	})
	return log, &console
}

func TestSettingsAreSound(t *testing.T) {
	t.Parallel()
	var cfg Config
	if err := config.Check(&cfg); err != nil {
		t.Error(err)
	}
}

func TestARecordIsOneJSONObject(t *testing.T) {
	t.Parallel()
	log, out := open(t, Config{}, Options{})
	log.Named("relay").With(zap.String("user_id", "u1")).Warn("event parked",
		zap.Int("attempts", 3), zap.Duration("lag", 1500*time.Millisecond), zap.Time("at", noon),
		zap.Error(errors.New("too large")))
	want := `{"level":"warn","ts":"2026-01-02T11:00:00.345Z","logger":"relay","msg":"event parked","user_id":"u1","attempts":3,"lag":1.5,"at":"2026-01-02T11:00:00.345Z","error":"too large"}` + "\n"
	if out.String() != want {
		t.Errorf("the record is\n%swant\n%s", out, want)
	}
}

func TestDevModeWritesForPeople(t *testing.T) {
	t.Parallel()
	log, out := open(t, Config{}, Options{Dev: true})
	log.Named("relay").Info("listening", zap.Int("port", 8080), zap.Duration("after", time.Second))
	want := "12:00:00.345  INFO  relay  listening  {\"port\": 8080, \"after\": \"1s\"}\n"
	if out.String() != want {
		t.Errorf("the record is\n%swant\n%s", out, want)
	}
}

func TestTheLevelCanChangeWhileRunning(t *testing.T) {
	t.Parallel()
	level := zap.NewAtomicLevel()
	log, out := open(t, Config{Level: "warn"}, Options{Level: level})
	child := log.With(zap.Int("n", 1))
	child.Info("hidden")
	level.SetLevel(zap.DebugLevel)
	child.Debug("shown")
	level.SetLevel(zap.ErrorLevel)
	child.Warn("hidden")
	if got := out.String(); strings.Contains(got, "hidden") || !strings.Contains(got, "shown") {
		t.Errorf("the log is\n%s", got)
	}
	if _, _, err := New(Config{Level: "loud"}, Options{}); err == nil {
		t.Error("an unknown level was accepted")
	}
}

func TestTheSecurityLogPassesWhateverTheLevel(t *testing.T) {
	t.Parallel()
	log, out := open(t, Config{Level: "error"}, Options{})
	log.Info("ordinary")
	Security(log.With(zap.String("node", "a"))).With(zap.String("user_id", "u1")).Info("session revoked",
		zap.String("sid", "s1"))
	want := `{"level":"info","ts":"2026-01-02T11:00:00.345Z","logger":"security","msg":"session revoked","node":"a","log":"security","user_id":"u1","sid":"s1"}` + "\n"
	if out.String() != want {
		t.Errorf("the log is\n%swant\n%s", out, want)
	}
	Security(zap.NewNop()).Info("goes nowhere")
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestWithAFileTheConsoleKeepsWhatAnOperatorLooksForFirst(t *testing.T) {
	t.Parallel()
	for _, dev := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "logs", "authctl.log")
		log, console := open(t, Config{Path: path}, Options{Dev: dev})
		log.Info("info")
		log.Warn("warn")
		Security(log).Info("security info")
		for name, want := range map[string]bool{`"msg":"info"`: true, `"msg":"warn"`: true,
			`"msg":"security info"`: true} {
			if got := strings.Contains(read(t, path), name); got != want {
				t.Errorf("dev %v: the file has %s: %v, want %v", dev, name, got, want)
			}
		}
		for name, want := range map[string]bool{"info": dev, "security info": dev, "warn": true} {
			if got := strings.Contains(console.String(), name); got != want {
				t.Errorf("dev %v: the console has %s: %v, want %v", dev, name, got, want)
			}
		}
	}
}

func TestTheFileIsTheOwnersAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	log, _ := open(t, Config{Path: filepath.Join(dir, "new.log")}, Options{})
	log.Info("x")
	old := filepath.Join(t.TempDir(), "old.log")
	if err := os.WriteFile(old, []byte("before\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	log, _ = open(t, Config{Path: old}, Options{})
	log.Info("after")
	for path, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o700, filepath.Dir(dir): fs.ModeDir | 0o700,
		filepath.Join(dir, "new.log"): 0o600, old: 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
	}
	if got := read(t, old); !strings.HasPrefix(got, "before\n{") {
		t.Errorf("the old file is %q", got)
	}
}

func TestAPathThatCannotBeALogIsRefusedAtStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	toFile := fmt.Sprintf("/proc/self/fd/%d", f.Fd()) // as /dev/stdout is when it leads to a file
	for _, path := range []string{dir, fifo, "/dev/null", toFile, filepath.Join(file, "x.log")} {
		if _, _, err := New(Config{Path: path}, Options{Console: &bytes.Buffer{}}); err == nil {
			t.Errorf("%s was accepted as a log", path)
		}
	}
}

func TestTheFileTurnsOverBySizeAndEveryRecordIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log, _ := open(t, Config{Path: filepath.Join(dir, "a.log"), MaxSizeMB: 1, MaxBackups: 7}, Options{})
	const records = 300
	for i := range records {
		log.Info("fill", zap.Int("i", i), zap.String("fill", strings.Repeat("x", 5000)))
	}
	files, err := filepath.Glob(filepath.Join(dir, "a*.log"))
	if err != nil || len(files) != 2 {
		t.Fatalf("files are %v, %v", files, err)
	}
	lines := 0
	for _, f := range files {
		lines += strings.Count(read(t, f), "\n")
		if info, err := os.Stat(f); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
	if lines != records {
		t.Errorf("there are %d records, want %d", lines, records)
	}
}

// nasty is text that people put into usernames to forge lines of a log.
var nasty = map[string]string{
	"CR LF":            "a\r\n{\"level\":\"info\",\"msg\":\"forged\"}\r\nb",
	"ESC":              "a\x1b[2J\x1b]0;title\ab",
	"line separators":  "a\u2028b\u2029c\u0085d",
	"C1 and DEL":       "a\u009b31mb\u0080c\u009fd\x7f",
	"other controls":   "a\x00b\x08\x0b\x0cc",
	"text direction":   "a\u202eb\u2066c\u200f\u061c",
	"invalid UTF-8":    "a\xff\xfeb\xc3(\xed\xa0\x80\xe2\x80",
	"raw C1 bytes":     "a\x85b\x9b",
	"quotes":           `a"b\c`,
	"a megabyte":       strings.Repeat("é", 1<<19),
	"nothing but LF":   strings.Repeat("\n", 1<<16),
	"nothing but C1":   strings.Repeat("\u0085", 1<<15),
	"nothing but 0xff": strings.Repeat("\xff", 1<<16),
}

// fieldsOf puts text into a record in every possible way.
func fieldsOf(text string) []zap.Field {
	return []zap.Field{
		zap.String("string", text), zap.String(text, "key"), zap.ByteString("bytes", []byte(text)),
		zap.Binary("binary", []byte(text)),
		zap.Error(errors.New(text)), zap.NamedError("wrapped", fmt.Errorf("x: %w", errors.New(text))),
		zap.Stringer("stringer", stringer(text)),
		zap.Any("any", map[string]string{text: text}), zap.Reflect("reflect", struct{ A []string }{[]string{text}}),
		zap.Strings("strings", []string{text, text}), zap.Errors("errors", []error{errors.New(text)}),
		zap.Dict("dict", zap.String("in", text)),
		zap.Any("json", json.RawMessage(`{"a":`+"\n"+`1}`)), zap.Namespace("namespace"), zap.String("inside", text),
	}
}

type stringer string

func (s stringer) String() string { return string(s) }

// unsafe is independent of [hidden], which it checks.
var unsafe = regexp.MustCompile(`[\x00-\x1f\x7f-\x{9f}\x{61c}\x{200e}\x{200f}\x{2028}-\x{202e}\x{2066}-\x{2069}]`)

// wantOneLine checks that a record is one line for every reader.
func wantOneLine(t *testing.T, dev bool, line string) {
	t.Helper()
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
		t.Fatalf("the record is not one line: %.300q", line)
	}
	if !utf8.ValidString(line) {
		t.Errorf("the record is not UTF-8: %.300q", line)
	}
	if found := unsafe.FindString(strings.TrimSuffix(line, "\n")); found != "" {
		t.Errorf("the record has %q: %.300q", found, line)
	}
	if len(line) > 5*maxRecord {
		t.Errorf("the record has %d bytes", len(line))
	}
	if !dev && !json.Valid([]byte(line)) {
		t.Errorf("the record is not JSON: %.300q", line)
	}
}

func TestARecordIsOneLineWhateverIsInIt(t *testing.T) {
	t.Parallel()
	for name, text := range nasty {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, dev := range []bool{false, true} {
				log, out := open(t, Config{}, Options{Dev: dev})
				for _, write := range []func(){
					func() { log.Info(text) },
					func() { log.Named(text).Info("named") },
					func() { log.Info("all", fieldsOf(text)...) },
					func() { log.With(fieldsOf(text)...).Info("context") },
					func() { Security(log).With(fieldsOf(text)...).Info(text, fieldsOf(text)...) },
					func() { log.WithOptions(zap.AddStacktrace(zap.InfoLevel), zap.AddCaller()).Info(text) },
				} {
					out.Reset()
					write()
					wantOneLine(t, dev, out.String())
				}
				for _, f := range fieldsOf(text) {
					out.Reset()
					log.Info("one", f)
					wantOneLine(t, dev, out.String())
				}
			}
		})
	}
}

func TestAStackIsAField(t *testing.T) {
	t.Parallel()
	for _, dev := range []bool{false, true} {
		log, out := open(t, Config{}, Options{Dev: dev})
		log.WithOptions(zap.AddStacktrace(zap.ErrorLevel)).Error("failed")
		wantOneLine(t, dev, out.String())
		if !strings.Contains(out.String(), "TestAStackIsAField") {
			t.Errorf("the record has no stack: %s", out)
		}
	}
}

func TestALongValueIsCutWithItsLength(t *testing.T) {
	t.Parallel()
	log, out := open(t, Config{}, Options{})
	log.Info("long", zap.String("name", strings.Repeat("é", 1<<19)), zap.Int("port", 1))
	var record struct {
		Name string
		Port int
	}
	if err := json.Unmarshal(out.Bytes(), &record); err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("é", maxValue/2) + "…[1048576 bytes]"; record.Name != want || record.Port != 1 {
		t.Errorf("the name is %.40q…%.40q", record.Name, record.Name[len(record.Name)-40:])
	}
}

func TestALineTooLongKeepsItsPlainFields(t *testing.T) {
	t.Parallel()
	log, out := open(t, Config{}, Options{})
	many := make([]string, 100000)
	Security(log).With(zap.String("user_id", "u1"), zap.Strings("many", many)).Info("huge", zap.Int("n", 7),
		zap.Strings("more", many))
	var record map[string]any
	if err := json.Unmarshal(out.Bytes(), &record); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"log": "security", "user_id": "u1", "many": "[left out]",
		"more": "[left out]", "n": 7.0, "msg": "huge"} {
		if record[key] != want {
			t.Errorf("%s is %v, want %v", key, record[key], want)
		}
	}
	if out.Len() > maxRecord || record["record_bytes"].(float64) < 600000 {
		t.Errorf("the record is %s", out)
	}
}

func TestFieldsGivenToWithAreThoseOfThatMoment(t *testing.T) {
	t.Parallel()
	log, out := open(t, Config{}, Options{})
	m := map[string]int{"n": 1}
	child := log.With(zap.Any("m", m))
	m["n"] = 2
	child.Info("x")
	log.Info("y")
	if got := out.String(); !strings.Contains(got, `"m":{"n":1}`) || strings.Count(got, `"m"`) != 1 {
		t.Errorf("the log is %s", got)
	}
}

type bad struct{}

func (bad) String() string                               { panic("bad\nString") }
func (bad) Error() string                                { panic("bad Error") }
func (bad) MarshalJSON() ([]byte, error)                 { panic("bad JSON") }
func (bad) MarshalLogObject(zapcore.ObjectEncoder) error { panic("bad object") }
func (b *pointer) Error() string                         { return b.text }
func (refuses) MarshalJSON() ([]byte, error)             { return nil, errors.New("will\nnot") }
func (broken) Write([]byte) (int, error)                 { return 0, errors.New("disk full") }

type (
	pointer struct{ text string }
	refuses struct{}
	broken  struct{}
)

func TestAFieldThatPanicsCostsNoRecord(t *testing.T) {
	t.Parallel()
	for _, dev := range []bool{false, true} {
		log, out := open(t, Config{}, Options{Dev: dev})
		for _, f := range []zap.Field{
			zap.Stringer("f", bad{}), zap.Error(bad{}), zap.Reflect("f", bad{}), zap.Object("f",
				bad{}), zap.Inline(bad{}),
			zap.Error((*pointer)(nil)), zap.Reflect("f", refuses{}), zap.Reflect("f", make(chan int)), zap.Any("f",
				nil),
			zap.Error(nil), {Key: "f"},
		} {
			for _, write := range []func(){
				func() { log.Info("kept", f, zap.Int("n", 7)) },
				func() { log.With(f, zap.Int("n", 7)).Info("kept") },
			} {
				out.Reset()
				write()
				wantOneLine(t, dev, out.String())
				if !strings.Contains(out.String(), "kept") {
					t.Errorf("%v: the record is %s", f, out)
				}
			}
		}
	}
}

func TestASecretIsNeverShown(t *testing.T) {
	t.Parallel()
	const canary = "canary-5f1e"
	secret := config.Secret(canary)
	type holder struct {
		Name   string
		Secret config.Secret
		In     struct{ Secrets []config.Secret }
	}
	h := holder{Name: "shown", Secret: secret}
	h.In.Secrets = []config.Secret{secret}
	fields := []zap.Field{
		zap.Any("a", secret), zap.Any("b", &secret), zap.Stringer("c", secret), zap.Reflect("d", secret), zap.Any("e",
			h),
		zap.Reflect("f", &h),
		zap.Any("g", []config.Secret{secret}), zap.Any("h", map[string]config.Secret{"k": secret}),
		zap.Error(fmt.Errorf("open %v", secret)), zap.NamedError("j",
			fmt.Errorf("open %q %s %x %+v", secret, secret, secret, h)),
		zap.String("k", fmt.Sprint(secret, h)), zap.Any("l", fmt.Errorf("%#v", h)),
		zap.Stringers("m", []fmt.Stringer{secret}),
	}
	for _, dev := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "a.log")
		log, out := open(t, Config{Path: path}, Options{Dev: dev})
		log.Sugar().Warnw("sugar", "secret", secret, "in", h)
		log.Sugar().Warnf("sugar %v %+v", secret, h)
		log.Warn("all", fields...)
		log.With(fields...).Warn("context")
		Security(log).Warn("security", fields...)
		for _, text := range []string{out.String(), read(t, path)} {
			if strings.Contains(text, canary) || strings.Contains(text, fmt.Sprintf("%x", canary)) {
				t.Errorf("the log reveals the secret: %s", text)
			}
			if !strings.Contains(text, "redacted") || strings.Count(text, "\n") != 5 {
				t.Errorf("the log is %s", text)
			}
		}
	}
}

// flaky fails when told to, after it has written part of the line.
type flaky struct {
	bytes.Buffer
	part int // bytes written before the failure; -1 writes all
}

func (f *flaky) Write(p []byte) (int, error) {
	if f.part < 0 {
		return f.Buffer.Write(p)
	}
	n, _ := f.Buffer.Write(p[:f.part])
	return n, errors.New("disk full")
}

func TestALogThatCannotBeWrittenIsReportedNowAndThenAndTornLinesEnd(t *testing.T) {
	t.Parallel()
	now := noon
	var complaints []int
	f := &flaky{part: -1}
	s := &sink{w: f, now: func() time.Time { return now }, complain: func(lost int,
		err error) {
		complaints = append(complaints, lost)
	}}
	s.write([]byte("one\n"))
	f.part = 2
	s.write([]byte("two\n"))
	f.part = 0
	for range 10 {
		s.write([]byte("three\n"))
	}
	now = now.Add(quiet)
	s.write([]byte("four\n"))
	f.part = -1
	s.write([]byte("five\n"))
	s.write([]byte("six\n"))
	if got, want := f.String(), "one\ntw\nfive\nsix\n"; got != want {
		t.Errorf("the file is %q, want %q", got, want)
	}
	if got, want := fmt.Sprint(complaints), "[1 11]"; got != want {
		t.Errorf("the losses reported are %s, want %s", got, want)
	}
}

func TestAFileThatFailsIsReportedOnTheConsole(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "logs")
	path := filepath.Join(dir, "a.log")
	var console bytes.Buffer
	now := noon
	log, file, err := New(Config{Path: path}, Options{Console: &console, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	file.tidying.Wait() // the record of the start
	now = now.Add(lookEvery)
	// A file takes the place of the folder, so that even root cannot write the log.
	if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	log.Info("lost")
	log.Info("lost")
	if got := console.String(); strings.Count(got, "\n") != 1 ||
		!strings.Contains(got, `"msg":"log_records_lost","lost":1`) {
		t.Errorf("the console has %s", got)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
}

func TestAConsoleThatFailsStopsNobody(t *testing.T) {
	t.Parallel()
	log, file, err := New(Config{}, Options{Console: broken{}})
	if err != nil {
		t.Fatal(err)
	}
	log.Error("goes nowhere")
	if err := errors.Join(log.Sync(), file.Close()); err != nil {
		t.Error(err)
	}
}

func TestRecordsOfManyGoroutinesDoNotMix(t *testing.T) {
	t.Parallel()
	log, out := open(t, Config{}, Options{})
	var wg sync.WaitGroup
	for g := range 8 {
		child := log.With(zap.Int("g", g))
		wg.Go(func() {
			for i := range 200 {
				child.Info("line", zap.Int("i", i), zap.String("text", "\u2028"))
			}
		})
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 1600 {
		t.Errorf("there are %d lines", len(lines))
	}
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Fatalf("a line is %q", line)
		}
	}
}

func TestWhatIsEscapedReadsBackTheSame(t *testing.T) {
	t.Parallel()
	for name, text := range nasty {
		if len(text) > maxValue || !utf8.ValidString(text) {
			continue
		}
		log, out := open(t, Config{}, Options{})
		log.Info("x", zap.String("text", text))
		var record struct{ Text string }
		if err := json.Unmarshal(out.Bytes(), &record); err != nil || record.Text != text {
			t.Errorf("%s: %q came back as %q, %v", name, text, record.Text, err)
		}
	}
}

func FuzzOneLine(f *testing.F) {
	for _, text := range nasty {
		if len(text) < 1<<10 {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, dev := range []bool{false, true} {
			log, out := open(t, Config{}, Options{Dev: dev})
			log.Named(text).With(zap.String(text, text)).Info(text, fieldsOf(text)...)
			wantOneLine(t, dev, out.String())
		}
	})
}

func TestColoursAreForTerminalsAlone(t *testing.T) {
	terminal := openTerminal(t)
	for _, tc := range []struct {
		noColour, term string
		want           bool
	}{{"", "xterm", true}, {"1", "xterm", false}, {"", "dumb", false}} {
		t.Setenv("NO_COLOR", tc.noColour)
		t.Setenv("TERM", tc.term)
		if got := wantsColour(terminal); got != tc.want {
			t.Errorf("%+v: colours are %v", tc, got)
		}
	}
	t.Setenv("TERM", "xterm")
	pipe, _, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if wantsColour(pipe) || wantsColour(&bytes.Buffer{}) {
		t.Error("colours are written to a pipe")
	}
	// Yellow, cyan and white cannot be read on a light terminal, blue not on a dark one.
	for level, want := range map[zapcore.Level]string{
		zap.DebugLevel: "DEBUG", zap.InfoLevel: "INFO", zap.WarnLevel: "\x1b[1;35mWARN\x1b[0m",
		zap.ErrorLevel: "\x1b[1;31mERROR\x1b[0m",
	} {
		line, err := consoleEncoder(true).EncodeEntry(zapcore.Entry{Level: level, Message: "m"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := safe(line.Bytes()); !bytes.HasPrefix(got, []byte(want+"  ")) {
			t.Errorf("want %q in %q", want, got)
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	log, _ := open(b, Config{}, Options{Console: discard{}})
	b.ReportAllocs()
	for b.Loop() {
		log.Info("request", zap.String("method", "POST"), zap.String("path", "/api/v1/auth/login"),
			zap.Int("status", 200),
			zap.Duration("took", time.Millisecond), zap.String("request_id", "0198f0a2"), zap.String("ip", "192.0.2.1"))
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
