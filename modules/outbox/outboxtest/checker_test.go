package outboxtest_test

import (
	"testing"

	"github.com/toppira/authctl/modules/outbox/outboxtest"
)

func TestCheckTellsEachFault(t *testing.T) {
	t.Parallel()
	written := []outboxtest.Written{
		{ID: "a1", Key: "a", Seq: 1}, {ID: "a2", Key: "a", Seq: 2}, {ID: "a3", Key: "a", Seq: 3},
		{ID: "b1", Key: "b", Seq: 1, Outcome: outboxtest.Unknown}, {ID: "c1", Key: "c", Seq: 1,
			Outcome: outboxtest.Aborted},
	}
	at := func(partition int, id, key string, seq int64, body string) outboxtest.Seen {
		return outboxtest.Seen{Partition: partition, ID: id, Key: key, Seq: seq, Body: body}
	}
	a1, a2, a3 := at(0, "a1", "a", 1, ""), at(0, "a2", "a", 2, ""), at(0, "a3", "a", 3, "")
	replayed := a1
	replayed.Replay = true
	type counts = outboxtest.Report
	for name, test := range map[string]struct {
		seen []outboxtest.Seen
		want counts
	}{
		"sound":            {[]outboxtest.Seen{a1, a2, a3}, counts{}},
		"unknown may be":   {[]outboxtest.Seen{a1, a2, at(1, "b1", "b", 1, ""), a3}, counts{}},
		"replay is wanted": {[]outboxtest.Seen{a1, a2, replayed, a3}, counts{}},
		"lost":             {[]outboxtest.Seen{a1, a2}, counts{Lost: 1}},
		"ghost":            {[]outboxtest.Seen{a1, a2, a3, at(0, "c1", "c", 1, "")}, counts{Ghost: 1}},
		"from nowhere":     {[]outboxtest.Seen{a1, a2, a3, at(0, "x", "a", 4, "")}, counts{Ghost: 1}},
		"duplicate":        {[]outboxtest.Seen{a1, a2, a1, a3}, counts{Duplicate: 1}},
		"changed": {[]outboxtest.Seen{a1, a2, at(0, "a1", "a", 1, "x"), a3},
			counts{Duplicate: 1, Changed: 1}},
		"inverted":           {[]outboxtest.Seen{a1, a3, a2}, counts{Inverted: 1, Gapped: 1}},
		"lost in the middle": {[]outboxtest.Seen{a1, a3}, counts{Lost: 1, Gapped: 1}},
		"moved":              {[]outboxtest.Seen{a1, a2, at(1, "a3", "a", 3, "")}, counts{Moved: 1}},
	} {
		got := outboxtest.Check(written, test.seen)
		got.First, got.Written, got.Seen = nil, 0, 0
		if got.String() != test.want.String() {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}
