package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// printJSON writes one indented JSON document.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// printTable writes rows under a heading, columns aligned. On a terminal that is too narrow for
// that, each row becomes a block of names and values, in which ids stay whole.
func printTable(w io.Writer, heading []string, rows [][]string) error {
	return printTableWithin(w, terminalWidth(w), heading, rows)
}

// printTableWithin is printTable for so many columns; 0 means any number.
func printTableWithin(w io.Writer, limit int, heading []string, rows [][]string) error {
	all := append([][]string{heading}, rows...)
	if limit == 0 || tableWidth(all) <= limit {
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
	var columns []int
	for _, row := range rows {
		for n, cell := range row {
			if n == len(columns) {
				columns = append(columns, 0)
			}
			columns[n] = max(columns[n], utf8.RuneCountInString(cell))
		}
	}
	sum := 2 * (len(columns) - 1)
	for _, width := range columns {
		sum += width
	}
	return sum
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
		names = max(names, utf8.RuneCountInString(row[0]))
	}
	var wrapped [][]string
	for _, row := range rows {
		value := strings.Join(row[1:], "  ")
		if value == "" { // and no blanks in its place
			wrapped = append(wrapped, row[:1])
			continue
		}
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

// wrap breaks a text between words into lines of at most so many characters. A longer word stays
// whole, so that it can be copied.
func wrap(text string, width int) []string {
	if width < 20 {
		return []string{text}
	}
	var lines []string
	line := ""
	for _, word := range strings.Split(text, " ") {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}

func printAligned(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// stream writes a list of any length in bounded memory: rows of a table, or a JSON array with an
// element a line.
func (g *global) stream(w io.Writer, heading []string, each func(print func(v any, row []string) error) error) error {
	out := bufio.NewWriter(w)
	var err error
	if g.output == "json" {
		before := "[\n"
		err = each(func(v any, _ []string) error {
			text, err := json.Marshal(v)
			if err != nil {
				return err
			}
			_, err = out.WriteString(before + string(text))
			before = ",\n"
			return err
		})
		if before == "[\n" {
			_, _ = out.WriteString("[") // Flush reports the error
		}
		_, _ = out.WriteString("\n]\n")
	} else if limit := terminalWidth(w); limit > 0 {
		var rows [][]string
		portion := func() error {
			err := printTableWithin(out, limit, heading, rows)
			rows = nil
			return err
		}
		err = each(func(_ any, row []string) error {
			if rows = append(rows, row); len(rows) == 1000 {
				return portion()
			}
			return nil
		})
		err = errors.Join(err, portion())
	} else {
		// Columns are aligned in portions, so that memory stays bounded.
		tw := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(tw, strings.Join(heading, "\t"))
		rows := 0
		err = each(func(_ any, row []string) error {
			if rows++; rows%1000 == 0 {
				if err := tw.Flush(); err != nil {
					return err
				}
			}
			_, err := fmt.Fprintln(tw, strings.Join(row, "\t"))
			return err
		})
		err = errors.Join(err, tw.Flush())
	}
	return errors.Join(err, out.Flush())
}

// moment is a time, or - for none.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// count says how many of something there are.
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

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalWidth is how many characters fit into a line of the terminal that w is, and 0 for anything
// else: files and pipes get lines of any length.
func terminalWidth(w any) int {
	if !isTerminal(w) {
		return 0
	}
	width, _, err := term.GetSize(int(w.(*os.File).Fd()))
	if err != nil {
		return 0
	}
	return width
}

// newProgress is a bar on a terminal, and nothing elsewhere. Errors of drawing it do not matter.
func newProgress(w io.Writer, total int64, what string, options ...progressbar.Option) *progressbar.ProgressBar {
	return progressbar.NewOptions64(total, append([]progressbar.Option{progressbar.OptionSetWriter(w),
		progressbar.OptionSetVisibility(isTerminal(w)), progressbar.OptionSetDescription(what),
		progressbar.OptionThrottle(100 * time.Millisecond), progressbar.OptionClearOnFinish()}, options...)...)
}
