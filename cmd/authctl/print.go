package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rivo/uniseg"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

func printJSON(w io.Writer, v any) error {
	text, err := encodeJSON(v, "  ")
	if err == nil {
		_, err = w.Write(text)
	}
	return unwritten(err)
}

// unwritten is the error of a result that could not be written.
func unwritten(err error) error {
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

func printJSONLine(w io.Writer, v any) error {
	text, err := encodeJSON(v, "")
	if err == nil {
		_, err = w.Write(text)
	}
	return err
}

// encodeJSON is a JSON document and a line break. What would control a terminal is escaped: a member
// may be what somebody else wrote.
func encodeJSON(v any, indent string) ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", indent)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	if !bytes.ContainsFunc(text.Bytes(), controls) { // nearly always
		return text.Bytes(), nil
	}
	var escaped bytes.Buffer
	for _, r := range text.String() { // outside of strings there are none
		if controls(r) {
			fmt.Fprintf(&escaped, `\u%04x`, r)
		} else {
			escaped.WriteRune(r)
		}
	}
	return escaped.Bytes(), nil
}

// controls tells the characters that control a terminal or the order of what it shows, except line
// breaks and tabs.
func controls(r rune) bool {
	return r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r))
}

// harmless replaces what would control a terminal: a text may quote what somebody else wrote.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if controls(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// tell writes a result: a line for a person, or v as JSON.
func (g *global) tell(w io.Writer, v any, line string) error {
	if g.output == "json" {
		return printJSON(w, v)
	}
	_, err := fmt.Fprintln(w, line)
	return unwritten(err)
}

// table writes a result: rows under a heading, or v as JSON.
func (g *global) table(w io.Writer, v any, heading []string, rows [][]string) error {
	if g.output == "json" {
		return printJSON(w, v)
	}
	return printTable(w, heading, rows)
}

// pairs writes a result: names and values, or v as JSON.
func (g *global) pairs(w io.Writer, v any, rows [][]string) error {
	if g.output == "json" {
		return printJSON(w, v)
	}
	return printPairs(w, rows)
}

// printTable writes rows under a heading, columns aligned. On a terminal that is too narrow for
// that, each row becomes a block of names and values, in which ids stay whole.
func printTable(w io.Writer, heading []string, rows [][]string) error {
	return printTableWithin(w, terminalWidth(w), heading, rows)
}

// printTableWithin is printTable for so many columns; 0 means any number.
func printTableWithin(w io.Writer, limit int, heading []string, rows [][]string) error {
	all := append([][]string{heading}, rows...)
	if limit == 0 || len(rows) == 0 || tableWidth(all) <= limit {
		return printAligned(w, all)
	}
	for i, row := range rows {
		var pairs [][]string
		if i > 0 {
			pairs = append(pairs, []string{""})
		}
		for n, value := range row {
			pairs = append(pairs, []string{heading[n], value})
		}
		if err := printPairsWithin(w, limit, pairs); err != nil {
			return err
		}
	}
	return nil
}

func tableWidth(rows [][]string) int {
	columns := columnWidths(rows)
	sum := 2 * (len(columns) - 1)
	for _, width := range columns {
		sum += width
	}
	return sum
}

func columnWidths(rows [][]string) []int {
	var columns []int
	for _, row := range rows {
		for n, cell := range row {
			if n == len(columns) {
				columns = append(columns, 0)
			}
			columns[n] = max(columns[n], width(cell))
		}
	}
	return columns
}

// width is how many columns of a terminal a text takes: two for a wide character, none for one that
// combines with the one before.
func width(text string) int {
	for i := range len(text) {
		if text[i] >= utf8.RuneSelf {
			return uniseg.StringWidth(text)
		}
	}
	return len(text)
}

// printPairs writes names and values, aligned. On a terminal long values go on in the next line,
// under their beginning.
func printPairs(w io.Writer, rows [][]string) error {
	return printPairsWithin(w, terminalWidth(w), rows)
}

func printPairsWithin(w io.Writer, limit int, rows [][]string) error {
	if limit == 0 {
		return printAligned(w, rows)
	}
	names := 0
	for _, row := range rows {
		names = max(names, width(row[0]))
	}
	var wrapped [][]string
	for _, row := range rows {
		value := strings.Join(row[1:], "  ")
		for i, line := range wrap(value, limit-names-2) {
			name := row[0]
			if i > 0 {
				name = ""
			}
			wrapped = append(wrapped, []string{name, line})
		}
	}
	return printAligned(w, wrapped)
}

// wrap breaks a text between words into lines of at most so many columns. A longer word stays whole,
// so that it can be copied.
func wrap(text string, limit int) []string {
	if limit < 20 {
		return []string{text}
	}
	var lines []string
	line := ""
	for _, word := range strings.Split(text, " ") {
		switch {
		case line == "":
			line = word
		case width(line)+1+width(word) <= limit:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}

// printAligned writes rows with their columns under each other. Each row is one line, whatever is in it.
func printAligned(w io.Writer, rows [][]string) error {
	for _, row := range rows {
		for n, cell := range row {
			row[n] = strings.NewReplacer("\n", " ", "\t", " ").Replace(harmless(cell))
		}
	}
	columns := columnWidths(rows)
	out := bufio.NewWriter(w)
	for _, row := range rows {
		blanks := 0 // before the next cell that is not empty
		for n, cell := range row {
			if cell != "" {
				_, _ = out.WriteString(strings.Repeat(" ", blanks) + cell)
				blanks = 0
			}
			blanks += columns[n] - width(cell) + 2
		}
		_ = out.WriteByte('\n')
	}
	return unwritten(out.Flush())
}

// stream writes a list of any length in bounded memory: rows of a table, or a JSON array with an
// element a line.
func (g *global) stream(w io.Writer, heading []string, each func(print func(v any, row []string) error) error) error {
	out := bufio.NewWriter(w)
	var err error
	if g.output == "json" {
		before := "[\n"
		err = each(func(v any, _ []string) error {
			text, err := encodeJSON(v, "")
			if err != nil {
				return err
			}
			_, err = out.WriteString(before + string(bytes.TrimSuffix(text, []byte("\n"))))
			before = ",\n"
			return err
		})
		if before == "[\n" {
			_, _ = out.WriteString("[") // Flush reports the error
		}
		_, _ = out.WriteString("\n]\n")
	} else {
		// Columns are aligned in portions, so that memory stays bounded. A program gets one heading.
		limit := terminalWidth(w)
		portions := 0
		var rows [][]string
		portion := func() error {
			of := rows
			rows, portions = nil, portions+1
			if limit == 0 && portions > 1 {
				return printAligned(out, of)
			}
			return printTableWithin(out, limit, heading, of)
		}
		err = each(func(_ any, row []string) error {
			if rows = append(rows, row); len(rows) == 1000 {
				return portion()
			}
			return nil
		})
		if err == nil && (portions == 0 || len(rows) > 0) {
			err = portion()
		}
	}
	if err != nil {
		_ = out.Flush()
		return err
	}
	return out.Flush()
}

// moment is a time, or - for none.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// relative says how far a moment is from now.
func relative(d time.Duration) string {
	if d < 0 {
		return (-d).Round(time.Second).String() + " ago"
	}
	return "in " + d.Round(time.Second).String()
}

func isTerminal(stream any) bool {
	f := fileOf(stream)
	return f != nil && term.IsTerminal(int(f.Fd()))
}

// fileOf returns the file that a stream is, or nil.
func fileOf(stream any) *os.File {
	switch s := stream.(type) {
	case *output:
		stream = s.Writer
	case *input:
		stream = s.Reader
	}
	f, _ := stream.(*os.File)
	return f
}

// terminalWidth is how many characters fit into a line of the terminal that w is, and 0 for anything
// else: files and pipes get lines of any length.
func terminalWidth(w any) int {
	if !isTerminal(w) {
		return 0
	}
	width, _, err := term.GetSize(int(fileOf(w).Fd()))
	if err != nil {
		return 0
	}
	return width
}

// newProgress is a bar on a terminal, and nothing elsewhere. Errors of drawing it do not matter.
func newProgress(w io.Writer, total int64, what string, options ...progressbar.Option) *progressbar.ProgressBar {
	return progressbar.NewOptions64(total, append([]progressbar.Option{progressbar.OptionSetWriter(oneLine{w}),
		progressbar.OptionSetVisibility(isTerminal(w)), progressbar.OptionSetDescription(what),
		progressbar.OptionSetWidth(10), progressbar.OptionThrottle(100 * time.Millisecond),
		progressbar.OptionClearOnFinish()}, options...)...)
}

// oneLine cuts what is drawn to the width of the terminal. What goes on in the next line cannot be drawn over.
type oneLine struct{ terminal io.Writer }

func (o oneLine) Write(p []byte) (int, error) {
	lines := strings.Split(string(p), "\r")
	if limit := terminalWidth(o.terminal); limit > 0 {
		for i, line := range lines {
			runes := []rune(line) // of one column each
			lines[i] = string(runes[:min(len(runes), limit)])
		}
	}
	_, err := io.WriteString(o.terminal, strings.Join(lines, "\r"))
	return len(p), err
}
