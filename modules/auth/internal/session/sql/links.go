package sql

import (
	"encoding/json"
	"errors"
	"strconv"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// A link in the column links is two times of thirteen digits, the hash and the sealed successor,
// all of a fixed size: SQL can append one.
const (
	timeSize = 13
	linkSize = 2*timeSize + len(session.Hash{}) + session.SealedSize
)

// errLinks says that something else wrote to the table. Trying again will not help.
var errLinks = errors.New("the links of a session are damaged")

// encodeLinks returns nil for none.
func encodeLinks(links []session.Link) []byte {
	var b []byte
	for _, l := range links {
		b = strconv.AppendInt(b, l.At, 10)
		b = strconv.AppendInt(b, l.Until, 10)
		b = append(b, l.Hash[:]...)
		sealed := make([]byte, session.SealedSize)
		copy(sealed, l.Sealed)
		b = append(b, sealed...)
	}
	return b
}

func decodeLinks(b []byte) (links []session.Link, err error) {
	if len(b)%linkSize != 0 {
		return nil, errLinks
	}
	for ; len(b) > 0; b = b[linkSize:] {
		var l session.Link
		if l.At, err = strconv.ParseInt(string(b[:timeSize]), 10, 64); err != nil {
			return nil, errLinks
		}
		if l.Until, err = strconv.ParseInt(string(b[timeSize:2*timeSize]), 10, 64); err != nil {
			return nil, errLinks
		}
		l.Hash = session.Hash(b[2*timeSize:])
		sealed := b[linkSize-session.SealedSize : linkSize]
		if [session.SealedSize]byte(sealed) != [session.SealedSize]byte{} {
			l.Sealed = sealed
		}
		links = append(links, l)
	}
	return links, nil
}

// blob is NULL for nil.
func blob(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}

// encodeMarks returns nil for none.
func encodeMarks(marks []session.Mark) (*string, error) {
	if len(marks) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(marks)
	text := string(b)
	return &text, err
}

func decodeMarks(text *string) (marks []session.Mark, err error) {
	if text == nil {
		return nil, nil
	}
	if json.Unmarshal([]byte(*text), &marks) != nil {
		return nil, errLinks
	}
	return marks, nil
}
