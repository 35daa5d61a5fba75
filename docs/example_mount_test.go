package docs_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/auth/authhttp"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/openapi"
	"github.com/toppira/authctl/platform/testenv"
)

// settings are those of the shop and of the parts that it mounts. config.Load fills them; a host
// with its own loader can fill the structs itself: every field, since zero values are not the defaults.
type settings struct {
	DataDir  string `config:"shop.data_dir" default:"./data" doc:"Where the shop keeps its files."`
	Database database.Config
	HTTP     httpserver.Config
	Auth     auth.Config
	Outbox   relay.Config
}

// serveShop runs a monolith with accounts until ctx ends.
func serveShop(ctx context.Context, cfg settings, log *zap.Logger, listening func(net.Addr)) (err error) {
	// The host and the module share the database. Things close in reverse order.
	db, err := database.Open(ctx, cfg.Database, database.Options{DataDir: cfg.DataDir, AppName: "shop"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := migrations.Up(ctx, db); err != nil {
		return err
	}
	if _, err := db.Write(ctx, "CREATE TABLE IF NOT EXISTS shop_order (id text PRIMARY KEY, user_id text NOT NULL, item text NOT NULL)"); err != nil {
		return err // in production this is a migration of the shop
	}

	// The module wakes the relay after each commit that wrote an event.
	waker := relay.NewWaker(db)
	defer waker.Close()
	accounts, err := auth.New(ctx, cfg.Auth, auth.Deps{DB: db, Committed: waker.Wake, Serving: true, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, accounts.Close()) }()

	// Where events go: a file here; use sink.OpenKafka in production.
	events, err := sink.OpenFile(filepath.Join(cfg.DataDir, "events.ndjson"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	publisher, err := relay.New(db, events, cfg.Outbox, relay.Options{Log: log, Waker: waker})
	if err != nil {
		return err
	}

	// One table holds the routes of the module and of the shop.
	orders := &shopAPI{db: db, waker: waker}
	routes := append(authhttp.Routes(accounts, authhttp.Options{Issuer: cfg.Auth.Token.Issuer}), httpserver.Route{
		Method: "POST", Path: "/orders", Status: 201, ID: "placeOrder", Group: "shop",
		Summary: "Order something", Success: "It is ordered.", Do: httpserver.As(authhttp.Bearer(accounts), orders.place),
	})
	server, err := httpserver.New(cfg.HTTP, httpserver.Options{Log: log, Unavailable: auth.IsUnavailable})
	if err != nil {
		return err
	}
	server.Handle(routes...)
	if err := server.Listen(); err != nil {
		return err
	}
	listening(server.Addr())

	// The server stops first; what it relies on stops when it has finished.
	running, front := errgroup.WithContext(ctx)
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	running.Go(func() error { return accounts.Run(background) })
	running.Go(func() error { return publisher.Run(background) })
	running.Go(func() error {
		defer stopBackground()
		return server.Run(front)
	})
	return running.Wait()
}

// shopAPI holds the functions of the shop's own routes.
type shopAPI struct {
	db    *database.DB
	waker *relay.Waker
}

// OrderRequest is the body of an order. A pointer means required; see [httpserver.Function].
type OrderRequest struct {
	Item *string `json:"item" example:"teapot" maxLength:"100" doc:"What is ordered."`
}

// Order is the answer.
type Order struct {
	ID string `json:"id" format:"uuid" example:"0199b7f2-6f3e-7c1d-9a55-0c8c5b1f6a10"`
}

// place is a route of the shop that needs to know the caller. The order and its event commit
// together, and the event comes after the earlier events of the same user. Errors become problem
// documents, as everywhere.
func (a *shopAPI) place(ctx context.Context, who auth.Caller, in struct{ Body OrderRequest }) (Order, error) {
	id, user, item := uuid.NewString(), who.User.ID.String(), *in.Body.Item
	data, err := json.Marshal(map[string]string{"order_id": id, "item": item})
	if err != nil {
		return Order{}, err
	}
	err = a.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if _, err := tx.ExecContext(ctx, "INSERT INTO shop_order (id, user_id, item) VALUES (?, ?, ?)", id, user, item); err != nil {
			return err
		}
		return outbox.Add(ctx, tx, outbox.Event{
			Type: "shop.OrderPlaced.v1", Key: user, Subject: user, Source: "https://shop.example", Data: data,
		})
	})
	if err != nil {
		return Order{}, err
	}
	a.waker.Wake()
	return Order{ID: id}, nil
}

// mux adds the table to a server that the host already has.
func mux(cfg httpserver.Config, log *zap.Logger, routes []httpserver.Route) (http.Handler, error) {
	accounts, err := httpserver.Handler(cfg, httpserver.Options{Log: log, Unavailable: auth.IsUnavailable}, routes...)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/shop/", http.StripPrefix("/shop", http.FileServer(http.Dir("shop"))))
	mux.Handle("/", accounts)
	return mux, nil
}

// shop is a running monolith on SQLite, with cheap hashing.
type shop struct {
	t    *testing.T
	base string
	dir  string
}

func openShop(t *testing.T) *shop {
	t.Helper()
	dir := t.TempDir()
	var cfg settings
	if err := config.Load(&cfg, config.Options{File: os.DevNull, Environ: []string{
		"SHOP_DATA_DIR=" + dir, "APP_HOST=127.0.0.1", "APP_PORT=0", "AUTH_PASSWORD_BCRYPT_COST=4",
		"AUTH_TOKEN_SECRET=a secret of the tests that is long enough for everything",
	}}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	listening, ended := make(chan net.Addr, 1), make(chan error, 1)
	go func() { ended <- serveShop(ctx, cfg, zap.NewNop(), func(a net.Addr) { listening <- a }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the shop ended with: %v", err)
		}
	})
	select {
	case addr := <-listening:
		return &shop{t: t, base: "http://" + addr.String(), dir: dir}
	case err := <-ended:
		ended <- nil
		t.Fatalf("the shop did not start: %v", err)
	}
	return nil
}

// do sends a request and returns the status and the JSON object of the answer.
func (s *shop) do(method, path, token, body string) (int, map[string]any) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.base+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	var answer map[string]any
	_ = json.NewDecoder(res.Body).Decode(&answer) // not every answer has a body
	return res.StatusCode, answer
}

// must is [shop.do] that fails the test unless the status is as expected.
func (s *shop) must(status int, method, path, token, body string) map[string]any {
	s.t.Helper()
	got, answer := s.do(method, path, token, body)
	if got != status {
		s.t.Fatalf("%s %s: %d %v, want %d", method, path, got, answer, status)
	}
	return answer
}

// lines waits for n events in the file, and returns them.
func (s *shop) lines(n int) []string {
	s.t.Helper()
	for deadline := time.Now().Add(testenv.Patience); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(s.dir, "events.ndjson"))
		if err != nil {
			s.t.Fatal(err)
		}
		if list := strings.SplitAfter(string(text), "\n"); len(list) > n {
			return list[:n]
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("there are fewer than %d events:\n%s", n, text)
		}
	}
}

func TestTheModuleIsMountedInAnotherMonolith(t *testing.T) {
	t.Parallel()
	s := openShop(t)
	token := s.must(201, "POST", "/api/v1/auth/register", "", `{"username":"alice","password":"correct horse battery staple"}`)["access_token"].(string)
	s.must(201, "POST", "/orders", token, `{"item":"teapot"}`)
	if refused := s.must(401, "POST", "/orders", "", `{"item":"teapot"}`); refused["code"] != "missing_token" {
		t.Errorf("without a token: %v", refused)
	}
	s.must(204, "DELETE", "/api/v1/auth/sessions", token, "")
	if refused := s.must(401, "POST", "/orders", token, `{"item":"teapot"}`); refused["code"] != "session_revoked" {
		t.Errorf("after the end of the session: %v", refused)
	}
	for i, want := range []string{"auth.UserRegistered.v1", "shop.OrderPlaced.v1", "auth.AllSessionsRevoked.v1"} {
		e, err := fromLine([]byte(s.lines(3)[i]))
		if err != nil || e.Type != want || e.Sequence != int64(i+1) {
			t.Errorf("event %d is %+v, %v; want %s", i+1, e, err, want)
		}
	}
}

// The host serves the same table with its own server, and documents it in its own document.
func TestTheTableIsServedByTheHost(t *testing.T) {
	t.Parallel()
	var cfg settings
	if err := config.Load(&cfg, config.Options{File: os.DevNull, Environ: []string{
		"SHOP_DATA_DIR=" + t.TempDir(), "AUTH_PASSWORD_BCRYPT_COST=4",
		"AUTH_TOKEN_SECRET=a secret of the tests that is long enough for everything",
	}}); err != nil {
		t.Fatal(err)
	}
	db := dbtest.SQLite(t)
	accounts, err := auth.New(t.Context(), cfg.Auth, auth.Deps{DB: db})
	if err != nil {
		t.Fatal(err)
	}
	defer accounts.Close()
	orders := &shopAPI{db: db, waker: relay.NewWaker(db)}
	defer orders.waker.Close()
	routes := append(authhttp.Routes(accounts, authhttp.Options{Issuer: cfg.Auth.Token.Issuer}), httpserver.Route{
		Method: "POST", Path: "/orders", Status: 201, ID: "placeOrder", Group: "shop",
		Summary: "Order something", Success: "It is ordered.", Do: httpserver.As(authhttp.Bearer(accounts), orders.place),
	})
	if _, err := db.Write(t.Context(), "CREATE TABLE shop_order (id text PRIMARY KEY, user_id text NOT NULL, item text NOT NULL)"); err != nil {
		t.Fatal(err)
	}
	handler, err := mux(cfg.HTTP, zap.NewNop(), routes)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	s := &shop{t: t, base: server.URL}
	token := s.must(201, "POST", "/api/v1/auth/register", "", `{"username":"alice","password":"correct horse battery staple"}`)["access_token"].(string)
	if placed := s.must(201, "POST", "/orders", token, `{"item":"teapot"}`); placed["id"] == "" {
		t.Errorf("placed %v", placed)
	}
	if refused := s.must(400, "POST", "/orders", token, `{}`); refused["code"] != "validation_failed" {
		t.Errorf("without an item: %v", refused)
	}
	document, err := openapi.Document(openapi.Info{
		Title: "Shop", Version: "1", ContactURL: "https://shop.example", License: "Apache-2.0", Server: "/",
		Groups: append(authhttp.Groups, [2]string{"shop", "Orders"}),
	}, routes)
	if err != nil || !strings.Contains(string(document), `"/orders": {`) {
		t.Errorf("the document of both: %v, %d bytes", err, len(document))
	}
}
