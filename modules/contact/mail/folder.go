package mail

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/toppira/authctl/modules/outbox/delivery"
)

// folder keeps mails as files, if there is no SMTP server.
type folder struct{ dir string }

// Folder is where mails are kept in a data folder.
func Folder(dataDir string) string { return filepath.Join(dataDir, "mail") }

func (f folder) describe() string { return f.dir }

func (f folder) close() {}

// send writes a mail to a file of its own. A duplicate has the same name, and replaces it.
func (f folder) send(_ context.Context, m envelope, owned func() bool, told func(string)) (err error) {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("make the folder for mails: %w", err)
	}
	part, err := os.CreateTemp(f.dir, ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write a mail: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(part.Name())
		}
	}()
	_, err = part.Write(m.text)
	if err = errors.Join(err, part.Sync(), part.Close()); err != nil {
		return fmt.Errorf("write a mail: %w", err)
	}
	if !owned() {
		return delivery.ErrNotOwned
	}
	name := filepath.Join(f.dir, m.fileName())
	if err := os.Rename(part.Name(), name); err != nil {
		return fmt.Errorf("write a mail: %w", err)
	}
	told("written to " + name)
	return nil
}

// fileName has the time, so that names sort by it, the end of the message's id, so that names are unique,
// and the characters of the recipient that every file system takes.
func (m envelope) fileName() string {
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@.+_-", r) {
			return r
		}
		return '_'
	}, m.to)
	const most = 150
	if len(plain) > most {
		plain = plain[:most]
	}
	return fmt.Sprintf("%s-%x-%s-%s.eml", m.at.UTC().Format("20060102T150405.000Z"), m.id[12:], m.purpose, plain)
}
