package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
)

// ExportOptions say what is exported, and how.
type ExportOptions struct {
	Format string // FormatNDJSON or FormatCSV
	// PasswordHashes are written too: who has the result can try passwords against it for
	// as long as they like. Without them, an import cannot read it.
	PasswordHashes bool
}

// Export writes every account in the form that [Service.Import] reads, ordered by id and in
// bounded memory, and returns how many there are. It is no snapshot: an account that changes
// meanwhile is written before or after the change.
func (s *Service) Export(ctx context.Context, w io.Writer, opt ExportOptions) (int64, error) {
	write, flush := exportJSON(w)
	switch opt.Format {
	case FormatNDJSON:
	case FormatCSV:
		write, flush = exportCSV(w, opt.PasswordHashes)
	default:
		return 0, fmt.Errorf("there is no export as %q", opt.Format)
	}
	n := int64(0)
	err := s.accountPages(ctx, func(page []account) error {
		ids := make([]uuid.UUID, len(page))
		for i, a := range page {
			ids[i] = a.ID
		}
		from, err := addresses(ctx, s.db, ids)
		if err != nil {
			return err
		}
		for _, a := range page {
			e := exported{
				ID: a.ID.String(), Username: a.Username, Status: string(a.Status),
				CreatedAt: a.CreatedAt.Format(time.RFC3339Nano), PasswordChangedAt: a.PasswordChangedAt.Format(time.RFC3339Nano),
				Email: from[a.ID].address, EmailVerified: from[a.ID].confirmed,
			}
			if opt.PasswordHashes {
				e.PasswordHash = a.passwordHash
			}
			n++
			if err := write(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err = errors.Join(err, flush()); err != nil {
		return n, fmt.Errorf("export users: %w", err)
	}
	s.security.Info("users_exported", zap.Int64("users", n), zap.Bool("password_hashes", opt.PasswordHashes), zap.String("by", byAdmin))
	return n, nil
}

func exportJSON(w io.Writer) (write func(exported) error, flush func() error) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return func(e exported) error { return enc.Encode(e) }, func() error { return nil }
}

func exportCSV(w io.Writer, hashes bool) (write func(exported) error, flush func() error) {
	columns := []string{"id", "username", "status", "created_at", "password_changed_at", "email", "email_verified", "password_hash"}
	if !hashes {
		columns = columns[:len(columns)-1]
	}
	write = func(e exported) error {
		verified := ""
		if e.EmailVerified != nil {
			verified = strconv.FormatBool(*e.EmailVerified)
		}
		row := []string{e.ID, e.Username, e.Status, e.CreatedAt, e.PasswordChangedAt, e.Email, verified, e.PasswordHash}
		return writeRow(w, row[:len(columns)])
	}
	first := writeRow(w, columns)
	return write, func() error { return first }
}

// writeRow writes a row of CSV. encoding/csv would write a text such as NULL without quotes,
// which to readers of databases, and to our own, means none.
func writeRow(w io.Writer, fields []string) error {
	quoted := make([]string, len(fields))
	for i, field := range fields {
		quoted[i] = field
		if strings.ContainsAny(field, "\",;\t|\r\n ") || valueOf(field) != field {
			quoted[i] = `"` + strings.ReplaceAll(field, `"`, `""`) + `"`
		}
	}
	_, err := io.WriteString(w, strings.Join(quoted, ",")+"\n")
	return err
}
