package password

import (
	"bytes"
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// minPrefix is how many hexadecimal digits of a hash a line must give. 16 are 64 bits:
// among billions of lines, a password that is not breached meets one by chance once in
// billions.
const minPrefix = 16

// breached is a file of SHA-1 hashes of passwords, in order, as Have I Been Pwned publishes
// them: one a line in hexadecimal, of either case, "HASH" or "HASH:COUNT", lines ending in
// LF or CR LF. Hashes may be cut to their first digits to save space. The file is open as
// long as the service runs: replace it by renaming a new one over it and restarting.
type breached struct {
	file  *os.File
	lines sortedLines
}

// probes is how many lines are read at the start, evenly spread, to find a file that is
// something else.
const probes = 64

func openBreached(path string) (*breached, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the breached-set file: %w", err)
	}
	b := &breached{file: f}
	if err := b.probe(); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("read the breached-set file %s: %w", path, err)
	}
	return b, nil
}

func (b *breached) probe() error {
	info, err := b.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", info.Name())
	}
	b.lines = sortedLines{text: b.file, size: info.Size(), key: breachedKey}
	var before []byte
	for i := range int64(probes) {
		if info.Size() == 0 {
			return nil
		}
		from, _, key, err := b.lines.lineAt(i * (info.Size() - 1) / (probes - 1))
		if err != nil {
			return err
		}
		if bytes.Compare(key, before) < 0 {
			return fmt.Errorf("line at byte %d %w", from, errUnsorted)
		}
		before = key
	}
	ntlm, err := b.lines.find(func(key []byte) int {
		return cmp.Compare(ntlmOfPassword[:min(len(key), len(ntlmOfPassword))], string(key))
	})
	if ntlm {
		return errors.New("it has NTLM hashes, where SHA-1 is needed")
	}
	return err
}

// ntlmOfPassword is the NTLM hash of "password". Have I Been Pwned has a file of such hashes too. They look like
// SHA-1 cut to 32 digits, and no password would be found among them.
const ntlmOfPassword = "8846F7EAEE8FB117AD06BDD830B7586C"

func (b *breached) close() error { return b.file.Close() }

func (b *breached) has(password string) (bool, error) {
	sum := sha1.Sum([]byte(password))
	want := strings.ToUpper(hex.EncodeToString(sum[:]))
	known, err := b.lines.find(func(key []byte) int {
		return cmp.Compare(want[:len(key)], string(key))
	})
	if err != nil {
		return false, fmt.Errorf("search the breached-set file: %w", err)
	}
	return known, nil
}

// breachedKey takes the hash, in capitals, from a line.
func breachedKey(line []byte) ([]byte, error) {
	digits, _, _ := bytes.Cut(line, []byte{':'})
	if len(digits) < minPrefix || len(digits) > 2*sha1.Size {
		return nil, errLine
	}
	key := bytes.ToUpper(digits)
	for _, c := range key {
		if (c < '0' || c > '9') && (c < 'A' || c > 'F') {
			return nil, errLine
		}
	}
	return key, nil
}
