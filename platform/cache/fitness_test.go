package cache_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

// do runs commands of an administrator, one per line.
func do(t *testing.T, client cache.Client, lines ...string) {
	t.Helper()
	for _, line := range lines {
		var words []any
		for word := range strings.FieldsSeq(line) {
			words = append(words, word)
		}
		if err := client.Do(t.Context(), words...).Err(); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
}

// openURL opens a Redis as the service does.
func openURL(t *testing.T, url string) (cache.Client, error) {
	t.Helper()
	options := "?"
	if strings.Contains(url, "?") {
		options = "&"
	}
	options += "dial_timeout=10s&read_timeout=10s"
	client, err := cache.Open(t.Context(), cache.Config{URL: config.Secret(url + options)},
		cache.Options{AppName: "authctl"})
	if err == nil {
		t.Cleanup(func() { _ = client.Close() })
	}
	return client, err
}

// situations are servers that answer but cannot be used, or not right now.
var situations = map[string]struct {
	make  func(t *testing.T) (url string)
	found string // what the finding says
	todo  string // and its advice
	setup bool
}{
	"a node of a cluster": {clusterNode, "its cluster mode is on", "set REDIS_CLUSTER=true", true},
	"a Sentinel": {func(t *testing.T) string {
		conf := filepath.Join(t.TempDir(), "sentinel.conf")
		if err := os.WriteFile(conf, []byte("sentinel monitor main 127.0.0.1 1 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return cachetest.StartSentinel(t, conf).URL()
	}, "it is a Sentinel", "add master_name=NAME", true},
	"a read-only replica": {func(t *testing.T) string {
		primary, replica := cachetest.Start(t), cachetest.Start(t)
		do(t, cachetest.Open(t, replica.URL()), "REPLICAOF 127.0.0.1 "+primary.Port())
		return replica.URL()
	}, "its role is replica", "name the primary", false},
	"too few replicas": {func(t *testing.T) string { return cachetest.Start(t, "--min-replicas-to-write", "1").URL() },
		"NOREPLICAS", "min-replicas-to-write", false},
	"no memory": {func(t *testing.T) string { return cachetest.Start(t, "--maxmemory", "1").URL() },
		"OOM", "raise maxmemory", false},
	"a disk that cannot be saved to": {func(t *testing.T) string {
		server := cachetest.Start(t, "--save", "3600 1")
		client := cachetest.Open(t, server.URL())
		do(t, client, "SET x 1")
		server.BreakFolder()
		_ = client.BgSave(t.Context())
		testenv.Eventually(t, "a snapshot has failed", func() bool {
			return strings.Contains(client.Info(t.Context(), "persistence").Val(), "rdb_last_bgsave_status:err")
		})
		return server.URL()
	}, "MISCONF", "make room", false},
	"a user who lacks the keys": {func(t *testing.T) string { return restricted(t, "~other:* +@all") },
		"may not use the keys authctl:*", "ACL SETUSER USER ~authctl:*", true},
	"a user who lacks TIME": {func(t *testing.T) string { return restricted(t, "~authctl:* +@all -time") },
		"may not run TIME", "ACL SETUSER USER +time", true},
	"a user who lacks scripts": {func(t *testing.T) string { return restricted(t, "~authctl:* +@all -@scripting") },
		"may not run EVAL, EVALSHA", "+eval +evalsha", true},
	"a user who may only read": {func(t *testing.T) string {
		return restricted(t,
			"~authctl:* +@read +@connection +info")
	},
		"may not run", "+set", true},
	"a user who lacks nearly all": {func(t *testing.T) string { return restricted(t, "~authctl:* -@all +ping") },
		"may not run", "+hset", true},
}

// restricted starts a server with a user of those rights, and returns that user's URL.
func restricted(t *testing.T, rights string) string {
	t.Helper()
	server := cachetest.Start(t)
	do(t, cachetest.Open(t, server.URL()), "ACL SETUSER service on >secret resetchannels "+rights)
	return strings.Replace(server.URL(), "redis://", "redis://service:secret@", 1)
}

func clusterNode(t *testing.T) string {
	t.Helper()
	var nodes []*cachetest.Server
	ports := []int{testenv.FreePort(t), testenv.FreePort(t)}
	for i, slots := range []string{"0 8191", "8192 16383"} {
		node := cachetest.Start(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "60000",
			"--cluster-port", strconv.Itoa(ports[i]))
		do(t, cachetest.Open(t, node.URL()), "CLUSTER ADDSLOTSRANGE "+slots,
			fmt.Sprintf("CLUSTER SET-CONFIG-EPOCH %d", i+1))
		nodes = append(nodes, node)
	}
	client := cachetest.Open(t, nodes[0].URL())
	do(t, client, fmt.Sprintf("CLUSTER MEET 127.0.0.1 %s %d", nodes[1].Port(), ports[1]))
	testenv.Eventually(t, "the cluster works", func() bool {
		return strings.Contains(client.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
	})
	return nodes[0].URL()
}

func TestAServerThatIsOfNoUseIsToldOfWithWhatToDo(t *testing.T) {
	t.Parallel()
	for name, s := range situations {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			client, err := openURL(t, s.make(t))
			if err == nil {
				err = cache.Probe(t.Context(), client)
			}
			problem, ok := errors.AsType[*cache.Problem](err)
			if !ok {
				t.Fatalf("the probe finds %v", err)
			}
			if !strings.Contains(problem.Found, s.found) || !strings.Contains(problem.Advice, s.todo) ||
				problem.Setup != s.setup {
				t.Errorf("finding %q, advice %q, setup %v", problem.Found, problem.Advice, problem.Setup)
			}
			if strings.Contains(err.Error(), ".:") {
				t.Errorf("a sentence ends in the middle: %v", err)
			}
			if !cache.IsUnavailable(err) {
				t.Errorf("%v counts as our own defect", err)
			}
			if client == nil {
				return
			}
			// The service's calls there are refused for now, and never count as our own defect.
			// Some may work, on some nodes of a cluster.
			for i := range 50 {
				key := fmt.Sprintf("authctl:{%d}", i)
				for what, err := range map[string]error{
					"a write": client.Do(t.Context(), "hset", key, "f", "1").Err(),
					"a script": client.Eval(t.Context(),
						"redis.call('TIME') redis.call('PEXPIRE', KEYS[1], 60000) return "+
							"redis.call('HMGET', KEYS[1], 'f')",
						[]string{key}).Err(),
					"a transaction": func() error {
						_, err := client.TxPipelined(t.Context(),
							func(p redis.Pipeliner) error { p.Del(t.Context(), key); return nil })
						return err
					}(),
				} {
					if err != nil && !cache.IsUnavailable(err) {
						t.Fatalf("%s: %v counts as our own defect", what, err)
					}
				}
			}
		})
	}
}

func TestAServerThatIsFitPassesTheProbe(t *testing.T) {
	t.Parallel()
	server := cachetest.Start(t)
	do(t, cachetest.Open(t, server.URL()), "ACL SETUSER service on >secret resetchannels "+documentedRights(t))
	asService := strings.Replace(server.URL(), "redis://", "redis://service:secret@", 1)
	for name, url := range map[string]string{
		"as it is": server.URL(), "RESP2": server.URL() + "?protocol=2", "another database": server.URL() + "/3",
		"a user with the documented rights": asService, "and in another database": asService + "/2",
		"an old protocol for that user": asService + "?protocol=2",
	} {
		client, err := openURL(t, url)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := cache.Probe(t.Context(), client); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if missing, err := cache.Rights(t.Context(), client); err != nil || missing != nil {
			t.Errorf("%s: rights %v, %v", name, missing, err)
		}
		if found, err := cache.Check(t.Context(), client); err != nil || len(found) > 0 {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
	// What the probe has written expires by itself.
	client := cachetest.Open(t, server.URL())
	keys := client.Keys(t.Context(), "*").Val()
	for _, key := range keys {
		if ttl := client.TTL(t.Context(), key).Val(); ttl <= 0 || ttl > time.Minute ||
			!strings.HasPrefix(key, cache.Prefix) {
			t.Errorf("%s stays for %v", key, ttl)
		}
	}
	if len(keys) == 0 {
		t.Error("the probe writes nothing")
	}
}

// documentedRights is the line of docs/operations.md that gives a Redis user its rights.
func documentedRights(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rights := regexp.MustCompile(`ACL SETUSER authctl on >PASSWORD resetchannels ((?s).*?)\n` +
		"```").FindSubmatch(text)
	if rights == nil {
		t.Fatal("docs/operations.md does not say which rights a Redis user needs")
	}
	return strings.Join(strings.Fields(strings.ReplaceAll(string(rights[1]), "\\\n", " ")), " ")
}

func TestTheDocumentedRightsAreThoseThatAreTried(t *testing.T) {
	t.Parallel()
	want := []string{"~" + cache.Prefix + "*", "+hello", "+ping", "+select", "+client|setname", "+info"}
	for _, name := range cache.Commands() {
		want = append(want, "+"+name)
	}
	have := strings.Fields(documentedRights(t))
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(have, want) {
		t.Errorf("documented:\n%s\ntried:\n%s", strings.Join(have, " "), strings.Join(want, " "))
	}
}

// TestEveryCommandOfAScriptIsTried reads the modules' scripts: a new command in them needs a right
// that the documentation grants and the probe checks.
func TestEveryCommandOfAScriptIsTried(t *testing.T) {
	t.Parallel()
	call := regexp.MustCompile(`redis\.p?call\('([A-Za-z]+)'`)
	found := 0
	err := filepath.WalkDir("../../modules", func(path string, d os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".lua" || strings.Contains(path, "testdata") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range call.FindAllSubmatch(text, -1) {
			found++
			name := strings.ToLower(string(m[1]))
			if name == "info" { // the script works without it
				continue
			}
			if !slices.Contains(cache.Commands(), name) {
				t.Errorf("%s uses %s, which the documented rights do not allow", path, name)
			}
		}
		return nil
	})
	if err != nil || found < 20 {
		t.Errorf("found %d calls, %v", found, err)
	}
}

func TestCheckTellsOfAServerThatForgets(t *testing.T) {
	t.Parallel()
	server := cachetest.Start(t, "--maxmemory-policy", "allkeys-lru", "--appendonly", "no")
	client := cachetest.Open(t, server.URL())
	found, err := cache.Check(t.Context(), client)
	if err != nil || len(found) != 2 || found[0].Found != "maxmemory-policy is allkeys-lru" ||
		!strings.Contains(found[1].Found, "append-only") {
		t.Errorf("%v, %v", found, err)
	}
	do(t, client, "ACL SETUSER service on >secret ~* +@all -info")
	blind, err := openURL(t, strings.Replace(server.URL(), "redis://", "redis://service:secret@", 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Check(t.Context(), blind); err == nil {
		t.Error("without the right to run INFO the check finds no fault")
	}
}

func TestCheckTellsOfAServerOlderThanThoseTried(t *testing.T) {
	t.Parallel()
	for version, old := range map[string]bool{
		"": false, "unknown": false, "5.0.14": true, "6.0.20": true, "6.2.5": false, "7.0.15": false, "10.0.0": false,
	} {
		if found := cache.Outdated(map[string]string{"redis_version": version}); (len(found) > 0) != old {
			t.Errorf("%s: %v", version, found)
		}
	}
}

func TestAServerThatCannotBeConnectedToIsToldOfByItsKind(t *testing.T) {
	t.Parallel()
	server := cachetest.Start(t, "--requirepass", "right", "--databases", "4")
	plain := strings.Replace(server.URL(), "redis://", "", 1)
	secured := cachetest.StartTLS(t)
	for name, tc := range map[string]struct{ url, advice string }{
		"a wrong password":        {"redis://:wrong@" + plain, "the user or the password is wrong"},
		"no password":             {"redis://" + plain, "the server wants a password"},
		"a wrong user":            {"redis://nobody:right@" + plain, "the user or the password is wrong"},
		"nothing listens":         {"redis://127.0.0.1:1", "nothing listens there"},
		"no such host":            {"redis://no-such-host.invalid", "correct CACHE_REDIS_HOST or REDIS_URL"},
		"no such socket":          {"unix:///nowhere/redis.sock", "there is no such socket"},
		"no such database":        {"redis://:right@" + plain + "/9", "no database of this number"},
		"TLS to a plain port":     {"rediss://:right@" + plain, "does not speak TLS on this port"},
		"plain to a TLS port":     {"redis://127.0.0.1:" + secured.Port(), "if the port is for TLS"},
		"a certificate unknown":   {"rediss://127.0.0.1:" + secured.Port(), "REDIS_CA_FILE"},
		"a cluster's database":    {clusterNode(t) + "/3", "set REDIS_CLUSTER=true"},
		"a password and the like": {"redis://x:hunter2@" + plain, "the user or the password is wrong"},
	} {
		_, err := openURL(t, tc.url)
		problem := cache.Describe(err)
		if err == nil || !strings.Contains(problem.Advice, tc.advice) ||
			!strings.Contains(err.Error(), problem.Advice) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s shows the password: %v", name, err)
		}
	}
	// A silent server.
	server.Pause()
	defer server.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := cache.Open(ctx, cache.Config{URL: config.Secret("redis://:right@" + plain)}, cache.Options{})
	if err == nil || !strings.Contains(cache.Describe(err).Advice, "nothing answers in time") {
		t.Errorf("silence: %v", err)
	}
}
