package cachetest

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/platform/testenv"
)

// slots is the number of slots of a cluster.
const slots = 16384

// Cluster is a Redis Cluster of one test: three primaries, each with a replica that takes over when
// its primary fails.
type Cluster struct {
	Primaries []*Server // the primaries at the start
	Replicas  []*Server // of the primary with the same index
	t         testing.TB
}

// StartCluster runs a cluster whose nodes take a primary for failed after about five seconds: one
// that is only busy answers before. Arguments are added to the command line of each node. Nothing is saved.
func StartCluster(t testing.TB, args ...string) *Cluster {
	t.Helper()
	return startCluster(t, func() []string { return args })
}

// StartClusterTLS is StartCluster with nodes that use TLS among themselves and offer it to clients, at other ports.
// Their certificate is for a host name alone. It returns the URL that names them and the file to trust.
func StartClusterTLS(t testing.TB, host string) (c *Cluster, url, caFile string) {
	t.Helper()
	own, caFile := certificate(t, &x509.Certificate{DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true})
	own = append(own, "--tls-ca-cert-file", caFile, "--tls-cluster", "yes", "--tls-replication", "yes")
	var ports []string
	c = startCluster(t, func() []string {
		ports = append(ports, strconv.Itoa(testenv.FreePort(t)))
		return append([]string{"--tls-port", ports[len(ports)-1]}, own...)
	})
	const nodes = "rediss://%[1]s:%[2]s?addr=%[1]s:%[3]s&addr=%[1]s:%[4]s"
	return c, fmt.Sprintf(nodes, host, ports[0], ports[1], ports[2]), caFile
}

// startCluster runs a cluster. args returns those of the next node.
func startCluster(t testing.TB, args func() []string) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	node := func() *Server {
		return Start(t, append([]string{"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(testenv.FreePort(t)),
			"--cluster-node-timeout", "5000", "--appendonly", "no", "--repl-diskless-sync-delay", "0"}, args()...)...)
	}
	const n = 3
	for i := range n {
		one := node()
		c.Do(one, "cluster", "addslotsrange", i*slots/n, (i+1)*slots/n-1)
		c.Do(one, "cluster", "set-config-epoch", i+1)
		c.Primaries = append(c.Primaries, one)
	}
	for range n {
		c.Replicas = append(c.Replicas, node())
	}
	for _, one := range c.Nodes()[1:] {
		c.Do(one, "cluster", "meet", "127.0.0.1", c.Primaries[0].Port(), busPort(c.Primaries[0]))
	}
	for i, replica := range c.Replicas {
		id := fmt.Sprint(c.Do(c.Primaries[i], "cluster", "myid"))
		testenv.Eventually(t, "the replica knows its primary", func() bool {
			return strings.Contains(fmt.Sprint(c.Do(replica, "cluster", "nodes")), id)
		})
		c.Do(replica, "cluster", "replicate", id)
	}
	c.AwaitWhole()
	return c
}

func busPort(s *Server) string {
	for i, arg := range s.args {
		if arg == "--cluster-port" {
			return s.args[i+1]
		}
	}
	return ""
}

// Nodes returns the started nodes, whether or not they still run.
func (c *Cluster) Nodes() []*Server {
	return append(c.Primaries[:len(c.Primaries):len(c.Primaries)], c.Replicas...)
}

// AwaitWhole waits until every running node finds the cluster complete and its own replication up
// to date.
func (c *Cluster) AwaitWhole() {
	c.t.Helper()
	testenv.Eventually(c.t, "the cluster is whole", func() bool {
		running, primaries := 0, 0
		for _, node := range c.Nodes() {
			if node.process == nil {
				continue
			}
			running++
			info := fmt.Sprint(c.Do(node, "cluster", "info"))
			state := fmt.Sprint(c.Do(node, "info", "replication"))
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:6") ||
				strings.Contains(state, "role:slave") && !strings.Contains(state, "master_link_status:up") {
				return false
			}
			if strings.Contains(state, "role:master") {
				primaries++
			}
		}
		return running > 0 && primaries == len(c.Primaries)
	})
}

// URL names the nodes that were primaries at the start.
func (c *Cluster) URL() string {
	url := c.Primaries[0].URL()
	separator := "?"
	for _, node := range c.Primaries[1:] {
		url += separator + "addr=127.0.0.1:" + node.Port()
		separator = "&"
	}
	return url
}

// IsPrimary reports whether a running node is a primary.
func (c *Cluster) IsPrimary(node *Server) bool {
	c.t.Helper()
	return strings.Contains(fmt.Sprint(c.Do(node, "info", "replication")), "role:master")
}

// FailOver has a replica take over from its primary while that works.
func (c *Cluster) FailOver(shard int) {
	c.t.Helper()
	insist(c.t, c.Replicas[shard], c.Replicas[shard], "cluster", "failover")
}

// insist asks for a fail-over until the replica is the primary: Redis refuses one while a link is down, and gives up
// one that takes too long without a word.
func insist(t testing.TB, replica, asked *Server, words ...any) {
	t.Helper()
	var last time.Time
	testenv.Eventually(t, "the replica is the primary", func() bool {
		if strings.Contains(fmt.Sprint(administer(t, replica, "info", "replication")), "role:master") {
			return true
		}
		if time.Since(last) > 15*time.Second {
			last = time.Now()
			_, _ = ask(t, asked, words...)
		}
		return false
	})
}

// Move begins to move a slot from one primary to another. The returned function moves the keys, and
// completes the move.
func (c *Cluster) Move(slot int64, from, to *Server) (finish func()) {
	c.t.Helper()
	c.Do(to, "cluster", "setslot", slot, "importing", c.Do(from, "cluster", "myid"))
	c.Do(from, "cluster", "setslot", slot, "migrating", c.Do(to, "cluster", "myid"))
	return func() {
		c.t.Helper()
		for {
			keys, _ := c.Do(from, "cluster", "getkeysinslot", slot, 100).([]any)
			if len(keys) == 0 {
				break
			}
			c.Do(from, append([]any{"migrate", "127.0.0.1", to.Port(), "", 0, 10000, "keys"}, keys...)...)
		}
		for _, node := range []*Server{to, from} { // the others learn it from these
			c.Do(node, "cluster", "setslot", slot, "node", c.Do(to, "cluster", "myid"))
		}
	}
}

// Do runs a command of an administrator on one node.
func (c *Cluster) Do(node *Server, words ...any) any {
	c.t.Helper()
	return administer(c.t, node, words...)
}

func administer(t testing.TB, server *Server, words ...any) any {
	t.Helper()
	answer, err := ask(t, server, words...)
	if err != nil {
		t.Fatalf("%v: %v", words, err)
	}
	return answer
}

func ask(t testing.TB, server *Server, words ...any) (any, error) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + server.Port(), Protocol: 2,
		DialTimeout: testenv.Patience, ReadTimeout: testenv.Patience})
	defer func() { _ = client.Close() }()
	return client.Do(t.Context(), words...).Result()
}

// Watched is a primary with a replica, and three Sentinels that promote the replica when the
// primary fails.
type Watched struct {
	Primary, Replica *Server // as at the start
	Sentinels        []*Server
	t                testing.TB
}

// WatchedName is the Sentinels' name for the primary.
const WatchedName = "main"

// StartWatched runs a primary that Sentinels take for failed after about five seconds: one that
// is only busy answers before. Arguments are added to the command lines of the primary and the replica. Nothing
// is saved.
func StartWatched(t testing.TB, args ...string) *Watched {
	t.Helper()
	args = append([]string{"--appendonly", "no", "--repl-diskless-sync-delay", "0"}, args...)
	w := &Watched{t: t, Primary: Start(t, args...)}
	w.Replica = Start(t, append(args, "--replicaof", "127.0.0.1 "+w.Primary.Port())...)
	testenv.Eventually(t, "the replica follows", func() bool {
		return strings.Contains(fmt.Sprint(administer(t, w.Replica, "info", "replication")), "master_link_status:up")
	})
	for range 3 {
		conf := filepath.Join(t.TempDir(), "sentinel.conf")
		text := fmt.Sprintf("sentinel monitor %[1]s 127.0.0.1 %[2]s 2\nsentinel down-after-milliseconds %[1]s 5000\n"+
			"sentinel failover-timeout %[1]s 10000\n", WatchedName, w.Primary.Port())
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w.Sentinels = append(w.Sentinels, StartSentinel(t, conf))
	}
	for _, one := range w.Sentinels {
		testenv.Eventually(t, "the Sentinels know each other and the replica", func() bool {
			known := fmt.Sprint(administer(t, one, "sentinel", "master", WatchedName))
			return strings.Contains(known, "num-slaves 1") && strings.Contains(known, "num-other-sentinels 2")
		})
	}
	return w
}

// URL names the Sentinels.
func (w *Watched) URL() string {
	url := w.Sentinels[0].URL() + "?master_name=" + WatchedName
	for _, one := range w.Sentinels[1:] {
		url += "&addr=127.0.0.1:" + one.Port()
	}
	return url
}

// AwaitPrimary waits until every running Sentinel names the server as the primary.
func (w *Watched) AwaitPrimary(server *Server) {
	w.t.Helper()
	for _, one := range w.Sentinels {
		if one.process == nil {
			continue
		}
		testenv.Eventually(w.t, "a Sentinel names the new primary", func() bool {
			named := fmt.Sprint(administer(w.t, one, "sentinel", "get-master-addr-by-name", WatchedName))
			return strings.Contains(named, server.Port())
		})
	}
}

// FailOver has a Sentinel replace the primary by the replica while the primary works.
func (w *Watched) FailOver() {
	w.t.Helper()
	insist(w.t, w.Replica, w.Sentinels[0], "sentinel", "failover", WatchedName)
}
