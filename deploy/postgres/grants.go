// Package postgres holds the rights of the database roles for the binary.
package postgres

import _ "embed"

// Grants is what gives authctl_serve and authctl_relay their rights: one transaction, for
// PostgreSQL, run by the owner of the tables.
//
//go:embed grants.sql
var Grants string
