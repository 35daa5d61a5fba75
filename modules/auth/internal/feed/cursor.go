package feed

import (
	"encoding/base64"
	"encoding/binary"
	"math"
)

// cursor is what a follower presents to go on.
type cursor struct {
	incarnation uint64
	seen        position // what it has been told
	asOf        int64    // when that was, in microseconds since 1970

	// Of the pages of a snapshot, or of what a follower missed that was away for long: where the
	// next page begins. What has ended since the first one was read is told by what follows the
	// last.
	paging bool
	after  int64    // the id of the last fact of the page before
	since  position // leave out what this contains; nothing at the start
}

// cursorVersion begins every cursor. One of another version is gone.
const cursorVersion = 1

// mostOpen bounds a cursor. A position with more open transactions is written as one that
// contains less: a few facts are then told twice.
const mostOpen = 500

// maxCursor is longer than any cursor.
const maxCursor = 8 << 10

// encode writes a cursor for the query of a URL.
func (c cursor) encode() string {
	b := []byte{cursorVersion}
	b = binary.BigEndian.AppendUint64(b, c.incarnation)
	b = binary.AppendUvarint(b, uint64(c.asOf))
	b = c.seen.append(b)
	if c.paging {
		b = binary.AppendUvarint(b, uint64(c.after))
		b = c.since.append(b)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// decodeCursor returns [ErrGone] for one of another version, and [ErrCursor] for what was never
// one.
func decodeCursor(text string) (c cursor, err error) {
	if len(text) > maxCursor {
		return c, ErrCursor
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) == 0 {
		return c, ErrCursor
	}
	if b[0] != cursorVersion {
		return c, ErrGone
	}
	if b = b[1:]; len(b) < 8 {
		return c, ErrCursor
	}
	c.incarnation, b = binary.BigEndian.Uint64(b), b[8:]
	var after, asOf uint64
	if asOf, b, err = readUvarint(b); err != nil || asOf > math.MaxInt64 {
		return c, ErrCursor
	}
	c.asOf = int64(asOf)
	if c.seen, b, err = readPosition(b); err == nil && c.seen.next == 0 {
		err = ErrCursor // each look has seen something
	}
	if err != nil || len(b) == 0 {
		return c, err
	}
	c.paging = true
	if after, b, err = readUvarint(b); err != nil || after > math.MaxInt64 {
		return c, ErrCursor
	}
	c.after = int64(after)
	if c.since, b, err = readPosition(b); err == nil && len(b) > 0 {
		err = ErrCursor
	}
	return c, err
}

// append writes the position as differences, which are small.
func (p position) append(b []byte) []byte {
	if len(p.open) > mostOpen {
		p = position{next: p.oldest()}
	}
	b = binary.AppendUvarint(b, p.next)
	b = binary.AppendUvarint(b, uint64(len(p.open)))
	above := p.next
	for i := len(p.open) - 1; i >= 0; i-- {
		b = binary.AppendUvarint(b, above-p.open[i])
		above = p.open[i]
	}
	return b
}

func readPosition(b []byte) (p position, rest []byte, err error) {
	var n uint64
	if p.next, b, err = readUvarint(b); err != nil {
		return p, nil, err
	}
	if n, b, err = readUvarint(b); err != nil || n > mostOpen || p.next != 0 && !isTransaction(p.next) {
		return p, nil, ErrCursor
	}
	p.open = make([]uint64, n)
	above := p.next
	for i := len(p.open) - 1; i >= 0; i-- {
		var less uint64
		if less, b, err = readUvarint(b); err != nil || less == 0 || less > above || !isTransaction(above-less) {
			return p, nil, ErrCursor
		}
		above -= less
		p.open[i] = above
	}
	return p, b, nil
}

// isTransaction reports whether PostgreSQL may have given out the id, of which it counts 32 bits
// without 0. It refuses to read others.
func isTransaction(xid uint64) bool { return uint32(xid) != 0 }

func readUvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, ErrCursor
	}
	return v, b[n:], nil
}
