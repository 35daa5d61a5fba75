package outboxtest

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ReadKafka reads a topic from its beginning to its current end, with another client than the one
// that wrote it.
func ReadKafka(ctx context.Context, brokers []string, topic string, opts ...kgo.Opt) ([]Seen, error) {
	records, err := ReadRecords(ctx, brokers, topic, opts...)
	if err != nil {
		return nil, err
	}
	out := make([]Seen, 0, len(records))
	for _, r := range records {
		s, err := ParseRecord(r)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// ReadRecords is [ReadKafka] without parsing.
func ReadRecords(ctx context.Context, brokers []string, topic string, opts ...kgo.Opt) ([]*kgo.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	ends, err := endOffsets(ctx, brokers, topic, opts...)
	if err != nil {
		return nil, err
	}
	from := map[int32]kgo.Offset{}
	left := 0
	for p, end := range ends {
		if end > 0 {
			from[p] = kgo.NewOffset().At(0)
			left++
		}
	}
	if left == 0 {
		return nil, nil
	}
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...), kgo.FetchMaxWait(100 * time.Millisecond),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from})}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", topic, err)
	}
	defer client.Close()
	var out []*kgo.Record
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("read %s: %w", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset < ends[r.Partition] {
				out = append(out, r)
			}
			if r.Offset == ends[r.Partition]-1 {
				left--
			}
		})
	}
	return out, nil
}

func endOffsets(ctx context.Context, brokers []string, topic string, opts ...kgo.Opt) (map[int32]int64, error) {
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...)}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("ask for the end of %s: %w", topic, err)
	}
	defer client.Close()
	meta := kmsg.NewPtrMetadataRequest()
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = kmsg.StringPtr(topic)
	meta.Topics = append(meta.Topics, t)
	m, err := meta.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("ask for the partitions of %s: %w", topic, err)
	}
	list := kmsg.NewPtrListOffsetsRequest()
	lt := kmsg.NewListOffsetsRequestTopic()
	lt.Topic = topic
	for _, p := range m.Topics[0].Partitions {
		lp := kmsg.NewListOffsetsRequestTopicPartition()
		lp.Partition, lp.Timestamp = p.Partition, -1
		lt.Partitions = append(lt.Partitions, lp)
	}
	list.Topics = append(list.Topics, lt)
	out := map[int32]int64{}
	for _, shard := range client.RequestSharded(ctx, list) {
		if shard.Err != nil {
			return nil, fmt.Errorf("ask for the end of %s: %w", topic, shard.Err)
		}
		for _, t := range shard.Resp.(*kmsg.ListOffsetsResponse).Topics {
			for _, p := range t.Partitions {
				out[p.Partition] = p.Offset
			}
		}
	}
	return out, nil
}

// ParseRecord parses an event in binary mode. The time of the record and the mark of a replay can
// differ between deliveries, and are not part of the body.
func ParseRecord(r *kgo.Record) (Seen, error) {
	s := Seen{Partition: int(r.Partition), Key: string(r.Key)}
	for _, h := range r.Headers {
		switch h.Key {
		case "ce_id":
			s.ID = string(h.Value)
		case "ce_sequence":
			seq, err := strconv.ParseInt(string(h.Value), 10, 64)
			if err != nil {
				return s, fmt.Errorf("understand the sequence of an event: %w", err)
			}
			s.Seq = seq
		case "traceparent":
			s.Trace = string(h.Value)
		case "ce_generation":
			s.Generation = string(h.Value)
		case "ce_replay":
			s.Replay = string(h.Value) == "true"
			continue
		}
		s.Body += h.Key + "=" + string(h.Value) + "\n"
	}
	s.Body += string(r.Value)
	return s, nil
}
