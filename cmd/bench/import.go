package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// benchImport measures sign-ins during an import.
func benchImport(ctx context.Context, o options, r *report) error {
	if os.Getenv("AUTHCTL_TEST_POSTGRES") != "" {
		if err := benchImportOn(ctx, o, r, "PostgreSQL"); err != nil {
			return err
		}
	}
	o.embedded = true
	return benchImportOn(ctx, o, r, "embedded")
}

// importing is how many sign in at once: enough to keep hashing busy with little waiting.
const importing = 16

func benchImportOn(ctx context.Context, o options, r *report, where string) (err error) {
	s, err := startServer(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	names, _, err := s.users(4 * importing)
	if err != nil {
		return err
	}
	quiet := s.signIns(names, importing, 2*o.duration)
	// The import's input lasts until the sign-ins have been measured.
	const accounts = 1_000_000
	if err := writeAccounts(filepath.Join(s.process.dir, "users.ndjson"), accounts); err != nil {
		return err
	}
	importer, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- s.process.command(importer, "", "user", "import", "users.ndjson") }()
	time.Sleep(time.Second) // until the import is running
	begin := time.Now()
	before, err := s.accounts(ctx)
	if err != nil {
		return err
	}
	loud := s.signIns(names, importing, 2*o.duration)
	after, err := s.accounts(ctx)
	if err != nil {
		return err
	}
	rate := float64(after-before) / time.Since(begin).Seconds()
	stop()
	if err := <-ended; importer.Err() == nil && err != nil {
		return err
	}
	r.rate(fmt.Sprintf("sign-in during an import, %s (failed %d)", where, loud.failed+loud.shed), loud.rate, quiet.rate,
		"without", 0.5)
	r.latency("sign-in p50 during an import, "+where, loud.p50, quiet.p50, 0)
	r.latency("sign-in p99 during an import, "+where, loud.p99, quiet.p99, 4*quiet.p99)
	r.plain("accounts imported during sign-ins, "+where, fmt.Sprintf("%.0f/s", rate), "", true)
	return nil
}

func writeAccounts(path string, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(f)
	for i := range n {
		fmt.Fprintf(out, `{"username":"imported-%d@example.com","created_at":"2020-01-02T03:04:05Z","password_hash":"$2b$04$z5SzGiEQ3UVhTU1nXKtPSuEFozW7QnU0/j85AHYW19LdfomQ01msu"}`+"\n", i)
	}
	return errors.Join(out.Flush(), f.Close())
}

// accounts counts the accounts in the server's database.
func (s *server) accounts(ctx context.Context) (n int, err error) {
	db, err := openDatabase(ctx, s.db, 1)
	if err != nil {
		return 0, err
	}
	err = db.QueryRowContext(ctx, "SELECT count(*) FROM users").Scan(&n)
	return n, errors.Join(err, db.Close())
}
