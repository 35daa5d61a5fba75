package sink

import (
	"cmp"
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

	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/metric"
)

// Kafka publishes to one topic: CloudEvents in binary mode, with the key and the partition of the
// Java client.
//
// It builds record batches itself and gives them to Sarama's brokers, because a retry must send the
// same batch with the same producer id, epoch and sequence numbers. Then a broker that has the batch
// already says so, however long ago that was. A producer that makes a new batch of the rest, or goes
// on with the next one, repeats or reorders events. When a batch is given up, its sequence numbers
// must not be used again: the broker could take the next batch for it and drop it. So the partition
// gets a new producer id.
type Kafka struct {
	cfg    KafkaConfig
	conf   *sarama.Config
	log    *zap.Logger
	resets prometheus.Counter
	net    *network
	asking chan struct{} // limits how many partitions ask for a producer id at once
	try    func()        // [Kafka.tryBrokers], once

	done chan struct{}
	work sync.WaitGroup

	mu         sync.Mutex // guards the fields below; no request is made while it is held
	client     sarama.Client
	first      *firstProducer
	partitions map[int32]*partitionProducer
	senders    map[int32]*sender
	refreshed  time.Time
	closed     bool
	cluster    *string // the cluster that events go to: that of the first broker that answered
}

type producer struct {
	id    int64
	epoch int16
}

// firstProducer is the producer id that all partitions start with: one asks for it, the others wait.
type firstProducer struct {
	done     chan struct{} // closed when the other fields are set
	producer *producer
	err      error
}

// partitionProducer is the producer of a partition. Only the attempt that has the turn reads and
// writes the other fields.
type partitionProducer struct {
	turn     chan struct{} // holds a token while an attempt is under way
	producer *producer     // nil: ask for one
	own      bool          // the producer must be of this partition alone
	next     int32         // sequence number of the next batch
	open     *relay.Batch  // sent, and not known to be stored
}

// maxAsking limits how many connections ask for producer ids at once.
const maxAsking = 16

var errClosed = errors.New("the Kafka sink is closed")

// sealed is the record batch made of a batch. It never changes, whatever happens to the attempts.
type sealed struct {
	by    *producer
	batch *sarama.RecordBatch
}

// KafkaOptions are what the settings alone do not say.
type KafkaOptions struct {
	Log      *zap.Logger           // nil: none
	Registry prometheus.Registerer // nil: none
	Prod     bool                  // plaintext needs kafka.allow_plaintext
	// Dial connects to brokers; nil: directly.
	Dial func(network, address string) (net.Conn, error)
}

// OpenKafka makes a sink, which connects when it is first used.
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
	k := &Kafka{
		cfg: cfg, conf: conf, log: opt.Log, net: newNetwork(cfg.DialTimeout, opt.Dial),
		asking: make(chan struct{}, maxAsking),
		done:   make(chan struct{}), partitions: map[int32]*partitionProducer{}, senders: map[int32]*sender{},
		resets: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "authctl_outbox_producer_id_resets_total",
			Help: "Times a partition needed a new producer id because a broker no longer knew the old one.",
		}),
	}
	conf.Net.Proxy.Enable, conf.Net.Proxy.Dialer = true, k.net
	k.try = sync.OnceFunc(k.tryBrokers)
	k.log = cmp.Or(k.log, zap.NewNop())
	if err := metric.Register(opt.Registry, "the metrics of the Kafka sink", k.resets); err != nil {
		return nil, err
	}
	return k, nil
}

// Name implements [relay.Sink].
func (k *Kafka) Name() string { return k.cfg.TargetName() }

// Identity implements [relay.Sink].
func (k *Kafka) Identity(ctx context.Context) (string, error) {
	return await(ctx, k, func() (string, error) {
		client, err := k.connect()
		if err != nil {
			return "", err
		}
		// The client tries one broker after another.
		err = client.RefreshMetadata(k.cfg.Topic)
		if code, has := codeOf(err); err != nil && (!has || meanings[code].kind != "topic") {
			return "", k.explain(err)
		}
		broker := client.LeastLoadedBroker()
		if broker == nil {
			return "", k.explain(sarama.ErrOutOfBrokers)
		}
		return k.clusterOf(broker)
	})
}

var errOtherCluster = errors.New("the brokers are those of another cluster")

// clusterOf asks a broker for the id of its cluster. Events go to the cluster of the first answer.
func (k *Kafka) clusterOf(broker *sarama.Broker) (string, error) {
	res, err := broker.GetMetadata(sarama.NewMetadataRequest(k.conf.Version, []string{k.cfg.Topic}))
	if err != nil {
		return "", k.explain(fmt.Errorf("ask broker %s for its cluster: %w", broker.Addr(), err))
	}
	id := ""
	if res.ClusterID != nil {
		id = *res.ClusterID
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cluster == nil {
		k.cluster = &id
	}
	return id, nil
}

// sameCluster fails if a broker does not belong to the cluster that events go to.
func (k *Kafka) sameCluster(broker *sarama.Broker) error {
	id, err := k.clusterOf(broker)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if id == *k.cluster {
		return nil
	}
	return &relay.Stalled{Kind: "target", Err: fmt.Errorf("%w: the one at %s belongs to the cluster %q now, "+
		"and events go to the topic %q of the cluster %q: name the brokers of that one in kafka.brokers",
		errOtherCluster, broker.Addr(), id, k.cfg.Topic, *k.cluster)}
}

// Partitions implements [relay.Sink].
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

// Publish implements [relay.Sink]. It returns as soon as ctx ends. The attempt goes on until the
// broker has answered or the sink is closed, and the next attempt of the partition waits for it.
func (k *Kafka) Publish(ctx context.Context, b *relay.Batch) error {
	p := k.partition(int32(b.Partition))
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-k.done:
		return errClosed
	}
	answer := make(chan error, 1)
	begun := k.begin(func() {
		err := k.attempt(ctx, p, b)
		<-p.turn
		answer <- err
	})
	if !begun {
		<-p.turn
		return errClosed
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attempt sends the batch once. Its caller has the partition's turn.
func (k *Kafka) attempt(ctx context.Context, p *partitionProducer, b *relay.Batch) (err error) {
	if p.open != nil && p.open != b {
		p.forget() // that batch may be stored, so its sequence numbers must not be used again
	}
	client, err := k.connect()
	if err != nil {
		return err
	}
	defer func() {
		if errors.Is(err, errOtherCluster) {
			_ = client.RefreshBrokers(k.cfg.Brokers) // otherwise it keeps asking the brokers of the other cluster
		}
	}()
	leader, err := client.Leader(k.cfg.Topic, int32(b.Partition))
	if err != nil {
		return k.explain(err)
	}
	if p.producer == nil {
		if p.producer, err = k.producer(client, p.own); err != nil {
			return err
		}
	}
	made, ok := b.Sealed.(*sealed)
	if !ok || made.by != p.producer {
		made = &sealed{by: p.producer, batch: k.seal(b.Records, p.producer, p.next)}
		b.Sealed = made
	}
	j := &job{
		ctx: ctx, broker: leader, partition: int32(b.Partition), batch: made.batch, owned: b.Owned,
		done: make(chan error, 1),
	}
	sent, answer := k.send(j)
	if sent {
		p.open = b
	}
	return k.outcome(client, p, b, answer)
}

// outcome translates a broker's answer for the relay.
func (k *Kafka) outcome(client sarama.Client, p *partitionProducer, b *relay.Batch, answer error) error {
	if answer == nil {
		p.delivered(len(b.Records))
		return nil
	}
	if errors.Is(answer, relay.ErrNotOwned) {
		return answer
	}
	code, has := codeOf(answer)
	if !has {
		k.refresh(client)
		return k.explain(answer)
	}
	switch meaningOf(code).reaction {
	case delivered:
		p.delivered(len(b.Records))
		return nil
	case refused:
		p.forget()
		refused := &relay.Refused{Err: answer}
		if records, ok := errors.AsType[*recordErrors](answer); ok {
			refused.Records = records.which(len(b.Records))
		}
		return refused
	case newProducer:
		k.resets.Inc()
		k.log.Warn("kafka_producer_replaced", zap.Int("partition", b.Partition), zap.Error(answer))
		p.forget()
		return answer
	}
	if code == sarama.ErrInvalidTimestamp {
		p.forget() // the next batch has a new time, so it is another batch
	}
	k.refresh(client)
	return k.explain(answer)
}

// forget makes the next batch start with a new producer.
func (p *partitionProducer) forget() { p.producer, p.own, p.open, p.next = nil, true, nil, 0 }

func (p *partitionProducer) delivered(records int) {
	p.open = nil
	p.next = (p.next + int32(records)) & 0x7fffffff // Kafka's sequences wrap to 0
}

// seal makes the record batch. Its time is the present, not that of the events: Kafka counts the
// retention of the topic and of its memory of producers from it, and must not drop an old event
// that is sent again at once.
func (k *Kafka) seal(records []relay.Record, by *producer, sequence int32) *sarama.RecordBatch {
	at := time.Now().Truncate(time.Millisecond)
	b := &sarama.RecordBatch{
		Version: 2, Codec: k.cfg.codec(), ProducerID: by.id, ProducerEpoch: by.epoch, FirstSequence: sequence,
		FirstTimestamp: at, MaxTimestamp: at, LastOffsetDelta: int32(len(records) - 1),
		Records: make([]*sarama.Record, len(records)),
	}
	w := newWriter(records)
	for i := range records {
		b.Records[i] = w.record(i, &records[i])
	}
	return b
}

func (k *Kafka) partition(id int32) *partitionProducer {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.partitions[id]
	if p == nil {
		p = &partitionProducer{turn: make(chan struct{}, 1)}
		k.partitions[id] = p
	}
	return p
}

func (k *Kafka) connect() (sarama.Client, error) {
	k.try()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errClosed
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

// A broker that has not answered for hangAfter, while another one has, is not asked for avoidFor.
const hangAfter, avoidFor = 2 * time.Second, 10 * time.Second

// tryBrokers asks all brokers of the settings at once whether they are there. The client asks one after another, in an
// order of its own: one that hangs, or whose machine is off, takes it longer than commands, and people, wait.
func (k *Kafka) tryBrokers() {
	if len(k.cfg.Brokers) < 2 {
		return
	}
	conf := *k.conf
	conf.Net.Proxy.Dialer = uncounted{k.net}
	type answer struct {
		address string
		there   bool
	}
	answers, silent := make(chan answer, len(k.cfg.Brokers)), map[string]bool{}
	for _, address := range k.cfg.Brokers {
		silent[address] = true
		go func() { // until its time is over, or the sink is closed
			broker := sarama.NewBroker(address)
			there := broker.Open(&conf) == nil
			if there {
				there, _ = broker.Connected()
			}
			answers <- answer{address, there}
			if _ = broker.Close(); there {
				k.net.avoid(address, 0) // it was only slow
			}
		}()
	}
	late, some := time.After(k.cfg.DialTimeout), false
	for len(silent) > 0 {
		select {
		case a := <-answers:
			if delete(silent, a.address); a.there && !some {
				late, some = time.After(hangAfter), true
			}
			continue
		case <-late:
		}
		break
	}
	for address := range silent {
		if some {
			k.net.avoid(address, avoidFor)
		}
	}
}

// producer returns the producer id that all partitions start with, or a new one for a partition that
// lost that.
func (k *Kafka) producer(client sarama.Client, own bool) (*producer, error) {
	if own {
		select {
		case k.asking <- struct{}{}:
		case <-k.done:
			return nil, errClosed
		}
		defer func() { <-k.asking }()
		return k.newProducer(client)
	}
	k.mu.Lock()
	f, asks := k.first, false
	if f == nil {
		f, asks = &firstProducer{done: make(chan struct{})}, true
		k.first = f
	}
	k.mu.Unlock()
	if asks {
		f.producer, f.err = k.newProducer(client)
		if f.err != nil {
			k.mu.Lock()
			k.first = nil // the next attempt asks again
			k.mu.Unlock()
		}
		close(f.done)
	}
	select {
	case <-f.done:
		return f.producer, f.err
	case <-k.done:
		return nil, errClosed
	}
}

// newProducer asks the brokers, one after another, for a producer id, on a separate connection: on
// one that batches use, they would wait for a slow answer.
func (k *Kafka) newProducer(client sarama.Client) (*producer, error) {
	err := sarama.ErrOutOfBrokers
	for _, known := range client.Brokers() {
		select {
		case <-k.done:
			return nil, errClosed
		default:
		}
		var res *sarama.InitProducerIDResponse
		if res, err = k.askForProducer(known.Addr()); err != nil {
			continue
		}
		if res.Err == sarama.ErrNoError {
			return &producer{id: res.ProducerID, epoch: res.ProducerEpoch}, nil
		}
		err = res.Err
		break
	}
	return nil, k.explain(fmt.Errorf("ask for a producer id: %w", err))
}

func (k *Kafka) askForProducer(address string) (*sarama.InitProducerIDResponse, error) {
	conf := *k.conf
	conf.Net.Proxy.Dialer = uncounted{k.net}
	broker := sarama.NewBroker(address)
	if err := broker.Open(&conf); err != nil {
		return nil, err
	}
	defer broker.Close()
	if err := k.sameCluster(broker); err != nil {
		return nil, err
	}
	return broker.InitProducerID(&sarama.InitProducerIDRequest{Version: 4, ProducerID: -1, ProducerEpoch: -1})
}

// refresh asks which brokers lead the partitions now, at most four times a second.
func (k *Kafka) refresh(client sarama.Client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || time.Since(k.refreshed) < 250*time.Millisecond {
		return
	}
	k.refreshed = time.Now()
	k.work.Go(func() { _ = client.RefreshMetadata(k.cfg.Topic) }) // the next attempt shows the result
}

func (k *Kafka) who() string {
	if k.cfg.SASL.Mechanism == "none" {
		return "this client"
	}
	return "the Kafka user " + strconv.Quote(k.cfg.SASL.User)
}

// Close implements [relay.Sink]. Attempts in progress end with an error.
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
	k.net.close() // ends every wait for a broker
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

// begin starts work that [Kafka.Close] waits for, unless the sink is closed.
func (k *Kafka) begin(run func()) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.work.Go(run)
	}
	return !k.closed
}

// await runs work that cannot be cancelled, and stops waiting for it when ctx ends. The work has its
// own time limits.
func await[T any](ctx context.Context, k *Kafka, run func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	c := make(chan result, 1)
	begun := k.begin(func() {
		value, err := run()
		c <- result{value, err}
	})
	var none T
	if !begun {
		return none, errClosed
	}
	select {
	case r := <-c:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// sender puts the batches that wait for a broker into one request, one request at a time.
type sender struct {
	jobs    chan *job
	checked map[string]int // by address, the last connection that was found to lead to the right cluster
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

// send returns whether the batch was sent, and the broker's answer. A batch that still waits for its
// turn when its context ends is not sent. For the answer to a batch that was sent, send waits.
func (k *Kafka) send(j *job) (bool, error) {
	k.mu.Lock()
	s := k.senders[j.broker.ID()]
	if s == nil && !k.closed {
		s = &sender{jobs: make(chan *job, 4096), checked: map[string]int{}}
		k.senders[j.broker.ID()] = s
		k.work.Go(func() { k.run(s) })
	}
	k.mu.Unlock()
	if s == nil {
		return false, errClosed
	}
	select {
	case s.jobs <- j:
	case <-j.ctx.Done():
		return false, j.ctx.Err()
	case <-k.done:
		return false, errClosed
	}
	select {
	case err := <-j.done:
		return j.sent, err
	case <-k.done:
		return true, errClosed
	}
}

// maxRequest is far below the limits of brokers (socket.request.max.bytes) and of Sarama.
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
		broker := waiting[0].broker
		err := k.checkConnection(s, broker)
		for _, j := range waiting {
			switch bytes := batchBytes(j.batch); {
			case j.ctx.Err() != nil:
				j.done <- j.ctx.Err()
			case j.broker != broker || len(now) > 0 && size+bytes > maxRequest:
				later = append(later, j)
			case err != nil:
				j.done <- err
			case !j.owned():
				j.done <- relay.ErrNotOwned
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

// checkConnection makes sure, once for each connection, that it leads to the cluster that events go
// to: another cluster can get its address.
func (k *Kafka) checkConnection(s *sender, broker *sarama.Broker) error {
	if made := k.net.made(broker.Addr()); made > 0 && made == s.checked[broker.Addr()] {
		return nil
	}
	if _, err := broker.Connected(); err != nil { // waits while it connects
		return fmt.Errorf("connect to broker %s: %w", broker.Addr(), err)
	}
	made := k.net.made(broker.Addr())
	if err := k.sameCluster(broker); err != nil {
		return err
	}
	s.checked[broker.Addr()] = made
	return nil
}

func batchBytes(b *sarama.RecordBatch) (n int) {
	for _, r := range b.Records {
		n += 512 + len(r.Key) + len(r.Value)
	}
	return n
}

// produce sends one request and distributes the answers.
func (k *Kafka) produce(jobs []*job) {
	req := &sarama.ProduceRequest{
		Version: 9, RequiredAcks: sarama.WaitForAll, Timeout: int32(k.cfg.RequestTimeout.Milliseconds()),
	}
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
		_ = broker.Close() // it no longer answers; the next attempt opens it again
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

// recordErrors is a broker's error for one batch, with that of each record (KIP-467).
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
