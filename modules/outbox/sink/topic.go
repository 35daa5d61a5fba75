package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/relay"
)

// TopicState is what the cluster says about the topic. Without Problems the topic is fit for events.
type TopicState struct {
	Topic             string    `json:"topic"`
	Created           bool      `json:"created"` // just now
	Partitions        int       `json:"partitions"`
	ReplicationFactor int       `json:"replication_factor"`
	MinInSync         int       `json:"min_insync_replicas"`
	MaxMessageBytes   int       `json:"max_message_bytes"`
	CleanupPolicy     string    `json:"cleanup_policy"`
	RetentionMS       int64     `json:"retention_ms"` // -1: unlimited
	Problems          []Problem `json:"problems"`
}

// Problem is what is wrong with a topic, and what to do about it.
type Problem struct {
	Found, Advice string
	Blocks        bool // nothing can be published until it is solved
}

func (p Problem) String() string { return p.Found + "; " + p.Advice }

// MarshalText makes it a string in JSON.
func (p Problem) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// EnsureTopic creates the topic if it does not exist, and checks it like [Kafka.CheckTopic]. It never
// changes an existing topic.
func (k *Kafka) EnsureTopic(ctx context.Context) (TopicState, error) {
	st, err := k.CheckTopic(ctx)
	var stalled *relay.Stalled
	if !errors.As(err, &stalled) || stalled.Kind != "topic" {
		return st, err
	}
	_, err = await(ctx, k, func() (struct{}, error) { return struct{}{}, k.createTopic() })
	if err != nil {
		return TopicState{}, err
	}
	// It takes a moment until every broker knows a new topic.
	for tries := 0; ; tries++ {
		st, err = k.CheckTopic(ctx)
		if err == nil || tries == 20 || !errors.As(err, &stalled) {
			st.Created = true
			return st, err
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return TopicState{}, ctx.Err()
		}
	}
}

func (k *Kafka) createTopic() error {
	client, err := k.connect()
	if err != nil {
		return err
	}
	admin, err := sarama.NewClusterAdminFromClient(client) // its Close would close the client
	if err != nil {
		return fmt.Errorf("reach the cluster's controller: %w", k.explain(err))
	}
	brokers, _, err := admin.DescribeCluster()
	if err != nil {
		return fmt.Errorf("count the brokers: %w", k.explain(err))
	}
	// Three: with two in sync to write, one broker may fail.
	replicas := min(3, max(1, len(brokers)))
	text := func(s string) *string { return &s }
	err = admin.CreateTopic(k.cfg.Topic, &sarama.TopicDetail{
		NumPartitions: int32(k.cfg.Partitions), ReplicationFactor: int16(replicas),
		ConfigEntries: map[string]*string{
			"cleanup.policy":                 text("delete"), // compaction would keep one event a user
			"min.insync.replicas":            text(strconv.Itoa(min(2, replicas))),
			"unclean.leader.election.enable": text("false"),
			"message.timestamp.type":         text("CreateTime"),
		},
	}, false)
	if err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
		return fmt.Errorf("make the topic %q with %d partitions and %d replicas: %w",
			k.cfg.Topic, k.cfg.Partitions, replicas, k.explain(err))
	}
	return nil
}

// CheckTopic asks the cluster about the topic and says what is wrong with it.
func (k *Kafka) CheckTopic(ctx context.Context) (TopicState, error) {
	return await(ctx, k, func() (TopicState, error) { return k.checkTopic(ctx) })
}

func (k *Kafka) checkTopic(ctx context.Context) (TopicState, error) {
	st := TopicState{Topic: k.cfg.Topic, Problems: []Problem{}}
	client, err := k.connect()
	if err != nil {
		return st, err
	}
	err = client.RefreshMetadata(k.cfg.Topic)
	if err != nil && !errors.Is(err, sarama.ErrLeaderNotAvailable) { // of some partitions, perhaps
		return st, k.explain(err)
	}
	partitions, err := client.Partitions(k.cfg.Topic)
	if err != nil {
		return st, k.explain(err)
	}
	st.Partitions = len(partitions)
	for _, p := range partitions {
		if replicas, err := client.Replicas(k.cfg.Topic, p); err == nil {
			st.ReplicationFactor = max(st.ReplicationFactor, len(replicas))
		}
	}
	settings, gone, err := k.askLeaders(ctx, client, partitions)
	switch {
	case errors.Is(err, sarama.ErrTopicAuthorizationFailed), errors.Is(err, sarama.ErrClusterAuthorizationFailed):
		st.Problems = append(st.Problems, Problem{
			Found:  k.who() + " may not read the settings of the topic, so they were not checked",
			Advice: "allow it DESCRIBE_CONFIGS on the topic",
		})
		st.Problems = append(st.Problems, gone.problems(len(partitions))...)
		return st, nil
	case err != nil:
		return st, fmt.Errorf("read the settings of the topic: %w", k.explain(err))
	}
	values := map[string]string{}
	for _, e := range settings {
		values[e.Name] = e.Value
	}
	number := func(name string) int64 { n, _ := strconv.ParseInt(values[name], 10, 64); return n }
	st.MinInSync, st.MaxMessageBytes = int(number("min.insync.replicas")), int(number("max.message.bytes"))
	st.CleanupPolicy, st.RetentionMS = values["cleanup.policy"], number("retention.ms")
	st.Problems = append(st.Problems, k.problems(st, len(client.Brokers()),
		values["unclean.leader.election.enable"] == "true")...)
	for _, p := range partitions {
		if replicas, err := client.InSyncReplicas(k.cfg.Topic, p); err == nil && len(replicas) < st.MinInSync {
			gone.add(fmt.Errorf("of its replicas %d are in sync, and min.insync.replicas is %d", len(replicas),
				st.MinInSync), p)
		}
	}
	st.Problems = append(st.Problems, gone.problems(len(partitions))...)
	return st, nil
}

// away are partitions that take no events now.
type away struct {
	partitions []int32
	cause      error // of one of them
}

func (a *away) add(cause error, partitions ...int32) {
	for _, p := range partitions {
		if !slices.Contains(a.partitions, p) {
			a.partitions, a.cause = append(a.partitions, p), cause
		}
	}
}

func (a *away) problems(partitions int) []Problem {
	if len(a.partitions) == 0 {
		return nil
	}
	return []Problem{{
		Found:  fmt.Sprintf("%d of %d partitions take no events now: %v", len(a.partitions), partitions, a.cause),
		Advice: "start the brokers that are away; events wait meanwhile",
	}}
}

var errNoLeader = errors.New("no broker leads it")

// askLeaders asks the leaders of the partitions for the settings of the topic, all at once: the cluster may not know
// yet that one is gone, and one that hangs must leave time for the others. Without an answer the error says why.
func (k *Kafka) askLeaders(ctx context.Context, client sarama.Client, partitions []int32) (
	settings []*sarama.ConfigEntry, gone away, err error,
) {
	led := map[*sarama.Broker][]int32{}
	elected, _ := client.WritablePartitions(k.cfg.Topic)
	for _, p := range partitions {
		if !slices.Contains(elected, p) { // the client would ask the cluster again for each of them
			gone.add(errNoLeader, p)
		} else if leader, err := client.Leader(k.cfg.Topic, p); err != nil {
			gone.add(err, p)
		} else {
			led[leader] = append(led[leader], p)
		}
	}
	within := k.cfg.RequestTimeout
	if deadline, ok := ctx.Deadline(); ok { // with time left to say which do not answer
		within = min(within, time.Until(deadline)*4/5)
	}
	type answer struct {
		of  *sarama.Broker
		res *sarama.DescribeConfigsResponse
		err error
	}
	answers, late := make(chan answer, len(led)), time.After(within)
	for leader := range led {
		go func() { // until the client gives up or is closed
			res, err := leader.DescribeConfigs(&sarama.DescribeConfigsRequest{
				Version: 2, Resources: []*sarama.ConfigResource{{Type: sarama.TopicResource, Name: k.cfg.Topic}},
			})
			answers <- answer{leader, res, err}
		}()
	}
	lacks := func(leader *sarama.Broker, why error) {
		gone.add(fmt.Errorf("connect to broker %s: %w", leader.Addr(), k.explain(why)), led[leader]...)
	}
	for len(led) > 0 {
		select {
		case a := <-answers:
			if a.err != nil {
				lacks(a.of, a.err)
			} else if r := a.res.Resources; len(r) > 0 && sarama.KError(r[0].ErrorCode) != sarama.ErrNoError {
				err = sarama.KError(r[0].ErrorCode) // such as of a broker that does not know a new topic yet
			} else if len(r) > 0 {
				settings = r[0].Configs
			}
			delete(led, a.of)
		case <-late:
			for leader := range led {
				lacks(leader, fmt.Errorf("it has not answered for %s", within.Round(time.Second/10)))
			}
			clear(led)
		}
	}
	if settings != nil {
		err = nil
	} else if err == nil {
		err = gone.cause
	}
	return settings, gone, err
}

func (k *Kafka) problems(st TopicState, brokers int, unclean bool) []Problem {
	var list []Problem
	say := func(advice, format string, args ...any) {
		list = append(list, Problem{Found: fmt.Sprintf(format, args...), Advice: advice})
	}
	if st.Partitions != k.cfg.Partitions {
		// The setting must follow the topic: changing the topic would move keys to other partitions.
		say(fmt.Sprintf("set KAFKA_PARTITIONS=%d; leave the topic, whose number of partitions must not change "+
			"once it has events", st.Partitions),
			"it has %d partitions, kafka.partitions is %d", st.Partitions, k.cfg.Partitions)
	}
	if slices.Contains(strings.Split(st.CleanupPolicy, ","), "compact") {
		say("set it to delete", "cleanup.policy is %s: compaction keeps only the last event of each user",
			st.CleanupPolicy)
	}
	if st.MaxMessageBytes < outbox.MaxEventBytes {
		say(fmt.Sprintf("raise it to %d or more", outbox.MaxEventBytes),
			"max.message.bytes is %d, less than the largest event (%d): such events would be parked",
			st.MaxMessageBytes, outbox.MaxEventBytes)
	}
	if st.ReplicationFactor == 1 && brokers > 1 {
		say("give it two more", "it has one replica: events are lost with one broker")
	}
	if st.MinInSync > st.ReplicationFactor {
		say(fmt.Sprintf("lower it to %d at most, or give the topic more replicas", st.ReplicationFactor),
			"min.insync.replicas is %d with %d replicas: nothing can be written", st.MinInSync, st.ReplicationFactor)
		list[len(list)-1].Blocks = true
	}
	if st.ReplicationFactor > 1 && st.MinInSync < 2 {
		say("raise it to 2", "min.insync.replicas is %d: an event can be acknowledged and then lost with one broker",
			st.MinInSync)
	}
	if unclean {
		say("set it to false", "unclean.leader.election.enable is true: acknowledged events can be lost and reordered")
	}
	return list
}
