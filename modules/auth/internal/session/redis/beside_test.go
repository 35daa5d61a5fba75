package redis

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	goredis "github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
	"github.com/toppira/authctl/platform/cache/cachetest"
)

// before is the store of the previous release: its scripts are in testdata as they were at ff52971.
type before struct {
	*Store
	rotate, reissue *goredis.Script
}

func newBefore(t testing.TB, client *goredis.Client, opt Options) before {
	t.Helper()
	script := func(name string) *goredis.Script {
		var text []byte
		for _, file := range []string{"lib", name} {
			part, err := os.ReadFile("testdata/ff52971/" + file + ".lua")
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, part...)
		}
		return goredis.NewScript(string(text))
	}
	s := New(client, opt)
	s.create = script("create") // the previous script takes the same arguments and no more
	return before{s, script("rotate"), script("reissue")}
}

func (s before) Rotate(ctx context.Context, r session.Rotation) (session.RotateResult, error) {
	user, sid := s.user(r.UserID), r.SessionID.String()
	reply, err := s.rotate.Run(ctx, s.client,
		[]string{user + "s:" + sid, user + "index", user + "n:" + sid, user + "reused"},
		sid, r.Generation, r.PresentedHash[:], r.NextHash[:], r.SealedNext, r.Grace.Milliseconds(),
		r.IdleTTL.Milliseconds(), r.UserAgent, r.IP,
		markTTL.Milliseconds(), s.skew().Milliseconds()).Slice()
	if err != nil || reply[0] == "gone" {
		return session.RotateResult{}, err
	}
	one, err := decode(r.UserID, r.SessionID, reply[1])
	// the previous release does not know it
	one.Recorded, _ = s.client.Do(ctx, "hexists", s.record(r.UserID, r.SessionID), "recorded").Bool()
	rotated := session.RotateResult{Outcome: session.Reused, Session: one}
	switch reply[0] {
	case "turned":
		rotated.Outcome = session.Rotated
	case "replayed":
		rotated.Outcome, rotated.Links = session.Replayed, [][]byte{[]byte(reply[2].(string))}
	}
	return rotated, err
}

func (s before) Reissue(ctx context.Context, r session.Reissue) (session.Session, error) {
	reply, err := s.reissue.Run(ctx, s.client,
		[]string{s.record(r.UserID, r.SessionID), s.successor(r.UserID, r.SessionID)},
		r.Generation, r.Hash[:], r.Grace.Milliseconds(), r.IdleTTL.Milliseconds(), r.Reauthenticated,
		s.skew().Milliseconds(), r.Sealed).Slice()
	if err != nil {
		return session.Session{}, err
	}
	switch reply[0] {
	case "gone":
		return session.Session{}, session.ErrNotFound
	case "conflict":
		return session.Session{}, session.ErrConflict
	}
	one, err := decode(r.UserID, r.SessionID, reply[1])
	one.Recorded, _ = s.client.Do(ctx, "hexists", s.record(r.UserID, r.SessionID), "recorded").Bool()
	return one, err
}

func TestTwoReleasesShareARedis(t *testing.T) {
	t.Parallel()
	client := cachetest.Shared(t)
	sessiontest.RunBeside(t, func(t testing.TB, skew func() time.Duration) sessiontest.Engine {
		ours := mutantStore(t, client, skew)
		return sessiontest.Engine{Store: ours, Peer: newBefore(t, client, Options{Prefix: ours.prefix, Skew: skew})}
	})
}

// Nothing is lost where the previous release has rotated once: its link is where this release reads
// it.
func TestALinkOfTheReleaseBeforeIsPartOfTheChain(t *testing.T) {
	t.Parallel()
	client, codec := cachetest.Shared(t), newCodec(t)
	ours := mutantStore(t, client, func() time.Duration { return 0 })
	theirs := newBefore(t, client, Options{Prefix: ours.prefix})
	first := begin(t, ours, codec, uuid.New())
	second := must(t, ours, codec, first, session.Rotated)
	third := must(t, theirs, codec, second, session.Rotated)
	for _, old := range []session.Token{first, second} {
		if got := must(t, ours, codec, old, session.Replayed); got != third {
			t.Error("a late duplicate does not get the newest token")
		}
	}
	fourth := must(t, ours, codec, third, session.Rotated)
	for _, old := range []session.Token{first, second, third} {
		if got := must(t, ours, codec, old, session.Replayed); got != fourth {
			t.Error("a late duplicate does not get the newest token")
		}
	}
}
