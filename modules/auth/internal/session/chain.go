package session

import "time"

// MaxLinks is how many replaced tokens of a session can be answered with the newest one. No
// client that is well replaces more within the window. Each link costs the store some 250
// bytes until its window is over, and an answer that walks all of them some 100 µs.
const MaxLinks = 64

// MoreLinks is how many more a store may have before those beyond the bound go, all at once.
const MoreLinks = 32

// MaxWindow is longer than any grace window. What says that it is open for longer than that was
// written by a clock that was ahead.
const MaxWindow = 2 * time.Hour

// Link is a token that was replaced. Times are milliseconds since 1970 by the store's clock.
type Link struct {
	Hash   Hash   // of its secret
	At     int64  // when it was replaced
	Until  int64  // its window is open before that
	Sealed []byte // its successor, sealed; nil when it has no window
}

// Open reports whether the window is open. A window that seems to have opened further ahead
// than it is long was written by a clock that was ahead, and nobody knows when: it is void.
func (l Link) Open(now int64) (open, void bool) {
	return now < l.Until, now < l.Until && l.At-now > l.Until-l.At
}

// Mark says of tokens whose links are not there that they were replaced, up to a generation,
// at a time such that no window of theirs is open at Until.
type Mark struct {
	Generation uint32 `json:"g"`
	Until      int64  `json:"u"`
}

// Chain is what decides about a token: a record's current token and those that it replaced. It
// is the state machine in doc.go for stores that are not a script.
type Chain struct {
	Generation uint32
	Hash       Hash // of the current token

	// Previous is the link to the current token; its hash is zero before the first rotation.
	Previous Link
	// Links are those before Previous whose windows are open, oldest first and without a gap: the
	// last one is of generation Linked-2.
	Links []Link
	// Linked is the generation after the latest rotation by a server that keeps links. When it
	// is not Generation, servers of a release before have rotated since, and nothing is known
	// of the tokens from Linked-1 up to Generation-2.
	Linked uint32
	// Marks are of tokens whose links were lost, in the order of their generations.
	Marks []Mark
}

// Answer decides about a rotation. Only Rotated and Reused ask for a change of the record, and
// Rotated only when repeated is false: else this very call took place before.
func (c *Chain) Answer(r Rotation, now int64) (outcome Outcome, sealed [][]byte, repeated bool) {
	g := r.Generation
	switch {
	case g > c.Generation || g == c.Generation && r.PresentedHash == c.Hash:
		return Rotated, nil, false
	case g == c.Generation:
		return Reused, nil, false
	case g == c.Generation-1 && r.PresentedHash == c.Previous.Hash && r.NextHash == c.Hash:
		return Rotated, nil, true
	}
	links, known := c.from(g)
	if !known {
		if c.mayBeOpen(g, now) {
			return Superseded, nil, false
		}
		return Reused, nil, false
	}
	open, void := links[0].Open(now)
	switch {
	case links[0].Hash != r.PresentedHash || !open:
		return Reused, nil, false
	case void || c.Generation-g > MaxLinks:
		return Superseded, nil, false
	}
	for _, l := range links {
		if l.Sealed == nil {
			return Superseded, nil, false
		}
		sealed = append(sealed, l.Sealed)
	}
	if len(links) < int(c.Generation-g) {
		return Superseded, nil, false // the way is broken
	}
	return Replayed, sealed, false
}

// from returns the links from the one of a generation on, as far as they hang together.
func (c *Chain) from(g uint32) (links []Link, known bool) {
	if g+1 == c.Generation {
		return []Link{c.Previous}, c.Previous.Hash != Hash{}
	}
	first := int64(c.Linked) - 1 - int64(len(c.Links)) // the generation of the first link
	if int64(g) < first || int64(g) > int64(c.Linked)-2 {
		return nil, false
	}
	links = append(links, c.Links[int64(g)-first:]...)
	if c.Linked == c.Generation {
		links = append(links, c.Previous)
	}
	return links, true
}

// mayBeOpen reports whether a token of which there is no link may have been replaced less than
// a window ago.
func (c *Chain) mayBeOpen(g uint32, now int64) bool {
	if c.Linked != c.Generation && g+1 >= c.Linked && g+2 <= c.Generation && now < c.Previous.Until {
		return true
	}
	for _, m := range c.Marks {
		if g <= m.Generation {
			return now < m.Until
		}
	}
	return false
}

// Turn puts the successor of a rotation in the place of the current token.
func (c *Chain) Turn(r Rotation, now int64) {
	window := r.Grace.Milliseconds()
	if c.Linked != c.Generation && c.Generation > 2 {
		// Of what others rotated, only the last time is known.
		c.loseLinks(now)
		c.mark(max(c.Linked, 2)-1, c.Generation-2, c.Previous.Until, now, window)
	}
	if c.Previous.Hash != (Hash{}) {
		c.Links = append(c.Links, c.Previous)
	}
	c.Linked = c.Generation
	if r.Generation > c.Generation {
		// The record has missed rotations: when, is not known.
		c.Linked++
		c.loseLinks(now)
		c.mark(c.Generation, r.Generation-1, now+window, now, window)
	}
	c.Previous = Link{Hash: r.PresentedHash, At: now, Until: now + window}
	if window > 0 {
		c.Previous.Sealed = r.SealedNext
	}
	c.Generation, c.Hash, c.Linked = r.Generation+1, r.NextHash, r.Generation+1
	c.Prune(now)
	if len(c.Links) >= MaxLinks+MoreLinks {
		for len(c.Links) > MaxLinks-1 {
			g := c.Linked - 1 - uint32(len(c.Links))
			c.mark(g, g, c.Links[0].Until, now, window)
			c.Links = c.Links[1:]
		}
	}
}

// Prune drops what is about windows that are over, and reports whether there was any.
func (c *Chain) Prune(now int64) (pruned bool) {
	for len(c.Links) > 0 && c.Links[0].Until <= now {
		c.Links, pruned = c.Links[1:], true
	}
	for i, l := range c.Links {
		if open, void := l.Open(now); l.Sealed != nil && (!open || void) {
			c.Links[i].Sealed, pruned = nil, true
		}
	}
	// The newest mark that is over bounds the one after it from below.
	for len(c.Marks) > 1 && c.Marks[0].Until <= now && c.Marks[1].Until <= now {
		c.Marks, pruned = c.Marks[1:], true
	}
	if len(c.Marks) == 1 && c.Marks[0].Until <= now {
		c.Marks, pruned = nil, true
	}
	return pruned
}

// loseLinks forgets links that no longer lead to the current token, but not when they were made.
func (c *Chain) loseLinks(now int64) {
	for i, l := range c.Links {
		if g := c.Linked - 1 - uint32(len(c.Links)-i); l.Until > now {
			c.mark(g, g, l.Until, now, 0)
		}
	}
	c.Links = nil
}

// markSteps is how exact marks are: to this part of a window. maxMarks is how many there can be
// then, with those that bound others from below.
const (
	markSteps = 128
	maxMarks  = 2 * (markSteps + 2)
)

// mark notes that tokens from one generation to another were replaced such that their windows
// are over at until.
func (c *Chain) mark(from, to uint32, until, now, window int64) {
	var last Mark
	if n := len(c.Marks); n > 0 {
		last = c.Marks[n-1]
	}
	if until <= now || from > to || to <= last.Generation {
		return
	}
	step := max(1, window/markSteps)
	switch {
	case from-1 > last.Generation:
		c.Marks = append(c.Marks, Mark{Generation: from - 1}) // those below are none of it
	case last.Until/step == until/step:
		c.Marks = c.Marks[:len(c.Marks)-1] // the same to within a step
	}
	c.Marks = append(c.Marks, Mark{Generation: to, Until: until})
	c.Marks = c.Marks[max(0, len(c.Marks)-maxMarks):]
}
