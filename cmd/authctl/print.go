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

// printTable writes rows under a heading, columns aligned.
func printTable(w io.Writer, heading []string, rows [][]string) error {
	return printPairs(w, append([][]string{heading}, rows...))
}

// printPairs writes names and values, aligned.
func printPairs(w io.Writer, rows [][]string) error {
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

// newProgress is a bar on a terminal, and nothing elsewhere. Errors of drawing it do not matter.
func newProgress(w io.Writer, total int64, what string, options ...progressbar.Option) *progressbar.ProgressBar {
	return progressbar.NewOptions64(total, append([]progressbar.Option{progressbar.OptionSetWriter(w),
		progressbar.OptionSetVisibility(isTerminal(w)), progressbar.OptionSetDescription(what),
		progressbar.OptionThrottle(100 * time.Millisecond), progressbar.OptionClearOnFinish()}, options...)...)
}
