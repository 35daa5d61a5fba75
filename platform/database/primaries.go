package database

import (
	"context"
	"net"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

// Primaries returns those of several PostgreSQL servers in the settings that take writes, in their order. There
// should be one: after a fail-over the former primary may have come back as another. A server with several addresses
// counts once. It is nil if the settings name one server.
func (c Config) Primaries(ctx context.Context, prod bool) []string {
	if !c.UsesPostgres() {
		return nil
	}
	cc, err := c.postgresConfig(prod)
	if err != nil {
		return nil // Open reports it
	}
	requireTLS12(cc)
	all := servers(ctx, cc)
	if len(all) < 2 {
		return nil
	}
	identities := make([]string, len(all))
	var asking sync.WaitGroup
	for i, one := range all {
		asking.Go(func() { identities[i] = identity(ctx, one.connect) })
	}
	asking.Wait()
	var list []string
	seen := map[string]bool{"": true}
	for i, id := range identities {
		if !seen[id] {
			seen[id] = true
			list = append(list, all[i].address)
		}
	}
	return list
}

// server is one address of a database.
type server struct {
	address string
	connect *pgx.ConnConfig
}

// servers returns each address that the driver would try, with settings that lead to it alone.
func servers(ctx context.Context, cc *pgx.ConnConfig) (list []server) {
	known := map[string]*pgx.ConnConfig{}
	for _, to := range destinations(cc) {
		ips := []string{to.Host}
		if !to.local() {
			if found, err := cc.LookupFunc(ctx, to.Host); err == nil {
				ips = found
			}
		}
		for _, ip := range ips {
			address := ip
			if !to.local() {
				address = net.JoinHostPort(ip, strconv.Itoa(int(to.Port)))
			}
			if first := known[address]; first != nil { // the same server without TLS
				first.Fallbacks = append(first.Fallbacks, &to.FallbackConfig)
				continue
			}
			one := cc.Copy()
			one.Host, one.Port, one.TLSConfig, one.Fallbacks = to.Host, to.Port, to.TLSConfig, nil
			one.LookupFunc = func(context.Context, string) ([]string, error) { return []string{ip}, nil }
			one.DialFunc = dialer().DialContext
			prepareConnections(one, &atomic.Bool{})
			known[address] = one
			list = append(list, server{address, one})
		}
	}
	return list
}

// identity is the same for each connection to a server that takes writes, and empty if there is none.
func identity(ctx context.Context, cc *pgx.ConnConfig) string {
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return ""
	}
	defer conn.Close(context.WithoutCancel(ctx))
	results, err := conn.PgConn().Exec(ctx, "SELECT pg_postmaster_start_time()::text").ReadAll()
	if err != nil || len(results) != 1 || len(results[0].Rows) != 1 {
		return ""
	}
	return string(results[0].Rows[0][0])
}
