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
	return await(ctx, k, k.checkTopic)
}

func (k *Kafka) checkTopic() (TopicState, error) {
	st := TopicState{Topic: k.cfg.Topic, Problems: []Problem{}}
	client, err := k.connect()
	if err != nil {
		return st, err
	}
	if err := client.RefreshMetadata(k.cfg.Topic); err != nil {
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
	broker, gone := k.leaders(client, partitions)
	if broker == nil {
		return st, fmt.Errorf("reach a broker that leads a partition of the topic: %w", k.explain(gone.cause))
	}
	// The client's own admin asks any broker that it knows, also one that is gone.
	answer, err := broker.DescribeConfigs(&sarama.DescribeConfigsRequest{
		Version: 2, Resources: []*sarama.ConfigResource{{Type: sarama.TopicResource, Name: k.cfg.Topic}},
	})
	var results []*sarama.ResourceResponse
	if err == nil {
		results = answer.Resources
	}
	for _, r := range results {
		if code := sarama.KError(r.ErrorCode); code != sarama.ErrNoError {
			err = code // such as of a broker that does not know a new topic yet
		}
	}
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
	for _, r := range results {
		for _, e := range r.Configs {
			values[e.Name] = e.Value
		}
	}
	number := func(name string) int64 { n, _ := strconv.ParseInt(values[name], 10, 64); return n }
	st.MinInSync, st.MaxMessageBytes = int(number("min.insync.replicas")), int(number("max.message.bytes"))
	st.CleanupPolicy, st.RetentionMS = values["cleanup.policy"], number("retention.ms")
	st.Problems = append(st.Problems, k.problems(st, len(client.Brokers()),
		values["unclean.leader.election.enable"] == "true")...)
	for _, p := range partitions {
		if replicas, err := client.InSyncReplicas(k.cfg.Topic, p); err == nil && len(replicas) < st.MinInSync {
			gone.add(p, fmt.Errorf("of its replicas %d are in sync, and min.insync.replicas is %d", len(replicas),
				st.MinInSync))
		}
	}
	st.Problems = append(st.Problems, gone.problems(len(partitions))...)
	return st, nil
}

// away are partitions that take no events now.
type away struct {
	partitions map[int32]bool
	cause      error // of one of them
}

func (a *away) add(partition int32, cause error) {
	if a.partitions == nil {
		a.partitions = map[int32]bool{}
	}
	if !a.partitions[partition] {
		a.partitions[partition], a.cause = true, cause
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

// leaders connects to the leader of each partition, and returns one that answers, if any. The cluster may not know
// yet that a leader is gone.
func (k *Kafka) leaders(client sarama.Client, partitions []int32) (answers *sarama.Broker, gone away) {
	for _, p := range partitions {
		leader, err := client.Leader(k.cfg.Topic, p)
		if err == nil {
			if _, err = leader.Connected(); err != nil {
				err = fmt.Errorf("connect to broker %s: %w", leader.Addr(), k.explain(err))
			}
		}
		if err != nil {
			gone.add(p, err)
		} else {
			answers = leader
		}
	}
	return answers, gone
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
