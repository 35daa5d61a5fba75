package userfile

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Write returns a function that writes one account after the other, as NDJSON or CSV.
func Write(w io.Writer, format string, hashes bool) (func(Exported) error, error) {
	switch format {
	case FormatNDJSON:
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return func(e Exported) error { return enc.Encode(e) }, nil
	case FormatCSV:
		columns := nativeColumns
		if !hashes {
			columns = columns[:len(columns)-1]
		}
		return func(e Exported) error { return writeAccount(w, e, len(columns)) }, writeRow(w, columns)
	}
	return nil, fmt.Errorf("there is no export as %q", format)
}

func writeAccount(w io.Writer, e Exported, columns int) error {
	verified, contacts := "", ""
	if e.EmailVerified != nil {
		verified = strconv.FormatBool(*e.EmailVerified)
	}
	if len(e.Contacts) > 0 {
		text, err := json.Marshal(e.Contacts)
		if err != nil {
			return err
		}
		contacts = string(text)
	}
	row := []string{e.ID, e.Username, e.Status, e.CreatedAt, e.PasswordChangedAt, e.Email, verified, contacts,
		e.PasswordHash}
	return writeRow(w, row[:columns])
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
