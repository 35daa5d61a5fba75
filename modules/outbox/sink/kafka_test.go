package sink_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

// fake is a Kafka in this process: enough to test the client, but no proof about brokers.
func fake(t *testing.T, opts ...kfake.Opt) (*kfake.Cluster, sink.KafkaConfig) {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(4, "events")}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, sink.KafkaConfig{Brokers: c.ListenAddrs(), Topic: "events", RequestTimeout: testenv.Patience,
		DialTimeout: testenv.Patience}
}

// real is a topic of the test's own on the real Kafka.
func real(t *testing.T) sink.KafkaConfig {
	t.Helper()
	return sink.KafkaConfig{Brokers: strings.Split(testenv.Kafka(t), ","), Topic: "test." + uuid.NewString(),
		Partitions: 4}
}

func openKafka(t *testing.T, cfg sink.KafkaConfig, opt sink.KafkaOptions) *sink.Kafka {
	t.Helper()
	k, err := sink.OpenKafka(cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// ensure makes the topic with the usual limits of time, whatever those of the test.
func ensure(t *testing.T, cfg sink.KafkaConfig) {
	t.Helper()
	cfg.RequestTimeout, cfg.DialTimeout = 0, 0
	k := openKafka(t, cfg, sink.KafkaOptions{})
	var err error
	for deadline := time.Now().Add(testenv.Patience); time.Now().Before(deadline); {
		if _, err = k.EnsureTopic(t.Context()); err == nil {
			return
		}
		t.Logf("make the topic: %v", err) // a busy broker
	}
	t.Fatal(err)
}

// keep publishes as the relay does: the same batch until it is accepted.
func keep(t *testing.T, k *sink.Kafka, b *relay.Batch) (attempts int) {
	t.Helper()
	for deadline := time.Now().Add(testenv.Patience); ; attempts++ {
		err := k.Publish(t.Context(), b)
		if err == nil {
			return attempts + 1
		}
		if time.Now().After(deadline) {
			t.Fatalf("not published in a minute: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestKafkaHasEventsInBinaryMode(t *testing.T) {
	t.Parallel()
	cfg := real(t)
	k := openKafka(t, cfg, sink.KafkaOptions{})
	ensure(t, cfg)
	second := record("k", 2)
	second.Replay = true
	second.TraceParent, second.Generation = traceparent, 12
	third := record("k", 3)
	third.TraceParent, third.Generation = strings.Replace(traceparent, "0af", "1af", 1), 13
	b := batch(record("k", 1), second, third)
	b.Partition = 3
	keep(t, k, b)
	got, err := outboxtest.ReadRecords(t.Context(), cfg.Brokers, cfg.Topic)
	if err != nil || len(got) != 3 {
		t.Fatalf("%d records, %v", len(got), err)
	}
	for i, r := range got {
		var headers string
		for _, h := range r.Headers {
			headers += h.Key + ": " + string(h.Value) + "\n"
		}
		want := fmt.Sprintf("ce_specversion: 1.0\nce_id: k-%d\nce_source: https://auth.example\nce_type: test.Happened.v1\nce_time: 2026-01-02T03:04:05.5Z\n"+
			"ce_subject: k\nce_sequence: %d\n", i+1, i+1)
		if i > 0 {
			want += fmt.Sprintf("ce_generation: %d\n", 11+i)
		}
		want += "ce_dataschema: https://schemas.example/a.json\n"
		if i == 1 {
			want += "ce_replay: true\n"
		}
		if trace := b.Records[i].TraceParent; trace != "" {
			want += "ce_traceparent: " + trace + "\ntraceparent: " + trace + "\n"
		}
		want += "content-type: application/json\n"
		if headers != want || string(r.Key) != "k" || string(r.Value) != `{"a":"<&> ü"}` || r.Partition != 3 ||
			r.Attrs.CompressionType() != 3 {
			t.Errorf("record %d: partition %d, codec %d, key %q, value %q, headers\n%swant\n%s", i, r.Partition,
				r.Attrs.CompressionType(), r.Key, r.Value, headers, want)
		}
	}
}

// deaf passes everything to the broker and, while cut, nothing back, so the answers are lost. It
// finds its connections itself.
type deaf struct {
	net.Conn
	cut *atomic.Bool
}

func (d deaf) Read(p []byte) (int, error) {
	for {
		n, err := d.Conn.Read(p)
		if err != nil || !d.cut.Load() {
			return n, err
		}
	}
}

// The broker has the batch, but the answer is lost. The client sends the batch again unchanged on
// another connection, and the broker recognises it. Nothing is duplicated, whatever follows.
func TestKafkaRepeatsNothingWhenAnswersAreLost(t *testing.T) {
	t.Parallel()
	cfg := real(t)
	cfg.RequestTimeout = 500 * time.Millisecond
	var cut atomic.Bool
	k := openKafka(t, cfg, sink.KafkaOptions{Dial: func(network, address string) (net.Conn, error) {
		c, err := net.DialTimeout(network, address, testenv.Patience)
		return deaf{c, &cut}, err
	}})
	ensure(t, cfg)
	var want []string
	for i := range int64(6) {
		b := batch(record("k", 2*i+1), record("k", 2*i+2))
		want = append(want, b.Records[0].EventID, b.Records[1].EventID)
		if i%2 == 1 {
			cut.Store(true)
			if err := k.Publish(t.Context(), b); err == nil {
				t.Fatal("published without an answer")
			}
			cut.Store(false)
		}
		keep(t, k, b)
	}
	got, err := outboxtest.ReadKafka(t.Context(), cfg.Brokers, cfg.Topic)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, s := range got {
		ids = append(ids, s.ID)
	}
	if strings.Join(ids, " ") != strings.Join(want, " ") {
		t.Errorf("got  %v\nwant %v", ids, want)
	}
}

// A batch with an unknown outcome is given up for another one. The broker must not take that for
// the first and drop it.
func TestKafkaLosesNothingAfterABatchWasGivenUp(t *testing.T) {
	t.Parallel()
	cfg := real(t)
	cfg.RequestTimeout = 500 * time.Millisecond
	var cut atomic.Bool
	k := openKafka(t, cfg, sink.KafkaOptions{Dial: func(network, address string) (net.Conn, error) {
		c, err := net.DialTimeout(network, address, testenv.Patience)
		return deaf{c, &cut}, err
	}})
	ensure(t, cfg)
	keep(t, k, batch(record("k", 1)))
	cut.Store(true)
	if err := k.Publish(t.Context(), batch(record("k", 2))); err == nil {
		t.Fatal("published without an answer")
	}
	cut.Store(false)
	keep(t, k, batch(record("other", 1)))
	got, err := outboxtest.ReadKafka(t.Context(), cfg.Brokers, cfg.Topic)
	if err != nil || len(got) == 0 || got[len(got)-1].Key != "other" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestKafkaSaysWhichRecordIsTooLarge(t *testing.T) {
	t.Parallel()
	cfg := real(t)
	k := openKafka(t, cfg, sink.KafkaOptions{})
	ensure(t, cfg)
	// The test's own client lowers the topic's limit.
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	res := kmsg.NewIncrementalAlterConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, cfg.Topic
	change := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	change.Name, change.Value = "max.message.bytes", kmsg.StringPtr("2000")
	res.Configs = append(res.Configs, change)
	req.Resources = append(req.Resources, res)
	if resp, err := req.RequestWith(t.Context(), client); err != nil || resp.Resources[0].ErrorCode != 0 {
		t.Fatal(err, resp)
	}
	noise := make([]byte, 3000)
	_, _ = rand.Read(noise)
	large := record("k", 2)
	large.Data = fmt.Appendf(nil, `{"a":"%x"}`, noise)
	var refused *relay.Refused
	for deadline := time.Now().Add(testenv.Patience); !errors.As(err, &refused); {
		if err = k.Publish(t.Context(), batch(large)); time.Now().After(deadline) {
			t.Fatalf("got %v, want a refusal", err)
		}
	}
	keep(t, k, batch(record("k", 1))) // other records go on
	st, err := k.CheckTopic(t.Context())
	if err != nil || len(st.Problems) != 1 || !strings.Contains(st.Problems[0].String(), "max.message.bytes is 2000") ||
		!strings.Contains(st.Problems[0].Advice, "262144") {
		t.Errorf("check: %+v, %v", st, err)
	}
}

// A cluster may still name a leader that is gone, as when too few of its controllers are left to notice.
func TestACheckTellsOfPartitionsThatTakeNoEvents(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t)
	host, port, err := net.SplitHostPort(cfg.Brokers[0])
	if err != nil {
		t.Fatal(err)
	}
	there, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	gone := testenv.FreePort(t)
	silent, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var mu sync.Mutex
	leaders, replicas := []int32{0, 1}, [][]int32{{0}, {1}} // of the partitions
	cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		res := kmsg.NewPtrMetadataResponse()
		res.Version, res.ControllerID = req.GetVersion(), 0
		topic := kmsg.NewMetadataResponseTopic()
		topic.Topic = &cfg.Topic
		brokers := []int{there, gone}
		if slices.Contains(leaders, 2) { // else the client may ask it who leads, and waits for minutes
			brokers = append(brokers, silent.Addr().(*net.TCPAddr).Port)
		}
		for id, port := range brokers {
			broker := kmsg.NewMetadataResponseBroker()
			broker.NodeID, broker.Host, broker.Port = int32(id), host, int32(port)
			res.Brokers = append(res.Brokers, broker)
		}
		for id := range leaders {
			partition := kmsg.NewMetadataResponseTopicPartition()
			partition.Partition, partition.Leader = int32(id), leaders[id]
			partition.Replicas, partition.ISR = []int32{0, 1}, replicas[id]
			if leaders[id] < 0 {
				partition.ErrorCode = 5 // LEADER_NOT_AVAILABLE
			}
			topic.Partitions = append(topic.Partitions, partition)
		}
		res.Topics = append(res.Topics, topic)
		return res, nil, true
	})
	check := func(want string) {
		t.Helper()
		st, err := openKafka(t, cfg, sink.KafkaOptions{}).CheckTopic(t.Context())
		found := ""
		for _, problem := range st.Problems {
			if strings.Contains(problem.Found, "take no events now") {
				found = problem.Found
			}
		}
		if err != nil || want == "" && found != "" || !strings.HasPrefix(found, want) {
			t.Errorf("%q, %v, want %q", found, err, want)
		}
	}
	now := func(of []int32, inSync ...[]int32) {
		mu.Lock()
		defer mu.Unlock()
		leaders, replicas = of, inSync
	}
	cfg.RequestTimeout = 2 * time.Second // the client asks any broker again, also the silent one, while none leads
	check(fmt.Sprintf("1 of 2 partitions take no events now: connect to broker 127.0.0.1:%d: ", gone))
	now([]int32{0, 0}, []int32{0}, []int32{1})
	check("")
	now([]int32{0, 0}, nil, []int32{1})
	check("1 of 2 partitions take no events now: of its replicas 0 are in sync, and min.insync.replicas is 1")
	now([]int32{-1, 0}, []int32{0}, []int32{1})
	check("1 of 2 partitions take no events now: no broker leads it")
	now([]int32{0, 2, 2, 2}, []int32{0}, []int32{1}, []int32{1}, []int32{1})
	check("3 of 4 partitions take no events now: connect to broker " + silent.Addr().String() + ": it has not answered")
}

// The client asks the named brokers one after another, in an order of its own.
func TestABrokerThatHangsKeepsNobodyFromTheOthers(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cfg.Brokers = append(cfg.Brokers, silent.Addr().String())
	var group sync.WaitGroup
	for range 8 {
		k := openKafka(t, cfg, sink.KafkaOptions{})
		group.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience/2)
			defer cancel()
			if st, err := k.CheckTopic(ctx); err != nil || st.Partitions != 4 {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
	group.Wait()
}

func TestKafkaSaysPlainlyWhatAPersonMustDo(t *testing.T) {
	t.Parallel()
	stalled := func(t *testing.T, err error, kind, says string) {
		t.Helper()
		var s *relay.Stalled
		if !errors.As(err, &s) || s.Kind != kind || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want kind %s and the words %q", err, kind, says)
		}
	}
	t.Run("missing topic", func(t *testing.T) {
		t.Parallel()
		k := openKafka(t, real(t), sink.KafkaOptions{})
		_, err := k.Partitions(t.Context())
		stalled(t, err, "topic", "outbox topic ensure")
		stalled(t, k.Publish(t.Context(), batch(record("k", 1))), "topic", "outbox topic ensure")
		_, err = k.CheckTopic(t.Context())
		stalled(t, err, "topic", "does not exist")
	})
	for _, mechanism := range []string{"plain", "scram-sha-256", "scram-sha-512"} {
		t.Run("sign-in with "+mechanism, func(t *testing.T) {
			t.Parallel()
			_, cfg := fake(t, kfake.EnableSASL(), kfake.Superuser(strings.ToUpper(mechanism), "relay", "right"))
			cfg.SASL = sink.SASLConfig{Mechanism: mechanism, User: "relay", Password: config.Secret("right")}
			keep(t, openKafka(t, cfg, sink.KafkaOptions{}), batch(record("k", 1)))
			cfg.SASL.Password = "wrong"
			if _, err := openKafka(t, cfg, sink.KafkaOptions{}).Partitions(t.Context()); err == nil {
				t.Error("a wrong password was taken")
			}
		})
	}
	t.Run("real sign-in", func(t *testing.T) {
		t.Parallel()
		cfg := sink.KafkaConfig{Brokers: outboxtest.StartKafka(t, 1, "--scram", "relay:right").SCRAM, Topic: "events",
			Partitions: 4}
		cfg.SASL = sink.SASLConfig{Mechanism: "scram-sha-512", User: "relay", Password: config.Secret("right")}
		k := openKafka(t, cfg, sink.KafkaOptions{})
		ensure(t, cfg)
		keep(t, k, batch(record("k", 1)))
		cfg.SASL.Password = "wrong"
		_, err := openKafka(t, cfg, sink.KafkaOptions{}).Partitions(t.Context())
		stalled(t, err, "authentication", "kafka.sasl")
	})
	for code, kind := range map[int16]string{
		29: "authorization", 31: "authorization", 32: "clock", 35: "version", 42: "unexpected", 43: "version",
		76: "compression", 1999: "unexpected",
	} {
		t.Run(fmt.Sprintf("error %d", code), func(t *testing.T) {
			t.Parallel()
			c, cfg := fake(t)
			c.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
				return answer(req.(*kmsg.ProduceRequest), code), nil, true
			})
			k := openKafka(t, cfg, sink.KafkaOptions{})
			stalled(t, k.Publish(t.Context(), batch(record("k", 1))), kind, "")
			keep(t, k, batch(record("k", 1)))
		})
	}
}

func answer(req *kmsg.ProduceRequest, code int16) *kmsg.ProduceResponse {
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, code
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// A broker that has forgotten the producer gives it a new id, which is counted.
func TestKafkaTakesANewProducerWhenTheBrokerForgot(t *testing.T) {
	t.Parallel()
	c, cfg := fake(t)
	reg := prometheus.NewRegistry()
	k := openKafka(t, cfg, sink.KafkaOptions{Registry: reg})
	keep(t, k, batch(record("k", 1)))
	for _, code := range []int16{45, 59} { // out of order, unknown producer
		c.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
			return answer(req.(*kmsg.ProduceRequest), code), nil, true
		})
		if n := keep(t, k, batch(record("k", int64(code)))); n != 2 {
			t.Errorf("error %d: published after %d attempts, want 2", code, n)
		}
	}
	families, err := reg.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "authctl_outbox_producer_id_resets_total" ||
		families[0].GetMetric()[0].GetCounter().GetValue() != 2 {
		t.Errorf("counted %v, %v", families, err)
	}
	got, err := outboxtest.ReadKafka(t.Context(), cfg.Brokers, cfg.Topic)
	if err != nil || len(got) != 3 {
		t.Errorf("%d events, %v", len(got), err)
	}
}

func TestKafkaVerifiesCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, cert := certificate(t, dir)
	_, cfg := fake(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{cert}}))
	cfg.TLS.Enabled = true
	if _, err := openKafka(t, cfg, sink.KafkaOptions{}).Partitions(t.Context()); err == nil {
		t.Error("an unknown authority was trusted")
	}
	cfg.TLS.CAFile = ca
	other := cfg
	other.Brokers = []string{"kafka.example:9092"}
	there := sink.KafkaOptions{Dial: func(network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(t.Context(), network, cfg.Brokers[0])
	}}
	if _, err := openKafka(t, other, there).Partitions(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "certificate") {
		t.Errorf("another name was accepted: %v", err)
	}
	keep(t, openKafka(t, cfg, sink.KafkaOptions{Prod: true}), batch(record("k", 1)))
}

func certificate(t *testing.T, dir string) (string, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestKafkaSettingsAreChecked(t *testing.T) {
	t.Parallel()
	good := sink.KafkaConfig{Brokers: []string{"127.0.0.1:9092"}, Topic: "t"}
	for _, topic := range []string{"", " ", "a b", ".", "..", "a/b", "ü", strings.Repeat("a", 250)} {
		cfg, got := good, ""
		cfg.Topic = topic
		cfg.Validate(func(path, _ string) { got += path })
		if got != "kafka.topic" {
			t.Errorf("topic %q: reported %q", topic, got)
		}
	}
	for want, change := range map[string]func(*sink.KafkaConfig){
		"":                    func(c *sink.KafkaConfig) { c.Topic = strings.Repeat("A.b_9-", 41) + "abc" },
		"kafka.brokers":       func(c *sink.KafkaConfig) { c.Brokers = []string{"nowhere"} },
		"kafka.tls.cert_file": func(c *sink.KafkaConfig) { c.TLS.CertFile = "x" },
		"kafka.sasl.user":     func(c *sink.KafkaConfig) { c.SASL.Mechanism = "plain" },
	} {
		cfg := good
		change(&cfg)
		var got string
		cfg.Validate(func(path, _ string) { got += path })
		if got != want {
			t.Errorf("reported %q, want %q", got, want)
		}
	}
	if _, err := sink.OpenKafka(good, sink.KafkaOptions{Prod: true}); err == nil ||
		!strings.Contains(err.Error(), "kafka.allow_plaintext") {
		t.Errorf("plaintext in prod mode: %v", err)
	}
	good.AllowPlaintext = true
	openKafka(t, good, sink.KafkaOptions{Prod: true})
}

// One partition has lost its producer id, and the broker does not answer its request for one. The
// other partitions go on, and the sink closes at once.
func TestKafkaAPartitionWithoutProducerHoldsUpNobody(t *testing.T) {
	t.Parallel()
	c, cfg := fake(t)
	cfg.RequestTimeout = 5 * time.Minute
	k := openKafka(t, cfg, sink.KafkaOptions{})
	keep(t, k, batch(record("k", 1)))
	asked := hang(t, c, kmsg.InitProducerID)
	c.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		return answer(req.(*kmsg.ProduceRequest), 59), nil, true
	})
	if err := k.Publish(t.Context(), batch(record("k", 2))); err == nil {
		t.Fatal("published by a producer that is not known")
	}
	stuck := make(chan error, 1)
	go func() { stuck <- k.Publish(t.Context(), batch(record("k", 2))) }()
	_ = within(t, "it asks for another producer", asked)
	for partition := 1; partition < 4; partition++ {
		done := make(chan error, 1)
		go func() {
			b := batch(record("other", int64(partition)))
			b.Partition = partition
			done <- k.Publish(t.Context(), b)
		}()
		if err := within(t, fmt.Sprintf("partition %d", partition), done); err != nil {
			t.Errorf("partition %d: %v", partition, err)
		}
	}
	closed := make(chan error, 1)
	go func() { closed <- k.Close() }()
	if err := within(t, "the sink is closed", closed); err != nil {
		t.Error(err)
	}
	if err := within(t, "what waited has ended", stuck); err == nil {
		t.Error("published without a producer")
	}
}

// Unanswered requests, and an address where nothing answers, do not delay the end.
func TestKafkaIsClosedWhileABrokerIsSilent(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]kmsg.Key{
		"versions": kmsg.ApiVersions, "metadata": kmsg.Metadata, "producer id": kmsg.InitProducerID,
		"batch": kmsg.Produce,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, cfg := fake(t)
			cfg.RequestTimeout, cfg.DialTimeout = 5*time.Minute, time.Minute
			k := openKafka(t, cfg, sink.KafkaOptions{})
			asked := hang(t, c, key)
			published := make(chan error, 1)
			go func() { published <- k.Publish(t.Context(), batch(record("k", 1))) }()
			_ = within(t, "the broker is asked", asked)
			closed := make(chan error, 1)
			go func() { closed <- k.Close() }()
			if err := within(t, "the sink is closed", closed); err != nil {
				t.Error(err)
			}
			if err := within(t, "what waited has ended", published); err == nil {
				t.Error("published without an answer")
			}
		})
	}
}

// A broker that may not show the settings of the topic, or does not know the topic yet, says so in
// its answer. The client must not take that for empty settings.
func TestKafkaDoesNotMistakeARefusalForEmptySettings(t *testing.T) {
	t.Parallel()
	c, cfg := fake(t)
	var code atomic.Int32
	c.ControlKey(int16(kmsg.DescribeConfigs), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		res := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
		resource := kmsg.NewDescribeConfigsResponseResource()
		resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, cfg.Topic
		resource.ErrorCode = int16(code.Load())
		res.Resources = append(res.Resources, resource)
		return res, nil, true
	})
	k := openKafka(t, cfg, sink.KafkaOptions{})
	code.Store(29)
	st, err := k.CheckTopic(t.Context())
	if err != nil || len(st.Problems) != 1 || !strings.Contains(st.Problems[0].Found, "may not read the settings") {
		t.Errorf("without the right to read them: %+v, %v", st, err)
	}
	code.Store(3)
	_, err = k.CheckTopic(t.Context())
	if stalled, ok := errors.AsType[*relay.Stalled](err); !ok || stalled.Kind != "topic" {
		t.Errorf("of a broker that does not know the topic: %v", err)
	}
}

// hang makes the cluster leave every request of a kind unanswered, and reports each.
func hang(t *testing.T, c *kfake.Cluster, key kmsg.Key) <-chan error {
	t.Helper()
	asked, end := make(chan error, 100), make(chan struct{})
	t.Cleanup(func() { c.Close(); close(end) }) // in this order, so that nothing is asked again
	c.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		asked <- nil
		c.SleepControl(func() { <-end })
		return nil, errors.New("never answered"), true
	})
	return asked
}

func within(t *testing.T, what string, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(testenv.Patience):
		t.Fatalf("waited a minute until %s", what)
		return nil
	}
}

// slow is a connection that takes up to two milliseconds for what it passes. SleepControl of kfake would race with
// itself here, which the race detector notices now and then.
type slow struct{ net.Conn }

func (s slow) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	time.Sleep(time.Duration(mathrand.IntN(3)) * time.Millisecond)
	return n, err
}

func (s slow) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(mathrand.IntN(3)) * time.Millisecond)
	return s.Conn.Write(p)
}

// A context ends during an attempt, and the sink is used again for the same batch and for others.
// The attempts of a partition follow each other, and the broker has each batch once. The race
// detector watches.
func TestKafkaIsUsedAgainAfterAContextHasEnded(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(2))
	k := openKafka(t, cfg, sink.KafkaOptions{Dial: func(network, address string) (net.Conn, error) {
		c, err := net.DialTimeout(network, address, testenv.Patience)
		return slow{c}, err
	}})
	for i := range int64(200) {
		b := batch(record("k", i+1))
		b.Partition = int(i % 4)
		for attempt := 1; ; attempt++ { // longer and longer, so that a busy machine comes to an end too
			short := time.Duration(mathrand.IntN(4000*attempt)) * time.Microsecond
			ctx, cancel := context.WithTimeout(t.Context(), short)
			err := k.Publish(ctx, b)
			cancel()
			if err == nil {
				break
			}
		}
	}
	got, err := outboxtest.ReadKafka(t.Context(), cfg.Brokers, cfg.Topic)
	if err != nil || len(got) != 200 {
		t.Errorf("%d events, %v", len(got), err)
	}
}

// After a broken connection the brokers' address leads to another cluster. Nothing is sent there.
func TestKafkaSendsNothingToAnotherClusterAtItsAddress(t *testing.T) {
	t.Parallel()
	first, cfg := fake(t, kfake.ClusterID("first"))
	second, other := fake(t, kfake.ClusterID("second"))
	var mu sync.Mutex
	at, conns := first.ListenAddrs()[0], []net.Conn(nil)
	lead := func(address string) {
		mu.Lock()
		defer mu.Unlock()
		at = address
		for _, c := range conns {
			_ = c.Close()
		}
	}
	k := openKafka(t, cfg, sink.KafkaOptions{Dial: func(network, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if address == first.ListenAddrs()[0] {
			address = at
		}
		c, err := net.DialTimeout(network, address, testenv.Patience)
		if err == nil {
			conns = append(conns, c)
		}
		return c, err
	}})
	identity := func() string {
		t.Helper()
		for deadline := time.Now().Add(testenv.Patience); ; {
			id, err := k.Identity(t.Context())
			if err == nil {
				return id
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	if id := identity(); id != "first" {
		t.Errorf("the cluster is %q", id)
	}
	keep(t, k, batch(record("k", 1)))
	lead(second.ListenAddrs()[0])
	b := batch(record("k", 2))
	for deadline := time.Now().Add(testenv.Patience); ; {
		err := k.Publish(t.Context(), b)
		if stalled, ok := errors.AsType[*relay.Stalled](err); ok && stalled.Kind == "target" {
			break
		}
		if err == nil || time.Now().After(deadline) {
			t.Fatalf("published to another cluster, or without the right error: %v", err)
		}
	}
	if id := identity(); id != "second" {
		t.Errorf("the cluster is %q", id)
	}
	lead(first.ListenAddrs()[0])
	keep(t, k, b)
	for cluster, want := range map[string]int{cfg.Brokers[0]: 2, other.Brokers[0]: 0} {
		got, err := outboxtest.ReadKafka(t.Context(), []string{cluster}, cfg.Topic)
		if err != nil || len(got) != want {
			t.Errorf("%d events at %s, want %d: %v", len(got), cluster, want, err)
		}
	}
}

func TestKafkaCompressesAsItIsTold(t *testing.T) {
	t.Parallel()
	for name, attribute := range map[string]uint8{"": 3, "none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := real(t)
			cfg.Compression = name
			k := openKafka(t, cfg, sink.KafkaOptions{})
			ensure(t, cfg)
			long := record("k", 1)
			long.Data = fmt.Appendf(nil, `{"a":%q}`, strings.Repeat("x", 5000))
			keep(t, k, batch(long))
			got, err := outboxtest.ReadRecords(t.Context(), cfg.Brokers, cfg.Topic)
			if err != nil || len(got) != 1 || got[0].Attrs.CompressionType() != attribute ||
				string(got[0].Value) != string(long.Data) {
				t.Errorf("%d records, %v, attributes %+v", len(got), err, got)
			}
		})
	}
	if _, err := sink.OpenKafka(sink.KafkaConfig{Brokers: []string{"127.0.0.1:9092"}, Compression: "brotli"},
		sink.KafkaOptions{}); err == nil {
		t.Error("a kind of compression that there is not was taken")
	}
}

// Close and a cancelled context end the wait for a broker that does not answer.
func TestKafkaEndsInTime(t *testing.T) {
	t.Parallel()
	c, cfg := fake(t)
	cfg.RequestTimeout = time.Minute
	hold := make(chan struct{})
	t.Cleanup(func() { c.Close(); close(hold) })
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		c.SleepControl(func() { <-hold })
		return nil, errors.New("cut"), true
	})
	k := openKafka(t, cfg, sink.KafkaOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := k.Publish(ctx, batch(record("k", 1))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	done := make(chan error, 1)
	go func() { done <- k.Publish(t.Context(), batch(record("k", 1))) }()
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("published without an answer")
	}
}
