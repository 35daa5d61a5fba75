package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/outbox/outboxbench"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/tuning"
)

// benchRelay measures the outbox on the real engines, or embedded where there are none.
func benchRelay(ctx context.Context, o options, r *report) (err error) {
	defer tuning.RoomyHeap()() // as authctl relay has it
	dir, err := os.MkdirTemp("", "authctl-bench-relay-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	dsn := "sqlite:" + filepath.Join(dir, "bench.db")
	if server := os.Getenv("AUTHCTL_TEST_POSTGRES"); server != "" {
		fresh, drop, err := freshDatabase(ctx, server)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, drop()) }()
		dsn = fresh
	}
	db, err := openDatabase(ctx, dsn, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	// Otherwise fetching and acknowledging would wait for connections that the writers hold until
	// the disk answers.
	relays := db
	if db.IsPostgres() {
		if relays, err = openDatabase(ctx, dsn, 0); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, relays.Close()) }()
	}
	if _, err := migrations.Up(ctx, db); err != nil {
		return err
	}
	to, name, err := benchSink(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	got, err := outboxbench.Run(ctx, outboxbench.Options{
		DB: db, RelayDB: relays, Sink: to, Duration: o.duration,
		Progress: func(what string) { fmt.Fprintf(os.Stderr, "  %s\n", what) },
	})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("drain of %d events into %s", got.Events, name)
	if brokers := os.Getenv("AUTHCTL_TEST_KAFKA"); brokers != "" {
		bare, err := bareProducer(ctx, brokers, got.Events, got.BatchEvents)
		if err != nil {
			return err
		}
		r.rate(what, got.DrainPerSec, bare, "bare Sarama producer", 0.7)
		r.rate("our sink alone, the same batches from memory", got.BarePerSec, bare, "bare Sarama producer", 0)
	} else {
		r.rate(what, got.DrainPerSec, got.BarePerSec, "same batches from memory", 0.7)
	}
	r.plain("drain, absolute goal", fmt.Sprintf("%.0f/s", got.DrainPerSec), "≥ 50000/s", got.DrainPerSec >= 50000)
	// After its commit an event waits for what a commit and a send take by themselves.
	r.within(fmt.Sprintf("commit → acknowledged p50 at %.0f/s", got.LatencyRate), got.LatencyP50,
		got.CommitP50+got.ProduceP50, "bare commit and send", 1.5, 5)
	r.steady(got.StepsMoved)
	r.within(fmt.Sprintf("commit → acknowledged p99 at %.0f/s", got.LatencyRate), got.LatencyP99,
		got.CommitP99+got.ProduceP99, "bare commit and send", 5, 25)
	r.rate("transactions with an event", got.WritersOutbox, got.WritersPlain, "bare insert", 0)
	r.steady(got.PlainMoved)
	if got.WALPerEvent > 0 {
		r.plain("WAL of an event, of its acknowledgement",
			fmt.Sprintf("%.0f B, %.0f B", got.WALPerEvent, got.WALPerAck), "", false)
	}
	return nil
}

// benchSink is the run's own topic on the real Kafka, or a file.
func benchSink(ctx context.Context, dir string) (relay.Sink, string, error) {
	brokers := os.Getenv("AUTHCTL_TEST_KAFKA")
	if brokers == "" {
		to, err := sink.OpenFile(filepath.Join(dir, "events.ndjson"))
		return to, "a file", err
	}
	k, err := sink.OpenKafka(sink.KafkaConfig{Brokers: strings.Split(brokers, ","), Topic: "bench-" + uuid.NewString()},
		sink.KafkaOptions{})
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := k.EnsureTopic(ctx); err != nil {
		return nil, "", errors.Join(err, k.Close())
	}
	return k, "Kafka", nil
}
