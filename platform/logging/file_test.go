package logging

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
)

// handClock is a clock that only the test moves. The goroutine that tidies up reads it too.
type handClock struct{ passed atomic.Int64 }

func (c *handClock) now() time.Time          { return noon.Add(time.Duration(c.passed.Load())) }
func (c *handClock) advance(d time.Duration) { c.passed.Add(int64(d)) }

// openLog opens a log file and returns the logger with its clock.
func openLog(t *testing.T, cfg Config, opt Options) (*zap.Logger, *File, *handClock) {
	t.Helper()
	now := &handClock{}
	opt.Now = now.now
	if opt.Console == nil {
		opt.Console = io.Discard
	}
	log, file, err := New(cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return log, file, now
}

// wantMessages checks that a file has exactly these records.
func wantMessages(t *testing.T, path string, want ...string) {
	t.Helper()
	var have []string
	for line := range strings.Lines(read(t, path)) {
		_, rest, _ := strings.Cut(line, `"msg":"`)
		message, _, found := strings.Cut(rest, `"`)
		if !found || line[0] != '{' {
			t.Errorf("%s has the line %.80q", filepath.Base(path), line)
		}
		have = append(have, message)
	}
	if !slices.Equal(have, want) {
		t.Errorf("%s has %q, want %q", filepath.Base(path), have, want)
	}
}

func TestARenamedFileIsLeftAloneOnceTheLogIsOpenedAgain(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]bool{"nobody has made another": false, "another is there": true} {
		path := filepath.Join(t.TempDir(), "a.log")
		log, file, _ := openLog(t, Config{Path: path}, Options{})
		log.Info("one")
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		log.Info("two") // the log does not know the new name yet
		if begin {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := file.Reopen(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		log.Info("three")
		wantMessages(t, path+".1", "one", "two")
		wantMessages(t, path, "three")
	}
}

func TestARenamedOrRemovedFileIsNoticedWithinASecond(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.log")
	log, _, now := openLog(t, Config{Path: path}, Options{})
	log.Info("one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	now.advance(lookEvery)
	log.Info("two")
	wantMessages(t, path+".1", "one")
	wantMessages(t, path, "two")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	now.advance(lookEvery)
	log.Info("three")
	wantMessages(t, path, "three")
}

func TestATruncatedFileGoesOnAtItsBeginning(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.log")
	// Also the file that the log has begun after a rotation.
	for _, turned := range []bool{false, true} {
		log, _, now := openLog(t, Config{Path: path, MaxSizeMB: 1}, Options{})
		if turned {
			for range 300 {
				log.Info("fill", zap.String("fill", strings.Repeat("x", 5000)))
			}
		}
		log.Info("before")
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		log.Info("after")
		wantMessages(t, path, "after")
		// The size counts from there: truncated bytes do not cause a rotation.
		before, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "a-*"))
		now.advance(lookEvery)
		for range 100 {
			log.Info("fill", zap.String("fill", strings.Repeat("x", 5000)))
		}
		if after, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "a-*")); len(after) != len(before) {
			t.Errorf("rotated at half its size: %v", after)
		}
	}
}

func TestAReopenThatFailsLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a.log")
	log, file, _ := openLog(t, Config{Path: path}, Options{})
	log.Info("one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := file.Reopen(); err == nil {
		t.Error("a folder was accepted as a log")
	}
	log.Info("two")
	wantMessages(t, path+".1", "one", "two")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := file.Reopen(); err != nil {
		t.Error(err)
	}
	log.Info("three")
	wantMessages(t, path, "three")
}

func TestTwoProcessesMayWriteToOneFileAndTurnItOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a.log")
	const each = 330
	var writers sync.WaitGroup
	var files []*File
	for who := range 2 {
		log, file, err := New(Config{Path: path, MaxSizeMB: 1, Compress: true}, Options{Console: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		files = append(files, file)
		writers.Go(func() {
			for i := range each {
				log.Info(fmt.Sprintf("%d of %d", i, who), zap.String("fill", strings.Repeat("x", 5000)))
			}
		})
	}
	writers.Wait()
	for _, file := range files {
		file.tidying.Wait()
	}
	seen := map[string]bool{}
	for _, text := range everything(t, dir) {
		for line := range strings.Lines(text) {
			_, rest, _ := strings.Cut(line, `"msg":"`)
			message, _, _ := strings.Cut(rest, `"`)
			seen[message] = true
		}
	}
	if len(seen) != 2*each {
		t.Errorf("%d of %d records remain", len(seen), 2*each)
	}
}

// everything reads every file of a folder, decompressed, by name.
func everything(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(e.Name(), zipped) {
			unpacker, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if data, err = io.ReadAll(unpacker); err != nil {
				t.Fatal(err)
			}
		}
		texts[e.Name()] = string(data)
	}
	return texts
}

func TestFilesSetAsideAreCompressedAndRemovedByNumberAndAge(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	stem := func(age time.Duration) string { return "a-" + noon.Add(-age).UTC().Format(rotatedTime) + ".log" }
	for name, tc := range map[string]struct {
		cfg  Config
		want []string
	}{
		"nothing asked for": {Config{}, []string{stem(0), stem(day), stem(3 * day), stem(40*day) + zipped}},
		"number":            {Config{MaxBackups: 2}, []string{stem(0), stem(day)}},
		"age":               {Config{MaxAgeDays: 30}, []string{stem(0), stem(day), stem(3 * day)}},
		"compressed": {Config{Compress: true}, []string{stem(0), stem(day) + zipped, stem(3*day) + zipped,
			stem(40*day) + zipped}},
		"all": {Config{MaxBackups: 3, MaxAgeDays: 2, Compress: true}, []string{stem(0), stem(day) + zipped}},
	} {
		dir := t.TempDir()
		for _, file := range []string{stem(0), stem(day), stem(3 * day), "b-" + stem(0)[2:], "a-notes.log", "a.log.1",
			"notes"} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(file), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		var packed bytes.Buffer
		packer := gzip.NewWriter(&packed)
		_, _ = packer.Write([]byte(stem(40 * day)))
		_ = packer.Close()
		if err := os.WriteFile(filepath.Join(dir, stem(40*day)+zipped), packed.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		tc.cfg.Path = filepath.Join(dir, "a.log")
		file := newFile(tc.cfg, clockAtNoon, func(err error) { t.Error(err) })
		if err := file.tidy(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		texts := everything(t, dir)
		want := append(slices.Clone(tc.want), "b-"+stem(0)[2:], "a-notes.log", "a.log.1", "notes")
		for _, file := range want {
			if texts[file] != strings.TrimSuffix(file, zipped) {
				t.Errorf("%s: %s has %q", name, file, texts[file])
			}
		}
		if len(texts) != len(want) {
			t.Errorf("%s: %v remain, want %v", name, texts, want)
		}
	}
}

func TestTheFileTurnsOverAndTidiesByItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log, file, err := New(Config{Path: filepath.Join(dir, "a.log"), MaxSizeMB: 1, MaxBackups: 2, Compress: true},
		Options{Console: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 * 210 {
		log.Info("fill", zap.String("fill", strings.Repeat("x", 5000)))
	}
	file.tidying.Wait()
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	packed, _ := filepath.Glob(filepath.Join(dir, "a-*.log.gz"))
	plain, _ := filepath.Glob(filepath.Join(dir, "a-*.log"))
	if len(packed) != 1 || len(plain) != 1 || packed[0] > plain[0] {
		t.Errorf("set aside are %v and %v", packed, plain)
	}
}

func TestACommandsRecordsReachTheFileAndNothingElseMakesOne(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "logs", "a.log")
	log, _, _ := openLog(t, Config{Path: path, Level: "warn"}, Options{Brief: true})
	log.Info("looked")
	if _, err := os.Stat(filepath.Dir(path)); !os.IsNotExist(err) {
		t.Errorf("a command that had nothing to say made the folder: %v", err)
	}
	Security(log).Info("disabled")
	wantMessages(t, path, "disabled")

	// A file that cannot be opened does not stop the command, and the console has the record.
	var console bytes.Buffer
	log, _, _ = openLog(t, Config{Path: t.TempDir(), Level: "warn"}, Options{Brief: true, Console: &console})
	Security(log).Info("disabled")
	if text := console.String(); !strings.Contains(text, "disabled") || !strings.Contains(text, "log_records_lost") {
		t.Errorf("the console has %s", text)
	}
}
