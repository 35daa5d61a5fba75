package cache

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// IsUnavailable reports whether the command may succeed later, unchanged: Redis is down, overloaded,
// read-only or too slow, it is the wrong server, it refuses us, or the context ended. The other errors are
// redis.Nil and replies that a stored value causes.
func IsUnavailable(err error) bool {
	var reply redis.Error
	if err == nil || !errors.As(err, &reply) {
		return err != nil
	}
	return !errors.Is(err, redis.Nil) && code(err) != "WRONGTYPE"
}

// code is the first word of an error reply, which says what kind it is.
func code(err error) string {
	reply, ok := errors.AsType[redis.Error](err)
	if !ok {
		return ""
	}
	word, _, _ := strings.Cut(reply.Error(), " ")
	return word
}

// Problem says what is wrong with the server or the connection to it, and what to do.
type Problem struct {
	Found  string
	Advice string
	Err    error

	// Setup says that waiting does not help: the settings name a server that cannot be used, or
	// the Redis user lacks a right.
	Setup bool
}

func (p *Problem) Error() string { return p.Found + ": " + p.Advice }

func (p *Problem) Unwrap() error { return p.Err }

// cannotConnect says why connecting failed. If the server may have refused the number of the
// database, it connects once more without it.
func cannotConnect(ctx context.Context, opt *redis.Options, err error) *Problem {
	if _, ok := errors.AsType[redis.Error](err); !ok {
		return unreachable(ctx, opt, err)
	}
	if opt.DB > 0 && code(err) == "ERR" {
		first := *opt
		first.DB = 0
		client := redis.NewClient(&first)
		defer func() { _ = client.Close() }()
		if client.Ping(ctx).Err() == nil {
			if p := role(ctx, client, false); p != nil {
				return p
			}
			return &Problem{Found: err.Error(), Setup: true, Err: err,
				Advice: "the server has no database of this number: set CACHE_REDIS_DB, or the number at the end of " +
					"REDIS_URL, to one that it has"}
		}
	}
	return refusal(err)
}

// unreachable explains errors of the network and of TLS.
func unreachable(ctx context.Context, opt *redis.Options, err error) *Problem {
	p := &Problem{Found: err.Error(), Err: err}
	if cause, ok := errors.AsType[*net.OpError](err); ok {
		p.Found = cause.Error() // without the client's words
	}
	const named = "CACHE_REDIS_HOST or REDIS_URL"
	name, noName := errors.AsType[*net.DNSError](err)
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	_, unverified := errors.AsType[*tls.CertificateVerificationError](err)
	_, wrongName := errors.AsType[x509.HostnameError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	late := timedOut(err)
	switch {
	case noName && name.IsNotFound:
		p.Advice = "there is no host of this name: correct " + named
	case noName:
		p.Advice = "the name cannot be looked up: check DNS on this machine, or name an address in " + named
	case notTLS, opt.TLSConfig != nil && late && answersPlainly(ctx, opt):
		p.Advice = "the server does not speak TLS on this port: name its TLS port, or connect without TLS (redis:// " +
			"instead of rediss://, REDIS_TLS=false)"
	case wrongName:
		p.Advice = "connect by a name that is in the server's certificate: correct " + named
	case unverified:
		p.Advice = "the server's certificate is not trusted: name the file of its authority in REDIS_CA_FILE, " +
			"or renew the certificate if it has expired"
	case alert:
		p.Advice = "the server ends the TLS handshake: it may want a certificate of the client " +
			"(tls-auth-clients), which authctl does not have, or another version of TLS"
	case errors.Is(err, syscall.ECONNREFUSED):
		p.Advice = "nothing listens there: start Redis, or name another one with REDIS_URL"
	case errors.Is(err, fs.ErrNotExist):
		p.Advice = "there is no such socket: start Redis, or correct the path in REDIS_URL"
	case errors.Is(err, fs.ErrPermission):
		p.Advice = "this user may not open the socket: let it (unixsocketperm, or the group of Redis)"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		p.Advice = "there is no route to it: check the routes and the firewall, or correct " + named
	case opt.TLSConfig == nil && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)):
		p.Advice = "it closes the connection: if the port is for TLS, connect with TLS (rediss:// in REDIS_URL, or " +
			"REDIS_TLS=true)"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		p.Advice = "it closes the connection: read the log of Redis, and check what is between it and this machine"
	case late:
		p.Advice = "nothing answers in time: check whether Redis hangs, and whether a firewall drops the packets"
	default:
		p.Advice = "check that Redis runs there, or name another one with REDIS_URL"
	}
	return p
}

func timedOut(err error) bool {
	network, isNetwork := errors.AsType[net.Error](err)
	return isNetwork && network.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// replaced changes the advice about the error of a server that another one replaces when it fails.
func (p *Problem) replaced(err error) *Problem {
	_, ofSentinel := errors.AsType[*Problem](err)
	switch {
	case ofSentinel:
	case errors.Is(err, syscall.ECONNREFUSED):
		p.Advice = "nothing listens there: a replica takes its place within seconds, if it has one that can; " +
			"otherwise start it again"
	case timedOut(err):
		p.Advice += "; a replica takes its place within seconds, if it has one that can"
	case p.Advice == adviceReplica:
		p.Advice = "a fail-over is under way, or this server has just come back: it passes within seconds"
	}
	return p
}

// answersPlainly reports whether the server speaks Redis without TLS: then it did not answer the TLS
// handshake because it waited for the end of a line. It gets only a PING.
func answersPlainly(ctx context.Context, opt *redis.Options) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second) // the handshake used up the time
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, cmp.Or(opt.Network, "tcp"), opt.Addr)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	until, _ := ctx.Deadline()
	first := make([]byte, 1)
	_ = conn.SetDeadline(until)
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return false
	}
	_, err = io.ReadFull(conn, first)
	return err == nil && (first[0] == '+' || first[0] == '-')
}

// refusal explains error replies by the code that they begin with.
func refusal(err error) *Problem {
	found := strings.TrimSuffix(err.Error(), ".") // advice follows
	const rights = "give the Redis user the keys " + Prefix + "* and the commands in docs/operations.md; authctl " +
		"doctor tries each"
	for _, kind := range []struct {
		codes  string
		setup  bool
		advice string
	}{
		{"WRONGPASS", true, "the user or the password is wrong: set CACHE_REDIS_PASSWORD, or USER:PASSWORD@ in " +
			"REDIS_URL, to what the server has"},
		{"NOAUTH", true, "the server wants a password: set CACHE_REDIS_PASSWORD, or USER:PASSWORD@ in REDIS_URL"},
		{"NOPERM", true, rights},
		{"MOVED ASK CROSSSLOT", true, adviceCluster},
		{"CLUSTERDOWN", false, "a part of the cluster has no primary, or no node has some of its slots: bring " +
			"the nodes back, and see redis-cli --cluster check"},
		{"TRYAGAIN", false, "slots of the cluster are being moved: wait until that is done"},
		{"READONLY MASTERDOWN", false, adviceReplica},
		{"LOADING", false, "it is loading its data: wait until it has finished"},
		{"OOM", false, "its memory is full and it takes no writes: raise maxmemory, or find what fills it; " +
			"sessions and counters expire by themselves"},
		{"MISCONF", false, "it cannot save to its disk and takes no writes: make room there, and read its log"},
		{"NOREPLICAS", false, "fewer replicas are connected than min-replicas-to-write asks for, and it takes no " +
			"writes: bring them back, or lower the number"},
		{"BUSY", false, "a script of another client takes too long: SCRIPT KILL ends it"},
	} {
		for known := range strings.FieldsSeq(kind.codes) {
			if code(err) == known {
				return &Problem{Found: found, Advice: kind.advice, Setup: kind.setup, Err: err}
			}
		}
	}
	if redis.IsMaxClientsError(err) {
		return &Problem{Found: found, Err: err, Advice: "it has reached its limit of clients: raise its " +
			"maxclients, or add ?pool_size=16 to REDIS_URL to open fewer"}
	}
	// Other errors have no code of their own, such as a right that a script lacks.
	return &Problem{Found: found, Err: err, Advice: "check that it is Redis 7 or newer, and " + rights}
}

const (
	adviceCluster = "this server is a node of a cluster: set REDIS_CLUSTER=true, or name more nodes with " +
		"addr=HOST:PORT in REDIS_URL"
	adviceReplica = "this server is a read-only replica: name the primary, by a name that follows it through " +
		"fail-overs, or name the Sentinels"
)

// role says why the server's role forbids its use, as far as INFO tells. cluster: it must be a node.
func role(ctx context.Context, client redis.Cmdable, cluster bool) *Problem {
	text, _ := client.Info(ctx).Result() // empty without the right to ask
	info := parseInfo(text)
	switch {
	case info["redis_mode"] == "sentinel":
		return &Problem{Found: "it is a Sentinel", Setup: true,
			Advice: "add master_name=NAME to REDIS_URL, and addr=HOST:PORT for each of the other Sentinels"}
	case cluster && info["redis_mode"] == "standalone":
		return &Problem{Found: "its cluster mode is off", Setup: true,
			Advice: "name it alone in REDIS_URL, without addr, and leave REDIS_CLUSTER out"}
	case !cluster && (info["redis_mode"] == "cluster" || info["cluster_enabled"] == "1"):
		return &Problem{Found: "its cluster mode is on", Setup: true, Advice: adviceCluster}
	case info["role"] == "slave":
		return &Problem{Found: "its role is replica", Advice: adviceReplica}
	}
	return nil
}

// parseInfo parses the answer of INFO.
func parseInfo(text string) map[string]string {
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info
}

// Describe explains an error of Redis to a person: what it is, and what to do.
//
//go:noinline // see [Client]
func Describe(err error) *Problem { return explain(context.Background(), &redis.Options{}, err) }

// explain is Describe for an error of a server with these options.
func explain(ctx context.Context, opt *redis.Options, err error) *Problem {
	var reply redis.Error
	if problem, ok := errors.AsType[*Problem](err); ok {
		return problem
	}
	if errors.As(err, &reply) {
		return refusal(err)
	}
	return unreachable(ctx, opt, err)
}

// tried is how long the keys of Probe last.
const tried = time.Minute
