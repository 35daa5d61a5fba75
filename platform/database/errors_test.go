package database_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// Every class of SQLSTATE that the service can get: transient ones count as unavailable, and those
// of a wrong statement do not.
func TestEachClassOfSQLSTATEIsJudged(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	for code, want := range map[string]bool{
		"08000": true, "08006": true, "08P01": true, // connection
		"53000": true, "53100": true, "53200": true, "53300": true, "53400": true, // disk, memory, connections
		// shutdown, cancelled, idle
		"57000": true, "57014": true, "57P01": true, "57P02": true, "57P03": true, "57P04": true, "57P05": true,
		"58000": true, "58030": true, "58P01": true, // input and output
		"25006": true, "25P03": true, "25P04": true, "26000": true,
		"40001": true, "40003": true, "40P01": true, "55006": true, "55P03": true, "72000": true,

		"0A000": false, "0LP01": false, "21000": false, "22001": false, "22021": false, "22P02": false,
		"23502": false, "23503": false, "23505": false, "23514": false, "25001": false, "25P02": false, "2BP01": false,
		"28000": false, "3D000": false, "3F000": false, "40002": false, "42501": false, "42601": false, "42703": false,
		"42P01": false,
		"54000": false, "55000": false, "P0001": false, "XX000": false, "XX001": false,
	} {
		// PostgreSQL ends the connection with some of these codes. As a plain exception the code is
		// classified the same.
		_, err := db.ExecContext(t.Context(),
			fmt.Sprintf("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '%s'; END $$",
				code))
		if err == nil || database.IsUnavailable(err) != want || database.IsUnavailable(fmt.Errorf("wrapped: %w",
			err)) != want {
			t.Errorf("%s: unavailable %v, want %v: %v", code, database.IsUnavailable(err), want, err)
		}
	}
}

// Any error of a new connection means that the service is unavailable for the moment.
func TestWhatAServerSaysToANewConnectionIsUnavailable(t *testing.T) {
	t.Parallel()
	dsn := dbtest.PostgresURL(t)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	password := *u
	password.User = url.UserPassword(u.User.Username(), "not it")
	name := *u
	name.Path = "/t_is_not_there"
	user := *u
	user.User = url.UserPassword("t_nobody", "x")
	for _, one := range []url.URL{password, name, user} {
		if _, err := database.Open(t.Context(), database.Config{URL: config.Secret(one.String())},
			database.Options{}); !database.IsUnavailable(err) {
			t.Errorf("%s: %v", one.Redacted(), err)
		}
	}
}

func TestATransactionThatWasInAnothersWayIsRunAgain(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]string{
		"deadlock":      "SELECT 1",
		"serialisation": "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := dbtest.Postgres(t)
			for _, statement := range []string{"CREATE TABLE pair (n integer PRIMARY KEY, v integer)",
				"INSERT INTO pair VALUES (0, 0), (1, 0)"} {
				if _, err := db.Write(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			// Both hold one row before either asks for the other's.
			var met, all sync.WaitGroup
			met.Add(2)
			runs := [2]int{}
			for i := range 2 {
				all.Go(func() {
					err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
						runs[i]++
						if _, err := tx.ExecContext(ctx, begin); err != nil {
							return err
						}
						var sum int
						if err := tx.QueryRowContext(ctx, "SELECT sum(v) FROM pair").Scan(&sum); err != nil {
							return err
						}
						for step := range 2 {
							if _, err := tx.ExecContext(ctx, "UPDATE pair SET v = v + 1 WHERE n = ?",
								(i+step)%2); err != nil {
								return fmt.Errorf("step %d: %w", step, err)
							}
							if step == 0 && runs[i] == 1 {
								met.Done()
								met.Wait()
							}
						}
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			var sum int
			if err := db.QueryRowContext(t.Context(), "SELECT sum(v) FROM pair").Scan(&sum); err != nil || sum != 4 {
				t.Errorf("the sum is %d, %v", sum, err)
			}
			if runs[0]+runs[1] < 3 {
				t.Errorf("no transaction was repeated: %v", runs)
			}
		})
	}
}

func TestATransactionIsNotRunAgainForEver(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	runs := 0
	err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		runs++
		_, err := tx.ExecContext(ctx, "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$")
		return err
	})
	if !database.IsUnavailable(err) || runs < 3 || runs > 20 {
		t.Errorf("%d runs: %v", runs, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	runs = 0
	err = db.Tx(ended, func(ctx context.Context, tx database.Tx) error {
		runs++
		_, err := tx.ExecContext(ctx, "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$")
		cancel()
		return err
	})
	if err == nil || runs != 1 {
		t.Errorf("%d runs after the caller had left: %v", runs, err)
	}
}

// When the server ends an idle transaction, that is no fault of the request.
func TestATransactionThatTheServerEndsIsUnavailable(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	for name, setting := range map[string]string{
		"idle": "idle_in_transaction_session_timeout", "slow": "statement_timeout",
	} {
		err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
			if _, err := tx.ExecContext(ctx, "SET LOCAL "+setting+" = '1ms'"); err != nil {
				return err
			}
			if name == "slow" {
				_, err := tx.ExecContext(ctx, "SELECT pg_sleep(60)")
				return err
			}
			for {
				if _, err := tx.ExecContext(ctx, "SELECT 1"); err != nil {
					return err
				}
			}
		})
		if !database.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var pid int
	err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		if err := tx.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			return err
		}
		if _, err := db.ExecContext(ctx, "SELECT pg_terminate_backend(?)", pid); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "SELECT 1")
		return err
	})
	if !database.IsUnavailable(err) {
		t.Errorf("terminated: %v", err)
	}
	if _, err := db.ExecContext(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("the next transaction: %v", err)
	}
	if strings.Contains(fmt.Sprint(err), "%!") {
		t.Error(err)
	}
}
