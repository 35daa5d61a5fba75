package database

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// shortest is the least time that connecting may take, all servers together.
const shortest = 5 * time.Second

// patience bounds the time for each server, so that one that does not answer leaves time for the
// next, and returns how long it may take to try them all. A connect_timeout that the operator set
// is for each server; otherwise they share the time.
func patience(ctx context.Context, cc *pgx.ConnConfig) time.Duration {
	servers := max(1, addresses(ctx, cc))
	if cc.ConnectTimeout == 0 {
		cc.ConnectTimeout = max(shortest/time.Duration(servers), time.Second)
	}
	return max(shortest, time.Duration(servers)*cc.ConnectTimeout)
}

// addresses counts the addresses that the driver will try; a host may have several.
func addresses(ctx context.Context, cc *pgx.ConnConfig) int {
	ctx, cancel := context.WithTimeout(ctx, shortest/2)
	defer cancel()
	found := map[string]bool{}
	for _, to := range destinations(cc) {
		if to.local() {
			found[to.Host] = true
			continue
		}
		list, err := cc.LookupFunc(ctx, to.Host)
		if err != nil {
			list = []string{to.Host} // connecting will report it
		}
		for _, one := range list {
			found[net.JoinHostPort(one, strconv.Itoa(int(to.Port)))] = true
		}
	}
	return len(found)
}

// prepareConnections sets on each connection what the code relies on, overriding ALTER DATABASE
// and ALTER ROLE … SET. It leaves search_path alone: the operator decides where the tables are.
func prepareConnections(cc *pgx.ConnConfig, pooler *atomic.Bool) {
	// Each connection asks once for the types of arguments and columns, and keeps them. It does
	// not keep the plan: one made for a small table would read all of it after an import.
	cc.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	cc.StatementCacheCapacity, cc.DescriptionCacheCapacity = 512, 512
	// These are sent at the start of a connection. A pooler knows them and keeps them apart for
	// each client.
	for name, value := range map[string]string{
		"client_encoding":             "UTF8",
		"standard_conforming_strings": "on",
		"DateStyle":                   "ISO, MDY",
	} {
		for have := range cc.RuntimeParams {
			if strings.EqualFold(have, name) {
				delete(cc.RuntimeParams, have)
			}
		}
		cc.RuntimeParams[name] = value
	}
	cc.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if err := checkServer(conn); err != nil {
			return err
		}
		// PgBouncer refuses these at the start of a connection. If it hands connections on after
		// each transaction, they apply to connections that its clients share. Transactions name
		// their isolation themselves. Statements here are short, but with millions of rows the planner thinks them
		// long enough to compile, which takes more time than all the rest of them, again at each execution.
		results, err := conn.Exec(ctx, "SET default_transaction_isolation = 'read committed'; "+
			"SET bytea_output = 'hex'; SET IntervalStyle = 'postgres'; SET jit = off; "+
			"SELECT current_setting('transaction_read_only'), pg_backend_pid()").ReadAll()
		if err != nil {
			return fmt.Errorf("set up the connection: %w", err)
		}
		last := results[len(results)-1]
		if len(last.Rows) != 1 || len(last.Rows[0]) != 2 {
			return errors.New("set up the connection: an answer that makes no sense")
		}
		// A pooler has its own number for each client.
		if string(last.Rows[0][1]) != strconv.FormatUint(uint64(conn.PID()), 10) {
			pooler.Store(true)
		} else if _, err := conn.Exec(ctx, "SET "+boundIdle).ReadAll(); err != nil {
			return fmt.Errorf("set up the connection: %w", err)
		}
		// After a fail-over the old primary may answer, read-only. Only a server that takes writes
		// can be used, whatever target_session_attrs says.
		if string(last.Rows[0][0]) != "off" {
			return &readOnlyError{conn.Conn().RemoteAddr().String()}
		}
		return nil
	}
}

// boundIdle is how long a transaction keeps its locks if its process stops between two statements, because its machine
// was suspended or lost its power, or its network was cut: the server ends it then. Others wait for the locks.
const boundIdle = "idle_in_transaction_session_timeout = '5s'"

// readOnlyError says that a server takes no writes, as a standby does.
type readOnlyError struct{ server string }

func (e *readOnlyError) Error() string { return e.server + " takes no writes" }
func (e *readOnlyError) Unwrap() error { return pgconn.ErrReadOnlyConnection }

// unfitError says why a server cannot be used, and what to do.
type unfitError string

func (e unfitError) Error() string { return string(e) }

// oldest is the first major version of PostgreSQL with pg_stat_wal, by which relays notice that a server has crashed.
const oldest = 14

// checkServer refuses a server whose properties no setting of a connection can change.
func checkServer(conn *pgconn.PgConn) error {
	version := conn.ParameterStatus("server_version")
	var major int
	if _, err := fmt.Sscanf(version, "%d", &major); err == nil && major < oldest {
		return unfitError(fmt.Sprintf("PostgreSQL %s is too old: authctl needs %d or newer", version, oldest))
	}
	if have := conn.ParameterStatus("server_encoding"); have != "UTF8" {
		return unfitError("the database is not encoded in UTF8 but in " + have +
			": make another with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0")
	}
	for name, want := range map[string]string{"client_encoding": "UTF8", "standard_conforming_strings": "on"} {
		if have := conn.ParameterStatus(name); have != want {
			return fmt.Errorf("the server keeps %s at %q, and it must be %q: a pooler in between may be set to "+
				"ignore it", name, have, want)
		}
	}
	return nil
}
