package docs_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/platform/testenv"
)

// event is the envelope, from the file or the topic.
type event struct {
	ID      string `json:"id"`
	Type    string `json:"type"`
	Subject string `json:"subject"` // the user
	place
	Data json.RawMessage `json:"data"`
}

// place orders the events of a user.
type place struct {
	Generation int64 `json:"generation,string"` // mostly absent, which is 0
	Sequence   int64 `json:"sequence,string"`   // counts the user's events from 1
}

func (p place) after(q place) bool {
	return p.Generation > q.Generation || p.Generation == q.Generation && p.Sequence > q.Sequence
}

// fromLine reads an event of the file: CloudEvents in structured JSON.
func fromLine(line []byte) (e event, err error) {
	err = json.Unmarshal(line, &e)
	return e, err
}

// fromRecord reads an event of the topic: CloudEvents in binary mode.
func fromRecord(r *kgo.Record) (e event, err error) {
	e.Data = r.Value
	for _, h := range r.Headers {
		switch h.Key {
		case "ce_id":
			e.ID = string(h.Value)
		case "ce_type":
			e.Type = string(h.Value)
		case "ce_subject":
			e.Subject = string(h.Value)
		case "ce_sequence":
			e.Sequence, err = strconv.ParseInt(string(h.Value), 10, 64)
		case "ce_generation":
			e.Generation, err = strconv.ParseInt(string(h.Value), 10, 64)
		}
		if err != nil {
			return e, err
		}
	}
	return e, nil
}

// accounts is the state that a service keeps to verify access tokens itself. In production it is
// tables, and apply is one transaction.
type accounts struct {
	seen   map[string]bool   // ids of events that were applied
	status map[string]status // by user

	ended map[string]time.Time // by session: when the entry may be forgotten
	epoch map[string]allEnded  // by user
}

// status is the state of an account according to the newest event about it.
type status struct {
	Active bool
	place  // of that event
}

// allEnded ends access tokens of a lower epoch, except those of one session.
type allEnded struct {
	Epoch int64     `json:"session_epoch"`
	Kept  string    `json:"kept_sid"`
	Until time.Time `json:"expires_at"` // when it may be forgotten
}

// apply applies an event, which may come again, late or out of order.
func (a *accounts) apply(e event) error {
	if a.seen[e.ID] {
		return nil // delivered twice, or replayed
	}
	// Ended sessions only add up, so their order does not matter.
	switch e.Type {
	case "auth.SessionRevoked.v1":
		var data struct {
			Session string    `json:"sid"`
			Until   time.Time `json:"expires_at"`
		}
		if err := json.Unmarshal(e.Data, &data); err != nil {
			return err
		}
		a.ended[data.Session] = data.Until
	case "auth.AllSessionsRevoked.v1":
		var data allEnded
		if err := json.Unmarshal(e.Data, &data); err != nil {
			return err
		}
		if data.Epoch > a.epoch[e.Subject].Epoch {
			a.epoch[e.Subject] = data
		}
	}
	// The newest event decides the state: an older one must not overwrite it.
	if e.after(a.status[e.Subject].place) {
		switch e.Type {
		case "auth.UserRegistered.v1", "auth.UserEnabled.v1":
			a.status[e.Subject] = status{true, e.place}
		case "auth.UserDisabled.v1", "auth.UserDeleted.v1":
			a.status[e.Subject] = status{false, e.place}
		}
	}
	a.seen[e.ID] = true
	return nil
}

// accepts reports whether an access token with these claims is still good. The caller has checked
// its signature and times.
func (a *accounts) accepts(sub, sid string, sessionEpoch int64) bool {
	_, ended := a.ended[sid]
	all := a.epoch[sub]
	return !ended && (sessionEpoch >= all.Epoch || sid == all.Kept)
}

// forget drops entries that no longer affect any token.
func (a *accounts) forget(now time.Time) {
	for sid, until := range a.ended {
		if now.After(until) {
			delete(a.ended, sid)
		}
	}
	for sub, all := range a.epoch {
		if now.After(all.Until) {
			delete(a.epoch, sub)
		}
	}
}

func newAccounts() *accounts {
	return &accounts{
		seen: map[string]bool{}, status: map[string]status{},
		ended: map[string]time.Time{}, epoch: map[string]allEnded{},
	}
}

// claims are those that accepts wants.
type claims struct {
	Subject      string `json:"sub"`
	Session      string `json:"sid"`
	SessionEpoch int64  `json:"session_epoch"`
}

func claimsOf(t *testing.T, token string) (c claims) {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// A verifier that follows the events refuses exactly the tokens that the service refuses, whatever
// the order and number of deliveries.
func TestAConsumerOfTheEventsJudgesAsTheService(t *testing.T) {
	t.Parallel()
	s := openShop(t)
	const good = "correct horse battery staple"
	credentials := func(name, password string) string {
		return fmt.Sprintf(`{"username":%q,"password":%q}`, name, password)
	}
	token := func(status int, path, bearer, body string) string {
		t.Helper()
		return s.must(status, "POST", path, bearer, body)["access_token"].(string)
	}
	session := func(token string) string { return "/api/v1/auth/sessions/" + claimsOf(t, token).Session }

	var tokens []string
	add := func(token string) string {
		tokens = append(tokens, token)
		return token
	}
	a1 := add(token(201, "/api/v1/auth/register", "", credentials("alice", good)))
	a2 := add(token(200, "/api/v1/auth/login", "", credentials("alice", good)))
	a3 := add(token(200, "/api/v1/auth/login", "", credentials("alice", good)))
	// 4: one of three sessions
	s.must(204, "DELETE", session(a2), a1, "")
	// 5, 6: all but a3's
	add(token(200, "/api/v1/auth/password", a3,
		fmt.Sprintf(`{"current_password":%q,"new_password":"quite another one"}`, good)))
	// 7
	a4 := add(token(200, "/api/v1/auth/login", "", credentials("alice", "quite another one")))
	// 8: a3's too
	s.must(204, "DELETE", "/api/v1/auth/sessions?except=current", a4, "")
	// 9
	add(token(200, "/api/v1/auth/login", "", credentials("alice", "quite another one")))
	// 10
	b1 := add(token(201, "/api/v1/auth/register", "", credentials("robert", good)))
	// 11
	add(token(200, "/api/v1/auth/login", "", credentials("robert", good)))
	// 12
	c1 := add(token(201, "/api/v1/auth/register", "", credentials("carol", good)))
	// 13
	s.must(204, "POST", "/api/v1/auth/logout", b1, "")
	// 14, 15
	s.must(204, "DELETE", "/api/v1/auth/me", c1, fmt.Sprintf(`{"password":%q}`, good))
	var list []event
	for _, line := range s.lines(15) {
		e, err := fromLine([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}

	want := newAccounts()
	applyAll(t, want, list)
	for i, token := range tokens {
		c := claimsOf(t, token)
		code, _ := s.do("GET", "/api/v1/auth/me", token, "")
		if accepts := want.accepts(c.Subject, c.Session, c.SessionEpoch); accepts != (code == 200) {
			t.Errorf("token %d: the service answers %d, but accepted by the consumer is %v", i+1, code, accepts)
		}
	}
	var active []bool
	for _, token := range []string{a1, b1, c1} {
		active = append(active, want.status[claimsOf(t, token).Subject].Active)
	}
	if !slices.Equal(active, []bool{true, true, false}) {
		t.Errorf("alice, robert and carol are active: %v", active)
	}

	for name, order := range map[string][]event{
		"each twice":                  slices.Concat(list, list),
		"replayed from the middle":    slices.Concat(list, list[7:], list),
		"the latest first, then all":  slices.Concat(list[12:], list),
		"everything once, backwards":  backwards(list),
		"backwards and then forwards": slices.Concat(backwards(list), list),
	} {
		got := newAccounts()
		applyAll(t, got, order)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v, want\n%+v", name, got, want)
		}
	}

	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		got := newAccounts()
		applyAll(t, got, throughKafka(t, s.lines(15)))
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, want\n%+v", got, want)
		}
	})

	forgotten := newAccounts()
	applyAll(t, forgotten, list)
	forgotten.forget(time.Now().Add(24 * time.Hour)) // the longest life that an access token can be given
	if len(forgotten.ended)+len(forgotten.epoch) > 0 {
		t.Errorf("the consumer did not forget %v %v", forgotten.ended, forgotten.epoch)
	}
}

// After a restore, sequence numbers occur again, and only the generation tells which event is
// newer.
func TestAConsumerNoticesARestore(t *testing.T) {
	t.Parallel()
	of := func(kind string, generation, sequence int64) event {
		at := place{generation, sequence}
		return event{ID: fmt.Sprint(kind, at), Type: kind, Subject: "alice", place: at}
	}
	list := []event{
		of("auth.UserRegistered.v1", 0, 1), of("auth.UserDeleted.v1", 0, 9), // the deletion was lost
		of("auth.UserDisabled.v1", 1, 2), of("auth.UserEnabled.v1", 1, 3), of("auth.UserDisabled.v1", 0, 8),
	}
	for _, order := range [][]event{list, backwards(list)} {
		a := newAccounts()
		applyAll(t, a, order)
		if got, want := a.status["alice"], (status{true, place{1, 3}}); got != want {
			t.Errorf("alice is %+v, want %+v", got, want)
		}
	}
	line, err := fromLine([]byte(`{"sequence":"7","generation":"2"}`))
	record, recordErr := fromRecord(&kgo.Record{Headers: []kgo.RecordHeader{
		{Key: "ce_sequence", Value: []byte("7")}, {Key: "ce_generation", Value: []byte("2")}}})
	if err != nil || recordErr != nil || line.place != (place{2, 7}) || record.place != line.place {
		t.Errorf("%+v, %v and %+v, %v", line, err, record, recordErr)
	}
}

func applyAll(t *testing.T, a *accounts, list []event) {
	t.Helper()
	for _, e := range list {
		if err := a.apply(e); err != nil {
			t.Fatal(err)
		}
	}
}

func backwards(list []event) []event {
	list = slices.Clone(list)
	slices.Reverse(list)
	return list
}

// throughKafka publishes events of the file to a topic as the relay does, and reads them.
func throughKafka(t *testing.T, lines []string) []event {
	t.Helper()
	brokers := strings.Split(testenv.Kafka(t), ",")
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	kafka, err := sink.OpenKafka(sink.KafkaConfig{Brokers: brokers, Topic: "docs-" + uuid.NewString(), Partitions: 1},
		sink.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kafka.Close() })
	st, err := kafka.EnsureTopic(ctx)
	if err != nil {
		t.Fatal(err)
	}
	batch := &relay.Batch{Owned: func() bool { return true }}
	for i, line := range lines {
		var r struct {
			ID, Source, Type, Subject, Time, DataSchema string
			Sequence                                    int64 `json:",string"`
			Data                                        json.RawMessage
		}
		dec := json.NewDecoder(bytes.NewReader([]byte(line)))
		if err := dec.Decode(&r); err != nil {
			t.Fatal(err)
		}
		batch.Records = append(batch.Records, relay.Record{Record: outbox.Record{
			ID: int64(i + 1), Seq: r.Sequence, EventID: r.ID, Type: r.Type, Key: r.Subject, Subject: r.Subject,
			Source: r.Source, DataSchema: r.DataSchema, Time: r.Time, Data: r.Data,
		}})
	}
	for { // a new topic needs a moment to get a leader
		if err = kafka.Publish(ctx, batch); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	records, err := outboxtest.ReadRecords(ctx, brokers, st.Topic)
	if err != nil {
		t.Fatal(err)
	}
	var list []event
	for _, r := range records {
		e, err := fromRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}
