package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/testenv"
)

func TestColumnsAlignWhateverIsInThem(t *testing.T) {
	t.Parallel()
	rows := [][]string{
		{"ID", "DEVICE", "IP"},
		{"1", "会議室", "x"},
		{"2", "e\u0301te\u0301", "x"},
		{"3", "שלום", "x"},
		{"4", "", "x"},
		{"5", "a\x1b[2Jb\u009bc\u202ed", "x"},
		{"6", "two\nlines\tof it", ""},
	}
	var out bytes.Buffer
	testenv.Must(t, printAligned(&out, rows))
	const want = `ID  DEVICE           IP
1   会議室           x
2   été              x
3   שלום             x
4                    x
5   a�[2Jb�c�d       x
6   two lines of it
`
	plain := strings.NewReplacer(`\u0301`, "\u0301", `\uFFFD`, "\uFFFD").Replace(want)
	if out.String() != plain {
		t.Errorf("got\n%s\nwant\n%s", &out, plain)
	}
}

func TestWideTextIsBrokenWhereItsLineEnds(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	testenv.Must(t, printPairsWithin(&out, 40, [][]string{{"device", "会議室の端末 会議室の端末 会議室の端末"}}))
	for line := range strings.Lines(out.String()) {
		if columns := width(strings.TrimSuffix(line, "\n")); columns > 40 {
			t.Errorf("%d columns: %s", columns, line)
		}
	}
}

// A list of nothing looks the same on any terminal: a heading. Nothing at all would look like a failure.
func TestAnEmptyListHasItsHeadingOnANarrowTerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := printTableWithin(&out, 10, []string{"ID", "USERNAME", "STATUS"}, nil); err != nil ||
		out.String() != "ID  USERNAME  STATUS\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestAListHasOneHeadingAndAllItsRows(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 999, 1000, 1001, 3000} {
		var out bytes.Buffer
		g := &global{output: "table"}
		err := g.stream(&out, []string{"NAME"}, func(print func(any, []string) error) error {
			for range n {
				if err := print(nil, []string{"row"}); err != nil {
					return err
				}
			}
			return nil
		})
		if got := strings.Count(out.String(), "row\n"); err != nil || got != n || strings.Count(out.String(), "NAME\n") != 1 {
			t.Errorf("of %d rows %d are there, and %d headings: %v", n, got, strings.Count(out.String(), "NAME\n"), err)
		}
	}
}

func TestJSONControlsNoTerminal(t *testing.T) {
	t.Parallel()
	value := map[string]string{"agent": "a\x1b\u009b\u202e\x7f漢"}
	var out bytes.Buffer
	testenv.Must(t, printJSON(&out, value))
	if bytes.ContainsFunc(out.Bytes(), controls) {
		t.Errorf("got %q", &out)
	}
	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["agent"] != value["agent"] {
		t.Errorf("it is %q afterwards: %v", back, err)
	}
}

func TestDoctorQuotesOthersWithoutTheirControls(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	testenv.Must(t, printFinding(&out, failing("the server said\x1b[2J\u202e that\nit is away", "start it")))
	if bytes.ContainsFunc(out.Bytes(), controls) || bytes.Count(out.Bytes(), []byte("\n")) != 1 {
		t.Errorf("it prints %q", &out)
	}
}

// fullDisk takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

func TestACommandWhoseResultIsLostFails(t *testing.T) {
	t.Parallel()
	for _, line := range [][]string{{"--help"}, {"help", "user"}, {"version"}, {"version", "-o", "json"}, {"config", "show"}} {
		var stderr bytes.Buffer
		if code := run(t.Context(), line, strings.NewReader(""), fullDisk{}, &stderr); code != exitFailed ||
			!strings.Contains(stderr.String(), "the disk is full") {
			t.Errorf("%q ends with %d: %s", line, code, &stderr)
		}
	}
}

func TestAFlagWithOneValueIsGivenOnce(t *testing.T) {
	t.Parallel()
	for _, line := range [][]string{
		{"session", "revoke", "--user", "alice", "--user", "bob"},
		{"outbox", "replay", "--from-id", "1", "--from-id", "2"},
		{"outbox", "status", "--every", "1s", "--every", "2s"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), line, strings.NewReader(""), &stdout, &stderr); code != exitMisused ||
			!strings.Contains(stderr.String(), line[2]) {
			t.Errorf("%q ends with %d: %s", line, code, &stderr)
		}
	}
	// An alias may have given these.
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"-o", "json", "version", "-o", "table"}, strings.NewReader(""), &stdout,
		&stderr); code != exitDone {
		t.Errorf("-o twice ends with %d: %s", code, &stderr)
	}
}

func TestARangeWithNothingInItIsAMisuse(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{
		{"--from-id", "9", "--to-id", "3"}, {"--from-id", "-4"}, {"--to-id", "0"}, {"--since", "1h", "--until", "2h"},
		{"--since", "2026-01-02T00:00:00+02:00", "--until", "2026-01-01T22:00:00Z"},
	} {
		var stdout, stderr bytes.Buffer
		line := append([]string{"outbox", "replay"}, flags...)
		if code := run(t.Context(), line, strings.NewReader(""), &stdout, &stderr); code != exitMisused {
			t.Errorf("%q ends with %d: %s", line, code, &stderr)
		}
	}
}

func TestALongImportTellsHowFarItIsOnceAMinute(t *testing.T) {
	t.Parallel()
	now, told := time.Now(), 0
	due := everyMinute(func() time.Time { return now })
	for range 150 {
		if now = now.Add(time.Second); due() {
			told++
		}
	}
	if told != 2 {
		t.Errorf("in two and a half minutes it was due %d times", told)
	}
}

// A refused record that cannot be told to standard error stopped the import, and the exit code was that of an import
// that went to the end.
func TestAnImportGoesOnWithoutStandardError(t *testing.T) {
	t.Chdir(t.TempDir())
	const hash = "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"
	in := `{"username":"x","password_hash":"` + hash + `"}` + "\n" + `{"username":"alice","password_hash":"` + hash + `"}`
	var out bytes.Buffer
	code := run(t.Context(), []string{"user", "import", "-", "-o", "json"}, strings.NewReader(in), &out, fullDisk{})
	if code != exitFailed || !strings.Contains(out.String(), `"imported": 1`) ||
		!strings.Contains(out.String(), `"refused": 1`) {
		t.Errorf("exit %d: %s", code, &out)
	}
}
