package sink

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/relay"
)

// Every code that Sarama or another client knows has a meaning here. Codes that Kafka calls
// retriable are retried, except those that only consumers get.
func TestEveryKafkaErrorHasAMeaning(t *testing.T) {
	t.Parallel()
	others := []int16{70, 71, 84, 88, 106, 133} // of fetches, elections, consumer groups and share groups
	k := &Kafka{cfg: KafkaConfig{}.withDefaults()}
	known := 0
	for code := int16(-1); code < 2000; code++ {
		named, err := "", kerr.TypedErrorForCode(code)
		switch {
		case code == 0:
			continue
		case code == -1 || err.Code == code:
			named = err.Message
		case !strings.Contains(sarama.KError(code).Error(), "Unknown error"):
			named = sarama.KError(code).Error()
		default:
			if m := meaningOf(sarama.KError(code)); m.reaction != person || m.kind != "unexpected" {
				t.Fatalf("the unknown code %d is %v, want one for a person", code, m)
			}
			continue
		}
		known++
		m, has := meanings[sarama.KError(code)]
		if !has {
			t.Errorf("code %d, %s, has no meaning", code, named)
			continue
		}
		if err.Code == code && err.Retriable && m.reaction == person && code != 3 && !slices.Contains(others, code) {
			t.Errorf("code %d, %s, is retriable, but waits for a person: %s", code, named, m.kind)
		}
		if m.reaction == person {
			if !slices.Contains(outbox.Kinds[4:], m.kind) {
				t.Errorf("code %d, %s: the kind %q is not one of outbox.Kinds", code, named, m.kind)
			}
			stalled, ok := errors.AsType[*relay.Stalled](k.explain(fmt.Errorf("send: %w", sarama.KError(code))))
			if !ok || stalled.Kind != m.kind || !errors.Is(stalled, sarama.KError(code)) || len(m.advice(k)) < 20 {
				t.Errorf("code %d, %s, is explained as %v", code, named, stalled)
			}
		}
	}
	if known < 130 {
		t.Errorf("only %d codes were checked", known)
	}
	for code, reaction := range map[sarama.KError]reaction{
		7: retry, 6: retry, 19: retry, 20: retry, 56: retry, -1: retry, 10: refused, 18: refused, 87: refused,
		46: delivered,
		45: newProducer, 47: newProducer, 49: newProducer, 59: newProducer, 90: newProducer,
		35: person, 43: person, 76: person, 29: person, 31: person, 32: person, 3: person, 42: person, 44: person,
		58: person,
	} {
		if got := meaningOf(code).reaction; got != reaction {
			t.Errorf("code %d: reaction %d, want %d", code, got, reaction)
		}
	}
}
