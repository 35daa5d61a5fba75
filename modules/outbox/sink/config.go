package sink

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/xdg-go/scram"

	"github.com/toppira/authctl/platform/config"
)

// KafkaConfig is kafka.*. With no brokers named, events go to a file.
type KafkaConfig struct {
	Brokers []string `config:"kafka.brokers" doc:"Kafka brokers to connect to first, host:port. Empty means that events go to the file events.ndjson in app.data_dir."`
	Topic   string   `config:"kafka.topic" default:"auth.events" doc:"The topic of all events."`

	Partitions  int    `config:"kafka.partitions" default:"16" min:"1" max:"4096" doc:"Partitions of the topic when authctl creates it, with three replicas if there are three brokers. outbox.shards must be a multiple of it."`
	Compression string `config:"kafka.compression" default:"lz4" oneof:"none,gzip,snappy,lz4,zstd" doc:"How batches are compressed. Some clusters do not accept every kind; zstd needs Kafka 2.1 or newer."`

	TLS            TLSConfig  `config:"kafka.tls"`
	SASL           SASLConfig `config:"kafka.sasl"`
	AllowPlaintext bool       `config:"kafka.allow_plaintext" default:"false" doc:"Allow prod mode to use Kafka without TLS."`

	// No settings; tests set them. Zero means what is said here.
	DialTimeout    time.Duration // 5s for a connection to a broker: one that takes longer is down
	RequestTimeout time.Duration // 10s for an answer of a broker; an unanswered batch is sent again unchanged
}

// TLSConfig is kafka.tls.*.
type TLSConfig struct {
	Enabled  bool   `config:"enabled" default:"false" doc:"Use TLS to Kafka and verify its certificates."`
	CAFile   string `config:"ca_file" doc:"PEM file of the authorities to trust. Empty means the system's."`
	CertFile string `config:"cert_file" doc:"PEM file of this client's certificate, for mutual TLS."`
	KeyFile  string `config:"key_file" doc:"PEM file of the key of that certificate."`
}

// SASLConfig is kafka.sasl.*.
type SASLConfig struct {
	Mechanism string        `config:"mechanism" default:"none" oneof:"none,plain,scram-sha-256,scram-sha-512" doc:"How to sign in to Kafka."`
	User      string        `config:"user" doc:"Name to sign in to Kafka with."`
	Password  config.Secret `config:"password" doc:"Password to sign in to Kafka with."`
}

// UsesKafka reports whether the settings name a Kafka cluster.
func (c KafkaConfig) UsesKafka() bool { return len(c.Brokers) > 0 }

// TargetName is the name of the sink that these settings make, see [relay.Sink]. It has no brokers:
// a cluster can have many addresses, and its identity tells it from others.
func (c KafkaConfig) TargetName() string { return "kafka:" + c.withDefaults().Topic }

// topicName is what brokers accept, except . and .. (org.apache.kafka.common.internals.Topic).
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// Validate reports problems that single values cannot show.
func (c KafkaConfig) Validate(report func(path, problem string)) {
	for i, b := range c.Brokers {
		if problem := config.AddressProblem(b, false); problem != "" {
			report("kafka.brokers", fmt.Sprintf("(element %d) %s", i+1, problem))
		}
		same := func(other string) bool { return strings.EqualFold(other, b) }
		if first := slices.IndexFunc(c.Brokers, same); first < i {
			report("kafka.brokers", fmt.Sprintf("(element %d) is the same as element %d", i+1, first+1))
		}
	}
	if !topicName.MatchString(c.Topic) || c.Topic == "." || c.Topic == ".." {
		report("kafka.topic", "must be the name of a topic: 1 to 249 letters, digits and . _ -, and not . or ..")
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		report("kafka.tls.cert_file", "and kafka.tls.key_file must be given together")
	}
	if c.SASL.Mechanism != "" && c.SASL.Mechanism != "none" && (c.SASL.User == "" || c.SASL.Password == "") {
		report("kafka.sasl.user", "and kafka.sasl.password must be given for mechanism "+c.SASL.Mechanism)
	}
}

// Overridden reports settings without effect. Whoever sets one of them believes that the connection is encrypted, or
// that somebody signs in.
func (c KafkaConfig) Overridden(report func(path, by string)) {
	if !c.TLS.Enabled {
		for _, path := range []string{"kafka.tls.ca_file", "kafka.tls.cert_file", "kafka.tls.key_file"} {
			report(path, "kafka.tls.enabled")
		}
	}
	if c.SASL.Mechanism == "none" {
		report("kafka.sasl.user", "kafka.sasl.mechanism")
		report("kafka.sasl.password", "kafka.sasl.mechanism")
	}
}

// CheckFiles reports files for TLS that could not be used.
func (c KafkaConfig) CheckFiles(report func(path, problem string)) {
	if !c.UsesKafka() || !c.TLS.Enabled {
		return
	}
	if _, path, err := c.TLS.config(); err != nil {
		report(path, "cannot be used: "+err.Error())
	}
}

// ValidateProd reports what prod mode does not allow.
func (c KafkaConfig) ValidateProd(report func(path, problem string)) {
	if c.UsesKafka() && !c.TLS.Enabled && !c.AllowPlaintext {
		report("kafka.tls.enabled", "must be true in prod mode, or kafka.allow_plaintext must be set")
	}
}

func (c KafkaConfig) withDefaults() KafkaConfig {
	c = config.WithDefaults(c)
	c.DialTimeout = cmp.Or(c.DialTimeout, 5*time.Second)
	c.RequestTimeout = cmp.Or(c.RequestTimeout, 10*time.Second)
	return c
}

var codecs = map[string]sarama.CompressionCodec{
	"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy,
	"lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD,
}

func (c KafkaConfig) codec() sarama.CompressionCodec { return codecs[c.Compression] }

// sarama translates the settings for the client.
func (c KafkaConfig) sarama() (*sarama.Config, error) {
	conf := sarama.NewConfig()
	conf.Version = sarama.V2_8_0_0 // the highest version that is spoken; the client adapts to older brokers
	conf.ClientID = "authctl"      // in the logs, metrics and quotas of the brokers
	conf.Net.DialTimeout = c.DialTimeout
	conf.Net.WriteTimeout = c.RequestTimeout
	conf.Net.ReadTimeout = c.RequestTimeout + 2*time.Second // the broker gives up first, and answers
	conf.Net.MaxOpenRequests = 1                            // a batch never overtakes another
	conf.Metadata.Full = false
	conf.Metadata.AllowAutoTopicCreation = false
	conf.Metadata.RefreshFrequency = time.Minute
	conf.Metadata.Retry.Max = 1
	conf.Metadata.Retry.Backoff = 100 * time.Millisecond
	conf.Metadata.Timeout = c.RequestTimeout
	conf.Admin.Timeout = c.RequestTimeout
	conf.Admin.Retry.Max = 2
	if _, known := codecs[c.Compression]; !known {
		return nil, fmt.Errorf("kafka.compression: %q is not known", c.Compression)
	}
	if c.TLS.Enabled {
		t, path, err := c.TLS.config()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		conf.Net.TLS.Enable, conf.Net.TLS.Config = true, t
	}
	if c.SASL.Mechanism != "none" {
		conf.Net.SASL.Enable = true
		conf.Net.SASL.User, conf.Net.SASL.Password = c.SASL.User, c.SASL.Password.Reveal()
		switch c.SASL.Mechanism {
		case "plain":
			conf.Net.SASL.Mechanism = sarama.SASLTypePlaintext
		case "scram-sha-256":
			conf.Net.SASL.Mechanism = sarama.SASLTypeSCRAMSHA256
			conf.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient {
				return &scramClient{hash: scram.SHA256}
			}
		case "scram-sha-512":
			conf.Net.SASL.Mechanism = sarama.SASLTypeSCRAMSHA512
			conf.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient {
				return &scramClient{hash: scram.SHA512}
			}
		default:
			return nil, fmt.Errorf("kafka.sasl.mechanism: %q is not known", c.SASL.Mechanism)
		}
	}
	if err := conf.Validate(); err != nil {
		return nil, fmt.Errorf("kafka settings: %w", err)
	}
	return conf, nil
}

// config reads the files. With an error it names the setting whose file cannot be used.
func (c TLSConfig) config() (t *tls.Config, path string, err error) {
	t = &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		path = "kafka.tls.ca_file"
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, path, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, path, errors.New("has no certificate in PEM form")
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, "kafka.tls.cert_file", err
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, "", nil
}

// scramClient implements RFC 5802 for Sarama.
type scramClient struct {
	hash         scram.HashGeneratorFcn
	conversation *scram.ClientConversation
}

func (s *scramClient) Begin(user, password, authzID string) error {
	client, err := s.hash.NewClient(user, password, authzID)
	if err != nil {
		return fmt.Errorf("begin SCRAM: %w", err)
	}
	s.conversation = client.NewConversation()
	return nil
}

func (s *scramClient) Step(challenge string) (string, error) {
	answer, err := s.conversation.Step(challenge)
	if err != nil {
		return "", fmt.Errorf("go on with SCRAM: %w", err)
	}
	return answer, nil
}

func (s *scramClient) Done() bool { return s.conversation.Done() }
