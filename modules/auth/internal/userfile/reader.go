package userfile

import (
	"errors"
	"io"
	"slices"

	"github.com/toppira/authctl/platform/fault"
)

// Reader reads the records of one file.
type Reader struct {
	source  source
	split   splitter
	columns []string // of a CSV with a heading
	read    int64
	sample  sample
	unread  []string
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
	in.noteUnread(rec.Unread)
	return rec, nil
}

// noteUnread remembers names. They come from the input: only what may be a name is repeated.
func (in *Reader) noteUnread(names []string) {
	const most = 30
	for _, name := range names {
		if len(in.unread) < most && mayBeName(name) && name != "" && !slices.Contains(in.unread, name) {
			in.unread = append(in.unread, name)
		}
	}
}

// Unread returns the names of members or columns that were not read, where every one of them should
// be: in our own form, which people make by hand.
func (in *Reader) Unread() []string { return slices.Sorted(slices.Values(in.unread)) }

// Accept says that a record is good: the file is of the source that was named.
func (in *Reader) Accept() { in.sample.good = true }

// Hint says what the file looks like when no record was accepted. It may be empty.
func (in *Reader) Hint() string {
	if in.sample.good || in.sample.records == 0 {
		return ""
	}
	return looksLike(in.source.name, in.sample.text.String())
}
