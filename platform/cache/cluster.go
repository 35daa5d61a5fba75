package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// openCluster makes a client that finds the nodes and their slots by itself.
func openCluster(o *redis.ClusterOptions, appName string, d dialer) *redis.ClusterClient {
	if appName != "" {
		o.ClientName, o.OnConnect = "", named(appName)
	}
	o.Dialer = d.dial
	all := guard{within: 2 * o.ReadTimeout, of: target{cluster: o}.String()}
	client := redis.NewClusterClient(o)
	client.AddHook(all)
	// The client learns of a fail-over from the answers of nodes. A dead node gives none.
	client.OnNewNode(func(node *redis.Client) {
		node.AddHook(guard{lookAgain: func() { client.ReloadState(context.Background()) }})
	})
	return client
}

// lookWithin is how long one server may take to list the servers, before another one is asked.
const lookWithin = 500 * time.Millisecond

// guard is a hook for servers that can be replaced: it bounds how long a command may take with
// all its attempts, and calls lookAgain when one fails.
type guard struct {
	within    time.Duration // without a bound unless positive
	of        string        // what it bounds
	lookAgain func()
}

// errSilent says which server has not answered in time.
type errSilent struct {
	server string
	after  time.Duration
}

func (e *errSilent) Error() string {
	return fmt.Sprintf("%s has not answered for %s", e.server, e.after)
}

// Timeout and Temporary implement [net.Error].
func (e *errSilent) Timeout() bool   { return true }
func (e *errSilent) Temporary() bool { return false }

// DialHook implements redis.Hook.
func (guard) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (g guard) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "cluster" { // asks which nodes there are
			ctx, cancel := context.WithTimeout(ctx, lookWithin)
			defer cancel()
			return next(ctx, cmd)
		}
		bounded, cancel := within(ctx, g.within)
		defer cancel()
		return g.saw(ctx, next(bounded, cmd))
	}
}

// ProcessPipelineHook implements redis.Hook.
func (g guard) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		bounded, cancel := within(ctx, g.within)
		defer cancel()
		err := g.saw(ctx, next(bounded, cmds))
		if silent, ok := errors.AsType[*errSilent](err); ok {
			for _, cmd := range cmds {
				if cmd.Err() != nil {
					cmd.SetErr(silent)
				}
			}
		}
		return err
	}
}

// within adds a deadline if the time is positive.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// saw is the error of a caller, whose own deadline is another thing than a server that is silent.
func (g guard) saw(ctx context.Context, err error) error {
	var reply redis.Error
	if g.lookAgain != nil && err != nil && (!errors.As(err, &reply) || code(err) == "READONLY") {
		g.lookAgain()
	}
	if _, named := errors.AsType[*net.OpError](err); g.of != "" && ctx.Err() == nil && timedOut(err) && !named {
		return &errSilent{g.of, g.within}
	}
	return err
}

// Server is a Redis that takes writes: the only server, the primary, or a node of a cluster.
type Server struct {
	Name   string // of a node of a cluster, host:port; else empty
	Client redis.Cmdable

	tags []string // hash tags in braces whose keys the server has
}

// Tag is a hash tag, in braces, whose keys the server has, or empty: a node of a cluster may have slots without
// one.
func (s Server) Tag() string {
	if len(s.tags) == 0 {
		return ""
	}
	return s.tags[0]
}

// Servers returns every server that has keys. In a cluster these are all nodes with slots, whether or not
// they answer.
func Servers(ctx context.Context, client Client) ([]Server, error) {
	cluster, ok := client.(*redis.ClusterClient)
	if !ok {
		return []Server{{Client: one(client), tags: Tags()[:1]}}, nil
	}
	var mu sync.Mutex
	var servers []Server
	err := cluster.ForEachMaster(ctx, func(_ context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		servers = append(servers, Server{Name: node.Options().Addr, Client: node})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ask the cluster for its nodes: %w", err)
	}
	slices.SortFunc(servers, func(a, b Server) int { return strings.Compare(a.Name, b.Name) })
	for _, tag := range Tags() {
		owner, err := cluster.MasterForKey(ctx, tag)
		if err != nil {
			return nil, fmt.Errorf("ask the cluster for its nodes: %w", err)
		}
		for i := range servers {
			if servers[i].Client == owner {
				servers[i].tags = append(servers[i].tags, tag)
			}
		}
	}
	return servers, nil
}

// one is the client of a server outside a cluster.
func one(client Client) *redis.Client {
	if p, ok := client.(*primary); ok {
		client = p.Client
	}
	return client.(*redis.Client)
}

// options are the options of one server.
func options(s Server) *redis.Options { return s.Client.(*redis.Client).Options() }

// IsCluster reports whether the keys are spread over several servers.
//
//go:noinline // see [Client]
func IsCluster(client Client) bool {
	_, ok := client.(*redis.ClusterClient)
	return ok
}

// ErrMoved says that slots of the cluster, or the servers themselves, changed during a walk through all keys,
// so that it may have missed some.
var ErrMoved = errors.New("the servers of Redis, or the slots of its cluster, changed meanwhile, so that some " +
	"keys may have been missed; try again when a fail-over or a move of slots is over")

// Layout returns a text that says which servers have which keys. If it is the same before and after a walk
// through the keys of all [Servers], the walk has seen every key. The error is [ErrMoved] while slots are
// being moved.
func Layout(ctx context.Context, client Client) (string, error) {
	servers, err := Servers(ctx, client)
	if err != nil {
		return "", err
	}
	var layout strings.Builder
	for _, server := range servers {
		// A restarted server walks through its keys in another order. Without the right to use INFO a restart
		// is not noticed.
		info, err := server.Client.Info(ctx, "server").Result()
		if err != nil && IsUnavailable(err) && code(err) == "" {
			return "", err
		}
		fmt.Fprintf(&layout, "%s %s", server.Name, parseInfo(info)["run_id"])
		if !IsCluster(client) {
			break
		}
		nodes, err := server.Client.ClusterNodes(ctx).Result()
		if err != nil {
			return "", fmt.Errorf("ask %s for its slots: %w", server.Name, err)
		}
		for line := range strings.Lines(nodes) {
			// id address flags master ping pong epoch link slots…
			fields := strings.Fields(line)
			if len(fields) < 8 || !slices.Contains(strings.Split(fields[2], ","), "myself") {
				continue
			}
			for _, slots := range fields[8:] {
				if strings.HasPrefix(slots, "[") { // one that is being moved
					return "", &Problem{Err: ErrMoved,
						Found:  server.named("a slot is being moved: its users get 503, no command finds all sessions"),
						Advice: "wait until that is over; after an interrupted move, use redis-cli --cluster fix"}
				}
			}
			fmt.Fprintf(&layout, " %s %s %s", fields[0], fields[2], strings.Join(fields[8:], " "))
		}
		layout.WriteString("\n")
	}
	return layout.String(), nil
}

// Tags returns hash tags, in braces, whose slots are spread evenly over the 16,384 of a cluster: any 255 slots in a
// row contain the slot of one of them.
func Tags() []string { return tags() }

const tagWidth = 128 // slots

var tags = sync.OnceValue(func() []string {
	found := make([]string, 16384/tagWidth)
	for i, left := 0, len(found); left > 0; i++ {
		text := strconv.Itoa(i)
		at := &found[int(crc16(text))%16384/tagWidth]
		if *at == "" {
			*at = "{" + text + "}"
			left--
		}
	}
	return found
})

// crc16 is CRC-16/XMODEM, from which a cluster computes the slot of a key.
func crc16(text string) (sum uint16) {
	for _, c := range []byte(text) {
		sum ^= uint16(c) << 8
		for range 8 {
			if sum&0x8000 != 0 {
				sum = sum<<1 ^ 0x1021
			} else {
				sum <<= 1
			}
		}
	}
	return sum
}
