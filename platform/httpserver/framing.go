package httpserver

import (
	"bytes"
	"errors"
	"strconv"
)

// What fasthttp accepts without a trace.
var (
	errBareLF  = errors.New("a line ends without CR")
	errTrailer = errors.New("malformed trailer of a chunked body")
	errTooLong = errors.New("a line of a chunked body is too long")
)

// framing follows the bytes of a connection from request to request and finds what fasthttp
// accepts without a trace: a request line that ends in a bare LF, and trailers of a chunked body
// that two readers may understand differently (RFC 9112 §2.2, §7.1.2). It stops at ambiguous
// framing: [wireFault] or fasthttp refuses such a request and closes its connection.
type framing struct {
	part    framePart
	skip    int64  // bytes of a body or chunk that are still to come
	length  int64  // of the body by the headers so far, -1 without Content-Length
	chunked bool   // by the headers so far
	line    []byte // the beginning of a line that is spread over several reads
}

// framePart is the part of a request to which the next byte belongs.
type framePart int

const (
	inRequestLine framePart = iota
	inHeaders
	inBody
	inChunkSize
	inChunk
	inTrailers
	notFollowed
)

// maxChunkLine bounds a line of a chunked body, which fasthttp reads without a bound.
const maxChunkLine = 4096

// read follows the next bytes of the connection.
func (f *framing) read(b []byte) error {
	for len(b) > 0 && f.part != notFollowed {
		if f.part == inBody || f.part == inChunk {
			n := min(f.skip, int64(len(b)))
			f.skip -= n
			b = b[n:]
			switch {
			case f.skip > 0:
			case f.part == inChunk:
				f.part = inChunkSize
			default:
				f.next()
			}
			continue
		}
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			f.line = append(f.line, b...)
			if f.part > inHeaders && len(f.line) > maxChunkLine {
				return errTooLong
			}
			return nil
		}
		line := b[:end]
		b = b[end+1:]
		if len(f.line) > 0 {
			line = append(f.line, line...)
			f.line = nil
		}
		if err := f.endOfLine(line); err != nil {
			return err
		}
	}
	return nil
}

// next begins another request.
func (f *framing) next() { f.part, f.skip = inRequestLine, 0 }

// endOfLine takes a line without its LF.
func (f *framing) endOfLine(line []byte) error {
	text, crlf := bytes.CutSuffix(line, []byte("\r"))
	switch f.part {
	case inRequestLine:
		if !crlf {
			return errBareLF
		}
		if len(text) > 0 { // empty lines before it are ignored (RFC 9112 §2.2)
			f.part, f.length, f.chunked = inHeaders, -1, false
		}
	case inHeaders:
		if len(text) > 0 {
			f.header(text)
		} else {
			f.endOfHead()
		}
	case inChunkSize:
		if !crlf {
			return errBareLF
		}
		digits := text
		if end := bytes.IndexAny(text, "; \t"); end >= 0 {
			digits = text[:end]
		}
		switch size, err := strconv.ParseUint(string(digits), 16, 31); {
		case err != nil:
			f.part = notFollowed
		case size == 0:
			f.part = inTrailers
		default:
			f.part, f.skip = inChunk, int64(size)+2 // and its CRLF
		}
	case inTrailers:
		if !crlf {
			return errTrailer
		}
		if len(text) == 0 {
			f.next()
			return nil
		}
		name, value, found := bytes.Cut(text, []byte(":"))
		if !found || !isToken(string(name)) || bytes.ContainsFunc(value, isControl) {
			return errTrailer
		}
	}
	return nil
}

// isControl reports characters that the value of a field cannot have (RFC 9110 §5.5).
func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// header handles the headers that say where the body ends.
func (f *framing) header(line []byte) {
	switch line[0] | 0x20 {
	case 'c':
		const name = "content-length:"
		if len(line) < len(name) || !bytes.EqualFold(line[:len(name)], []byte(name)) {
			return
		}
		n, err := strconv.ParseUint(string(bytes.Trim(line[len(name):], " \t")), 10, 63)
		if err != nil || f.length >= 0 {
			f.part = notFollowed
			return
		}
		f.length = int64(n)
	case 't':
		const name = "transfer-encoding:"
		if len(line) < len(name) || !bytes.EqualFold(line[:len(name)], []byte(name)) {
			return
		}
		if f.chunked || !bytes.EqualFold(bytes.Trim(line[len(name):], " \t"), []byte("chunked")) {
			f.part = notFollowed
			return
		}
		f.chunked = true
	}
}

func (f *framing) endOfHead() {
	switch {
	case f.chunked && f.length >= 0:
		f.part = notFollowed
	case f.chunked:
		f.part = inChunkSize
	case f.length > 0:
		f.part, f.skip = inBody, f.length
	default:
		f.next()
	}
}
