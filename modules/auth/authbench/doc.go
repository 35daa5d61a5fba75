// Package authbench fills an installation with accounts, sessions and revocations, as many as it may
// have after years, to measure what that does to requests.
//
// Among the rows of this crowd are those of a few probes: accounts whose password and tokens are
// known, and which requests are made for. They are spread evenly among the others, in the tables and
// in the order of the indexes, so that their requests touch the whole of them.
package authbench
