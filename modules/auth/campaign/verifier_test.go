package campaign

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// probe is a service that verifies access tokens itself: the module verify in a separate process.
// It is built in its own folder, since this module does not depend on it.
type probe struct {
	mu  sync.Mutex
	in  io.Writer
	out *bufio.Reader
}

var builtProbe = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "probe")
	cmd := exec.Command("go", "build", "-o", path, "./internal/probe")
	cmd.Dir = filepath.Join(module, "verify")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the probe: %w\n%s", err, out)
	}
	return path, nil
})

// newProbe starts a verifier that follows these servers, and waits until it has caught up.
func (w *installation) newProbe(name string, servers ...*server) *probe {
	w.t.Helper()
	path, err := builtProbe()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(path)
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p := &probe{in: in, out: bufio.NewReader(out)}
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.url)
	}
	setup := map[string]any{
		"issuer": "http://localhost:8080", "audience": "authctl", "servers": urls, "name": name,
		"client_id": clientID, "secret": clientSecret, "stale": "refuse", "max_lag": 5,
	}
	if err := p.write(setup); err != nil {
		w.t.Fatal(err)
	}
	if said, err := p.ask(map[string]any{"ready": true}); err != nil || said.Error != "" {
		w.t.Fatalf("the verifier %s does not get ready: %s %v", name, said.Error, err)
	}
	return p
}

func (p *probe) write(line any) error {
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	_, err = p.in.Write(append(text, '\n'))
	return err
}

// checked is a verifier's answer about a token.
type checked struct {
	Reason, Error string
	Lag           float64 // seconds
}

func (p *probe) ask(question map[string]any) (checked, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.write(question); err != nil {
		return checked{}, err
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return checked{}, fmt.Errorf("the verifier does not answer: %w", err)
	}
	var said checked
	return said, json.Unmarshal(line, &said)
}

// expect returns an error unless the verifier accepts the token, or refuses it for the given
// reason.
func (p *probe) expect(access, reason string) error {
	said, err := p.ask(map[string]any{"token": access})
	if err == nil && said.Reason != reason {
		err = fmt.Errorf("the verifier says %q (%s); want %q", said.Reason, said.Error, reason)
	}
	return err
}

// until waits until the verifier gives that answer, and returns how long it took.
func (p *probe) until(access, reason string) (time.Duration, error) {
	begun := time.Now()
	for {
		err := p.expect(access, reason)
		if err == nil || time.Since(begun) > patience {
			return time.Since(begun), err
		}
		time.Sleep(time.Millisecond)
	}
}

// live returns an error unless the verifier accepts the token. On a slow machine it may know too little for a
// moment, which is no refusal.
func (p *probe) live(access string) error {
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		said, err := p.ask(map[string]any{"token": access})
		switch {
		case err != nil || said.Reason == "":
			return err
		case said.Reason != "stale" || time.Since(begun) > patience:
			return fmt.Errorf("the verifier says %q (%s) of a live session", said.Reason, said.Error)
		}
	}
}

// verifiersKnow: however and on whichever server a session ends, a verifier in another process soon
// refuses its access token, although the token's signature and times are good, and refuses no other
// token. Meanwhile other clients refresh, and the followed server is killed. A verifier that starts
// at the end knows of all ends too.
func verifiersKnow(w *installation) error {
	servers := []*server{w.serve(), w.serve()}
	p := w.newProbe("orders-1", servers...)
	bystander := servers[1].register()

	var stop atomic.Bool
	var others sync.WaitGroup
	failed := make(chan error, 16)
	defer others.Wait()
	defer stop.Store(true)
	calm := servers[1]
	for range rounds(4, 16) {
		d := calm.register()
		others.Go(func() {
			for !stop.Load() {
				a, err := calm.refreshInTheEnd(d.refresh)
				if err == nil && !a.ok() {
					err = fmt.Errorf("the answer to a refresh is %v", a)
				}
				if err == nil {
					d.keep(a)
					_, err = p.until(d.access, "")
				}
				if err != nil {
					failed <- err
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}

	total := rounds(2*len(endings), 1000)
	var took []time.Duration
	var over []string
	for round := range total {
		e := endings[round%len(endings)]
		if round == total/2 {
			servers[0].kill()
			servers = servers[1:]
		}
		s := servers[round%len(servers)]
		victim := s.register()
		other := servers[0].login(victim.name)
		kept := other.access
		for _, token := range []string{victim.access, kept} {
			if err := p.live(token); err != nil {
				return fmt.Errorf("round %d, before %s: %w", round, e.name, err)
			}
		}
		ended := victim.access
		a, err := e.do(w, s, victim, other)
		if err == nil && !a.ok() {
			err = fmt.Errorf("the answer to the end: %v: %s", a, a.Body)
		}
		if err != nil {
			return fmt.Errorf("round %d, %s: %w", round, e.name, err)
		}
		after, err := p.until(ended, "revoked")
		if err != nil {
			return fmt.Errorf("round %d, after %s: %w", round, e.name, err)
		}
		took, over = append(took, after), append(over, ended)
		if e.all {
			over = append(over, kept)
			_, err = p.until(kept, "revoked")
		} else if err = p.live(kept); err == nil {
			err = p.live(other.access) // after a password change, the new one
		}
		if err != nil {
			return fmt.Errorf("round %d, the other session after %s: %w", round, e.name, err)
		}
	}
	slices.Sort(took)
	w.t.Logf("%d ends, refused elsewhere after: p50 %v, p99 %v, longest %v", len(took), took[len(took)/2],
		took[len(took)*99/100], took[len(took)-1])
	if long() && took[len(took)*99/100] > time.Second {
		return fmt.Errorf("p99 is %v", took[len(took)*99/100])
	}
	late := w.newProbe("orders-2", servers...)
	for _, one := range []*probe{p, late} {
		for n, token := range over {
			if err := one.expect(token, "revoked"); err != nil {
				return fmt.Errorf("of %d ended tokens, number %d: %w", len(over), n, err)
			}
		}
		if err := one.live(bystander.access); err != nil {
			return err
		}
	}
	stop.Store(true)
	others.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}

	// A revoked key is refused at once, even if a recent key set still had it.
	ended, err := kidOf(bystander.access)
	if err != nil {
		return err
	}
	next, err := w.output("key", "stage")
	if err != nil {
		return err
	}
	if err := errors.Join(w.try("", "key", "promote", "--force", next),
		w.try("", "key", "revoke", "--force", ended)); err != nil {
		return err
	}
	for _, one := range []*probe{p, late} {
		if _, err := one.until(bystander.access, "revoked"); err != nil {
			return fmt.Errorf("after its key was revoked: %w", err)
		}
	}
	newest := servers[0].register()
	for kid := ""; kid != next; {
		newest.keep(servers[0].must(servers[0].refreshInTheEnd(newest.refresh)))
		if kid, err = kidOf(newest.access); err != nil {
			return err
		}
	}
	if err := errors.Join(p.live(newest.access), late.live(newest.access)); err != nil {
		return fmt.Errorf("of the new key: %w", err)
	}

	// Without the service, the verifier keeps what it knows, and says of other tokens that it knows
	// too little.
	servers[0].kill()
	if _, err := p.until(newest.access, "stale"); err != nil {
		return fmt.Errorf("with the service away: %w", err)
	}
	said, err := p.ask(map[string]any{"token": over[0]})
	if err != nil || said.Reason != "revoked" || said.Lag < 5 {
		return fmt.Errorf("with the service away, of an ended token: %+v, %w", said, err)
	}
	return nil
}

// output runs a command and returns the first line of its output.
func (w *installation) output(args ...string) (string, error) {
	for deadline := time.Now().Add(patience); ; {
		cmd := exec.Command(w.binary, args...)
		cmd.Dir, cmd.Env = w.t.TempDir(), w.env
		out, err := cmd.Output()
		if err == nil {
			line, _, _ := strings.Cut(string(out), "\n")
			return strings.TrimSpace(line), nil
		}
		exit, is := errors.AsType[*exec.ExitError](err)
		if !is || !unanswered.Match(exit.Stderr) || time.Now().After(deadline) {
			return "", fmt.Errorf("authctl %s: %w", strings.Join(args, " "), err)
		}
	}
}

func kidOf(access string) (string, error) {
	header, _, _ := strings.Cut(access, ".")
	text, err := base64.RawURLEncoding.DecodeString(header)
	if err != nil {
		return "", fmt.Errorf("the header of an access token: %w", err)
	}
	var said struct {
		KID string `json:"kid"`
	}
	err = json.Unmarshal(text, &said)
	return said.KID, err
}

func TestAVerifierElsewhereKnowsOfEveryEnd(t *testing.T) { eachStore(t, verifiersKnow) }
