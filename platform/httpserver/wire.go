package httpserver

import (
	"bytes"
	"errors"
	"io"
	"net"

	"github.com/valyala/fasthttp"

	"github.com/toppira/authctl/platform/fault"
)

// onceHeaders may occur once: of two, a proxy may have read the other one.
var (
	onceHeaders = [...]string{"Authorization", "Content-Type", "Content-Encoding"}
	errTwice    = ErrMalformed.Detail("A header that may be there once is there twice.")
)

// wireFault finds what fasthttp accepts although two readers may understand it differently, which
// makes request smuggling possible (RFC 9112 §2.2, §3.2, §5.2, §6.1): lines that end in a bare LF, folded
// lines, names with spaces, a target with a fragment, a Host that is none, Content-Length together with
// Transfer-Encoding, Transfer-Encoding other than chunked, and more than one of onceHeaders.
func wireFault(header *fasthttp.RequestHeader) *fault.Fault {
	switch string(header.Protocol()) {
	case "HTTP/1.1", "HTTP/1.0":
	default:
		return ErrMalformed.Detail("The HTTP version is not supported.")
	}
	if bytes.IndexByte(header.RequestURI(), '#') >= 0 {
		return ErrMalformed.Detail("The target of the request has a fragment, which only the client uses.")
	}
	hasLength, hasEncoding := false, false
	var once [len(onceHeaders)]bool
	for raw := header.RawHeaders(); len(raw) > 0; {
		end := bytes.IndexByte(raw, '\n')
		if end < 1 || raw[end-1] != '\r' {
			return ErrMalformed.Detail("A header line does not end in CRLF.")
		}
		line := raw[:end-1]
		raw = raw[end+1:]
		if len(line) == 0 {
			continue
		}
		name := line[:max(0, bytes.IndexByte(line, ':'))]
		if len(name) == 0 || bytes.IndexByte(name, ' ') >= 0 || name[0] == '\t' {
			return ErrMalformed.Detail("A header line is folded, or its name has a space.")
		}
		switch {
		case len(name) == len("Content-Length") && bytes.EqualFold(name, []byte("Content-Length")):
			hasLength = true
		case len(name) == len("Transfer-Encoding") && bytes.EqualFold(name, []byte("Transfer-Encoding")):
			hasEncoding = true
		default:
			for i, single := range onceHeaders {
				if len(name) != len(single) || !bytes.EqualFold(name, []byte(single)) {
					continue
				}
				if once[i] {
					return errTwice
				}
				once[i] = true
			}
		}
	}
	if bytes.ContainsAny(header.Host(), `@/\?# <>"`) {
		return ErrMalformed.Detail("The header Host is not a host, or a host and a port.")
	}
	if hasEncoding && (hasLength || !bytes.Equal(header.Peek("Transfer-Encoding"), []byte("chunked"))) {
		return ErrMalformed.Detail("Content-Length and Transfer-Encoding do not go together.")
	}
	return nil
}

// readFault says why a request could not be read. The library's own text quotes the request, so
// it is not shown.
func readFault(err error) *fault.Fault {
	var tooSmall *fasthttp.ErrSmallBuffer
	var network net.Error
	switch {
	case errors.As(err, &tooSmall):
		return ErrHeadersTooLarge
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		return ErrBodyTooLarge
	case errors.As(err, &network) && network.Timeout():
		return ErrRequestTimeout
	}
	switch {
	case errors.Is(err, errBareLF):
		return ErrMalformed.Detail("A line of the request does not end in CRLF.")
	case errors.Is(err, errTrailer):
		return ErrMalformed.Detail("A trailer of the chunked body is not as HTTP/1.1 has it: a name, a colon and a " +
			"value in one line that ends in CRLF.")
	}
	return ErrMalformed.Detail("The request is not valid HTTP/1.1.")
}

// isGone reports that the client has gone, or never sent a request.
func isGone(err error) bool {
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
