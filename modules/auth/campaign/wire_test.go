package campaign

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// wire is a proxy in front of an engine or a server, which can put faults on connections.
type wire struct {
	listener net.Listener

	mu     sync.Mutex
	target string
	rule   func(message) verdict // nil lets everything pass
	links  map[*link]struct{}
	thaw   chan struct{} // closed to let the held messages go
	held   *sync.WaitGroup
}

// message is what one read from a connection returned. On a loopback that is what one write sent.
type message struct {
	toTarget bool
	data     []byte
}

type verdict int

const (
	pass verdict = iota
	cut          // the message is lost, and the connection with it
	hold         // the message waits for release
)

type link struct{ client, target net.Conn }

func (l *link) close() {
	_ = l.client.Close()
	_ = l.target.Close()
}

// newWire puts a proxy in front of an address.
func newWire(t testing.TB, target string) *wire {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	w := &wire{listener: listener, target: target, links: map[*link]struct{}{}, thaw: make(chan struct{}),
		held: new(sync.WaitGroup)}
	var pumps sync.WaitGroup
	pumps.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			pumps.Go(func() { w.connect(client) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		w.release()
		w.cutAll()
		pumps.Wait()
	})
	return w
}

func (w *wire) addr() string { return w.listener.Addr().String() }

// connect carries one connection until either end closes it.
func (w *wire) connect(client net.Conn) {
	w.mu.Lock()
	target := w.target
	w.mu.Unlock()
	to, err := net.Dial("tcp", target)
	if err != nil {
		_ = client.Close()
		return
	}
	l := &link{client, to}
	w.mu.Lock()
	w.links[l] = struct{}{}
	if w.target != target { // it was cut before it was connected
		l.close()
	}
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { w.pump(l, to, client, true) })
	both.Go(func() { w.pump(l, client, to, false) })
	both.Wait()
	w.mu.Lock()
	delete(w.links, l)
	w.mu.Unlock()
}

func (w *wire) pump(l *link, to io.Writer, from io.Reader, toTarget bool) {
	defer l.close()
	for buffer := make([]byte, 64<<10); ; {
		n, err := from.Read(buffer)
		if n > 0 {
			if !w.carry(to, message{toTarget, buffer[:n]}) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// carry passes a message on according to the rule, and reports whether the connection goes on.
func (w *wire) carry(to io.Writer, m message) bool {
	w.mu.Lock()
	rule, thaw, held := w.rule, w.thaw, w.held
	held.Add(1)
	w.mu.Unlock()
	defer held.Done()
	if rule != nil {
		switch rule(m) {
		case cut:
			return false
		case hold:
			<-thaw
		}
	}
	_, err := to.Write(m.data)
	return err == nil
}

// faulty sets the rule for all messages from now on. It runs on the connections' goroutines.
func (w *wire) faulty(rule func(message) verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rule = rule
}

// release ends the rule and lets the held messages go. They have all been sent when it returns.
func (w *wire) release() {
	w.mu.Lock()
	held := w.held
	w.rule, w.held = nil, new(sync.WaitGroup)
	close(w.thaw)
	w.thaw = make(chan struct{})
	w.mu.Unlock()
	held.Wait()
}

// retarget sends new connections elsewhere and cuts the existing ones.
func (w *wire) retarget(target string) {
	w.mu.Lock()
	w.target = target
	w.mu.Unlock()
	w.cutAll()
}

func (w *wire) cutAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for l := range w.links {
		l.close()
	}
}

// swallow sends a refresh whose answer is lost between server and client. It returns once the
// server has answered.
func (s *server) swallow(token string) error {
	lossy := newWire(s.t, strings.TrimPrefix(s.url, "http://"))
	answered := make(chan []byte, 1)
	lossy.faulty(func(m message) verdict {
		if m.toTarget {
			return pass
		}
		answered <- append([]byte(nil), m.data...)
		return cut
	})
	there := &server{t: s.t, url: "http://" + lossy.addr(),
		http: &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}}
	if a, err := there.refresh(token); err == nil {
		return fmt.Errorf("the answer that was to be lost came: %v", a)
	}
	if head := <-answered; !strings.HasPrefix(string(head), "HTTP/1.1 200 ") {
		return fmt.Errorf("the answer that was lost was %.60s", head)
	}
	return nil
}
