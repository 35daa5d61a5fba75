package campaign

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

const shortLife = 6 * time.Second // of access tokens

// accepts returns an error if the verifier refuses a token that it checks after the given time. A
// verifier that knows too little for a moment does not refuse, and on a slow machine a token may
// expire before its check.
func (p *probe) accepts(access string, asked time.Time) error {
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		said, err := p.ask(map[string]any{"token": access})
		switch {
		case err != nil:
			return err
		case said.Reason == "":
			return nil
		case said.Reason == "expired" && time.Since(asked) > shortLife-2*time.Second:
			return nil
		case said.Reason != "stale" || time.Since(begun) > patience:
			return fmt.Errorf("the verifier says %q (%s)", said.Reason, said.Error)
		}
	}
}

// looks makes the verifier fetch the keys, as an unknown key id does.
func (p *probe) looks() error {
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"at+jwt","kid":"made-up"}`))
	return p.expect(header+".e30."+strings.Repeat("A", 86), "unknown_key")
}

// clients refresh on two servers until they are stopped. Every verifier checks each token.
type clients struct {
	stop, stopped chan struct{}
	mu            sync.Mutex
	signed        []map[string]int // tokens of each client by key id
	last          []string         // the key id of the newest token
	err           error
}

func newClients(servers []*server, verifiers []*probe, n int) *clients {
	c := &clients{stop: make(chan struct{}), stopped: make(chan struct{}), signed: make([]map[string]int, n),
		last: make([]string, n)}
	var all sync.WaitGroup
	for i := range n {
		d := servers[0].register()
		c.signed[i] = map[string]int{}
		all.Go(func() {
			for round := i; ; round++ {
				select {
				case <-c.stop:
					return
				default:
				}
				asked := time.Now()
				a, err := servers[round%2].refreshInTheEnd(d.refresh)
				if err == nil && !a.ok() {
					err = fmt.Errorf("the answer to a refresh: %v: %s", a, a.Body)
				}
				kid := ""
				if err == nil {
					d.keep(a)
					kid, err = kidOf(d.access)
				}
				for n := 0; n < len(verifiers) && err == nil; n++ {
					if err = verifiers[n].accepts(d.access, asked); err != nil {
						err = fmt.Errorf("verifier %d, a token of the key %s: %w", n+1, kid, err)
					}
				}
				c.mu.Lock()
				if c.last[i] = kid; kid != "" {
					c.signed[i][kid]++
				}
				c.err = errors.Join(c.err, err)
				c.mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	go func() { all.Wait(); close(c.stopped) }()
	return c
}

// all reports whether each client has n tokens of a key, including its newest.
func (c *clients) all(kid string, least int) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, last := range c.last {
		if last != kid || c.signed[i][kid] < least {
			return false, c.err
		}
	}
	return true, c.err
}

// end stops the clients, and returns the number of checked tokens.
func (c *clients) end() (tokens int, err error) {
	close(c.stop)
	<-c.stopped
	for _, signed := range c.signed {
		for _, n := range signed {
			tokens += n
		}
	}
	return tokens, c.err
}

// follows keeps following as a verifier that holds one key and never fetches another.
func (s *server) follows(name, kid string) (end func() error) {
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		query := url.Values{"verifier": {name}, "keys": {kid}, "wait": {"1"}}
		for {
			a, err := untilAvailable(func() (answer, error) {
				return s.call("GET", "/oauth2/revocations?"+query.Encode(), "", nil)
			})
			if err == nil && !a.ok() {
				err = fmt.Errorf("the feed answered %v", a)
			}
			if err != nil {
				ended <- err
				return
			}
			var page struct{ Cursor string }
			if err := json.Unmarshal(a.Body, &page); err != nil {
				ended <- err
				return
			}
			query.Set("after", page.Cursor)
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
		}
	}()
	return func() error { close(stop); return <-ended }
}

// until repeats a command until it succeeds, or until it fails with the given text.
func (w *installation) until(words string, command ...string) error {
	for begun := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		err := w.try("", command...)
		switch {
		case err == nil && words == "", err != nil && words != "" && strings.Contains(err.Error(), words):
			return nil
		case err == nil:
			return fmt.Errorf("authctl %s succeeds, but should have said %q", strings.Join(command, " "), words)
		case time.Since(begun) > patience:
			return fmt.Errorf("the command should have said %q: %w", words, err)
		}
	}
}

// keysTakeTurns: a key is staged and promoted, and its predecessor retired, by the commands that
// operators use, without --force. promote waits for each verifier that reports that it lacks the
// key, and retire for the last token. Meanwhile clients refresh on two servers, and no verifier
// refuses a token. The test skips only the minutes of plain waiting.
func keysTakeTurns(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	quick, behind := w.newProbe("quick", servers...), w.newProbe("behind", servers[1], servers[0])
	load := newClients(servers, []*probe{quick, behind}, rounds(4, 16))
	before, err := kidOf(servers[0].register().access)
	if err != nil {
		return err
	}
	endDeaf := servers[0].follows("deaf", before)

	kid, err := w.output("key", "stage")
	if err != nil {
		return err
	}
	for _, s := range servers {
		eventually(w.t, "the key is published", func() bool {
			a, err := s.call("GET", "/.well-known/jwks.json", "", nil)
			return err == nil && strings.Contains(string(a.Body), kid)
		})
	}
	if err := w.until("3 of 3 verifiers do not hold it yet: behind", "key", "promote", kid); err != nil {
		return err
	}
	if err := errors.Join(quick.looks(),
		w.until("2 of 3 verifiers do not hold it yet: behind", "key", "promote", kid)); err != nil {
		return err
	}
	if err := errors.Join(behind.looks(),
		w.until("1 of 3 verifiers do not hold it yet: deaf", "key", "promote", kid)); err != nil {
		return err
	}
	// A verifier that has gone counts for another minute.
	if err := endDeaf(); err != nil {
		return err
	}
	gone := func() error {
		_, err := w.db.Write(w.t.Context(), "UPDATE verifier SET seen_ms = seen_ms - 60000 WHERE name = 'deaf'")
		return err
	}
	if err := errors.Join(gone(),
		w.until("Verifiers may hold a key set without it until", "key", "promote", kid)); err != nil {
		return err
	}
	// And five minutes later:
	at := time.Now().UTC().Add(-10 * time.Minute).Truncate(time.Microsecond)
	if _, err := w.db.Write(w.t.Context(), "UPDATE signing_key SET staged_at = ? WHERE kid = ?", at, kid); err != nil {
		return err
	}
	if err := w.until("", "key", "promote", kid); err != nil {
		return err
	}
	sign := func(least int) error {
		for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			done, err := load.all(kid, least)
			if done || err != nil {
				return err
			}
			if time.Since(begun) > patience {
				return errors.New("not every client gets tokens of the new key")
			}
		}
	}
	// Before the clients: on a slow machine the last token of the old key may expire while they get theirs.
	if err := w.try("", "key", "retire", before); err == nil || !strings.Contains(err.Error(), "can live until") {
		return fmt.Errorf("retire, while tokens can live: %w", err)
	}
	if err := sign(1); err != nil {
		return err
	}
	if err := w.until("", "key", "retire", before); err != nil {
		return err
	}
	if err := errors.Join(sign(20), quick.looks(), behind.looks(), sign(40)); err != nil {
		return err
	}
	tokens, err := load.end()
	w.t.Logf("%d tokens of both keys, none refused", tokens)
	return err
}

func TestKeysTakeTurnsAsOperatorsDoIt(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"redis", "sqlite"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newInstallation(t, genuine(t), store, "AUTH_ACCESS_TOKEN_TTL="+shortLife.String())
			if err := keysTakeTurns(w); err != nil {
				t.Error(err)
			}
		})
	}
}
