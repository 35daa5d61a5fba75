package password

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
	"strings"
	"sync"
)

//go:generate go run ./blocklist/generate -out blocklist/common.txt.gz passwords.json

// The list is described, with its licence, in blocklist/README.md.
//
//go:embed blocklist/common.txt.gz
var commonGz []byte

// blocklist is the built-in list of common passwords, lower case. It is unpacked (400 kB)
// when it is first asked.
type blocklist struct {
	lines func() (sortedLines, error)
}

func newBlocklist() *blocklist {
	return &blocklist{lines: sync.OnceValues(func() (sortedLines, error) {
		unpack, err := gzip.NewReader(bytes.NewReader(commonGz))
		if err != nil {
			return sortedLines{}, fmt.Errorf("unpack the list of common passwords: %w", err)
		}
		text, err := io.ReadAll(unpack)
		if err != nil {
			return sortedLines{}, fmt.Errorf("unpack the list of common passwords: %w", err)
		}
		return sortedLines{
			text: bytes.NewReader(text),
			size: int64(len(text)),
			key:  func(line []byte) ([]byte, error) { return line, nil },
		}, nil
	})}
}

// maxTail is how many digits and signs after a common password do not make it another one. So
// the list stands for a longer one, with what people add when they are told to add something;
// it is always the whole password that is compared, never a word within it.
const maxTail = 4

// has reports whether the password, folded, is on the list, or is when up to four digits and
// signs at its end are left out.
func (b *blocklist) has(password string) (bool, error) {
	lines, err := b.lines()
	if err != nil {
		return false, err
	}
	base := strings.TrimRightFunc(password, decoration)
	for _, candidate := range []string{password, base} {
		if len(password)-len(candidate) > maxTail || len(candidate) >= maxLine {
			continue
		}
		known, err := lines.find(func(key []byte) int { return strings.Compare(candidate, string(key)) })
		if known || err != nil {
			return known, err
		}
	}
	return false, nil
}
