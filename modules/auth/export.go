package auth

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/userfile"
)

// ExportOptions say what is exported, and how.
type ExportOptions struct {
	Format string // FormatNDJSON or FormatCSV
	// PasswordHashes are written too: with them, anybody can try passwords for as long as they like;
	// without them, an import refuses every record.
	PasswordHashes bool
}

// Export writes every account in the form that [Service.Import] reads, ordered by id and in bounded
// memory, and returns their number. It is not a snapshot: an account that changes meanwhile is
// written as before or as after the change.
func (s *Service) Export(ctx context.Context, w io.Writer, opt ExportOptions) (int64, error) {
	write, err := userfile.Write(w, opt.Format, opt.PasswordHashes)
	if err != nil {
		return 0, err
	}
	n := int64(0)
	err = s.accountPages(ctx, func(page []account) error {
		ids := make([]uuid.UUID, len(page))
		for i, a := range page {
			ids[i] = a.ID
		}
		from, err := addresses(ctx, s.db, ids)
		if err != nil {
			return err
		}
		var kept map[uuid.UUID][]Address
		if s.hooks.Addresses != nil {
			if kept, err = s.hooks.Addresses(ctx, ids); err != nil {
				return err
			}
		}
		for _, a := range page {
			e := userfile.Exported{
				ID: a.ID.String(), Username: a.Username, Status: string(a.Status),
				CreatedAt:         a.CreatedAt.Format(time.RFC3339Nano),
				PasswordChangedAt: a.PasswordChangedAt.Format(time.RFC3339Nano),
			}
			e.Email, e.EmailVerified, e.Contacts = s.addressOf(from[a.ID], kept[a.ID])
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
	if err == nil || n > 0 { // what was written before an error is out
		s.security.Info("users_exported", zap.Int64("users", n), zap.Bool("password_hashes", opt.PasswordHashes),
			zap.String("by", byAdmin))
	}
	if err != nil {
		return n, fmt.Errorf("export users: %w", err)
	}
	return n, nil
}

// addressOf is the address of an account that other systems are told, whether it is its owner's, and all
// of them: of several, the first that is confirmed. Where addresses are kept, that of the system from
// which the account was imported is forgotten: its owner may have removed it.
func (s *Service) addressOf(imported origin, kept []Address) (email string, verified *bool, all []Address) {
	if s.hooks.Addresses == nil || len(kept) == 0 && !strings.Contains(imported.address, "@") { // such as a telephone
		return imported.address, imported.confirmed, nil
	}
	if len(kept) == 0 {
		return "", nil, nil
	}
	first := max(0, slices.IndexFunc(kept, func(a Address) bool { return a.Confirmed }))
	return kept[first].Address, &kept[first].Confirmed, kept
}
