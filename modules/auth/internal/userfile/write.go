package userfile

import (
	"encoding/json"
	"io"
	"strconv"
	"strings"
)

func WriteNDJSON(w io.Writer) (write func(Exported) error, flush func() error) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return func(e Exported) error { return enc.Encode(e) }, func() error { return nil }
}

func WriteCSV(w io.Writer, hashes bool) (write func(Exported) error, flush func() error) {
	columns := nativeColumns
	if !hashes {
		columns = columns[:len(columns)-1]
	}
	write = func(e Exported) error {
		verified := ""
		if e.EmailVerified != nil {
			verified = strconv.FormatBool(*e.EmailVerified)
		}
		contacts := ""
		if len(e.Contacts) > 0 {
			text, err := json.Marshal(e.Contacts)
			if err != nil {
				return err
			}
			contacts = string(text)
		}
		row := []string{e.ID, e.Username, e.Status, e.CreatedAt, e.PasswordChangedAt, e.Email, verified, contacts,
			e.PasswordHash}
		return writeRow(w, row[:len(columns)])
	}
	first := writeRow(w, columns)
	return write, func() error { return first }
}

// writeRow writes a row of CSV. encoding/csv would write a text such as NULL without quotes,
// which to readers of databases, and to our own, means none.
func writeRow(w io.Writer, fields []string) error {
	quoted := make([]string, len(fields))
	for i, field := range fields {
		quoted[i] = field
		if strings.ContainsAny(field, "\",;\t|\r\n ") || valueOf(field) != field {
			quoted[i] = `"` + strings.ReplaceAll(field, `"`, `""`) + `"`
		}
	}
	_, err := io.WriteString(w, strings.Join(quoted, ",")+"\n")
	return err
}
