package campaign

import (
	"fmt"
	"testing"
	"time"
)

// expectSame returns what is wrong with the answer to a token that was turned before.
func (s *server) expectSame(token, successor string) error {
	a, err := s.refresh(token)
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
	a, err := s.refresh(token)
	if err == nil && a.Code != code {
		err = fmt.Errorf("refresh answered %v, want %s", a, code)
	}
	return err
}

// A client whose answer was lost asks again.
func lostAnswersAreGivenAgain(w *world) error {
	servers := []*server{w.serve(), w.serve()}
	d := servers[0].register()
	for round := range rounds(5, 200) {
		token := d.refresh
		// The server has answered, and nobody hears it.
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

// After the window, who presents the old token is not known to be its owner: the session ends,
// announced, for both.
func theWindowCloses(w *world) error {
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

// The window is counted from the rotation: to use it does not hold it open.
func theWindowDoesNotSlide(w *world) error {
	s := w.serve()
	d := s.register()
	token := d.refresh
	begun := w.clock()
	a := s.must(s.refresh(token))
	d.keep(a)
	turned := w.clock()
	const window = 1500 * time.Millisecond
	for replays := 0; ; replays++ {
		asked := w.clock()
		again, err := s.refresh(token)
		if err != nil {
			return err
		}
		answered := w.clock()
		inside, outside := answered < begun+window.Milliseconds(), asked >= turned+window.Milliseconds()
		switch {
		case again.ok() && again.RefreshToken != a.RefreshToken:
			return fmt.Errorf("another successor")
		case again.ok() && outside:
			return fmt.Errorf("replayed %d ms after the rotation, a window of %v and %d replays later", asked-turned, window, replays)
		case !again.ok() && inside:
			return fmt.Errorf("refused %d ms after the rotation, within a window of %v: %v", answered-begun, window, again)
		case !again.ok():
			return w.audit([]*server{s}, false, d)
		}
	}
}

func TestTheWindowDoesNotSlide(t *testing.T) {
	eachStore(t, theWindowDoesNotSlide, "AUTH_REFRESH_GRACE=1500ms")
}

// A token of an older generation is nobody's lost answer: at once, after the window, and after
// the servers were restarted.
func oldTokensAreReuse(w *world) error {
	for _, when := range []string{"at once", "after the window", "after a restart"} {
		s := w.serve()
		d := s.register()
		oldest := d.refresh
		d.keep(s.must(s.refresh(d.refresh)))
		d.keep(s.must(s.refresh(d.refresh)))
		switch when {
		case "after the window":
			w.after(shortWindow)
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
		// Twice is announced once.
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

// A restart in the window changes nothing: the same successor, and the chain goes on.
func windowsOutliveTheServer(w *world) error {
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

// Garbage, and tokens whose MAC is wrong, end nothing.
func garbageChangesNothing(w *world) error {
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
