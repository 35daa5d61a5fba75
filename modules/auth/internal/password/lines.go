package password

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// sortedLines is text whose lines are in order. It is read where it lies: a search in forty
// gigabytes reads a few kilobytes.
type sortedLines struct {
	text io.ReaderAt
	size int64
	// key takes from a line what it is sorted by, or says that it is not such a line.
	key func(line []byte) ([]byte, error)
}

// maxLine is more than any line has, in bytes with its end.
const maxLine = 128

var (
	errLine     = errors.New("is not as it should be")
	errUnsorted = errors.New("is out of order")
)

// find reports whether the lines hold one whose key compares equal. compare tells where
// what is sought lies from the key: before (< 0), there, or after. Every line met is checked
// against those around it, so that a file that is not sorted is an error and seldom a
// silent no.
func (s sortedLines) find(compare func(key []byte) int) (bool, error) {
	var low, high []byte // keys around what is left
	start, end := int64(0), s.size
	for start < end {
		from, to, key, err := s.lineAt(start + (end-start)/2)
		if err != nil {
			return false, err
		}
		if low != nil && bytes.Compare(key, low) < 0 || high != nil && bytes.Compare(key, high) > 0 {
			return false, fmt.Errorf("line at byte %d %w", from, errUnsorted)
		}
		switch c := compare(key); {
		case c == 0:
			return true, nil
		case c < 0:
			end, high = from, key
		default:
			start, low = to, key
		}
	}
	return false, nil
}

// lineAt returns the line that the byte at the offset belongs to, from its first byte to
// the first of the next.
func (s sortedLines) lineAt(offset int64) (from, to int64, key []byte, err error) {
	begin := max(0, offset-maxLine)
	buf := make([]byte, min(s.size, offset+maxLine)-begin)
	if n, err := s.text.ReadAt(buf, begin); n < len(buf) {
		return 0, 0, nil, fmt.Errorf("read at byte %d: %w", begin, err)
	}
	at := int(offset - begin)
	first := bytes.LastIndexByte(buf[:at], '\n') + 1
	last := bytes.IndexByte(buf[at:], '\n')
	to = s.size
	line := buf[first:]
	if last >= 0 {
		line, to = buf[first:at+last], begin+int64(at+last)+1
	}
	from = begin + int64(first)
	if first == 0 && begin > 0 || last < 0 && begin+int64(len(buf)) < s.size {
		return 0, 0, nil, fmt.Errorf("line at byte %d is too long", from)
	}
	if key, err = s.key(bytes.TrimSuffix(line, []byte{'\r'})); err != nil {
		return 0, 0, nil, fmt.Errorf("line at byte %d %w", from, err)
	}
	return from, to, key, nil
}
