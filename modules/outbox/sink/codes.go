package sink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/IBM/sarama"

	"github.com/toppira/authctl/modules/outbox/relay"
)

// reaction is what the sink does about an error of a broker.
type reaction int

const (
	retry       reaction = iota // send the same batch again, once the leader of its partition is known
	delivered                   // the broker has the batch already
	refused                     // the broker will never take these records
	newProducer                 // the broker no longer knows the producer
	person                      // somebody must act; send the same batch again until then
)

// meaning is what an error code of Kafka means for the relay.
type meaning struct {
	reaction
	kind   string                // for a person: a metric label, one of outbox.Kinds
	advice func(k *Kafka) string // says what to do
}

func forPerson(kind string, advice func(k *Kafka) string) meaning {
	return meaning{person, kind, advice}
}

// What a person must correct.
var (
	signIn = forPerson("authentication", func(k *Kafka) string {
		return fmt.Sprintf("Kafka refuses the sign-in of %q with kafka.sasl.mechanism %s: check kafka.sasl.*",
			k.cfg.SASL.User, k.cfg.SASL.Mechanism)
	})
	mayNotWrite = forPerson("authorization", func(k *Kafka) string {
		return fmt.Sprintf("%s may not write to the topic %q: allow it WRITE and DESCRIBE on it", k.who(), k.cfg.Topic)
	})
	mayNotProduce = forPerson("authorization", func(k *Kafka) string {
		return k.who() + " may not use an idempotent producer: allow it IDEMPOTENT_WRITE on the cluster"
	})
	noTopic = forPerson("topic", func(k *Kafka) string {
		return fmt.Sprintf("the topic %q does not exist: make it with authctl outbox topic ensure", k.cfg.Topic)
	})
	topicSettings = forPerson("topic", func(k *Kafka) string {
		return fmt.Sprintf("the cluster does not make the topic %q with these settings: check kafka.partitions (%d) "+
			"and the policies of the cluster",
			k.cfg.Topic, k.cfg.Partitions)
	})
	oldFormat = forPerson("version", func(k *Kafka) string {
		return fmt.Sprintf("the topic %q keeps messages in a format older than that of Kafka 0.11: raise its "+
			"message.format.version", k.cfg.Topic)
	})
	oldBrokers = forPerson("version", func(*Kafka) string {
		return "the brokers do not speak the version of the protocol that is needed: use Kafka 2.8 or newer, " +
			"or what is compatible with it"
	})
	compression = forPerson("compression", func(k *Kafka) string {
		return fmt.Sprintf("the brokers do not take batches that are compressed with %s: "+
			"set kafka.compression to a kind that they take, or to none", k.cfg.Compression)
	})
	clocks = forPerson("clock", func(*Kafka) string {
		return "the brokers do not accept this machine's time: set one of the clocks right"
	})
	certificate = forPerson("certificate", func(*Kafka) string {
		return "the certificate of the brokers is not accepted: check kafka.tls.ca_file, and that it is for the " +
			"names in kafka.brokers"
	})
	notTLS = forPerson("certificate", func(k *Kafka) string {
		return fmt.Sprintf("what answers at %s does not speak TLS: check the port, and kafka.tls.enabled",
			strings.Join(k.cfg.Brokers, ","))
	})
	unexpected = forPerson("unexpected", func(*Kafka) string {
		return "the brokers answered with an error that this release does not expect: see their log"
	})
)

// meaningOf returns the meaning of a code. An unknown code, of a newer Kafka, is for a person: it may
// be permanent, and no event may be lost.
func meaningOf(code sarama.KError) meaning {
	if m, known := meanings[code]; known {
		return m
	}
	return unexpected
}

// meanings has every code of Kafka. The codes that only consumers, transactions, share groups or
// controllers can meet are unexpected.
var meanings = func() map[sarama.KError]meaning {
	all := map[sarama.KError]meaning{}
	for _, group := range []struct {
		meaning
		codes []sarama.KError
	}{
		{meaning{reaction: delivered}, []sarama.KError{sarama.ErrDuplicateSequenceNumber}},
		{meaning{reaction: refused}, []sarama.KError{
			sarama.ErrMessageSizeTooLarge, sarama.ErrMessageSetSizeTooLarge, sarama.ErrInvalidRecord,
		}},
		{meaning{reaction: newProducer}, []sarama.KError{
			sarama.ErrOutOfOrderSequenceNumber, sarama.ErrInvalidProducerEpoch, sarama.ErrInvalidProducerIDMapping,
			sarama.ErrUnknownProducerID, sarama.ErrProducerFenced,
		}},
		{meaning{reaction: retry}, []sarama.KError{
			sarama.ErrUnknown,        // an error inside the broker
			sarama.ErrInvalidMessage, // damaged in transit
			sarama.ErrLeaderNotAvailable, sarama.ErrNotLeaderForPartition, sarama.ErrRequestTimedOut,
			sarama.ErrBrokerNotAvailable,
			sarama.ErrReplicaNotAvailable, sarama.ErrStaleControllerEpochCode, sarama.ErrNetworkException,
			sarama.ErrOffsetsLoadInProgress, sarama.ErrConsumerCoordinatorNotAvailable,
			sarama.ErrNotCoordinatorForConsumer,
			sarama.ErrNotEnoughReplicas, sarama.ErrNotEnoughReplicasAfterAppend, sarama.ErrNotController,
			sarama.ErrConcurrentTransactions, sarama.ErrOperationNotAttempted, sarama.ErrKafkaStorageError,
			sarama.ErrReassignmentInProgress, sarama.ErrListenerNotFound, sarama.ErrFencedLeaderEpoch,
			sarama.ErrUnknownLeaderEpoch,
			sarama.ErrStaleBrokerEpoch, sarama.ErrOffsetNotAvailable, sarama.ErrPreferredLeaderNotAvailable,
			sarama.ErrEligibleLeadersNotAvailable, sarama.ErrThrottlingQuotaExceeded,
			100, // UNKNOWN_TOPIC_ID
			103, // INCONSISTENT_TOPIC_ID
			129, // REBOOTSTRAP_REQUIRED
		}},
		{noTopic, []sarama.KError{sarama.ErrUnknownTopicOrPartition, sarama.ErrInvalidTopic}},
		{topicSettings, []sarama.KError{
			sarama.ErrInvalidPartitions, sarama.ErrInvalidReplicationFactor, sarama.ErrInvalidReplicaAssignment,
			sarama.ErrInvalidConfig,
			sarama.ErrPolicyViolation,
		}},
		{mayNotWrite, []sarama.KError{sarama.ErrTopicAuthorizationFailed}},
		{mayNotProduce,
			[]sarama.KError{sarama.ErrClusterAuthorizationFailed, sarama.ErrTransactionalIDAuthorizationFailed}},
		{signIn, []sarama.KError{
			sarama.ErrUnsupportedSASLMechanism, sarama.ErrIllegalSASLState, sarama.ErrSASLAuthenticationFailed,
			sarama.ErrDelegationTokenAuthDisabled, sarama.ErrDelegationTokenNotFound,
			sarama.ErrDelegationTokenOwnerMismatch,
			sarama.ErrDelegationTokenRequestNotAllowed, sarama.ErrDelegationTokenAuthorizationFailed,
			sarama.ErrDelegationTokenExpired,
			97, // PRINCIPAL_DESERIALIZATION_FAILURE
		}},
		{clocks, []sarama.KError{sarama.ErrInvalidTimestamp}},
		{oldBrokers, []sarama.KError{sarama.ErrUnsupportedVersion}},
		{oldFormat, []sarama.KError{sarama.ErrUnsupportedForMessageFormat}},
		{compression, []sarama.KError{sarama.ErrUnsupportedCompressionType}},
		{unexpected, []sarama.KError{
			sarama.ErrOffsetOutOfRange, sarama.ErrInvalidMessageSize, sarama.ErrOffsetMetadataTooLarge,
			sarama.ErrInvalidRequiredAcks,
			sarama.ErrIllegalGeneration, sarama.ErrInconsistentGroupProtocol, sarama.ErrInvalidGroupId,
			sarama.ErrUnknownMemberId,
			sarama.ErrInvalidSessionTimeout, sarama.ErrRebalanceInProgress, sarama.ErrInvalidCommitOffsetSize,
			sarama.ErrGroupAuthorizationFailed, sarama.ErrTopicAlreadyExists, sarama.ErrInvalidRequest,
			sarama.ErrInvalidTxnState,
			sarama.ErrInvalidTransactionTimeout, sarama.ErrTransactionCoordinatorFenced, sarama.ErrSecurityDisabled,
			sarama.ErrLogDirNotFound, sarama.ErrInvalidPrincipalType, sarama.ErrNonEmptyGroup,
			sarama.ErrGroupIDNotFound,
			sarama.ErrFetchSessionIDNotFound, sarama.ErrInvalidFetchSessionEpoch, sarama.ErrTopicDeletionDisabled,
			sarama.ErrMemberIdRequired, sarama.ErrGroupMaxSizeReached, sarama.ErrFencedInstancedId,
			sarama.ErrElectionNotNeeded,
			sarama.ErrNoReassignmentInProgress, sarama.ErrGroupSubscribedToTopic, sarama.ErrUnstableOffsetCommit,
			91, 92, 93, 94, sarama.ErrInvalidUpdateVersion, 96, 98, 99, 101, 102, 104, 105, 106, 107, 108,
			109, // the controllers' and transactions'
			110, 111, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128,
			130, 131, 132, 133, 134, 135, 136, // consumers', share groups' and streams'
		}},
	} {
		for _, code := range group.codes {
			all[code] = group.meaning
		}
	}
	return all
}()

// codeOf returns the broker's code in an error. Sarama wraps some codes so that [errors.Is] finds
// them and [errors.As] does not.
func codeOf(err error) (code sarama.KError, has bool) {
	if errors.As(err, &code) {
		return code, true
	}
	for code := range meanings {
		if errors.Is(err, code) {
			return code, true
		}
	}
	return 0, false
}

// explain turns an error that only a person can resolve into one that says what to do.
func (k *Kafka) explain(err error) error {
	if _, already := errors.AsType[*relay.Stalled](err); already {
		return err
	}
	m := meaning{}
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	_, plain := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case untrusted, isCertificateError(err):
		m = certificate
	case plain:
		m = notTLS
	default:
		if code, has := codeOf(err); has {
			m = meaningOf(code)
		}
	}
	if m.reaction != person {
		return err
	}
	return &relay.Stalled{Kind: m.kind, Err: fmt.Errorf("%s: %w", m.advice(k), err)}
}

func isCertificateError(err error) bool {
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	_, host := errors.AsType[x509.HostnameError](err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	return authority || host || invalid
}
