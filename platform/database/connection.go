package database

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// prepareConnections makes each connection what the code relies on, whatever ALTER DATABASE or
// ALTER ROLE … SET says. search_path is left as it is: where the tables are is the operator's
// word.
func prepareConnections(cc *pgx.ConnConfig) {
	// These travel with the start of a connection. A pooler knows them and gives each client
	// its own.
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
	cc.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if err := checkServer(conn); err != nil {
			return err
		}
		// These PgBouncer refuses at the start of a connection. Where it hands the connection
		// on after each transaction, they stay with the server's, which all of its clients have
		// in common; transactions name their isolation themselves.
		_, err := conn.Exec(ctx, "SET default_transaction_isolation = 'read committed'; SET bytea_output = 'hex'; SET IntervalStyle = 'postgres'").ReadAll()
		if err != nil {
			return fmt.Errorf("set up the connection: %w", err)
		}
		return nil
	}
}

// ErrEncoding says that a database cannot hold every name that the service accepts.
var ErrEncoding = errors.New("the database is not encoded in UTF8")

// checkServer refuses what no setting of a connection can make right.
func checkServer(conn *pgconn.PgConn) error {
	if have := conn.ParameterStatus("server_encoding"); have != "UTF8" {
		return fmt.Errorf("%w but in %s: make another with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0", ErrEncoding, have)
	}
	for name, want := range map[string]string{"client_encoding": "UTF8", "standard_conforming_strings": "on"} {
		if have := conn.ParameterStatus(name); have != want {
			return fmt.Errorf("the server keeps %s at %q, and it must be %q: a pooler in between may be set to ignore it", name, have, want)
		}
	}
	return nil
}
