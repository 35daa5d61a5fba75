package userfile

import (
	"errors"
	"io"

	"github.com/toppira/authctl/platform/fault"
)

// Reader reads the records of one file.
type Reader struct {
	source  source
	split   splitter
	columns []string // of a CSV with a heading
	read    int64
	sample  sample
}

// Open looks at how the input begins. name is one of [Sources], format may be FormatAuto or empty,
// and hash is for the source firebase.
func Open(r io.Reader, name, format string, hash *FirebaseHash) (*Reader, error) {
	from, err := newSource(name, hash)
	if err != nil {
		return nil, err
	}
	in := &Reader{source: from}
	in.split, in.columns, err = newSplitter(r, format, from)
	return in, err
}

// Next returns the next record, or [io.EOF]. Any other error ends the reading; a record that
// cannot be read does not, and has its reason in Refused.
func (in *Reader) Next() (Record, error) {
	raw, err := in.split.next()
	if err != nil {
		return Record{}, err
	}
	in.read++
	in.sample.add(in.columns, raw)
	rec, err := in.source.read(in.columns, raw)
	if err != nil {
		var known bool
		if rec.Refused, known = errors.AsType[*fault.Refusal](err); !known {
			rec.Refused = fault.Refuse("malformed", "cannot be read")
		}
	}
	rec.Line, rec.Number = raw.line, in.read
	return rec, nil
}

// Accept says that a record is good: the file is of the source that was named.
func (in *Reader) Accept() { in.sample.good = true }

// Hint says what the file looks like when no record was accepted. It may be empty.
func (in *Reader) Hint() string { return in.sample.hint(in.source.name) }
