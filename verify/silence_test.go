package verify

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// silentWay forwards connections to a server. Once cut, it swallows what comes on those that are open, and
// forwards new ones: a machine on the way has died, another does its work, and nobody says so.
type silentWay struct {
	net.Listener
	to string

	mu   sync.Mutex
	dead chan struct{}
}

func newSilentWay(t *testing.T, to string) *silentWay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &silentWay{Listener: l, to: to, dead: make(chan struct{})}
	t.Cleanup(func() { _ = l.Close() })
	go w.serve(t)
	return w
}

func (w *silentWay) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.dead)
	w.dead = make(chan struct{})
}

func (w *silentWay) serve(t *testing.T) {
	for {
		near, err := w.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", w.to)
		if err != nil {
			_ = near.Close()
			continue
		}
		t.Cleanup(func() { _, _ = near.Close(), far.Close() })
		w.mu.Lock()
		dead := w.dead
		w.mu.Unlock()
		go forward(far, near, dead)
		go forward(near, far, dead)
	}
}

func forward(to, from net.Conn, dead <-chan struct{}) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-dead:
			if err != nil {
				return
			}
			continue
		default:
		}
		if _, failed := to.Write(buf[:n]); err != nil || failed != nil {
			_ = to.Close()
			return
		}
	}
}

// Over HTTP/2 the requests of a verifier share a connection, and one that times out does not close it.
func TestAConnectionThatHasDiedIsLeft(t *testing.T) {
	t.Parallel()
	for name, transport := range map[string]func() *http.Transport{
		"the verifier's own transport": newTransport,
		"one that sends no pings":      func() *http.Transport { return &http.Transport{ForceAttemptHTTP2: true} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t, newSigner(t, "k", "EdDSA"))
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != 2 {
					t.Error(r.Proto)
				}
				i.ServeHTTP(w, r)
			}))
			srv.EnableHTTP2 = true
			srv.StartTLS()
			t.Cleanup(srv.Close)
			way := newSilentWay(t, srv.Listener.Addr().String())
			i.issuer = "https://" + way.Addr().String() + "/auth"
			i.base = i.issuer
			trusted := transport()
			trusted.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
			trusted.TLSClientConfig.RootCAs.AddCert(srv.Certificate())
			t.Cleanup(trusted.CloseIdleConnections)
			cfg := testConfig(i)
			cfg.Transport, cfg.MaxLag, cfg.Stale = trusted, 3*time.Second, Accept
			v := start(t, cfg)
			eventually(t, "keys and a snapshot", func() bool { return v.keys.set.Load() != nil && v.Lag() <= cfg.MaxLag })
			token := i.token(id(1), id(2), 0)
			want(t, v, token, nil)
			way.cut()
			i.endSession(id(2))
			eventually(t, "an end, over another connection", func() bool { return v.known.list.Load().len() == 1 })
			want(t, v, token, ErrRevoked)
		})
	}
}
