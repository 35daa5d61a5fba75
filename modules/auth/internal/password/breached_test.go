package password

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/fault"
)

func sha1Hex(password string) string {
	sum := sha1.Sum([]byte(password))
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// breachedLines are the hashes of "breached0", "breached1" and so on, in order.
func breachedLines(n int) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = sha1Hex(fmt.Sprint("breached", i))
	}
	slices.Sort(lines)
	return lines
}

func breachedFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "breached.txt")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBreachedPasswordsAreFoundInEveryFormOfTheFile(t *testing.T) {
	t.Parallel()
	lines := breachedLines(1000)
	each := func(change func(i int, line string) string) []string {
		changed := make([]string, len(lines))
		for i, line := range lines {
			changed[i] = change(i, line)
		}
		return changed
	}
	counted := each(func(i int, line string) string { return fmt.Sprintf("%s:%d", line, i*i*i+1) })
	for name, text := range map[string]string{
		"hashes":              strings.Join(lines, "\n") + "\n",
		"no end of last line": strings.Join(lines, "\n"),
		"counts":              strings.Join(counted, "\n") + "\n",
		"hashes, CR LF":       strings.Join(lines, "\r\n") + "\r\n",
		"CR LF":               strings.Join(counted, "\r\n") + "\r\n",
		"CR LF, no last end":  strings.Join(counted, "\r\n"),
		"lower case":          strings.ToLower(strings.Join(lines, "\n")),
		"cut to 16 digits":    strings.Join(each(func(_ int, line string) string { return line[:16] }), "\n"),
		"cut unevenly":        strings.Join(each(func(i int, line string) string { return line[:16+i%25] }), "\n"),
	} {
		b, err := openBreached(breachedFile(t, text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i := range 1000 {
			if known, err := b.has(fmt.Sprint("breached", i)); !known || err != nil {
				t.Fatalf("%s: password %d: %v, %v", name, i, known, err)
			}
			if known, err := b.has(fmt.Sprint("fresh", i)); known || err != nil {
				t.Fatalf("%s: another password %d: %v, %v", name, i, known, err)
			}
		}
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}
}

func TestABreachedPasswordInAnotherWidthIsBreached(t *testing.T) {
	t.Parallel()
	lines := []string{sha1Hex("Breached7"), sha1Hex("ｂｒｏａｄｅｎｅｄ")}
	slices.Sort(lines)
	p := newTestPolicy(t, Config{BreachedFile: breachedFile(t, strings.Join(lines, "\n"))})
	for password, want := range map[string]string{
		"Breached7": Breached, "Ｂｒｅａｃｈｅｄ７": Breached, "Breached\u200b7": Breached, "ｂｒｏａｄｅｎｅｄ": Breached,
		"breached7": "", "broadened": "", // other passwords
	} {
		if got := code(t, p.check(password, "alice")); got != want {
			t.Errorf("%q: %q, want %q", password, got, want)
		}
	}
}

func TestSmallBreachedFiles(t *testing.T) {
	t.Parallel()
	for n := range 5 {
		b, err := openBreached(breachedFile(t, strings.Join(breachedLines(n), "\n")))
		if err != nil {
			t.Errorf("%d lines: %v", n, err)
			continue
		}
		for i := range 5 {
			if known, err := b.has(fmt.Sprint("breached", i)); known != (i < n) || err != nil {
				t.Errorf("%d lines, password %d: %v, %v", n, i, known, err)
			}
		}
		_ = b.close()
	}
}

func TestAFileThatIsNoBreachedSetIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	lines := breachedLines(100)
	backwards := slices.Clone(lines)
	slices.Reverse(backwards)
	for name, text := range map[string]string{
		"words":        "password\n123456\n",
		"blank lines":  strings.Join(lines, "\n\n"),
		"no line ends": strings.Join(lines, ""),
		"spaces":       strings.Join(lines, " \n"),
		"too short":    "0123456789ABCDE\n",
		"SHA-256":      strings.Repeat("A", 64) + "\n",
		"NTLM": "8846F7EAEE8FB117AD06BDD830B7586B:1\n8846F7EAEE8FB117AD06BDD830B7586C:52256179\n" +
			"8846F7EAEE8FB117AD06BDD830B7586D:1\n",
		"backwards":      strings.Join(backwards, "\n"),
		"a long line":    strings.Join(lines, "\n") + "\n" + lines[99] + ":" + strings.Repeat("1", 500),
		"zero bytes":     string(make([]byte, 4096)),
		"compressed":     "\x1f\x8b\x08\x00" + strings.Repeat("\x93", 1000),
		"HTML":           "<!doctype html>\n<html>\n",
		"UTF-16":         "\xff\xfe0\x001\x00",
		"UTF-8 BOM":      "\xef\xbb\xbf" + strings.Join(lines, "\n"),
		"only a newline": "\n",
	} {
		if b, err := openBreached(breachedFile(t, text)); err == nil {
			t.Errorf("%s: accepted", name)
			_ = b.close()
		}
	}
	for name, path := range map[string]string{"nothing": filepath.Join(t.TempDir(), "none"), "a folder": t.TempDir()} {
		if _, err := openBreached(path); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAPasswordIsNotTakenWhileTheBreachedSetCannotBeRead(t *testing.T) {
	t.Parallel()
	lines := breachedLines(1000)
	path := breachedFile(t, strings.Join(lines, "\n")+"\n")
	p := newTestPolicy(t, Config{BreachedFile: path})
	if got := code(t, p.check("breached7", "alice")); got != Breached {
		t.Errorf("%q", got)
	}
	if got := code(t, p.check("decomposed e\u0301", "alice")); got != "" {
		t.Errorf("%q", got)
	}
	for name, damage := range map[string]func(f *os.File) error{
		"overwritten": func(f *os.File) error {
			_,
				err := f.WriteAt([]byte(strings.Repeat("?", 41_000)), 0)
			return err
		},
		"cut off": func(f *os.File) error { return f.Truncate(0) },
	} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(damage(f), f.Close()); err != nil {
			t.Fatal(err)
		}
		err = p.check("long and unknown", "alice")
		var problem *fault.Refusal
		if err == nil || errors.As(err, &problem) || !strings.Contains(err.Error(), "breached-set file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A search of any file ends, finds every line of a sorted file, and reads no more than it must.
func FuzzSortedLines(f *testing.F) {
	f.Add("a\nb\nc\n", "b")
	f.Add("a\r\nb\r\nc", "c")
	f.Add("", "")
	f.Add("\n\n\n", "x")
	f.Add(strings.Repeat("x", 300), "x")
	f.Fuzz(func(t *testing.T, text, want string) {
		reads := 0
		s := sortedLines{
			text: readerAt(func(b []byte, off int64) (int, error) {
				reads++
				return strings.NewReader(text).ReadAt(b, off)
			}),
			size: int64(len(text)),
			key:  func(line []byte) ([]byte, error) { return line, nil },
		}
		known, err := s.find(func(key []byte) int { return strings.Compare(want, string(key)) })
		if reads > 70 {
			t.Fatalf("%d reads of %d bytes", reads, len(text))
		}
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		for i, line := range lines {
			lines[i] = strings.TrimSuffix(line, "\r")
			if len(line) >= maxLine {
				return
			}
		}
		if text == "" {
			lines = nil
		}
		if known && !slices.Contains(lines, want) {
			t.Fatalf("%q was found in %q", want, text)
		}
		if slices.IsSorted(lines) && (err != nil || known != slices.Contains(lines, want)) {
			t.Fatalf("%q in %q: %v, %v", want, text, known, err)
		}
	})
}

type readerAt func([]byte, int64) (int, error)

func (r readerAt) ReadAt(b []byte, off int64) (int, error) { return r(b, off) }

func TestASearchThatMeetsLinesOutOfOrderSaysSo(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"b\nc\nm\na\nz\n": "x", // after m comes a
		"b\nz\nm\nq\ny\n": "c", // before m comes z
	} {
		s := sortedLines{
			text: strings.NewReader(text),
			size: int64(len(text)),
			key:  func(line []byte) ([]byte, error) { return line, nil },
		}
		if known, err := s.find(func(key []byte) int {
			return strings.Compare(want, string(key))
		}); known || !errors.Is(err, errUnsorted) {
			t.Errorf("%q in %q: %v, %v", want, text, known, err)
		}
	}
}
