package auth

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// Forms of an import. Auto looks at how the input begins.
const (
	FormatAuto   = "auto"
	FormatNDJSON = "ndjson" // an object a line
	FormatJSON   = "json"   // a document: an array of objects, or an object with the array "users"
	FormatCSV    = "csv"    // RFC 4180, with a heading where the source writes one
)

// maxRecord is the most bytes that one account may take in an import.
const maxRecord = 64 << 10

// Refusal is why one record of an import was not taken. It holds nothing of the record.
type Refusal struct {
	Line   int64  `json:"line"`   // where the record begins, from 1
	Record int64  `json:"record"` // which one it is, from 1, the heading not counted
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func (r *Refusal) Error() string { return r.Code + ": " + r.Detail }

func refuse(code, detail string) *Refusal { return &Refusal{Code: code, Detail: detail} }

var (
	errTooLong = refuse("too_long", fmt.Sprintf("is longer than %d bytes", maxRecord))
	errNotJSON = refuse("malformed", "is not a JSON object")
	errNotUTF8 = refuse("invalid_unicode", "is not valid UTF-8")
)

// record is the text of one account: an object, or the fields of a row. Both are valid until
// the next one is read.
type record struct {
	line   int64
	object []byte
	fields []string
	err    error // a *Refusal: it cannot be read, the next one can
}

// cutter cuts an input into records, each in bounded memory. It returns io.EOF at the end.
type cutter interface{ next() (record, error) }

// newCutter reads how the input begins and returns what cuts it, and the names of its
// columns when it is CSV with a heading.
func newCutter(r io.Reader, format string, from source) (cutter, []string, error) {
	in := &input{Reader: bufio.NewReaderSize(r, maxRecord), line: 1}
	start, _ := in.Peek(3)
	switch {
	case bytes.Equal(start, []byte("\xef\xbb\xbf")): // the byte order mark that Windows leaves
		_, _ = in.Discard(3)
	case bytes.HasPrefix(start, []byte("\xff\xfe")), bytes.HasPrefix(start, []byte("\xfe\xff")):
		return nil, nil, errors.New("the input is UTF-16; convert it to UTF-8 first")
	case bytes.HasPrefix(start, []byte("\x1f\x8b")):
		return nil, nil, errors.New("the input is compressed; pipe it through: gunzip -c")
	}
	if format == FormatAuto {
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
		return &document{in: in}, nil, nil
	}
	t := &table{lines: lines{in: in}}
	if from.headless {
		return t, nil, nil
	}
	heading, err := t.next()
	if errors.Is(err, io.EOF) {
		return t, nil, nil
	}
	if err == nil {
		err = heading.err
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the heading of the CSV: %w", err)
	}
	columns := make([]string, len(heading.fields))
	for i, name := range heading.fields {
		columns[i] = strings.ToLower(strings.TrimSpace(name))
		if slices.Contains(columns[:i], columns[i]) && columns[i] != "" {
			return nil, nil, fmt.Errorf("the CSV has two columns %q", columns[i])
		}
	}
	t.width = len(columns)
	return t, columns, nil
}

// input counts lines.
type input struct {
	*bufio.Reader
	line int64 // the one that the next byte is on
}

// guess tells the form by how the input begins. What begins like an object is lines of them,
// but for sources that write whole documents.
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
			if from.document {
				return FormatJSON, nil
			}
			return FormatNDJSON, nil
		}
		return FormatCSV, nil
	}
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

func (l *lines) next() (record, error) {
	line, err := l.read()
	if err != nil {
		return record{}, err
	}
	if line.tooLong {
		return record{line: line.number, err: errTooLong}, nil
	}
	return record{line: line.number, object: line.text}, nil
}

// table cuts CSV. A field in quotes may hold line breaks. Where a quote is not closed, or
// what it makes of several lines is no row, only the first of them is refused: the next
// ones are looked at again by themselves.
type table struct {
	lines
	width int // fields in a row; 0 for any
}

func (t *table) next() (record, error) {
	first, err := t.read()
	if err != nil {
		return record{}, err
	}
	if first.tooLong {
		return record{line: first.number, err: errTooLong}, nil
	}
	refused := record{line: first.number, err: refuse("malformed", "is not a row of CSV")}
	if !utf8.Valid(first.text) {
		refused.err = errNotUTF8
		return refused, nil
	}
	var followed []textLine
	text := bytes.Clone(first.text)
	for bytes.Count(text, []byte(`"`))%2 != 0 {
		line, err := t.read()
		if err != nil && !errors.Is(err, io.EOF) {
			return record{}, err
		}
		if err == nil {
			line.text = bytes.Clone(line.text)
			followed = append(followed, line)
		}
		if err != nil || line.tooLong || len(text)+len(line.text) >= maxRecord {
			t.back = append(followed, t.back...)
			return refused, nil
		}
		text = append(append(text, '\n'), line.text...)
	}
	fields, err := parseRow(text)
	switch {
	case err == nil && (t.width == 0 || len(fields) == t.width):
		return record{line: first.number, fields: fields}, nil
	case err == nil && len(followed) == 0:
		refused.err = refuse("malformed", fmt.Sprintf("has %d fields, the heading has %d", len(fields), t.width))
	}
	t.back = append(followed, t.back...)
	return refused, nil
}

// parseRow takes exactly one row apart.
func parseRow(text []byte) ([]string, error) {
	r := csv.NewReader(bytes.NewReader(text))
	r.FieldsPerRecord = -1
	fields, err := r.Read()
	if err != nil {
		return nil, err
	}
	if _, err := r.Read(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one row")
	}
	return fields, nil
}

// document cuts the objects out of a JSON document: those of the array at its top, or of the
// array "users" in the object at its top, whatever else that object has. Objects one after
// the other are fine too. It only follows strings and brackets; whether an object is one is
// seen when it is decoded.
type document struct {
	in      *input
	buf     []byte
	listed  bool // inside the array
	wrapped bool // and that inside an object
}

func (d *document) next() (record, error) {
	for {
		b, err := d.read()
		switch {
		case errors.Is(err, io.EOF) && d.listed:
			return record{}, errors.New("the JSON document ends before its array does")
		case err != nil:
			return record{}, err
		}
		switch {
		case b == ' ', b == '\t', b == '\r', b == '\n', b == ',' && d.listed:
		case b == '[' && !d.listed:
			d.listed = true
		case b == ']' && d.listed:
			d.listed = false
			if d.wrapped {
				d.wrapped = false
				if _, err := d.object(false); err != nil { // what is left of the wrapper
					return record{}, err
				}
			}
		case b == '{':
			line := d.in.line
			whole, err := d.object(!d.listed)
			switch {
			case err != nil:
				return record{}, err
			case d.wrapped && !whole:
			case !whole:
				return record{line: line, err: errTooLong}, nil
			default:
				return record{line: line, object: d.buf}, nil
			}
		default:
			return record{}, fmt.Errorf("line %d: the JSON document is not a list of objects", d.in.line)
		}
	}
}

// object reads up to the bracket that closes the object just opened, into d.buf, and reports
// whether it fits. When it may be a wrapper and its "users" turns out to be an array,
// reading stops inside that, d.listed and d.wrapped are set and the report is false.
func (d *document) object(mayWrap bool) (whole bool, err error) {
	d.buf = append(d.buf[:0], '{')
	whole = true
	depth, inString, escaped := 1, false, false
	var word []byte // the string at depth 1 that was read last, as far as it matters
	after := byte(0)
	for {
		b, err := d.read()
		if errors.Is(err, io.EOF) {
			return false, errors.New("the JSON document ends inside an object")
		}
		if err != nil {
			return false, err
		}
		if len(d.buf) < maxRecord {
			d.buf = append(d.buf, b)
		} else {
			whole = false
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
			if inString && depth == 1 && len(word) <= len("users") {
				word = append(word, b)
			}
			continue
		case b == '"':
			inString, word = true, word[:0]
		case b == ' ', b == '\t', b == '\r', b == '\n':
			continue
		case b == '{':
			depth++
		case b == '[':
			if mayWrap && depth == 1 && after == ':' && string(word) == "users" {
				d.listed, d.wrapped = true, true
				return false, nil
			}
			depth++
		case b == '}', b == ']':
			if depth--; depth == 0 {
				return whole, nil
			}
		case b == ':' && depth == 1 && after == '"':
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
