package campaign

import (
	"fmt"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/cache/cachetest"
)

// expectSame returns an error unless a replaced token gets the same successor again.
func (s *server) expectSame(token, successor string) error {
	a, err := s.refreshInTheEnd(token)
	switch {
	case err != nil:
		return err
	case !a.ok():
		return fmt.Errorf("a token presented again in the window: %v", a)
	case !a.Replayed:
		return fmt.Errorf("a token presented again is not marked as replayed")
	case successor != "" && a.RefreshToken != successor:
		return fmt.Errorf("a token presented again gets another successor")
	}
	return nil
}

// expectCode returns an error unless the token is refused with the code.
func (s *server) expectCode(token, code string) error {
	a, err := s.refreshInTheEnd(token)
	if err == nil && a.Code != code {
		err = fmt.Errorf("the refresh got %v, want %s", a, code)
	}
	return err
}

// A client that has lost an answer asks again.
func lostAnswersAreGivenAgain(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	d := servers[0].register()
	for round := range rounds(5, 200) {
		token := d.refresh
		// The server answers, but the answer is lost.
		if err := servers[round%2].swallow(token); err != nil {
			return err
		}
		a, err := servers[(round+1)%2].refresh(token)
		if err != nil {
			return err
		}
		if !a.ok() || !a.Replayed {
			return fmt.Errorf("round %d: after a lost answer: %v, replayed %v", round, a, a.Replayed)
		}
		if err := servers[round%2].expectSame(token, a.RefreshToken); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		d.keep(a)
	}
	return w.audit(servers, false, d)
}

func TestALostAnswerIsGivenAgain(t *testing.T) { eachStore(t, lostAnswersAreGivenAgain) }

const shortWindow = time.Second

// After the grace window, nobody can tell whether the old token comes from the owner: the session
// ends for both parties, and the end is announced.
func theWindowCloses(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	d, bystander := servers[0].register(), servers[1].register()
	token := d.refresh
	if err := servers[0].swallow(token); err != nil {
		return err
	}
	w.after(shortWindow)
	if err := servers[1].expectCode(token, "refresh_token_reused"); err != nil {
		return fmt.Errorf("after the window: %w", err)
	}
	if err := w.expectEvents(d, "RefreshTokenReuseDetected", "SessionRevoked"); err != nil {
		return err
	}
	for _, s := range servers {
		if err := s.expectOver(d); err != nil {
			return err
		}
	}
	if err := w.audit(servers, false, d); err != nil {
		return err
	}
	return w.audit(servers, false, bystander)
}

func TestTheWindowCloses(t *testing.T) {
	eachStore(t, theWindowCloses, "AUTH_REFRESH_GRACE="+shortWindow.String())
}

// The window begins at the rotation, and replays do not extend it.
func theWindowDoesNotSlide(w *installation) error {
	s := w.serve()
	d := s.register()
	token := d.refresh
	begun := w.clock()
	a := s.must(s.refresh(token))
	d.keep(a)
	rotated := w.clock()
	const window = 1500 * time.Millisecond
	for replays := 0; ; replays++ {
		asked := w.clock()
		again, err := s.refresh(token)
		if err != nil {
			return err
		}
		answered := w.clock()
		// Each clock counts whole milliseconds.
		const rounding = 2
		inside := answered < begun+window.Milliseconds()-rounding
		outside := asked >= rotated+window.Milliseconds()+rounding
		switch {
		case again.ok() && again.RefreshToken != a.RefreshToken:
			return fmt.Errorf("another successor")
		case again.ok() && outside:
			return fmt.Errorf("replayed %d ms after the rotation, a window of %v and %d replays later", asked-rotated,
				window, replays)
		case !again.ok() && inside:
			return fmt.Errorf("refused %d ms after the rotation, within a window of %v: %v", answered-begun, window,
				again)
		case !again.ok():
			return w.audit([]*server{s}, false, d)
		}
	}
}

func TestTheWindowDoesNotSlide(t *testing.T) {
	eachStore(t, theWindowDoesNotSlide, "AUTH_REFRESH_GRACE=1500ms")
}

// Requests overtake each other: when the first one arrives, its token has been replaced more than
// once. A token within its own grace window gets the newest token.
func lateDuplicatesAreHarmless(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	for round := range rounds(4, 100) {
		d := servers[0].register()
		tokens := []string{d.refresh}
		for i := range 2 + round%8 {
			d.keep(servers[i%2].must(servers[i%2].refresh(d.refresh)))
			tokens = append(tokens, d.refresh)
		}
		for i, old := range tokens[:len(tokens)-1] {
			if err := servers[i%2].expectSame(old, d.refresh); err != nil {
				return fmt.Errorf("round %d, token %d of %d: %w", round, i, len(tokens), err)
			}
		}
		if err := w.audit(servers, false, d); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}

func TestALateDuplicateGetsTheNewestToken(t *testing.T) { eachStore(t, lateDuplicatesAreHarmless) }

// A client rotates as fast as it can. However many rotations one window has, nothing that the
// client sends again ends its session.
func rotationsWithoutEnd(w *installation) error {
	s := w.serve()
	d := s.register()
	oldest, begun := d.refresh, time.Now()
	for n := range rounds(300, 2000) {
		if n >= 100 && time.Since(begun) > 20*time.Second {
			break // enough on a slow machine: the window of the oldest, a minute, must not end
		}
		previous := d.refresh
		d.keep(s.must(s.refresh(d.refresh)))
		if err := s.expectSame(previous, d.refresh); err != nil {
			return err
		}
	}
	// On a machine that is slow beyond measure the oldest may be too old for a late duplicate.
	if err := s.expectCode(oldest, "invalid_refresh_token"); err != nil && time.Since(begun) < 50*time.Second {
		return fmt.Errorf("the oldest of them: %w", err)
	} else if err != nil {
		w.t.Logf("the oldest was sent after %v: %v", time.Since(begun), err)
		return nil
	}
	return w.audit([]*server{s}, false, d)
}

func TestAnyNumberOfRotationsInAWindow(t *testing.T) { eachStore(t, rotationsWithoutEnd) }

// A token that was replaced before the grace window cannot be a lost answer, however many rotations
// came later, and whether the servers were restarted or not.
func oldTokensAreReuse(w *installation) error {
	for _, when := range []string{"after the window", "while its owner continues", "after a restart"} {
		s := w.serve()
		d := s.register()
		oldest := d.refresh
		d.keep(s.must(s.refresh(d.refresh)))
		d.keep(s.must(s.refresh(d.refresh)))
		w.after(shortWindow)
		switch when {
		case "while its owner continues":
			for range 5 {
				d.keep(s.must(s.refresh(d.refresh)))
			}
		case "after a restart":
			s.kill()
			s = w.serve()
		}
		if err := s.expectCode(oldest, "refresh_token_reused"); err != nil {
			return fmt.Errorf("%s: %w", when, err)
		}
		if err := w.expectEvents(d, "RefreshTokenReuseDetected", "SessionRevoked"); err != nil {
			return fmt.Errorf("%s: %w", when, err)
		}
		if err := s.expectOver(d); err != nil {
			return fmt.Errorf("%s: %w", when, err)
		}
		// A second use is not announced again.
		if _, err := s.refresh(oldest); err != nil {
			return err
		}
		if err := w.expectEvents(d, "RefreshTokenReuseDetected", "SessionRevoked"); err != nil {
			return fmt.Errorf("%s, twice: %w", when, err)
		}
		if err := w.audit([]*server{s}, false, d); err != nil {
			return fmt.Errorf("%s: %w", when, err)
		}
	}
	return nil
}

func TestAnOldTokenEndsItsSession(t *testing.T) {
	eachStore(t, oldTokensAreReuse, "AUTH_REFRESH_GRACE="+shortWindow.String())
}

// The links from a replaced token to the newest one are deleted soon after its window, in every
// session.
func waysAreForgotten(w *installation) error {
	s := w.serve()
	var users []*device
	for range rounds(5, 50) {
		d := s.register()
		for range 3 {
			d.keep(s.must(s.refresh(d.refresh)))
		}
		users = append(users, d)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left, err := w.links(users)
		if err != nil {
			return err
		}
		if left == 0 {
			return w.audit([]*server{s}, false, users[0])
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d links remain after %v", left, patience)
		}
	}
}

// links counts the links that the store has for the devices.
func (w *installation) links(devices []*device) (n int, err error) {
	ctx := w.t.Context()
	if w.redisURL == "" {
		err := w.db.QueryRowContext(ctx,
			"SELECT count(*) FROM session WHERE sealed IS NOT NULL OR links IS NOT NULL").Scan(&n)
		return n, err
	}
	client := cachetest.Open(w.t, w.redisURL)
	for _, d := range devices {
		for _, kind := range []string{"n", "l", "o"} {
			keys, err := client.Keys(ctx, "authctl:session:*:"+kind+":"+d.sid.String()+"*").Result()
			if err != nil {
				return 0, err
			}
			n += len(keys)
		}
	}
	return n, nil
}

func TestWaysToTheNewestTokenAreForgotten(t *testing.T) {
	eachStore(t, waysAreForgotten, "AUTH_REFRESH_GRACE="+shortWindow.String())
}

// A restart within the window changes nothing: the token gets the same successor, and the chain
// continues.
func windowsOutliveTheServer(w *installation) error {
	s := w.serve()
	d := s.register()
	token := d.refresh
	d.keep(s.must(s.refresh(token)))
	s.kill()
	s = w.serve()
	if err := s.expectSame(token, d.refresh); err != nil {
		return err
	}
	return w.audit([]*server{s}, false, d)
}

func TestALostAnswerIsGivenAgainAfterARestart(t *testing.T) { eachStore(t, windowsOutliveTheServer) }

// Garbage and tokens with a wrong MAC end nothing.
func garbageChangesNothing(w *installation) error {
	s := w.serve()
	d := s.register()
	for i := range len(d.refresh) - len("art_") {
		forged := []byte(d.refresh)
		at := len("art_") + i
		if forged[at]++; forged[at] == 'z'+1 || forged[at] == '9'+1 || forged[at] == 'Z'+1 {
			forged[at] = 'a'
		}
		if err := s.expectCode(string(forged), "invalid_refresh_token"); err != nil {
			return fmt.Errorf("character %d changed: %w", at, err)
		}
	}
	return w.audit([]*server{s}, false, d)
}

func TestAForgedTokenEndsNothing(t *testing.T) { eachStore(t, garbageChangesNothing) }
