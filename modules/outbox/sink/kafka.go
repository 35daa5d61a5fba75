package sink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
)

// Kafka publishes to one topic: CloudEvents in binary mode, key and partition as the Java
// client would have them.
//
// It builds record batches itself and hands them to Sarama's brokers, because of what a
// retry must be: the same batch, with the same producer id, epoch and sequence numbers, so
// that a broker that has it already says so, however long ago that was. A producer that
// makes a new batch of what is left, or goes on with the next one, repeats or reorders
// events. When a batch is given up for another one its sequence numbers are burnt: the
// broker could take the new batch for the old one and drop it. Then the partition gets a
// new producer id.
type Kafka struct {
	cfg    KafkaConfig
	conf   *sarama.Config
	log    *zap.Logger
	resets prometheus.Counter

	done chan struct{}
	work sync.WaitGroup

	mu        sync.Mutex
	client    sarama.Client
	first     *producer // the id that all partitions begin with
	lanes     map[int32]*lane
	senders   map[int32]*sender
	refreshed time.Time
	closed    bool
}

type producer struct {
	id    int64
	epoch int16
}

// lane is the producer's side of a partition. The relay publishes to a partition one batch
// at a time; mu keeps that so.
type lane struct {
	mu       sync.Mutex
	producer *producer     // nil: ask for one
	own      bool          // it must be one that no other partition has
	next     int32         // sequence number of the next batch
	open     *outbox.Batch // sent, and its fate not known
}

// sealed is what became of a batch: never changed, whatever happens to the attempts.
type sealed struct {
	by    *producer
	batch *sarama.RecordBatch
}

// KafkaOptions are what the settings alone do not say.
type KafkaOptions struct {
	Log      *zap.Logger           // nil: none
	Registry prometheus.Registerer // nil: none
	Prod     bool                  // plaintext needs kafka.allow_plaintext
	// Dial makes the connections to brokers; nil: directly.
	Dial func(network, address string) (net.Conn, error)
}

type dialer func(network, address string) (net.Conn, error)

func (d dialer) Dial(network, address string) (net.Conn, error) { return d(network, address) }

// OpenKafka makes a sink; it connects when it is first used.
func OpenKafka(cfg KafkaConfig, opt KafkaOptions) (*Kafka, error) {
	cfg = cfg.withDefaults()
	if opt.Prod {
		var problem error
		cfg.ValidateProd(func(path, text string) { problem = fmt.Errorf("%s: %s", path, text) })
		if problem != nil {
			return nil, problem
		}
	}
	conf, err := cfg.sarama()
	if err != nil {
		return nil, err
	}
	if opt.Dial != nil {
		conf.Net.Proxy.Enable, conf.Net.Proxy.Dialer = true, dialer(opt.Dial)
	}
	k := &Kafka{
		cfg: cfg, conf: conf, log: opt.Log, done: make(chan struct{}), lanes: map[int32]*lane{}, senders: map[int32]*sender{},
		resets: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "authctl_outbox_producer_id_resets_total", Help: "Times a partition needed a new producer id because a broker no longer knew the old one.",
		}),
	}
	if k.log == nil {
		k.log = zap.NewNop()
	}
	if opt.Registry != nil {
		if err := opt.Registry.Register(k.resets); err != nil {
			return nil, fmt.Errorf("register the metrics of the Kafka sink: %w", err)
		}
	}
	return k, nil
}

// Name implements [outbox.Sink].
func (k *Kafka) Name() string { return "kafka:" + k.cfg.Topic }

// Partitions implements [outbox.Sink].
func (k *Kafka) Partitions(ctx context.Context) (int, error) {
	return await(ctx, k, func() (int, error) {
		client, err := k.connect()
		if err != nil {
			return 0, err
		}
		if err := client.RefreshMetadata(k.cfg.Topic); err != nil {
			return 0, k.explain(err)
		}
		list, err := client.Partitions(k.cfg.Topic)
		if err != nil {
			return 0, k.explain(err)
		}
		return len(list), nil
	})
}

// Publish implements [outbox.Sink].
func (k *Kafka) Publish(ctx context.Context, b *outbox.Batch) error {
	partition := int32(b.Partition)
	l := k.lane(partition)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil && l.open != b {
		l.forget() // the sequence numbers of a batch whose fate is unknown are burnt
	}
	type way struct {
		client sarama.Client
		leader *sarama.Broker
		by     *producer
	}
	to, err := await(ctx, k, func() (w way, err error) {
		if w.client, err = k.connect(); err != nil {
			return w, err
		}
		if w.leader, err = w.client.Leader(k.cfg.Topic, partition); err != nil {
			return w, k.explain(err)
		}
		if w.by = l.producer; w.by == nil {
			w.by, err = k.producer(w.client, l.own)
		}
		return w, err
	})
	if err != nil {
		return err
	}
	l.producer = to.by
	made, ok := b.Sealed.(*sealed)
	if !ok || made.by != l.producer {
		made = &sealed{by: l.producer, batch: k.seal(b.Records, l.producer, l.next)}
		b.Sealed = made
	}
	sent, answer := k.send(ctx, to.leader, partition, made.batch, b.Owned)
	if sent {
		l.open = b
	}
	return k.judge(to.client, l, b, answer)
}

// judge makes of a broker's answer what the relay must know.
func (k *Kafka) judge(client sarama.Client, l *lane, b *outbox.Batch, answer error) error {
	var code sarama.KError
	if answer == nil || errors.Is(answer, sarama.ErrDuplicateSequenceNumber) {
		l.open = nil
		l.next = (l.next + int32(len(b.Records))) & 0x7fffffff // Kafka's sequences wrap to 0
		return nil
	}
	if errors.Is(answer, outbox.ErrNotOwned) || !errors.As(answer, &code) {
		if !errors.Is(answer, outbox.ErrNotOwned) {
			k.refresh(client)
		}
		return k.explain(answer)
	}
	switch code {
	case sarama.ErrMessageSizeTooLarge, sarama.ErrMessageSetSizeTooLarge, sarama.ErrInvalidRecord:
		l.forget()
		refused := &outbox.Refused{Err: answer}
		var records *recordErrors
		if errors.As(answer, &records) {
			refused.Records = records.which(len(b.Records))
		}
		return refused
	case sarama.ErrOutOfOrderSequenceNumber, sarama.ErrUnknownProducerID, sarama.ErrInvalidProducerEpoch,
		sarama.ErrInvalidProducerIDMapping, sarama.ErrProducerFenced:
		k.resets.Inc()
		k.log.Warn("a broker no longer knows the producer; going on with a new one", zap.Int("partition", b.Partition), zap.Error(answer))
		l.forget()
		return answer
	}
	if code == sarama.ErrInvalidTimestamp {
		l.forget() // a new batch, with a new time, is another batch
	}
	k.refresh(client)
	return k.explain(answer)
}

// forget makes the next batch begin with a new producer.
func (l *lane) forget() { l.producer, l.own, l.open, l.next = nil, true, nil, 0 }

// seal makes the record batch. Its time is that of its making, not that of the events: by
// it Kafka counts retention, of the topic and of what it remembers of producers, and an old
// event that is sent again must not be dropped at once.
func (k *Kafka) seal(records []outbox.Record, by *producer, sequence int32) *sarama.RecordBatch {
	at := time.Now().Truncate(time.Millisecond)
	b := &sarama.RecordBatch{
		Version: 2, Codec: sarama.CompressionLZ4, ProducerID: by.id, ProducerEpoch: by.epoch, FirstSequence: sequence,
		FirstTimestamp: at, MaxTimestamp: at, LastOffsetDelta: int32(len(records) - 1), Records: make([]*sarama.Record, len(records)),
	}
	w := newWriter(records)
	for i := range records {
		b.Records[i] = w.record(i, &records[i])
	}
	return b
}

func (k *Kafka) lane(partition int32) *lane {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.lanes[partition]
	if l == nil {
		l = &lane{}
		k.lanes[partition] = l
	}
	return l
}

func (k *Kafka) connect() (sarama.Client, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errors.New("the Kafka sink is closed")
	}
	if k.client == nil {
		client, err := sarama.NewClient(k.cfg.Brokers, k.conf) // connects nowhere yet
		if err != nil {
			return nil, fmt.Errorf("make a Kafka client: %w", err)
		}
		k.client = client
	}
	return k.client, nil
}

// producer asks for a producer id: one for all partitions to begin with, one of its own for
// each that lost it.
func (k *Kafka) producer(client sarama.Client, own bool) (*producer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !own && k.first != nil {
		return k.first, nil
	}
	res, err := client.InitProducerID()
	if err == nil && res.Err != sarama.ErrNoError {
		err = res.Err
	}
	if err != nil {
		return nil, k.explain(fmt.Errorf("ask for a producer id: %w", err))
	}
	p := &producer{id: res.ProducerID, epoch: res.ProducerEpoch}
	if !own {
		k.first = p
	}
	return p, nil
}

// refresh asks where the partitions are now, at most a few times a second for all of them.
func (k *Kafka) refresh(client sarama.Client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || time.Since(k.refreshed) < 250*time.Millisecond {
		return
	}
	k.refreshed = time.Now()
	k.work.Go(func() { _ = client.RefreshMetadata(k.cfg.Topic) }) // the next attempt shows
}

// explain says plainly what only a person can change.
func (k *Kafka) explain(err error) error {
	switch {
	case errors.Is(err, sarama.ErrSASLAuthenticationFailed), errors.Is(err, sarama.ErrUnsupportedSASLMechanism), errors.Is(err, sarama.ErrIllegalSASLState):
		return &outbox.Stalled{Kind: "authentication", Err: fmt.Errorf("Kafka refuses the sign-in of %q with kafka.sasl.mechanism %s: check kafka.sasl.*: %w", k.cfg.SASL.User, k.cfg.SASL.Mechanism, err)} //nolint:staticcheck // a name
	case errors.Is(err, sarama.ErrTopicAuthorizationFailed):
		return &outbox.Stalled{Kind: "authorization", Err: fmt.Errorf("%s may not write to the topic %q: allow it WRITE and DESCRIBE on it: %w", k.who(), k.cfg.Topic, err)}
	case errors.Is(err, sarama.ErrClusterAuthorizationFailed):
		return &outbox.Stalled{Kind: "authorization", Err: fmt.Errorf("%s may not use an idempotent producer: allow it IDEMPOTENT_WRITE on the cluster: %w", k.who(), err)}
	case errors.Is(err, sarama.ErrUnknownTopicOrPartition), errors.Is(err, sarama.ErrInvalidTopic):
		return &outbox.Stalled{Kind: "topic", Err: fmt.Errorf("the topic %q does not exist: make it with authctl outbox topic ensure: %w", k.cfg.Topic, err)}
	case errors.Is(err, sarama.ErrInvalidTimestamp):
		return &outbox.Stalled{Kind: "clock", Err: fmt.Errorf("the brokers do not accept this machine's time: set one of the clocks right: %w", err)}
	}
	return err
}

func (k *Kafka) who() string {
	if k.cfg.SASL.Mechanism == "none" {
		return "this client"
	}
	return "the Kafka user " + strconv.Quote(k.cfg.SASL.User)
}

// Close implements [outbox.Sink]. What is under way ends with an error.
func (k *Kafka) Close() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return nil
	}
	k.closed = true
	client := k.client
	k.mu.Unlock()
	close(k.done)
	var err error
	if client != nil {
		err = client.Close()
	}
	k.work.Wait()
	if errors.Is(err, sarama.ErrClosedClient) {
		return nil
	}
	return err
}

// await runs what cannot be cancelled, and stops waiting for it when ctx ends. It has time
// limits of its own; [Kafka.Close] waits for it.
func await[T any](ctx context.Context, k *Kafka, run func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	c := make(chan result, 1)
	k.mu.Lock()
	closed := k.closed
	if !closed {
		k.work.Go(func() {
			value, err := run()
			c <- result{value, err}
		})
	}
	k.mu.Unlock()
	var none T
	if closed {
		return none, errors.New("the Kafka sink is closed")
	}
	select {
	case r := <-c:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// sender puts the batches that wait for one broker into one request at a time.
type sender struct {
	jobs chan *job
}

type job struct {
	ctx       context.Context
	broker    *sarama.Broker
	partition int32
	batch     *sarama.RecordBatch
	owned     func() bool
	sent      bool
	done      chan error
}

// send returns whether the batch went out, and the broker's answer.
func (k *Kafka) send(ctx context.Context, broker *sarama.Broker, partition int32, batch *sarama.RecordBatch, owned func() bool) (bool, error) {
	j := &job{ctx: ctx, broker: broker, partition: partition, batch: batch, owned: owned, done: make(chan error, 1)}
	k.mu.Lock()
	s := k.senders[broker.ID()]
	if s == nil && !k.closed {
		s = &sender{jobs: make(chan *job, 4096)}
		k.senders[broker.ID()] = s
		k.work.Go(func() { k.run(s) })
	}
	k.mu.Unlock()
	if s == nil {
		return false, errors.New("the Kafka sink is closed")
	}
	select {
	case s.jobs <- j:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	select {
	case err := <-j.done:
		return j.sent, err
	case <-ctx.Done():
		return true, ctx.Err()
	case <-k.done:
		return true, errors.New("the Kafka sink was closed")
	}
}

// maxRequest is far below what brokers take (socket.request.max.bytes) and Sarama sends.
const maxRequest = 32 << 20

func (k *Kafka) run(s *sender) {
	var waiting []*job
	for {
		if len(waiting) == 0 {
			select {
			case <-k.done:
				return
			case j := <-s.jobs:
				waiting = append(waiting, j)
			}
		}
		for more := true; more; {
			select {
			case j := <-s.jobs:
				waiting = append(waiting, j)
			default:
				more = false
			}
		}
		var now, later []*job
		size := 0
		for _, j := range waiting {
			switch bytes := batchBytes(j.batch); {
			case j.ctx.Err() != nil:
				j.done <- j.ctx.Err()
			case len(now) > 0 && (j.broker != now[0].broker || size+bytes > maxRequest):
				later = append(later, j)
			case !j.owned():
				j.done <- outbox.ErrNotOwned
			default:
				now, size = append(now, j), size+bytes
			}
		}
		waiting = later
		if len(now) > 0 {
			k.produce(now)
		}
	}
}

func batchBytes(b *sarama.RecordBatch) (n int) {
	for _, r := range b.Records {
		n += 512 + len(r.Key) + len(r.Value)
	}
	return n
}

// produce sends one request and hands out its answers.
func (k *Kafka) produce(jobs []*job) {
	req := &sarama.ProduceRequest{Version: 9, RequiredAcks: sarama.WaitForAll, Timeout: int32(k.cfg.RequestTimeout.Milliseconds())}
	for _, j := range jobs {
		req.AddBatch(k.cfg.Topic, j.partition, j.batch)
		j.sent = true
	}
	type answer struct {
		res *sarama.ProduceResponse
		err error
	}
	c := make(chan answer, 1)
	broker := jobs[0].broker
	err := broker.AsyncProduce(req, func(res *sarama.ProduceResponse, err error) { c <- answer{res, err} })
	var a answer
	if err == nil {
		a = <-c // within the read timeout, or when Close closes the connection
		err = a.err
	}
	if err != nil {
		_ = broker.Close() // it answers nothing any more; the next attempt opens it anew
		err = fmt.Errorf("send to broker %s: %w", broker.Addr(), err)
	}
	for _, j := range jobs {
		if err != nil {
			j.done <- err
			continue
		}
		block := a.res.GetBlock(k.cfg.Topic, j.partition)
		switch {
		case block == nil:
			j.done <- fmt.Errorf("broker %s did not answer for partition %d", broker.Addr(), j.partition)
		case block.Err == sarama.ErrNoError:
			j.done <- nil
		default:
			j.done <- &recordErrors{code: block.Err, message: block.ErrorMessage, records: block.RecordErrors}
		}
	}
}

// recordErrors is a broker's answer for one batch, KIP-467.
type recordErrors struct {
	code    sarama.KError
	message *string
	records []sarama.ProduceResponseRecordError
}

func (e *recordErrors) Error() string {
	var b strings.Builder
	b.WriteString(e.code.Error())
	if e.message != nil {
		b.WriteString(": " + *e.message)
	}
	return b.String()
}

func (e *recordErrors) Unwrap() error { return e.code }

func (e *recordErrors) which(n int) (list []int) {
	for _, r := range e.records {
		if int(r.BatchIndex) < n && r.BatchIndex >= 0 {
			list = append(list, int(r.BatchIndex))
		}
	}
	return list
}

func pause(ctx context.Context) error {
	t := time.NewTimer(250 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
