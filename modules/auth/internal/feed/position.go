package feed

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// position is what a look at the table contained: the facts of transactions below next, but for
// those that were open. On SQLite a fact counts as a transaction of its own, and none is open.
type position struct {
	next uint64
	open []uint64 // ascending, below next
}

// contains reports whether a look contained what the transaction wrote.
func (p position) contains(xid uint64) bool {
	if xid >= p.next {
		return false
	}
	_, open := slices.BinarySearch(p.open, xid)
	return !open
}

// within reports whether everything that p contains is contained in q.
func (p position) within(q position) bool {
	if p.next > q.next {
		return false
	}
	for _, xid := range q.open {
		if xid < p.next && p.contains(xid) {
			return false
		}
	}
	return true
}

// oldest is the lowest transaction that p does not contain.
func (p position) oldest() uint64 {
	if len(p.open) > 0 {
		return p.open[0]
	}
	return p.next
}

// snapshot is p as PostgreSQL writes a pg_snapshot.
func (p position) snapshot() string {
	open := make([]string, len(p.open))
	for i, xid := range p.open {
		open[i] = strconv.FormatUint(xid, 10)
	}
	return fmt.Sprintf("%d:%d:%s", p.oldest(), p.next, strings.Join(open, ","))
}

// parseSnapshot reads a pg_snapshot.
func parseSnapshot(text string) (position, error) {
	wrong := errors.New("not a snapshot: " + text)
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return position{}, wrong
	}
	var p position
	var err error
	if p.next, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return position{}, wrong
	}
	for one := range strings.SplitSeq(parts[2], ",") {
		if one == "" {
			continue
		}
		xid, err := strconv.ParseUint(one, 10, 64)
		if err != nil {
			return position{}, wrong
		}
		p.open = append(p.open, xid)
	}
	slices.Sort(p.open)
	return p, nil
}
