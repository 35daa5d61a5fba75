//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/sys/unix"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/testenv"
)

// terminal opens a terminal of so many columns, and its keyboard. close returns what was written to it.
func terminal(t *testing.T, columns uint16) (tty, keyboard *os.File, close func() string) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	testenv.Must(t, err)
	t.Cleanup(func() { _ = screen.Close() })
	fd := int(screen.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: columns})
	}
	testenv.Must(t, err)
	tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	testenv.Must(t, err)
	seen := make(chan string)
	go func() {
		text, _ := io.ReadAll(screen) // ends with an error when the other side is closed
		seen <- string(text)
	}()
	return tty, screen, func() string {
		_ = tty.Close()
		return strings.ReplaceAll(<-seen, "\r\n", "\n")
	}
}

// onTerminal runs a command line on a terminal of so many columns and returns what is on the screen.
func onTerminal(t *testing.T, columns uint16, line ...string) string {
	t.Helper()
	tty, _, end := terminal(t, columns)
	var stderr bytes.Buffer
	code := run(t.Context(), line, strings.NewReader(""), tty, &stderr)
	text := end()
	if code != exitDone {
		t.Errorf("%q ends with %d: %s", line, code, &stderr)
	}
	return text
}

func TestNoLineWrapsOnATerminal(t *testing.T) {
	dir, err := os.MkdirTemp("", "t") // a short name, because the output has it
	testenv.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Chdir(dir)
	flags := []string{"--set", "app.operator_addr=off", "--set", "auth.password.bcrypt_cost=4", "--set", "app.port=0",
		"--set",
		"app.host=127.0.0.1"}
	server := runInBackground(t, append([]string{"serve"}, flags...)...)
	base := "http://127.0.0.1:" + server.await(t, `"port": (\d+)`)
	account, err := json.Marshal(map[string]string{"username": "alice-with-a-long-name@mail.example.com",
		"password": "correct horse battery staple"})
	testenv.Must(t, err)
	res, err := http.Post(base+"/api/v1/auth/register", "application/json", bytes.NewReader(account))
	testenv.Must(t, err)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		t.Fatal(res.Status)
	}
	uuid := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	for _, line := range [][]string{{"user", "list"},
		{"session", "list", "--user", "alice-with-a-long-name@mail.example.com"},
		{"key", "list"}, {"migrate", "status"}, {"outbox", "status", "--shards"}, {"outbox", "target", "list"},
		{"outbox", "target", "show"}, {"verifier", "list"}, {"config", "show"}, {"doctor"}} {
		for _, columns := range []uint16{80, 200} {
			screen := onTerminal(t, columns, append(slices.Clone(line), flags...)...)
			for row := range strings.Lines(screen) {
				if width := utf8.RuneCountInString(strings.TrimSuffix(row, "\n")); width > int(columns) {
					t.Errorf("%q: a line of %d characters on a terminal of %d: %s", line, width, columns, row)
				}
			}
			if strings.Contains(screen, " \n") {
				t.Errorf("%q: a line ends with blanks: %q", line, screen)
			}
			// Words alone carry the meaning, on light and dark backgrounds.
			if strings.Contains(screen, "\x1b") {
				t.Errorf("%q prints escape sequences: %q", line, screen)
			}
			if (line[0] == "user" || line[0] == "session") && (len(uuid.FindAllString(screen, -1)) != 1 ||
				!strings.Contains(screen, "alice-with-a-long-name@mail.example.com")) {
				t.Errorf("%q: an id or a name is not whole: %s", line, screen)
			}
		}
	}
}

// The remedy of what ended the relays comes before they are started again.
func TestStatusSaysWhatToDoWithoutRelays(t *testing.T) {
	t.Parallel()
	ended := func(kind string) []outbox.Outage {
		return []outbox.Outage{{Relay: "vm/1", Kind: kind, Error: "there are 8 partitions", Since: time.Now()}}
	}
	lasting := ended("topic")
	lasting[0].Lasts = true
	const start = "events wait and nobody relays them: start authctl relay, or authctl serve with OUTBOX_RELAY=inline"
	for _, test := range []struct {
		outages []outbox.Outage
		want    string
	}{
		{nil, start},
		{ended("retry"), start},
		{ended("partitions"), "events wait and nobody relays them: do what the outage says, then start authctl relay, " +
			"or authctl serve with OUTBOX_RELAY=inline"},
		{lasting, ""},
	} {
		tty, _, end := terminal(t, 80)
		o := &statusOptions{global: &global{}}
		if err := o.print(tty, outbox.State{Pending: 3, Outages: test.outages}, nil); err != nil {
			t.Error(err)
		}
		screen := end()
		_, hint, _ := strings.Cut(screen, "events wait")
		if hint = strings.Join(strings.Fields(hint), " "); hint != "" {
			hint = "events wait " + hint
		}
		if hint != test.want {
			t.Errorf("%v: %q, want %q", test.outages, hint, test.want)
		}
		for row := range strings.Lines(screen) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(row, "\n")); n > 80 {
				t.Errorf("a line of %d characters: %s", n, row)
			}
		}
	}
}

// Many shards must not push off the screen what waits and what keeps it waiting.
func TestAWatchedStateBeginsAtTheTopOfTheScreen(t *testing.T) {
	t.Setenv("TERM", "xterm")
	st := outbox.State{Pending: 3, Shards: make([]outbox.ShardState, 96)}
	for columns, most := range map[uint16]int{20: 19, 80: 39, 200: 39} { // of 40 lines; at 20 columns many take two
		tty, _, end := terminal(t, columns)
		o := &statusOptions{global: &global{}, watch: true, shards: true}
		if err := o.print(tty, st, nil); err != nil {
			t.Error(err)
		}
		lines := strings.Split(strings.TrimSuffix(end(), "\x1b[K\n\x1b[J"), "\x1b[K\n")
		rows := 0
		for _, line := range lines {
			rows += 1 + max(0, width(strings.TrimPrefix(line, "\x1b[H"))-1)/int(columns)
		}
		last := lines[len(lines)-1]
		if !strings.HasPrefix(lines[0], "\x1b[Hat  ") || rows > 39 || rows < most ||
			!regexp.MustCompile(`^\(\d+ more lines\)$`).MatchString(last) {
			t.Errorf("on %d columns: %d lines of the screen, from %q to %q", columns, rows, lines[0], last)
		}
	}
}

// Who watches sees the last state, that the database is away, once, and the state again when it is back.
func TestAWatcherIsToldOnceThatTheDatabaseIsAway(t *testing.T) {
	t.Chdir(t.TempDir())
	server := outboxtest.StartPostgres(t)
	t.Setenv("DATABASE_URL", server.URL)
	if code := run(t.Context(), []string{"migrate", "up"}, strings.NewReader(""), io.Discard, io.Discard); code != exitDone {
		t.Fatal("the database is not migrated")
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, stderr := &background{}, &background{}
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"outbox", "status", "--watch", "--every", "100ms", "-o", "json"},
			strings.NewReader(""), out, stderr)
	}()
	another := func() {
		t.Helper()
		before := strings.Count(out.String(), "\n")
		if !poll(func() bool { return strings.Count(out.String(), "\n") > before }) {
			t.Fatalf("no state is shown: %s", stderr)
		}
	}
	for i := range 2 {
		another()
		server.Crash(t)
		if !poll(func() bool { return strings.Count(stderr.String(), "\n") > i }) {
			t.Fatal("the database is away, and nothing says so")
		}
		server.Start(t)
		another()
	}
	stop()
	if code := <-ended; code != exitDone {
		t.Errorf("it ends with %d", code)
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "the database is away: ") ||
		!strings.HasSuffix(lines[0], "; this goes on when it is back") {
		t.Errorf("two times the database was away, and it says %q", lines)
	}
}

// A bar that goes on in the next line could not be drawn over: each step would be another line.
func TestAProgressBarStaysInItsLine(t *testing.T) {
	t.Parallel()
	for _, columns := range []uint16{20, 40, 80, 200} {
		for _, total := range []int64{1e6, -1} { // the size of a pipe is not known
			tty, _, end := terminal(t, columns)
			bar := newProgress(tty, total, "1234567 imported, 1234567 there, 1234567 refused",
				progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetSpinnerChangeInterval(0))
			_ = bar.Set(12)
			_ = bar.Finish()
			drawn := end()
			if !strings.Contains(drawn, "\r") || strings.Contains(drawn, "\n") {
				t.Errorf("on %d columns: %q", columns, drawn)
			}
			for line := range strings.SplitSeq(drawn, "\r") {
				if width(line) > int(columns) {
					t.Errorf("%d columns on a terminal of %d: %q", width(line), columns, line)
				}
			}
		}
	}
}

// Nothing comes from a terminal where nobody types, nor from a pipe whose other end waits. The first signal ends the
// wait; it must not take a second one, which stops the process at once.
func TestASignalEndsTheWaitForInput(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("AUTH_PASSWORD_BCRYPT_COST", "4")
	for _, line := range [][]string{
		{"token", "inspect"}, {"user", "create", "alice", "--password-stdin"}, {"user", "import", "-"},
		{"user", "delete", "alice"},
	} {
		if line[1] == "delete" { // which asks
			var stderr bytes.Buffer
			if code := run(t.Context(), []string{"user", "create", "alice", "--password-stdin"},
				strings.NewReader("correct horse battery staple\n"), io.Discard, &stderr); code != exitDone {
				t.Fatal(stderr.String())
			}
		}
		tty, keyboard, end := terminal(t, 80)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan string)
		go func() {
			var stderr bytes.Buffer
			code := run(ctx, line, tty, io.Discard, &stderr)
			ended <- fmt.Sprintf("%d: %s", code, &stderr)
		}()
		select {
		case said := <-ended:
			t.Errorf("%q waits for nothing, and ends with %s", line, said)
		case <-time.After(500 * time.Millisecond):
		}
		stop()
		select {
		case said := <-ended:
			if !strings.HasPrefix(said, "1: ") || !strings.Contains(said, "\nauthctl: stopped") &&
				!strings.HasPrefix(said, "1: authctl: stopped") {
				t.Errorf("%q ends with %s", line, said)
			}
		case <-time.After(testenv.Patience):
			t.Errorf("%q still waits", line)
		}
		_, _ = keyboard.WriteString("\n") // ends the read that nobody waits for
		_ = end()
	}
}
