package userfile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/toppira/authctl/platform/fault"
)

// Forms of an import. Auto looks at how the input begins.
const (
	FormatAuto   = "auto"
	FormatNDJSON = "ndjson" // an object a line
	FormatJSON   = "json"   // a document: an array of objects, or an object with the array "users"
	FormatCSV    = "csv"    // RFC 4180, with a heading where the source writes one; also with ; or tabs
)

// MaxRecord is the most bytes that one account may take in an import.
const MaxRecord = 64 << 10

var (
	errTooLong = fault.Refuse("too_long", fmt.Sprintf("is longer than %d bytes", MaxRecord))
	errNotJSON = fault.Refuse("malformed", "is not a JSON object")
	errNotUTF8 = fault.Refuse("invalid_unicode", "is not valid UTF-8")
)

// rawRecord is the text of one account: an object, or the fields of a row. Both are valid
// until the next one is read.
type rawRecord struct {
	line   int64
	object []byte
	fields []string
	err    error // a *fault.Refusal: it cannot be read, the next one can
}

// splitter cuts an input into records, each in bounded memory. It returns io.EOF at the end.
type splitter interface{ next() (rawRecord, error) }

// newSplitter reads how the input begins and returns what splits it, and the names of its
// columns when it is CSV with a heading.
func newSplitter(r io.Reader, format string, from source) (splitter, []string, error) {
	in := &input{Reader: bufio.NewReaderSize(r, MaxRecord), line: 1}
	start, _ := in.Peek(3)
	switch {
	case bytes.Equal(start, []byte("\xef\xbb\xbf")): // the byte order mark that Windows leaves
		_, _ = in.Discard(3)
	default:
		if err := in.otherForm(); err != nil {
			return nil, nil, err
		}
	}
	if format == FormatAuto || format == "" {
		var err error
		if format, err = in.guess(from); err != nil {
			return nil, nil, err
		}
	}
	switch {
	case format == FormatCSV && from.csv == nil:
		return nil, nil, errors.New("this source writes no CSV")
	case format != FormatCSV && from.json == nil:
		return nil, nil, errors.New("this source writes no JSON")
	case format == FormatNDJSON:
		return &lines{in: in}, nil, nil
	case format == FormatJSON:
		return &document{in: in, lists: from.lists, container: from.container}, nil, nil
	}
	t := &table{lines: lines{in: in}}
	columns, err := t.begin(from)
	return t, columns, err
}

// otherForms are what people give to an import, and how each begins.
var otherForms = []struct {
	starts []string
	advice string
}{
	{[]string{"\xff\xfe", "\xfe\xff"}, "the input is UTF-16; convert it to UTF-8 first"},
	{[]string{"\x1f\x8b"}, "the input is compressed; pipe it through: gunzip -c"},
	{[]string{"BZh"}, "the input is compressed; pipe it through: bunzip2 -c"},
	{[]string{"\xfd7zXZ"}, "the input is compressed; pipe it through: unxz -c"},
	{[]string{"\x28\xb5\x2f\xfd"}, "the input is compressed; pipe it through: zstd -dc"},
	{[]string{"PK\x03"}, "the input is a ZIP archive or a spreadsheet; unpack it, or save it as CSV"},
	{[]string{"SQLite format 3\x00"}, "the input is a database of SQLite; export its accounts as CSV"},
	{[]string{"dn:", "version: 1\n", "version: 1\r\n", "# extended LDIF", "# LDIF"},
		"the input is LDIF of a directory; make a CSV with the columns username and password_hash of it"},
	{[]string{"PGDMP", "--\n", "--\r\n", "-- ", "/*", "INSERT INTO", "CREATE TABLE", "COPY "},
		"the input is a dump in SQL or of pg_dump; export the table of the accounts as CSV"},
}

// otherForm names a form of the input that no source has. A NUL in the first two bytes begins UTF-16 without
// a byte order mark, or is not text at all.
func (in *input) otherForm() error {
	start, _ := in.Peek(16)
	for _, form := range otherForms {
		for _, begins := range form.starts {
			if bytes.HasPrefix(start, []byte(begins)) {
				return errors.New(form.advice)
			}
		}
	}
	if bytes.IndexByte(start[:min(2, len(start))], 0) >= 0 {
		return errors.New("the input is UTF-16 or not text; convert it to UTF-8 first")
	}
	return nil
}

// input counts lines.
type input struct {
	*bufio.Reader
	line int64 // the one that the next byte is on
}

// guess finds the format by how the input begins. An object begins NDJSON, except for sources that
// write documents, and when it continues in the next line.
func (in *input) guess(from source) (string, error) {
	for {
		b, err := in.Peek(1)
		if errors.Is(err, io.EOF) {
			return FormatNDJSON, nil // nothing is a list of nothing
		}
		if err != nil {
			return "", fmt.Errorf("read the input: %w", err)
		}
		switch b[0] {
		case '\n':
			in.line++
			fallthrough
		case ' ', '\t', '\r':
			_, _ = in.Discard(1)
			continue
		case '[':
			return FormatJSON, nil
		case '{':
			if from.document || in.beginsDocument(from) {
				return FormatJSON, nil
			}
			return FormatNDJSON, nil
		}
		return FormatCSV, nil
	}
}

// beginsDocument reports whether the next object continues in the next line, or contains a list of
// records.
func (in *input) beginsDocument(from source) bool {
	start, _ := in.Peek(MaxRecord)
	first, _, _ := bytes.Cut(start, []byte{'\n'})
	if len(bytes.TrimSpace(first)) == 1 {
		return true
	}
	name, rest, found := strings.Cut(strings.TrimPrefix(string(bytes.TrimSpace(first[1:])), `"`), `"`)
	rest = strings.TrimSpace(rest)
	return found && slices.Contains(from.lists, name) && strings.HasPrefix(rest, ":") &&
		strings.HasPrefix(strings.TrimSpace(rest[1:]), "[")
}

// lines cuts at line breaks. Empty lines are passed over.
type lines struct {
	in   *input
	back []textLine // to be read once more
}

type textLine struct {
	number  int64
	text    []byte // without its line break
	tooLong bool
}

// read returns the next line that is not empty; its text is valid until the next read.
func (l *lines) read() (textLine, error) {
	for {
		if len(l.back) > 0 {
			line := l.back[0]
			l.back = l.back[1:]
			return line, nil
		}
		line := textLine{number: l.in.line}
		text, err := l.in.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) {
			line.tooLong = true
			text, err = l.in.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return textLine{}, fmt.Errorf("read the input: %w", err)
		}
		if err == nil {
			l.in.line++
		} else if len(text) == 0 && !line.tooLong {
			return textLine{}, io.EOF
		}
		if !line.tooLong {
			line.text = bytes.TrimRight(text, "\r\n")
		}
		if line.tooLong || len(bytes.TrimSpace(line.text)) > 0 {
			return line, nil
		}
	}
}

func (l *lines) next() (rawRecord, error) {
	line, err := l.read()
	if err != nil {
		return rawRecord{}, err
	}
	if line.tooLong {
		return rawRecord{line: line.number, err: errTooLong}, nil
	}
	return rawRecord{line: line.number, object: line.text}, nil
}

// table cuts CSV. A field in quotes may hold line breaks. When a quote is not closed, or several
// lines together are no row, only the first line is refused, and the others are read again.
type table struct {
	lines
	separator byte
	width     int // fields in a row; 0 for any
}

// separators may be between fields: that of RFC 4180, that of spreadsheets where numbers have commas,
// and those of databases.
const separators = ",;\t|"

// begin finds out what separates the fields, and reads the heading where there is one.
func (t *table) begin(from source) ([]string, error) {
	t.separator = separators[0]
	first, err := t.read()
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the heading of the CSV: %w", err)
	}
	if text, ok := bytes.CutPrefix(first.text, []byte("sep=")); ok && len(text) == 1 &&
		strings.Contains(separators, string(text)) {
		if first, err = t.read(); err != nil { // the line was written for Excel
			return nil, fmt.Errorf("read the heading of the CSV: %w", err)
		}
	}
	first.text = bytes.Clone(first.text)
	t.separator = separatorOf(first.text, from)
	t.back = append([]textLine{first}, t.back...)
	if from.headless {
		return nil, nil
	}
	heading, err := t.next()
	if err == nil {
		err = heading.err
	}
	if err != nil {
		return nil, fmt.Errorf("read the heading of the CSV: %w", err)
	}
	columns := columnNames(heading.fields)
	if err := from.checkColumns(columns); err != nil {
		return nil, err
	}
	for i, name := range columns {
		if slices.Contains(columns[:i], name) && name != "" {
			return nil, fmt.Errorf("the CSV has two columns %q", name)
		}
	}
	t.width = len(columns)
	return columns, nil
}

// separatorOf is the separator with which the first line has what the source asks for, or
// else the most fields.
func separatorOf(line []byte, from source) byte {
	best, most := separators[0], 1
	for _, separator := range []byte(separators) {
		fields, err := parseRow(line, separator)
		if err != nil {
			continue
		}
		if !from.headless && from.checkColumns(columnNames(fields)) == nil {
			return separator
		}
		if len(fields) > most {
			best, most = separator, len(fields)
		}
	}
	return best
}

func columnNames(fields []string) []string {
	names := make([]string, len(fields))
	for i, name := range fields {
		names[i] = strings.ToLower(strings.TrimSpace(name))
	}
	return names
}

func (t *table) next() (rawRecord, error) {
	first, err := t.read()
	if err != nil {
		return rawRecord{}, err
	}
	if first.tooLong {
		return rawRecord{line: first.number, err: errTooLong}, nil
	}
	refused := rawRecord{line: first.number, err: fault.Refuse("malformed", "is not a row of CSV")}
	if !utf8.Valid(first.text) {
		refused.err = errNotUTF8
		return refused, nil
	}
	var followed []textLine
	text := bytes.Clone(first.text)
	for t.separator != '\t' && bytes.Count(text, []byte(`"`))%2 != 0 {
		line, err := t.read()
		if err != nil && !errors.Is(err, io.EOF) {
			return rawRecord{}, err
		}
		if err == nil {
			line.text = bytes.Clone(line.text)
			followed = append(followed, line)
		}
		if err != nil || line.tooLong || len(text)+len(line.text) >= MaxRecord {
			t.back = append(followed, t.back...)
			return refused, nil
		}
		text = append(append(text, '\n'), line.text...)
	}
	fields, err := parseRow(text, t.separator)
	switch {
	case err == nil && (t.width == 0 || len(fields) == t.width):
		return rawRecord{line: first.number, fields: fields}, nil
	case err == nil && len(followed) == 0:
		refused.err = fault.Refuse("malformed", fmt.Sprintf("has %d fields, the heading has %d", len(fields), t.width))
	}
	t.back = append(followed, t.back...)
	return refused, nil
}

var errNotARow = errors.New("is not a row of CSV")

// parseRow takes one row apart. A field without quotes that is a word for no value is empty,
// so that "NULL" is none and "\"NULL\"" is a text: databases write it so, and encoding/csv
// does not tell the two apart.
//
// Between tabs a quote counts only around a whole field: the programs that write tabs quote
// nothing.
func parseRow(text []byte, separator byte) ([]string, error) {
	var fields []string
	for {
		if len(text) > 0 && text[0] == '"' {
			field, rest, err := quotedField(text[1:])
			switch {
			case err == nil && len(rest) == 0:
				return append(fields, field), nil
			case err == nil && rest[0] == separator:
				fields, text = append(fields, field), rest[1:]
				continue
			case separator != '\t':
				return nil, errNotARow
			}
		}
		field, rest, more := bytes.Cut(text, []byte{separator})
		if separator != '\t' && bytes.IndexByte(field, '"') >= 0 {
			return nil, errNotARow
		}
		fields = append(fields, valueOf(string(field)))
		if !more {
			return fields, nil
		}
		text = rest
	}
}

// quotedField returns what is between the quotes, of which the first is cut off already, and
// what follows them.
func quotedField(text []byte) (field string, rest []byte, err error) {
	var b strings.Builder
	for {
		before, after, found := bytes.Cut(text, []byte{'"'})
		if !found {
			return "", nil, errNotARow
		}
		b.Write(before)
		if len(after) == 0 || after[0] != '"' {
			return b.String(), after, nil
		}
		b.WriteByte('"')
		text = after[1:]
	}
}

// valueOf returns "" for the words with which databases write that there is no value: NULL
// (MySQL, SQL Server, psql with \pset), \N (COPY of PostgreSQL, MySQL), and as clients show it.
func valueOf(field string) string {
	switch strings.ToUpper(strings.TrimSpace(field)) {
	case "NULL", `\N`, "(NULL)", "<NULL>", "[NULL]":
		return ""
	}
	return field
}

// document cuts the objects out of a JSON document: those of the array at its top, or of the
// arrays with one of the names in lists, in the objects around them, whatever else those
// have. Objects one after the other are fine too. It only follows strings and brackets;
// whether an object is one is seen when it is decoded.
type document struct {
	in    *input
	lists []string // names of arrays of records, and of what is around them
	// container is the name of a member that marks an object as one that records are in,
	// also where it has none.
	container string
	buf       []byte
	around    []byte // the brackets around the present place, outermost first
}

func (d *document) next() (rawRecord, error) {
	for {
		inside := byte(0)
		if len(d.around) > 0 {
			inside = d.around[len(d.around)-1]
		}
		if inside == '{' { // in an object around records, after one of its lists
			if _, err := d.object(); err != nil {
				return rawRecord{}, err
			}
			continue
		}
		b, err := d.read()
		switch {
		case errors.Is(err, io.EOF) && inside != 0:
			return rawRecord{}, errors.New("the JSON document ends before its array does")
		case err != nil:
			return rawRecord{}, err
		}
		switch {
		case b == ' ', b == '\t', b == '\r', b == '\n', b == ',' && inside != 0:
		case b == '[' && inside == 0:
			d.around = append(d.around, '[')
		case b == ']' && inside != 0:
			d.around = d.around[:len(d.around)-1]
		case b == '{':
			line, depth := d.in.line, len(d.around)
			d.around = append(d.around, '{')
			is, err := d.object()
			switch {
			case err != nil:
				return rawRecord{}, err
			case len(d.around) > depth || is.container: // its records come next
			case !is.whole:
				return rawRecord{line: line, err: errTooLong}, nil
			default:
				return rawRecord{line: line, object: d.buf}, nil
			}
		default:
			return rawRecord{}, fmt.Errorf("line %d: the JSON document is not a list of objects", d.in.line)
		}
	}
}

// mostAround is how deep records may lie: more than any system writes.
const mostAround = 16

// seen is what shows of an object without decoding it.
type seen struct {
	whole     bool // it fits into d.buf
	container bool // it has the member that records have not
}

// object reads the rest of the present object into d.buf and removes its bracket from d.around. When
// one of the lists begins on the way, reading stops inside it, with its bracket in d.around.
func (d *document) object() (is seen, err error) {
	d.buf = append(d.buf[:0], '{')
	is.whole = true
	depth, inString, escaped := 1, false, false
	var word []byte // the string at depth 1 that was read last, as far as it matters
	const longest = 32
	after := byte(0)
	for {
		b, err := d.read()
		if errors.Is(err, io.EOF) {
			return is, errors.New("the JSON document ends inside an object")
		}
		if err != nil {
			return is, err
		}
		if len(d.buf) < MaxRecord {
			d.buf = append(d.buf, b)
		} else {
			is.whole = false
		}
		switch {
		case inString:
			switch {
			case escaped:
				escaped = false
			case b == '\\':
				escaped = true
			case b == '"':
				inString, after = false, '"'
			}
			if inString && depth == 1 && len(word) <= longest {
				word = append(word, b)
			}
			continue
		case b == '"':
			inString, word = true, word[:0]
		case b == ' ', b == '\t', b == '\r', b == '\n':
			continue
		case b == '{', b == '[':
			if depth == 1 && after == ':' && len(d.around) < mostAround && slices.Contains(d.lists, string(word)) {
				d.around = append(d.around, b)
				return is, nil
			}
			depth++
		case b == '}', b == ']':
			if depth--; depth == 0 {
				d.around = d.around[:len(d.around)-1]
				return is, nil
			}
		case b == ':' && depth == 1 && after == '"':
			is.container = is.container || d.container != "" && string(word) == d.container
			after = ':'
			continue
		}
		after = 0
	}
}

func (d *document) read() (byte, error) {
	b, err := d.in.ReadByte()
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read the input: %w", err)
	}
	if b == '\n' && err == nil {
		d.in.line++
	}
	return b, err
}
