package cache

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/toppira/authctl/platform/config"
)

// target is what the settings name; one of the three fields is set.
type target struct {
	single   *redis.Options
	sentinel *redis.FailoverOptions // a primary, by the Sentinels that watch it
	cluster  *redis.ClusterOptions
}

// attempt is how long one attempt may take if another server may answer the next one. All attempts
// together take no longer than [timeout].
const attempt = timeout / 2

func targetOf(c Config) (target, error) {
	t, err := parts(c), error(nil)
	if c.URL != "" {
		if t, err = parseURL(c); err != nil {
			return target{}, errors.New("redis.url " + err.Error())
		}
	}
	if secured := t.tls(); secured != nil {
		secured.MinVersion = tls.VersionTLS12
		if c.CAFile != "" {
			if secured.RootCAs, err = readCAs(c.CAFile); err != nil {
				return target{}, err
			}
		}
	}
	t.setDefaults()
	return t, nil
}

// parts is the target of the settings without a URL.
func parts(c Config) (t target) {
	var secured *tls.Config
	if c.TLS {
		secured = &tls.Config{ServerName: c.Host, MinVersion: tls.VersionTLS12}
	}
	if c.Cluster {
		t.cluster = &redis.ClusterOptions{Addrs: []string{c.address()}, Password: c.Password.Reveal(),
			TLSConfig: secured}
	} else {
		t.single = &redis.Options{Addr: c.address(), Password: c.Password.Reveal(), DB: c.DB, TLSConfig: secured}
	}
	return t
}

// parseURL parses the URL with the client's own parsers: there is one for each kind of target, and each
// refuses the options of the others. An error says what is wrong without quoting the URL, since the part
// that cannot be parsed may be a password.
func parseURL(c Config) (t target, err error) {
	text := c.URL.Reveal()
	// Without the slashes it would mean localhost.
	if _, rest, _ := strings.Cut(text, ":"); !strings.HasPrefix(rest, "//") {
		return t, errURL
	}
	single, errSingle := redis.ParseURL(text)
	sentinel, errSentinel := redis.ParseFailoverURL(text)
	cluster, errCluster := redis.ParseClusterURL(text)
	switch {
	case errSentinel == nil && sentinel.MasterName != "" && c.Cluster:
		return t, errors.New("names Sentinels by master_name, and redis.cluster says that it is a cluster: " +
			"take one away")
	case errSentinel == nil && sentinel.MasterName != "":
		t.sentinel = sentinel
	case errSingle == nil && !c.Cluster:
		t.single = single
	case errCluster == nil && (c.Cluster || len(cluster.Addrs) > 1):
		t.cluster = cluster
	default:
		return t, errURL
	}
	if err := checkOptions(text); err != nil {
		return t, err
	}
	return t, t.check(text)
}

// checkOptions refuses what the client's parsers would leave out without a word: all that follows a #, which may be of
// a password, so that the host would be the user; what stands together with a semicolon; and of an option that is
// there twice the first one.
func checkOptions(text string) error {
	u, err := url.Parse(text) // as they do
	if err != nil || strings.Contains(text, "#") {
		return errURL
	}
	options, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return errors.New("has options that cannot be read: they are NAME=VALUE with & between them; " +
			"other characters in a value are percent-encoded")
	}
	for name, values := range options {
		if name != "addr" && len(values) > 1 {
			return errors.New("has an option twice")
		}
	}
	if db := strings.Trim(u.Path, "/"); u.Scheme != "unix" && db != "" && options.Has("db") && options.Get("db") != db {
		return errors.New("names two databases, after the slash and as an option")
	}
	return nil
}

var errURL = errors.New("must be a URL that begins with redis://, rediss:// or unix://, without options that the " +
	"client does not know; characters such as / ? # % @ in a password are percent-encoded; more nodes of a cluster, " +
	"and more Sentinels with a master_name, follow as addr=HOST:PORT")

// check refuses URLs that the client accepts but would ignore in part, or read in another way.
func (t target) check(text string) error {
	var numbers []int
	var dial time.Duration // negative if the option is 0
	switch {
	case t.single != nil:
		o := t.single
		dial = o.DialTimeout
		numbers = []int{o.DB, o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns, o.MaxConcurrentDials}
	case t.sentinel != nil:
		o := t.sentinel
		dial = o.DialTimeout
		numbers = []int{o.DB, o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns, o.MaxConcurrentDials}
		if o.RouteByLatency || o.RouteRandomly || o.ReplicaOnly || o.UseDisconnectedReplicas {
			return errReplicas
		}
	default:
		o := t.cluster
		dial = o.DialTimeout
		numbers = []int{o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns, o.MaxConcurrentDials,
			o.MaxRedirects}
		if o.ReadOnly || o.RouteByLatency || o.RouteRandomly {
			return errReplicas
		}
	}
	if err := inRange(numbers); err != nil {
		return err
	}
	if dial < 0 {
		return errors.New("has a dial_timeout that is not positive, which would end every attempt to connect at once")
	}
	if t.single != nil && t.single.Network == "unix" {
		return nil
	}
	addresses := t.addresses()
	for i, address := range addresses {
		if config.AddressProblem(address, false) != "" {
			return errors.New("does not name one host, and a port from 1 to 65535; characters such as / ? # % @ in a " +
				"password are percent-encoded; more hosts follow as addr=HOST:PORT, one each")
		}
		if slices.Contains(addresses[:i], address) {
			return errors.New("names an address twice")
		}
	}
	if t.single != nil {
		return nil
	}
	// The parsers for several servers use localhost if the host is missing, and that for a cluster ignores a database.
	u, err := url.Parse(text) // as they do
	if err != nil || u.Host == "" {
		return errors.New("does not name the first host, so that localhost would be one of the servers")
	}
	if t.cluster != nil && strings.Trim(u.Path, "/") != "" && strings.Trim(u.Path, "/") != "0" {
		return errors.New("names a database, and a cluster has only number 0: leave it out")
	}
	return nil
}

var errReplicas = errors.New("asks for answers of replicas, which may be behind: authctl reads from the " +
	"primary alone, so leave out read_only, replica_only, route_by_latency, route_randomly and " +
	"use_disconnected_replicas")

// inRange refuses numbers at which the client panics, or that it replaces.
func inRange(numbers []int) error {
	for _, n := range numbers {
		if n < 0 || n > 1<<16 {
			return errors.New("has a number that is negative or too large")
		}
	}
	return nil
}

// setDefaults gives options that the URL does not set values that suit small commands.
func (t target) setDefaults() {
	switch {
	case t.single != nil:
		o := t.single
		sizes(&o.PoolSize, &o.MaxActiveConns)
		times(timeout, &o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout, &o.PoolTimeout)
		setDefault(&o.MaxRetries, 2)
		setDefault(&o.MaxRetryBackoff, 100*time.Millisecond)
		setDefault(&o.ConnMaxIdleTime, 5*time.Minute)
		frugal(o)
	case t.sentinel != nil:
		o := t.sentinel
		sizes(&o.PoolSize, &o.MaxActiveConns)
		times(attempt, &o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout, &o.PoolTimeout)
		setDefault(&o.MaxRetries, 3)
		setDefault(&o.MaxRetryBackoff, 100*time.Millisecond)
		setDefault(&o.ConnMaxIdleTime, 5*time.Minute)
	default:
		o := t.cluster
		sizes(&o.PoolSize, &o.MaxActiveConns)
		times(attempt, &o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout, &o.PoolTimeout)
		setDefault(&o.MaxRedirects, 5)
		setDefault(&o.MaxRetryBackoff, 100*time.Millisecond)
		setDefault(&o.ConnMaxIdleTime, 5*time.Minute)
		setDefault(&o.ClusterStateReloadInterval, 10*time.Second)
		o.MaxRetries = -1               // of a node: the cluster's client repeats by itself
		o.DisableRoutingPolicies = true // else it asks with COMMAND how to spread each command
		o.DialerRetries, o.ContextTimeoutEnabled, o.PipelinePoolSize = 1, true, -1
		o.ReadBufferSize, o.WriteBufferSize = bufferSize, bufferSize
		o.DisableIdentity = true
		o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	}
}

// bufferSize is the size of a connection's buffer, in each direction. The default of 32 KiB is for large
// values. These commands take a few hundred bytes, and idle memory matters.
const bufferSize = 4 << 10

// frugal turns off what the commands of this service do not need.
func frugal(o *redis.Options) {
	o.DialerRetries = 1            // MaxRetries is enough; the default would dial five times for each
	o.ContextTimeoutEnabled = true // otherwise deadlines are checked only between commands
	o.PipelinePoolSize = -1        // one pool is enough
	o.ReadBufferSize, o.WriteBufferSize = bufferSize, bufferSize
	// These save two round trips for each connection.
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

func sizes(pool, active *int) {
	setDefault(pool, max(16, 8*runtime.GOMAXPROCS(0)))
	setDefault(active, *pool)
}

func times(wait time.Duration, dial, read, write, pool *time.Duration) {
	setDefault(dial, wait)
	setDefault(read, wait)
	setDefault(write, *read)
	setDefault(pool, *read)
}

func setDefault[T comparable](field *T, value T) { *field = cmp.Or(*field, value) }

func (t target) addresses() []string {
	switch {
	case t.single != nil:
		return []string{t.single.Addr}
	case t.sentinel != nil:
		return t.sentinel.SentinelAddrs
	}
	return t.cluster.Addrs
}

func (t target) tls() *tls.Config {
	switch {
	case t.single != nil:
		return t.single.TLSConfig
	case t.sentinel != nil:
		return t.sentinel.TLSConfig
	}
	return t.cluster.TLSConfig
}

func (t target) String() string {
	switch {
	case t.single != nil:
		return "Redis " + t.single.Addr + "/" + strconv.Itoa(t.single.DB)
	case t.sentinel != nil:
		return "Redis " + t.sentinel.MasterName + "/" + strconv.Itoa(t.sentinel.DB) + " of the Sentinels " +
			strings.Join(t.sentinel.SentinelAddrs, ", ")
	}
	return "Redis Cluster " + strings.Join(t.cluster.Addrs, ", ")
}

// local reports whether every server that the settings name is on this machine.
func (t target) local() bool {
	if t.single != nil && t.single.Network == "unix" {
		return true
	}
	return !slices.ContainsFunc(t.addresses(), func(address string) bool { return !isLocal(address) })
}

// verified reports whether connections are over TLS and certificates are verified.
func (t target) verified() bool { return t.tls() != nil && !t.tls().InsecureSkipVerify }

func isLocal(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && config.IsThisMachine(host)
}

// open makes the client, which connects when it is used. With refuse, it does not connect to servers on
// other machines without verified TLS.
func (t target) open(o Options, refuse bool) Client {
	d := dialer{tls: t.tls(), refuse: refuse && !t.verified()}
	d.host, _, _ = net.SplitHostPort(t.addresses()[0]) // of a socket it is not used
	switch {
	case t.single != nil:
		if o.AppName != "" {
			t.single.ClientName, t.single.OnConnect = "", named(o.AppName)
		}
		client := redis.NewClient(t.single)
		if t.single.ReadTimeout > 0 { // the client sends a pipeline again after a timeout
			client.AddHook(guard{within: max(t.single.DialTimeout, t.single.ReadTimeout), of: t.String()})
		}
		return client
	case t.sentinel != nil:
		d.within = t.sentinel.DialTimeout
		return openPrimary(t.sentinel, o.AppName, d)
	}
	d.within = t.cluster.DialTimeout
	return openCluster(t.cluster, o.AppName, d)
}

// dialer connects to announced servers: the nodes of a cluster, and the primary that Sentinels name.
type dialer struct {
	tls    *tls.Config
	host   string        // the first in the settings
	refuse bool          // do not leave this machine
	within time.Duration // without a bound unless positive
}

func (d dialer) connect(ctx context.Context, network, address string) (net.Conn, error) {
	if d.refuse && !isLocal(address) {
		return nil, &Problem{Found: address + " is refused in prod mode", Advice: ErrPlaintext.Error(), Setup: true,
			Err: ErrPlaintext}
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// secure begins TLS if it is used. A server that is announced by its name needs a certificate for that name.
// One that is announced by its address needs a certificate for the first host of the settings, or for its
// address if that host is an address too.
func (d dialer) secure(ctx context.Context, conn net.Conn, address string) (net.Conn, error) {
	if d.tls == nil {
		return conn, nil
	}
	cfg := d.tls.Clone()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	cfg.ServerName = host
	if _, err := netip.ParseAddr(host); err == nil {
		if _, err := netip.ParseAddr(d.host); err != nil {
			cfg.ServerName = d.host
		}
	}
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secured, nil
}

func (d dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := within(ctx, d.within) // the pool of connections also dials without a deadline
	defer cancel()
	conn, err := d.connect(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return d.secure(ctx, conn, address)
}

// try reports why the servers cannot be used, or nil if they answer.
func (t target) try(ctx context.Context, client Client) *Problem {
	if t.cluster != nil {
		return t.tryCluster(ctx, client)
	}
	err := client.Ping(ctx).Err()
	switch {
	case err == nil:
		return nil
	case t.single != nil:
		return cannotConnect(ctx, t.single, err)
	}
	p := explain(ctx, &redis.Options{TLSConfig: t.tls()}, err).replaced(err)
	if c := code(err); c == "NOAUTH" || c == "WRONGPASS" {
		p.Advice = "set username=USER&password=PASSWORD in REDIS_URL to what Redis has: USER:PASSWORD@ is that of " +
			"the Sentinels"
	}
	return p
}

func (t target) tryCluster(ctx context.Context, client Client) *Problem {
	servers, err := Servers(ctx, client)
	if err != nil {
		return t.noCluster(ctx, err)
	}
	problem := &Problem{Found: "no node has slots", Setup: true,
		Advice: "make the cluster first: redis-cli --cluster create"}
	for _, server := range servers {
		err := server.Client.Ping(ctx).Err()
		if err == nil {
			return nil
		}
		problem = explain(ctx, options(server), err).replaced(err)
		problem.Found = server.named(problem.Found)
	}
	return problem
}

// noCluster explains why none of the named nodes lists the others: those that answer may not be nodes of a
// cluster.
func (t target) noCluster(ctx context.Context, err error) *Problem {
	for _, address := range t.cluster.Addrs {
		opt := &redis.Options{Addr: address, TLSConfig: t.tls(), Username: t.cluster.Username,
			Password: t.cluster.Password, Protocol: t.cluster.Protocol, DialTimeout: attempt, MaxRetries: -1}
		frugal(opt)
		node := redis.NewClient(opt)
		p := role(ctx, node, true)
		_ = node.Close()
		if p != nil {
			p.Err = err
			return p
		}
	}
	return explain(ctx, &redis.Options{Addr: t.cluster.Addrs[0], TLSConfig: t.tls()}, err)
}
