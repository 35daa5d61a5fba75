package cache_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

func TestOneSettingMeansOneKindOfRedis(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"redis://u:p@h:1/3":                            "Redis h:1/3",
		"redis://u:p@h:1?addr=i:2":                     "Redis Cluster h:1, i:2",
		"redis://u:p@h:1?master_name=m":                "Redis m/0 of the Sentinels h:1",
		"redis://u:p@h/2?addr=i:2&master_name=m":       "Redis m/2 of the Sentinels h:6379, i:2",
		"redis://u:p@h/2?addr=i:2&addr=j&master_name=": "Redis",
	} {
		if got := (cache.Config{URL: config.Secret(url)}).Describe(); got != want {
			t.Errorf("%s is %q, not %q", url, got, want)
		}
	}
	for url, want := range map[string]string{
		"redis://u:p@h:1": "Redis Cluster h:1", "redis://h/1": "Redis",
		"redis://h:1?addr=i:2":      "Redis Cluster h:1, i:2",
		"redis://h:1?master_name=m": "Redis", "unix:///h": "Redis",
	} {
		cfg := cache.Config{URL: config.Secret(url), Cluster: true}
		problems := ""
		cfg.Validate(func(_, problem string) { problems += problem })
		if got := cfg.Describe(); got != want || (problems == "") != (want != "Redis") {
			t.Errorf("with redis.cluster, %s is %q, not %q: %s", url, got, want, problems)
		}
	}
	problems := ""
	(cache.Config{Host: "h", Port: 1, DB: 3, Cluster: true}).Validate(func(path, _ string) { problems += path })
	if problems != "cache.redis.db" {
		t.Errorf("a database of a cluster: %q", problems)
	}
}

// eachTag writes once to a part of every server's keys, and returns the errors.
func eachTag(ctx context.Context, client cache.Client) []error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for part := range slices.Chunk(cache.Tags(), 16) {
		wg.Go(func() {
			for _, tag := range part {
				err := client.Do(ctx, "set", cache.Prefix+tag, 1, "ex", 3600).Err()
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errs
}

// recovers waits until all keys can be written. An error that counts as our own defect fails the
// test.
func recovers(t *testing.T, client cache.Client) {
	t.Helper()
	testenv.Eventually(t, "everything can be written", func() bool {
		errs := eachTag(t.Context(), client)
		for _, err := range errs {
			if !cache.IsUnavailable(err) {
				t.Fatalf("%v counts as our own defect", err)
			}
		}
		return len(errs) == 0
	})
}

func TestAClusterIsUsedAsAWhole(t *testing.T) {
	t.Parallel()
	c := cachetest.StartCluster(t)
	for name, cfg := range map[string]cache.Config{
		"three nodes":            {URL: config.Secret(c.URL())},
		"one node":               {URL: config.Secret(c.Primaries[1].URL()), Cluster: true},
		"a replica":              {URL: config.Secret(c.Replicas[1].URL()), Cluster: true},
		"one node is down":       {URL: config.Secret(c.Primaries[2].URL() + "?addr=127.0.0.1:1")},
		"the first node is down": {URL: config.Secret("redis://127.0.0.1:1?addr=127.0.0.1:" + c.Primaries[2].Port())},
		"without a URL":          {Host: "127.0.0.1", Port: atoi(t, c.Replicas[0].Port()), Cluster: true},
		"with longer waiting":    {URL: config.Secret(c.URL() + "&read_timeout=0&dial_timeout=5s&protocol=2")},
	} {
		client, err := cache.Open(t.Context(), cfg, cache.Options{AppName: "authctl", Prod: true})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		t.Cleanup(func() { _ = client.Close() })
		if errs := eachTag(t.Context(), client); len(errs) > 0 {
			t.Errorf("%s: %v", name, errs[0])
		}
		if err := cache.Probe(t.Context(), client); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		servers, err := cache.Servers(t.Context(), client)
		if err != nil || len(servers) != 3 {
			t.Errorf("%s: %d servers, %v", name, len(servers), err)
		}
		for _, server := range servers {
			if n := server.Client.DBSize(t.Context()).Val(); n < 30 {
				t.Errorf("%s: %s has %d keys", name, server.Name, n)
			}
		}
	}
	client := cachetest.OpenAny(t, c.URL())
	for _, tag := range cache.Tags() {
		slot, _ := client.Do(t.Context(), "cluster", "keyslot", cache.Prefix+tag+"x").Int()
		if want := slices.Index(cache.Tags(), tag); slot/128 != want {
			t.Fatalf("%s is in slot %d, not of part %d", tag, slot, want)
		}
	}
	if found, err := cache.Check(t.Context(), client); err != nil || !each(found, 0, "") {
		t.Errorf("%v, %v", found, err)
	}
	cachetest.Start(t, "--replicaof", "127.0.0.1 "+c.Primaries[2].Port())
	testenv.Eventually(t, "a primary with two replicas can ask for one", func() bool {
		found, err := cache.Check(t.Context(), client)
		return err == nil && each(found, 1, "127.0.0.1:"+c.Primaries[2].Port()+": min-replicas-to-write is 0")
	})
	c.Do(c.Primaries[2], "config", "set", "min-replicas-to-write", "1")
	c.Do(c.Primaries[1], "config", "set", "maxmemory-policy", "allkeys-lru")
	if found, err := cache.Check(t.Context(), client); err != nil || !each(found, 1, "127.0.0.1:"+c.Primaries[1].Port()+
		": maxmemory-policy is allkeys-lru") {
		t.Errorf("%v, %v", found, err)
	}
}

// each reports whether n problems have this text, which says that the append-only file is off on
// each node.
func each(found []*cache.Problem, n int, text string) bool {
	have, aof := 0, 0
	for _, p := range found {
		switch {
		case strings.Contains(p.Found, "append-only"):
			aof++
		case text != "" && strings.Contains(p.Found, text):
			have++
		default:
			return false
		}
	}
	return have == n && aof == 3
}

func atoi(t *testing.T, text string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTheDocumentedRightsAreEnoughInACluster(t *testing.T) {
	t.Parallel()
	c := cachetest.StartCluster(t)
	rights := documentedRights(t)
	for _, name := range cache.ClusterCommands() {
		rights += " +" + name
	}
	for _, node := range c.Nodes() {
		words := []any{"ACL", "SETUSER", "service", "on", ">secret", "resetchannels"}
		for word := range strings.FieldsSeq(rights) {
			words = append(words, word)
		}
		c.Do(node, words...)
	}
	url := strings.Replace(c.URL(), "redis://", "redis://service:secret@", 1)
	client := cachetest.OpenAny(t, url)
	recovers(t, client)
	if missing, err := cache.Rights(t.Context(), client); err != nil || missing != nil {
		t.Errorf("%v, %v", missing, err)
	}
	if unfit := cache.Unfit(t.Context(), client); len(unfit) > 0 {
		t.Errorf("%v", unfit)
	}
	if _, err := cache.Layout(t.Context(), client); err != nil {
		t.Error(err)
	}
	if _, err := cache.Check(t.Context(), client); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	if line := "+" + strings.Join(cache.ClusterCommands(), " +"); !strings.Contains(string(text), line) {
		t.Errorf("docs/operations.md does not name %s", line)
	}
	c.Do(c.Primaries[1], "ACL", "SETUSER", "service", "-asking", "-time")
	missing, err := cache.Rights(t.Context(), client)
	if err != nil || missing == nil || !strings.Contains(missing.Found, c.Primaries[1].Port()+
		": the Redis user may not run TIME, ASKING") {
		t.Errorf("%v, %v", missing, err)
	}
	// One of the three nodes does not work, the others do.
	if unfit := cache.Unfit(t.Context(), client); len(unfit) != 1 || !unfit[0].Setup ||
		!strings.Contains(unfit[0].Found, "127.0.0.1:"+c.Primaries[1].Port()) {
		t.Errorf("%v", unfit)
	}
	if err := cache.Probe(t.Context(), client); err != nil {
		t.Error(err)
	}
}

func TestAClusterLosesANode(t *testing.T) {
	t.Parallel()
	c := cachetest.StartCluster(t)
	client := cachetest.OpenAny(t, c.URL())
	recovers(t, client)
	before, err := cache.Layout(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	if n := cache.Away(t.Context(), client); n != 0 {
		t.Errorf("%d servers are down", n)
	}
	c.Primaries[0].Kill()
	if found := cache.Unfit(t.Context(), client); len(found) != 1 && !c.IsPrimary(c.Replicas[0]) ||
		len(found) == 1 && !strings.Contains(found[0].Advice, "a replica takes its place") {
		t.Errorf("%v are down, but not the killed one, which its replica replaces", found)
	}
	if _, err := cache.Layout(t.Context(), client); err == nil {
		t.Error("the layout lacks the killed node")
	}
	recovers(t, client)
	if !c.IsPrimary(c.Replicas[0]) {
		t.Error("the replica has not been promoted")
	}
	testenv.Eventually(t, "the layout is another one", func() bool {
		after, err := cache.Layout(t.Context(), client)
		return err == nil && after != before
	})

	// A node that hangs delays no command beyond its timeout.
	c.Primaries[1].Pause()
	testenv.Eventually(t, "a command fails, or the replica has been promoted", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
		defer cancel()
		begun := time.Now()
		errs := eachTag(ctx, client)
		if ctx.Err() != nil {
			t.Fatalf("held up for %v", time.Since(begun))
		}
		return len(errs) > 0 || c.IsPrimary(c.Replicas[1])
	})
	recovers(t, client)
	c.Primaries[1].Resume()
	testenv.Eventually(t, "the former primary follows", func() bool { return !c.IsPrimary(c.Primaries[1]) })
	recovers(t, client)

	// Without a replica one part has no node, and the cluster refuses commands to the others too.
	c.Replicas[0].Kill()
	testenv.Eventually(t, "the cluster is down", func() bool {
		for _, err := range eachTag(t.Context(), client) {
			if !cache.IsUnavailable(err) {
				t.Fatalf("%v counts as our own defect", err)
			}
			if redis.IsClusterDownError(err) {
				return true
			}
		}
		return false
	})
	if problem, ok := errors.AsType[*cache.Problem](cache.Probe(t.Context(), client)); !ok || problem.Setup {
		t.Errorf("the probe finds %v", problem)
	}
	if !slices.ContainsFunc(cache.Unfit(t.Context(), client), func(p *cache.Problem) bool {
		return strings.Contains(p.Advice, "bring the nodes back")
	}) {
		t.Error("nothing says that a part of the cluster is down")
	}
	if n := cache.Away(t.Context(), client); n == 0 {
		t.Error("no server counts as down, but a part of the cluster is")
	}
	c.Replicas[0].Restart()
	recovers(t, client)
	testenv.Eventually(t, "no server is down", func() bool { return cache.Away(t.Context(), client) == 0 })
}

// Slots that have no node, as after one was forgotten, are a gap. The nodes serve the users of all other slots.
func TestAGapInAClusterIsNoFaultOfItsNodes(t *testing.T) {
	t.Parallel()
	c := cachetest.StartCluster(t, "--cluster-require-full-coverage", "no")
	client := cachetest.OpenAny(t, c.URL())
	recovers(t, client)
	for _, node := range c.Nodes() {
		c.Do(node, "cluster", "delslotsrange", 0, 4000)
	}
	testenv.Eventually(t, "the client meets the gap", func() bool {
		return slices.ContainsFunc(eachTag(t.Context(), client), redis.IsClusterDownError)
	})
	if err := cache.Probe(t.Context(), client); err != nil {
		t.Errorf("no node can be used: %v", err)
	}
	if found := cache.Unfit(t.Context(), client); len(found) != 1 ||
		!strings.Contains(found[0].Advice, "no node has some of its slots") {
		t.Errorf("%v, want the gap alone", found)
	}
}

// With TLS everything is as without: a node is lost, its replica is verified and takes its place.
func TestAClusterOverTLSLosesANode(t *testing.T) {
	t.Parallel()
	c, url, caFile := cachetest.StartClusterTLS(t, "localhost")
	client, err := cache.Open(t.Context(), cache.Config{URL: config.Secret(url), CAFile: caFile}, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	recovers(t, client)
	c.Primaries[0].Kill()
	if errs := eachTag(t.Context(), client); len(errs) == 0 && !c.IsPrimary(c.Replicas[0]) {
		t.Error("the killed node still answers")
	}
	recovers(t, client)
	if !c.IsPrimary(c.Replicas[0]) {
		t.Error("the replica has not been promoted")
	}
	if n := cache.Away(t.Context(), client); n != 0 {
		t.Errorf("%d servers are down", n)
	}
}

func TestSlotsMoveUnderCommands(t *testing.T) {
	t.Parallel()
	c := cachetest.StartCluster(t)
	client := cachetest.OpenAny(t, c.URL())
	recovers(t, client)
	source, target := c.Primaries[0], c.Primaries[1]
	tag := cache.Tags()[0]
	slot, err := client.Do(t.Context(), "cluster", "keyslot", tag).Int64()
	if err != nil {
		t.Fatal(err)
	}
	before, err := cache.Layout(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	finish := c.Move(slot, source, target)
	if _, err := cache.Layout(t.Context(), client); !errors.Is(err, cache.ErrMoved) {
		t.Errorf("the layout while a slot moves: %v", err)
	}
	// The slot's key is first on one node, then on the other, which the client asks.
	for range 2 {
		if got, err := client.Do(t.Context(), "get", cache.Prefix+tag).Text(); err != nil || got != "1" {
			t.Errorf("%q, %v", got, err)
		}
		_, err := client.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Set(t.Context(), cache.Prefix+tag, 1, time.Hour)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		c.Do(source, "migrate", "127.0.0.1", target.Port(), cache.Prefix+tag, 0, 10000)
	}
	// A script must wait if some of its keys have moved already.
	err = client.Eval(t.Context(), "return 1", []string{cache.Prefix + tag, cache.Prefix + tag + "none"}).Err()
	if !redis.IsTryAgainError(err) || !cache.IsUnavailable(err) || cache.Describe(err).Setup {
		t.Errorf("a script in a moving slot: %v", err)
	}
	finish()
	recovers(t, client)
	testenv.Eventually(t, "the layout is another one", func() bool {
		after, err := cache.Layout(t.Context(), client)
		return err == nil && after != before
	})
}

func TestSentinelsLeadToThePrimary(t *testing.T) {
	t.Parallel()
	w := cachetest.StartWatched(t)
	client := cachetest.OpenAny(t, w.URL())
	if err := client.Do(t.Context(), "set", "authctl:key", "kept").Err(); err != nil {
		t.Fatal(err)
	}
	if found, err := cache.Check(t.Context(), client); err != nil || len(found) != 1 { // no file
		t.Errorf("%v, %v", found, err)
	}
	testenv.Eventually(t, "the replica has it", func() bool {
		return cachetest.Open(t, w.Replica.URL()).Get(t.Context(), "authctl:key").Val() == "kept"
	})
	// The client does not wait for one Sentinel that hangs.
	w.Sentinels[0].Pause()
	fresh := cachetest.OpenAny(t, w.URL())
	recovers(t, fresh)
	w.Sentinels[0].Resume()

	w.Primary.Pause()
	recovers(t, client)
	w.AwaitPrimary(w.Replica)
	if got, err := client.Do(t.Context(), "get", "authctl:key").Text(); err != nil || got != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	// The former primary comes back as a replica. Nothing is read from it while it still takes
	// itself for the primary.
	w.Primary.Resume()
	if err := client.Do(t.Context(), "set", "authctl:key", "new").Err(); err != nil {
		t.Error(err)
	}
	former := cachetest.Open(t, w.Primary.URL())
	testenv.Eventually(t, "the former primary follows", func() bool {
		if got, err := client.Do(t.Context(), "get", "authctl:key").Text(); err != nil || got != "new" {
			t.Fatalf("%q, %v", got, err)
		}
		return strings.Contains(former.Info(t.Context(), "replication").Val(), "master_link_status:up")
	})
	// And back, with both servers running: connections to the one that is now a replica are
	// dropped, even those that only read.
	testenv.Eventually(t, "the Sentinels are ready to do it again", func() bool {
		_, err := cachetest.Open(t, w.Sentinels[1].URL()).Do(t.Context(), "sentinel", "failover",
			cachetest.WatchedName).Result()
		return err == nil
	})
	w.AwaitPrimary(w.Primary)
	testenv.Eventually(t, "nothing is connected to the replica but the primary and the Sentinels", func() bool {
		list := cachetest.Open(t, w.Replica.URL()).ClientList(t.Context()).Val()
		return strings.Count(list, "name=authctl-test") == 1 // except this client itself
	})
	recovers(t, client)

	// Without any Sentinel the client keeps using the primary that it knows.
	for _, one := range w.Sentinels {
		one.Kill()
	}
	recovers(t, client)
	found, err := cache.Check(t.Context(), client)
	if err != nil || !slices.ContainsFunc(found, func(p *cache.Problem) bool {
		return strings.Contains(p.Found, "the Sentinel 127.0.0.1:"+w.Sentinels[2].Port())
	}) {
		t.Errorf("%v, %v", found, err)
	}
	// Another Redis is no remedy for a primary that fails.
	w.Primary.Kill()
	problem, ok := errors.AsType[*cache.Problem](cache.Probe(t.Context(), client))
	if !ok || !strings.Contains(problem.Advice, "nothing listens there: a replica takes its place") {
		t.Errorf("the probe finds %v", problem)
	}
}

func TestSettingsThatNameTheWrongKindSayWhichIsRight(t *testing.T) {
	t.Parallel()
	single, c, w := cachetest.Start(t), cachetest.StartCluster(t), cachetest.StartWatched(t)
	do(t, cachetest.Open(t, w.Primary.URL()), "CONFIG SET requirepass right")
	slotless := cachetest.Start(t, "--cluster-enabled", "yes", "--cluster-port", fmt.Sprint(testenv.FreePort(t)))
	for name, tc := range map[string]struct {
		url     string
		cluster bool
		want    string
	}{
		"a single server for a cluster":  {single.URL(), true, "its cluster mode is off"},
		"two single servers":             {single.URL() + "?addr=127.0.0.1:1", false, "its cluster mode is off"},
		"a Sentinel for a cluster":       {w.Sentinels[0].URL(), true, "add master_name=NAME"},
		"a single server for a Sentinel": {single.URL() + "?master_name=main", false, "must name Sentinels"},
		"another name": {strings.Replace(w.URL(), "=main", "=x", 1), false,
			"no primary of the name x"},
		"a cluster without slots":         {slotless.URL(), true, "redis-cli --cluster create"},
		"a password that the primary has": {w.URL(), false, "password=PASSWORD in REDIS_URL"},
		"nothing where a cluster was":     {"redis://127.0.0.1:1?addr=127.0.0.1:2", false, "nothing listens there"},
		"nothing where Sentinels were":    {"redis://127.0.0.1:1?master_name=main", false, "start the Sentinel"},
		"a node by itself":                {c.Primaries[0].URL(), false, "set REDIS_CLUSTER=true"},
	} {
		client, err := cache.Open(t.Context(), cache.Config{URL: config.Secret(tc.url), Cluster: tc.cluster},
			cache.Options{})
		if err == nil {
			err = cache.Probe(t.Context(), client)
			_ = client.Close()
		}
		problem, ok := errors.AsType[*cache.Problem](err)
		if !ok || !strings.Contains(err.Error(), tc.want) || !cache.IsUnavailable(err) {
			t.Errorf("%s: %v (%v)", name, err, problem)
		}
	}
	right := cachetest.OpenAny(t, w.URL()+"&password=right")
	if err := right.Do(t.Context(), "set", "authctl:key", 1).Err(); err != nil {
		t.Error(err)
	}
}

// The servers that a cluster or Sentinels announce may be elsewhere than the settings say.
func TestProdModeConnectsToNoAnnouncedServerElsewhereWithoutTLS(t *testing.T) {
	t.Parallel()
	const elsewhere = "192.0.2.1" // an address for documentation: no such server
	node := cachetest.Start(t, "--cluster-enabled", "yes", "--cluster-port", fmt.Sprint(testenv.FreePort(t)),
		"--cluster-announce-ip", elsewhere)
	do(t, cachetest.Open(t, node.URL()), "CLUSTER ADDSLOTSRANGE 0 16383")
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(conf, []byte("sentinel monitor main "+elsewhere+" 6379 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, url := range map[string]string{
		"a cluster":  node.URL() + "?addr=127.0.0.1:1",
		"a Sentinel": cachetest.StartSentinel(t, conf).URL() + "?master_name=main",
	} {
		cfg := cache.Config{URL: config.Secret(url)}
		_, err := cache.Open(t.Context(), cfg, cache.Options{Prod: true})
		if !errors.Is(err, cache.ErrPlaintext) || !strings.Contains(err.Error(), elsewhere) {
			t.Errorf("%s: %v", name, err)
		}
		if problem, ok := errors.AsType[*cache.Problem](err); !ok || !problem.Setup {
			t.Errorf("%s: %v", name, err)
		}
		cfg.ValidateProd(func(path, problem string) { t.Errorf("%s: %s %s", name, path, problem) })
	}
}

// secured is a primary that Sentinels announce by its address, with TLS everywhere.
type secured struct {
	primary, sentinel *cachetest.Server
	caFile            string // of both servers
}

// newSecured makes one. The server and the Sentinel have certificates for these names.
func newSecured(t *testing.T, server, sentinel string) *secured {
	t.Helper()
	var s secured
	var serverCA string
	s.primary, serverCA = cachetest.StartNamedTLS(t, server)
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor %s 127.0.0.1 %s 1\n", cachetest.WatchedName, s.primary.Port())
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.sentinel, s.caFile = cachetest.StartSentinelTLS(t, conf, sentinel, serverCA)
	return &s
}

// try writes a key through the Sentinel at this host.
func (s *secured) try(t *testing.T, host, caFile string) error {
	t.Helper()
	url := "rediss://" + host + ":" + s.sentinel.Port() + "?master_name=" + cachetest.WatchedName
	cfg := cache.Config{URL: config.Secret(url), CAFile: caFile}
	client, err := cache.Open(t.Context(), cfg, cache.Options{Prod: true})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	return client.Do(t.Context(), "set", "authctl:key", 1).Err()
}

func TestSentinelsAndTheirPrimaryAreVerified(t *testing.T) {
	t.Parallel()
	right, wrong := newSecured(t, "localhost", "localhost"), newSecured(t, "redis.example", "localhost")
	if err := right.try(t, "localhost", right.caFile); err != nil {
		t.Errorf("the right names: %v", err)
	}
	for name, tc := range map[string]struct {
		s            *secured
		host, caFile string
		want         []string
	}{
		"a Sentinel by its address": {right, "127.0.0.1", right.caFile,
			[]string{"the Sentinel 127.0.0.1:" + right.sentinel.Port(), "a name that is in the server's certificate"}},
		"an authority that is not named": {right, "localhost", wrong.caFile,
			[]string{"the Sentinel localhost:" + right.sentinel.Port(), "REDIS_CA_FILE"}},
		"a primary with another name": {wrong, "localhost", wrong.caFile,
			[]string{"the primary 127.0.0.1:" + wrong.primary.Port(), "a name that is in the server's certificate"}},
	} {
		err := tc.s.try(t, tc.host, tc.caFile)
		if _, ok := errors.AsType[*cache.Problem](err); !ok {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v does not say %q", name, err, want)
			}
		}
	}
}

func TestAnnouncedServersAreVerifiedByTheNameInTheSettings(t *testing.T) {
	t.Parallel()
	// The cluster announces its node by an address that is not in the node's certificate.
	node, caFile := cachetest.StartNamedTLS(t, "localhost", "--cluster-enabled", "yes", "--cluster-port",
		fmt.Sprint(testenv.FreePort(t)), "--cluster-announce-ip", "127.0.0.1")
	admin, err := cache.Open(t.Context(), cache.Config{URL: config.Secret("rediss://localhost:" + node.Port()),
		CAFile: caFile}, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	do(t, admin, "CLUSTER ADDSLOTSRANGE 0 16383")
	testenv.Eventually(t, "the cluster works", func() bool {
		info, _ := admin.Do(t.Context(), "cluster", "info").Text()
		return strings.Contains(info, "cluster_state:ok")
	})
	for name, tc := range map[string]struct {
		host, caFile string
		works        bool
	}{
		"its name":          {"localhost", caFile, true},
		"its address":       {"127.0.0.1", caFile, false},
		"another authority": {"localhost", "", false},
	} {
		cfg := cache.Config{URL: config.Secret("rediss://" + tc.host + ":" + node.Port()), Cluster: true,
			CAFile: tc.caFile}
		client, err := cache.Open(t.Context(), cfg, cache.Options{Prod: true})
		if err == nil {
			err = client.Do(t.Context(), "set", "authctl:key", 1).Err()
			_ = client.Close()
		}
		if (err == nil) != tc.works {
			t.Errorf("%s: %v", name, err)
		}
	}
}
