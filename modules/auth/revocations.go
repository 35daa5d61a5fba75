package auth

import (
	"context"
	"time"

	"github.com/toppira/authctl/modules/auth/internal/feed"
)

// What a follower of the revocations may be refused for.
var (
	// ErrCursorGone says that the database cannot go on from the cursor of a follower: it is
	// another one, was restored or promoted, or its clock was set back. The follower begins
	// without one.
	ErrCursorGone = feed.ErrGone
	// ErrNotACursor says that a text is no cursor.
	ErrNotACursor = feed.ErrCursor
	// ErrTooManyFollowers says that this process has as many as it takes.
	ErrTooManyFollowers = feed.ErrCrowded
	// ErrRevocationsUnknown says that the database does not answer: what has ended since the
	// cursor is not known.
	ErrRevocationsUnknown = feed.ErrBehind
)

// RevocationPage is one answer to a follower, in its field JSON. It is shared: not to be changed. Cursor, AsOf, More
// (another page is ready) and Facts (how many) say what is in it.
type RevocationPage = feed.Page

// Follower is who verifies access tokens without asking, as it names itself: Client (of auth.clients), Name,
// Instance, Version, and the ids of the signing Keys that it holds; nil: it does not say.
type Follower = feed.Verifier

// Following is a follower that asks what has ended. [Following.Close] ends it.
type Following struct {
	feed  *feed.Feed
	who   Follower
	leave func()
}

// FollowRevocations lets somebody follow what ends. It returns [ErrTooManyFollowers] when this
// process has enough of them.
func (s *Service) FollowRevocations(who Follower) (*Following, error) {
	leave, err := s.feed.Enter()
	if err != nil {
		return nil, err
	}
	return &Following{s.feed, who, leave}, nil
}

// Next returns what has ended since a cursor and can still be accepted somewhere: at once when
// there is something, else nothing after the wait, or when ctx ends. Without a cursor it begins
// with everything. It returns [ErrCursorGone], [ErrNotACursor] or [ErrRevocationsUnknown].
func (f *Following) Next(ctx context.Context, after string, wait time.Duration) (RevocationPage, error) {
	page, err := f.feed.Next(ctx, after, wait)
	if err == nil {
		f.feed.Note(f.who, page.AsOf)
	}
	return page, err
}

// Close ends it.
func (f *Following) Close() { f.leave() }

// Followers is how many follow at this process.
func (s *Service) Followers() int { return s.feed.Followers() }
