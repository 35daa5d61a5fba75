package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox/outboxbench"
	"github.com/toppira/authctl/modules/outbox/sink"
)

// bareProducer is how many events a second Sarama's producer sends from memory, with the guarantees
// that the relay gives (idempotent, acknowledged by all) and batches of the same size: what
// somebody would have without an outbox.
func bareProducer(ctx context.Context, brokers string, events, batch int) (rate float64, err error) {
	topic := "bench-" + uuid.NewString()
	k, err := sink.OpenKafka(sink.KafkaConfig{Brokers: strings.Split(brokers, ","), Topic: topic}, sink.KafkaOptions{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	if _, err := k.EnsureTopic(ctx); err != nil {
		return 0, err
	}
	partitions, err := k.Partitions(ctx)
	if err != nil {
		return 0, err
	}
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	cfg.Producer.RequiredAcks, cfg.Producer.Idempotent, cfg.Net.MaxOpenRequests = sarama.WaitForAll, true, 1
	cfg.Producer.Compression = sarama.CompressionLZ4
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.Flush.MaxMessages = batch
	cfg.Producer.Return.Successes, cfg.Producer.Return.Errors = true, true
	producer, err := sarama.NewSyncProducer(strings.Split(brokers, ","), cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, producer.Close()) }()

	byPartition := make([][]*sarama.ProducerMessage, partitions)
	for p, records := range outboxbench.ByPartition(events, partitions) {
		for _, r := range records {
			m := &sarama.ProducerMessage{Topic: topic, Partition: int32(p), Key: sarama.StringEncoder(r.Key),
				Value: sarama.ByteEncoder(r.Data)}
			for _, h := range [][2]string{
				{"ce_specversion", "1.0"}, {"ce_id", r.EventID}, {"ce_source", r.Source}, {"ce_type", r.Type},
				{"ce_time", r.Time}, {"ce_subject", r.Subject}, {"ce_dataschema", r.DataSchema},
				{"ce_sequence", strconv.FormatInt(r.Seq, 10)}, {"content-type", "application/json"},
			} {
				m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h[0]), Value: []byte(h[1])})
			}
			byPartition[p] = append(byPartition[p], m)
		}
	}
	errs := make([]error, partitions)
	var group sync.WaitGroup
	begin := time.Now()
	for p, messages := range byPartition {
		group.Go(func() {
			for chunk := range slices.Chunk(messages, batch) {
				if errs[p] = producer.SendMessages(chunk); errs[p] != nil {
					return
				}
			}
		})
	}
	group.Wait()
	return float64(events) / time.Since(begin).Seconds(), errors.Join(errs...)
}
