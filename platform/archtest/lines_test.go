package archtest

import (
	"bytes"
	"fmt"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

const columns = 120 // that a line of Go may have; a tab counts as four

// Two files fit beside each other. Raw strings are exempt: SQL, tags, and texts as they are printed. So are tests,
// which may have what they compare in one piece.
func TestLinesOfGoFitTheScreen(t *testing.T) {
	t.Parallel()
	const root = "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(filepath.ToSlash(path), "../../")
		for _, line := range longLines(src) {
			t.Errorf("%s:%d has more than %d columns: wrap it", name, line, columns)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// longLines returns the numbers of the lines that are too long and hold no part of a raw string.
func longLines(src []byte) (long []int) {
	raw := map[int]bool{}
	file := token.NewFileSet().AddFile("", -1, len(src))
	var s scanner.Scanner
	s.Init(file, src, nil, 0)
	for {
		pos, tok, text := s.Scan()
		if tok == token.EOF {
			break
		}
		if tok == token.STRING && text[0] == '`' {
			for line := range strings.Count(text, "\n") + 1 {
				raw[file.Line(pos)+line] = true
			}
		}
	}
	n := 0
	for line := range bytes.Lines(src) {
		n++
		line = bytes.TrimRight(line, "\r\n")
		if utf8.RuneCount(line)+3*bytes.Count(line, []byte("\t")) > columns && !raw[n] {
			long = append(long, n)
		}
	}
	return long
}

func TestLongLinesAreFound(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", columns-3)
	for src, want := range map[string]string{
		"// " + long:                              "[]",
		"package a\n\n// " + long + "x\n":         "[3]",
		"\t// " + long[8:]:                        "[]",
		"\t// " + long[6:]:                        "[1]",
		"var a = `" + long + "`":                  "[]",
		"var a = `\n" + long + "xxxxxx\n`\n":      "[]",
		"var a = \"" + long + "\"\nvar b = `c`\n": "[1]",
	} {
		if got := fmt.Sprint(longLines([]byte(src))); got != want {
			t.Errorf("of %q the lines %s are long, want %s", src, got, want)
		}
	}
}
