// Package authbench fills an installation with as many accounts, sessions and revocations as it may
// have after years, to measure what that does to requests.
//
// Among the rows of this crowd are those of a few probes: accounts with known passwords and tokens,
// which the measured requests use. They are spread evenly among the others, in the tables and in
// the order of the indexes, so that their requests touch all parts.
package authbench
