package cache_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/config"
)

func TestNothingNamedIsNoRedis(t *testing.T) {
	t.Parallel()
	if (cache.Config{Port: 6379}).Enabled() {
		t.Error("enabled without a host or a URL")
	}
	if !(cache.Config{Host: "h"}).Enabled() || !(cache.Config{URL: "redis://h"}).Enabled() {
		t.Error("not enabled with a host or a URL")
	}
}

func TestOpenUsesThePartsAsItUsesTheURL(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	server.RequireAuth("p@ss:/word")
	host, port, _ := net.SplitHostPort(server.Addr())
	var n int
	_, _ = fmt.Sscan(port, &n)
	for name, cfg := range map[string]cache.Config{
		"parts": {Host: host, Port: n, Password: "p@ss:/word", DB: 3},
		"url":   {URL: config.Secret("redis://:p%40ss%3A%2Fword@" + server.Addr() + "/3"), Host: "elsewhere.invalid"},
	} {
		client, err := cache.Open(t.Context(), cfg, cache.Options{AppName: "test", Prod: true})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := client.Do(t.Context(), "set", name, "1").Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = client.Close()
		if !server.DB(3).Exists(name) {
			t.Errorf("%s: wrote to another database", name)
		}
	}
}

func TestNoPasswordIsEverShown(t *testing.T) {
	t.Parallel()
	for _, cfg := range []cache.Config{
		{URL: "redis://user:hunter2@127.0.0.1:1/5"},
		{URL: "redis://user:hunter2@127.0.0.1:1/5?nonsense=1"},
		{URL: "redis://user:hunter2@[bad"},
		{Host: "127.0.0.1", Port: 1, Password: "hunter2"},
	} {
		text := cfg.Describe() + fmt.Sprintf("%v %+v", cfg, cfg)
		cfg.Validate(func(path, problem string) { text += path + problem })
		if _, err := cache.Open(t.Context(), cfg, cache.Options{}); err == nil {
			t.Error("opened")
		} else {
			text += err.Error()
		}
		if strings.Contains(text, "hunter2") {
			t.Errorf("shows the password: %s", text)
		}
	}
	if got := (cache.Config{URL: "redis://user:hunter2@127.0.0.1:1/5"}).Describe(); got != "Redis 127.0.0.1:1/5" {
		t.Errorf("described as %q", got)
	}
}

func TestProdModeRefusesUnverifiedServersElsewhere(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel() // what is not refused fails before it connects
	for name, tc := range map[string]struct {
		cfg     cache.Config
		refused bool
	}{
		"plain parts":          {cache.Config{Host: "redis.invalid", Port: 1}, true},
		"plain URL":            {cache.Config{URL: "redis://redis.invalid:1"}, true},
		"unverified TLS":       {cache.Config{URL: "rediss://redis.invalid:1?skip_verify=true"}, true},
		"verified TLS":         {cache.Config{URL: "rediss://redis.invalid:1"}, false},
		"a cluster":            {cache.Config{Host: "redis.invalid", Port: 1, Cluster: true}, true},
		"a verified cluster":   {cache.Config{Host: "redis.invalid", Port: 1, Cluster: true, TLS: true}, false},
		"a remote node":        {cache.Config{URL: "redis://localhost:1?addr=redis.invalid:1"}, true},
		"local nodes":          {cache.Config{URL: "redis://localhost:1?addr=127.0.0.1:1"}, false},
		"verified nodes":       {cache.Config{URL: "rediss://localhost:1?addr=redis.invalid:1"}, false},
		"a remote Sentinel":    {cache.Config{URL: "redis://localhost:1?master_name=m&addr=redis.invalid:1"}, true},
		"local Sentinels":      {cache.Config{URL: "redis://localhost:1?master_name=m&addr=[::1]:1"}, false},
		"unverified Sentinels": {cache.Config{URL: "rediss://redis.invalid:1?master_name=m&skip_verify=true"}, true},
		"verified parts":       {cache.Config{Host: "redis.invalid", Port: 1, TLS: true}, false},
		"allowed":              {cache.Config{Host: "redis.invalid", Port: 1, AllowPlaintext: true}, false},
		"loopback name":        {cache.Config{Host: "localhost", Port: 1}, false},
		"loopback address":     {cache.Config{URL: "redis://[::1]:1"}, false},
		"socket":               {cache.Config{URL: "unix:///nowhere/redis.sock"}, false},
		"a name that looks":    {cache.Config{Host: "127.0.0.1.invalid", Port: 1}, true},
	} {
		_, err := cache.Open(ended, tc.cfg, cache.Options{Prod: true})
		if err == nil || errors.Is(err, cache.ErrPlaintext) != tc.refused {
			t.Errorf("%s: %v", name, err)
		}
		if tc.cfg.Port == 0 {
			tc.cfg.Port = 6379
		}
		var faults []string
		tc.cfg.ValidateProd(func(path, _ string) { faults = append(faults, path) })
		if (len(faults) > 0) != tc.refused {
			t.Errorf("%s: the settings have the faults %v", name, faults)
		}
		if _, err := cache.Open(ended, tc.cfg, cache.Options{}); errors.Is(err, cache.ErrPlaintext) {
			t.Errorf("%s: refused in dev mode", name)
		}
	}
}

func TestAURLIsTakenAsTheClientUnderstandsItOrRefused(t *testing.T) {
	t.Parallel()
	for url, good := range map[string]bool{
		"redis://redis":                   true,
		"redis://redis:6379/15":           true,
		"redis://:p%2Fss@redis":           true,
		"redis://[::1]:6379/0":            true,
		"redis://[fe80::1%25eth0]":        true,
		"redis://localhost.?protocol=2":   true,
		"rediss://redis?skip_verify=true": true,
		"unix:///run/redis.sock?db=3":     true,
		"redis:///3":                      true, // localhost
		"REDIS://redis":                   true,
		// a parser takes everything after the slash for a database
		"redis://u:1/hunter2@redis":                     false,
		"redis://u:p?hunter2@redis":                     false,
		"redis://u:p#hunter2@redis":                     false,
		"redis://u:p@hunter2@redis:x":                   false,
		"redis://redis:0":                               false,
		"redis://redis:65536":                           false,
		"redis://redis:hunter2":                         false,
		"redis://re dis":                                false,
		"redis://h1:1,h2:2":                             false,
		"redis://h1,h2":                                 false,
		"redis://127.1":                                 false,
		"redis://redis/-1":                              false,
		"redis://redis?db=-1":                           false,
		"redis://redis?pool_size=-1":                    false,
		"redis://redis?dial_timeout=0":                  false,
		"redis://redis?dial_timeout=1s":                 true,
		"redis://n1:1?addr=n2:1&dial_timeout=-1":        false,
		"unix:///run/redis.sock?dial_timeout=0":         false,
		"redis://redis?pool_size=99999999999":           false,
		"redis://redis?min_idle_conns=-1":               false,
		"redis://redis?nonsense=hunter2":                false,
		"redis:redis:6379":                              false,
		"redis://n1:1?addr=n2:1&addr=[::1]:1":           true,
		"redis://:hunter2@n1?addr=n2:1&max_redirects=3": true,
		"redis://n1/0?addr=n2:1":                        true,
		"redis://n1/1?addr=n2:1":                        false, // the parser of a cluster ignores it
		"redis://n1?addr=n2:1&db=1":                     false,
		"redis://n1:1?addr=n1:1":                        false,
		"redis://n1:1?addr=n2:1,n3:1":                   false,
		"redis://n1:1?addr=n2":                          false,
		"redis://n1:1?addr=n2:0":                        false,
		"redis://n1:1?addr=n%202:1":                     false,
		"redis://?addr=n2:1&addr=n3:1":                  false, // localhost would be one of them
		"redis://n1:1?addr=n2:1&read_only=true":         false,
		"redis://n1:1?addr=n2:1&route_randomly=true":    false,
		"redis://n1:1?addr=n2:1&pool_size=-1":           false,
		"redis://n1:1?addr=n2:1&nonsense=hunter2":       false,
		"redis:n1:1?addr=n2:1":                          false,
		"unix:///run/redis.sock?addr=n2:1":              false,
		"redis://s1?master_name=main":                   true,
		"redis://u:hunter2@s1:1/3?master_name=main&addr=s2:1&username=a&password=hunter2": true,
		"redis://s1?master_name=":                           false,
		"redis://?master_name=main&addr=s2:1":               false,
		"redis://s1:1?master_name=main&addr=s1:1":           false,
		"redis://s1?master_name=main&replica_only=true":     false,
		"redis://s1?master_name=main&route_by_latency=true": false,
		"redis://s1?master_name=main&nonsense=hunter2":      false,
		"redis://s1/-1?master_name=main":                    false,
		"redis-sentinel://redis":                            false,
		"unix://":                                           false,
		// the parsers leave the first of these out
		"redis://redis?db=3;pool_size=9":            false,
		"redis://redis?pool_size=9;":                false,
		"redis://s1?master_name=main;&db=3":         false,
		"redis://redis?db=1&db=2":                   false,
		"redis://redis?pool_size=9&pool_size=10":    false,
		"redis://redis/1?db=2":                      false,
		"redis://redis/2?db=2":                      true,
		"redis://redis/0#hunter2":                   false,
		"redis://hunter2:12#hunter2@redis:6379":     false,
		"redis://n1:1?addr=n2:1#&addr=n3:1":         false,
		"redis://s1?master_name=main#":              false,
		"redis://redis/0/hunter2":                   false,
		"redis://u:hunter2@re%20dis":                false,
		"redis://u:hunter2@redis.example.com/zero":  false,
		"redis://u:hunter2@redis.example.com:6379 ": false,
	} {
		faults := ""
		cfg := cache.Config{URL: config.Secret(url), Port: 6379}
		cfg.Validate(func(path, problem string) { faults += path + " " + problem })
		if (faults == "") != good {
			t.Errorf("%s: %q", url, faults)
		}
		if text := faults + cfg.Describe(); strings.Contains(text, "hunter2") {
			t.Errorf("%s is shown: %s", url, text)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		client, err := cache.Open(ended, cfg, cache.Options{Untried: true})
		if (err == nil) != good || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", url, err)
		}
		if err == nil {
			_ = client.Close()
		}
	}
}

// A file of authorities does not turn TLS on.
func TestAFileOfAuthoritiesWithoutTLSIsToldOf(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cfg  cache.Config
		want bool
	}{
		"parts":           {cache.Config{Host: "redis", Port: 6379, CAFile: "ca.pem"}, true},
		"parts with TLS":  {cache.Config{Host: "redis", Port: 6379, TLS: true}, false},
		"a URL":           {cache.Config{URL: "redis://redis", TLS: true, CAFile: "ca.pem"}, true},
		"a URL with TLS":  {cache.Config{URL: "rediss://redis"}, false},
		"no Redis at all": {cache.Config{}, false},
	} {
		told := false
		tc.cfg.Overridden(func(path, _ string) { told = told || path == "redis.ca_file" })
		if told != tc.want {
			t.Errorf("%s: told %v", name, told)
		}
	}
}

func TestValidateNamesTheSetting(t *testing.T) {
	t.Parallel()
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]cache.Config{
		"cache.redis.host": {Host: "redis:6379"},
		"":                 {URL: "rediss://user:pass@host:6379/1"},
		"redis.url":        {URL: "http://host"},
		"redis.ca_file":    {CAFile: notPEM},
	} {
		got := ""
		cfg.Validate(func(path, problem string) { got += path })
		if got != want {
			t.Errorf("reported %q, not %q", got, want)
		}
	}
}

func TestUnavailableIsWhatMayWorkLater(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	client, err := cache.Open(t.Context(), cache.Config{URL: config.Secret("redis://" + server.Addr())},
		cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	get := func(ctx context.Context) error { return client.Do(ctx, "get", "key").Err() }

	if err := get(t.Context()); !errors.Is(err, redis.Nil) || cache.IsUnavailable(err) {
		t.Errorf("a missing key: %v", err)
	}
	for _, reply := range []string{
		"LOADING Redis is loading", "READONLY no", "OOM no", "MISCONF no", "NOAUTH no", "NOPERM no", "WRONGPASS no",
		"BUSY no", "NOREPLICAS no", "MASTERDOWN no",
		"MOVED 1 127.0.0.1:1", "ASK 1 127.0.0.1:1", "CROSSSLOT no", "CLUSTERDOWN no", "TRYAGAIN no", "EXECABORT no",
		"UNKILLABLE no", "NOSCRIPT no",
		"ERR max number of clients reached", "ERR unknown command",
		"ERR The user executing the script can't run this " +
			"command", "ERR DB index is out of range",
	} {
		server.SetError(reply)
		if err := get(t.Context()); !cache.IsUnavailable(fmt.Errorf("read: %w", err)) {
			t.Errorf("%v is not unavailable", err)
		}
	}
	server.SetError("WRONGTYPE no")
	if err := get(t.Context()); cache.IsUnavailable(err) {
		t.Errorf("%v is unavailable", err)
	}
	server.SetError("")
	ended, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if err := get(ended); !cache.IsUnavailable(err) {
		t.Errorf("an ended context: %v", err)
	}
	server.Close()
	if err := get(t.Context()); !cache.IsUnavailable(err) {
		t.Errorf("a closed server: %v", err)
	}
	if cache.IsUnavailable(nil) {
		t.Error("no error is unavailable")
	}
}

func TestADeadlineEndsACommandToASilentServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() }) // the kernel accepts, and nothing answers
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = cache.Open(ctx, cache.Config{URL: config.Secret("redis://" + listener.Addr().String())}, cache.Options{})
	if !cache.IsUnavailable(err) {
		t.Errorf("a silent server: %v", err)
	}
}

// A start whose time is over does not go on asking, which can only fail.
func TestAStartEndsWithItsTime(t *testing.T) {
	t.Parallel()
	over, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	ctx := &watched{Context: over}
	_, err := cache.Open(ctx, cache.Config{URL: "redis://127.0.0.1:1"}, cache.Options{})
	if !errors.Is(err, context.DeadlineExceeded) || ctx.looks.Load() > 100 {
		t.Errorf("looked at %d times: %v", ctx.looks.Load(), err)
	}
}

// watched counts how often it is asked for a value, as each command does.
type watched struct {
	context.Context
	looks atomic.Int64
}

func (w *watched) Value(key any) any {
	w.looks.Add(1)
	return w.Context.Value(key)
}

// A busy machine may take longer to answer the first command than the URL lets a request wait.
func TestAStartWaitsLongerThanACommand(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for silent := true; ; silent = false { // the first connection
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			if silent {
				continue
			}
			behind, err := net.Dial("tcp", server.Addr())
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = behind.Close() })
			go func() { _, _ = io.Copy(behind, conn) }()
			go func() { _, _ = io.Copy(conn, behind) }()
		}
	}()
	url := "redis://" + listener.Addr().String() + "?read_timeout=200ms&dial_timeout=200ms"
	client, err := cache.Open(t.Context(), cache.Config{URL: config.Secret(url)}, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
}

// A request takes one or two commands, and its client waits.
func TestACommandWaitsOnceForASilentServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var connections atomic.Int64
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { // a client of another test may look for its server, which had this port
				defer conn.Close()
				text := make([]byte, 512)
				for n := 1; n > 0; {
					if n, _ = conn.Read(text); strings.Contains(string(text[:n]), "only here") {
						connections.Add(1)
					}
				}
			}()
		}
	}()
	t.Cleanup(func() { _ = listener.Close() })
	url := "redis://:only%20here@" + listener.Addr().String() + "?dial_timeout=200ms&read_timeout=200ms"
	client, err := cache.Open(t.Context(), cache.Config{URL: config.Secret(url)}, cache.Options{Untried: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	for name, do := range map[string]func() error{
		"a command": func() error { return client.Ping(t.Context()).Err() },
		"a pipeline": func() error {
			_, err := client.Pipelined(t.Context(), func(p redis.Pipeliner) error { return p.Ping(t.Context()).Err() })
			return err
		},
		"a transaction": func() error {
			_, err := client.TxPipelined(t.Context(), func(p redis.Pipeliner) error { return p.Ping(t.Context()).Err() })
			return err
		},
	} {
		connections.Store(0)
		err := do()
		if !cache.IsUnavailable(err) || connections.Load() > 1 {
			t.Errorf("%s tried over %d connections: %v", name, connections.Load(), err)
		}
		if want := listener.Addr().String() + "/0 has not answered for 200ms"; !strings.Contains(fmt.Sprint(err), want) ||
			!strings.Contains(cache.Describe(err).Advice, "nothing answers in time") {
			t.Errorf("%s failed with %v; %s", name, err, cache.Describe(err).Advice)
		}
	}
}

func TestAClientRecoversWhenItsServerDoes(t *testing.T) {
	t.Parallel()
	server := cachetest.Start(t)
	client := cachetest.Open(t, server.URL())
	if err := client.Set(t.Context(), "key", "kept", 0).Err(); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	if err := client.Get(t.Context(), "key").Err(); !cache.IsUnavailable(err) {
		t.Errorf("a killed server: %v", err)
	}
	server.Restart()
	if got, err := client.Get(t.Context(), "key").Result(); err != nil || got != "kept" {
		t.Errorf("after the restart: %q, %v", got, err)
	}
}
