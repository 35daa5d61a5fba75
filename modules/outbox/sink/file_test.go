package sink_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/testenv"
)

func batch(records ...relay.Record) *relay.Batch {
	return &relay.Batch{Records: records, Owned: func() bool { return true }}
}

func record(key string, seq int64) relay.Record {
	return relay.Record{Record: outbox.Record{
		ID: seq, Seq: seq, EventID: fmt.Sprintf("%s-%d", key, seq), Type: "test.Happened.v1", Key: key, Subject: key,
		Source: "https://auth.example", DataSchema: "https://schemas.example/a.json", Time: "2026-01-02T03:04:05.5Z",
		Data: []byte(`{"a":"<&> ü"}`),
	}}
}

func open(t *testing.T, path string) *sink.File {
	t.Helper()
	s, err := sink.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func publish(t *testing.T, s relay.Sink, records ...relay.Record) {
	t.Helper()
	if err := s.Publish(t.Context(), batch(records...)); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

const first = `{"specversion":"1.0","id":"k-1","source":"https://auth.example","type":"test.Happened.v1","subject":"k",` +
	`"time":"2026-01-02T03:04:05.5Z","sequence":"1","dataschema":"https://schemas.example/a.json","datacontenttype":"application/json","data":{"a":"<&> ü"}}` + "\n"

func TestFileHasOneStructuredEventALine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.ndjson")
	s := open(t, path)
	bare := record("k", 2)
	bare.Subject, bare.DataSchema, bare.Replay = "", "", true
	traced := record("k", 3)
	traced.TraceParent, traced.Generation = traceparent, 12
	publish(t, s, record("k", 1), bare, traced)
	want := first + `{"specversion":"1.0","id":"k-2","source":"https://auth.example","type":"test.Happened.v1",` +
		`"time":"2026-01-02T03:04:05.5Z","sequence":"2","replay":true,"datacontenttype":"application/json","data":{"a":"<&> ü"}}` + "\n" +
		`{"specversion":"1.0","id":"k-3","source":"https://auth.example","type":"test.Happened.v1","subject":"k",` +
		`"time":"2026-01-02T03:04:05.5Z","sequence":"3","generation":"12","dataschema":"https://schemas.example/a.json",` +
		`"traceparent":"` + traceparent + `","datacontenttype":"application/json","data":{"a":"<&> ü"}}` + "\n"
	if got := content(t, path); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	for _, name := range []string{path, path + ".lock"} {
		info, err := os.Stat(name)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
}

func TestFileRepairsALineCutByACrash(t *testing.T) {
	t.Parallel()
	for name, torn := range map[string]string{
		"short": `{"specver`, "long": `{"specversion":"` + strings.Repeat("x", 20_000), "nothing": "",
	} {
		for _, before := range []string{"", first} {
			path := filepath.Join(t.TempDir(), "events.ndjson")
			if err := os.WriteFile(path, []byte(before+torn), 0o600); err != nil {
				t.Fatal(err)
			}
			publish(t, open(t, path), record("k", 1))
			if got := content(t, path); got != before+first {
				t.Errorf("%s: got %.300q", name, got)
			}
		}
	}
}

func TestFileIsBegunAnewWhenMovedAway(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.ndjson")
	s := open(t, path)
	publish(t, s, record("k", 1))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	publish(t, s, record("k", 1))
	if content(t, path) != first || content(t, path+".1") != first {
		t.Error("the event is not where it belongs")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	publish(t, s, record("k", 1))
	if content(t, path) != first {
		t.Error("a removed file was not created again")
	}
}

// A file that was removed takes its space until nobody has it open, and on a full disk no event is published.
func TestFileLetsGoOfOneThatWasMovedAway(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		return // this system does not show what is open
	}
	path := filepath.Join(t.TempDir(), "events.ndjson")
	s := open(t, path)
	publish(t, s, record("k", 1))
	if isOpen(t, path) != 1 {
		t.Error("the file is not kept open")
	}
	testenv.Must(t, os.Rename(path, path+".1"))
	_, err := s.Identity(t.Context())
	testenv.Must(t, err)
	if isOpen(t, path+".1") != 0 {
		t.Error("the file that was moved away is open")
	}
	publish(t, s, record("k", 1))
	if content(t, path) != first || content(t, path+".1") != first {
		t.Error("the event is not where it belongs")
	}
}

// isOpen counts how often this process has the file of the path open.
func isOpen(t *testing.T, path string) (n int) {
	t.Helper()
	is, err := os.Stat(path)
	testenv.Must(t, err)
	fds, err := filepath.Glob("/proc/self/fd/*")
	testenv.Must(t, err)
	for _, fd := range fds {
		if have, err := os.Stat(fd); err == nil && os.SameFile(have, is) {
			n++
		}
	}
	return n
}

// Several processes append to one file, and lines stay whole.
func TestFileIsSharedByTurns(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.ndjson")
	var wg sync.WaitGroup
	for n := range 4 {
		s := open(t, path)
		wg.Go(func() {
			for i := range 20 {
				if err := s.Publish(context.Background(),
					batch(record(fmt.Sprint("k", n), int64(2*i+1)),
						record(fmt.Sprint("k", n), int64(2*i+2)))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	seen, err := outboxtest.ReadFile(path)
	if err != nil || len(seen) != 160 {
		t.Fatalf("%d events, %v", len(seen), err)
	}
	last := map[string]int64{}
	for _, s := range seen {
		if s.Seq != last[s.Key]+1 {
			t.Fatalf("%s/%d after %d", s.Key, s.Seq, last[s.Key])
		}
		last[s.Key] = s.Seq
	}
}

func TestFileWritesNothingItMayNot(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.ndjson")
	s := open(t, path)
	b := batch(record("k", 1))
	b.Owned = func() bool { return false }
	if err := s.Publish(t.Context(), b); !errors.Is(err, relay.ErrNotOwned) {
		t.Errorf("got %v, want ErrNotOwned", err)
	}
	if got := content(t, path); got != "" {
		t.Errorf("wrote %q", got)
	}
	if _, err := sink.OpenFile(filepath.Join(t.TempDir(), "missing",
		"events.ndjson")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing folder: %v", err)
	}
}

// Whatever strings an event has, its line is one line with the same content.
func FuzzLine(f *testing.F) {
	f.Add("k", "s", `{"a":1}`)
	f.Add("\u2028", "a\"b\\", `{"a":"\u0000\n"}`)
	f.Fuzz(func(t *testing.T, key, source, data string) {
		var compact any
		if json.Unmarshal([]byte(data), &compact) != nil || strings.ContainsAny(data, "\r\n") {
			t.Skip()
		}
		r := record(key, 1)
		r.Source, r.Data = source, []byte(data)
		line, err := sink.Line(&r.Record)
		if err != nil {
			t.Fatal(err)
		}
		if i := strings.IndexByte(string(line), '\n'); i != len(line)-1 {
			t.Fatalf("not one line: %q", line)
		}
		if _, err := outboxtest.ParseLine(line); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFileTakesNothingOnceItIsClosed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.ndjson")
	s := open(t, path)
	publish(t, s, record("k", 1))
	before := content(t, path)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(t.Context(), batch(record("k", 2))); err == nil || content(t, path) != before {
		t.Errorf("published to a closed file: %v, it has %q", err, content(t, path))
	}
}
