package authhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/httpserver"
)

// Revocations lists what has ended, for services that verify access tokens themselves.
type Revocations struct {
	Cursor      string       `json:"cursor" example:"AQ" doc:"Send it as after to continue from here."`
	AsOf        string       `json:"as_of" format:"date-time" example:"2026-01-02T15:04:05.123456Z" doc:"This answer and the earlier ones contain everything that had ended by this time, by the clock of the database."`
	ServerTime  string       `json:"server_time" format:"date-time" example:"2026-01-02T15:04:05.123456Z" doc:"The same moment by the clock of the server, by which it issues tokens."`
	More        bool         `json:"more" example:"false" doc:"Another page is ready: ask at once. The list is incomplete until the last page."`
	Revocations []Revocation `json:"revocations"`
}

// Revocation is one thing that has ended.
type Revocation struct {
	Type         string `json:"type" enum:"session,account,key" example:"session"`
	SessionID    string `json:"sid,omitempty" format:"uuid" example:"0199b7f2-6f3f-7000-8000-5b1f6a100c8c" doc:"For a session: tokens with this sid are not valid any more."`
	Subject      string `json:"sub,omitempty" format:"uuid" example:"0199b7f2-6f3e-7c1d-9a55-0c8c5b1f6a10" doc:"The user of the session or account."`
	SessionEpoch int64  `json:"session_epoch,omitempty" doc:"For an account: tokens with its sub and a lower session_epoch are not valid any more. Of several entries the highest counts."`
	KeptSID      string `json:"kept_sid,omitempty" format:"uuid" doc:"For an account: tokens with this sid stay valid."`
	KeyID        string `json:"kid,omitempty" pattern:"^[A-Za-z0-9_-]{1,64}$" doc:"For a signing key: nothing that it signed is valid any more."`
	ExpiresAt    string `json:"expires_at" format:"date-time" example:"2026-01-02T20:09:05Z" doc:"You can forget the entry then: the tokens that it ends have expired."`
}

type revocationsInput struct {
	After       string `query:"after" example:"AQ" doc:"The cursor of the previous answer. Without it the answer begins with everything that has ended and could still be accepted."`
	Wait        string `query:"wait" pattern:"^[0-9]{0,2}$" example:"0" doc:"Seconds to wait if nothing has ended since: 0 to 30, default 0. For events 1 to 30, default 5: an event comes at least that often."`
	Verifier    string `query:"verifier" maxLength:"100" example:"orders-3" doc:"Name of the caller: up to 100 printable ASCII characters. authctl verifier list shows it."`
	Instance    string `query:"instance" maxLength:"64" example:"K7Q2W5XJ3M4N" doc:"Random text that the caller's process makes when it starts: up to 64 printable ASCII characters. It tells processes of the same name apart; without it their addresses do."`
	Version     string `query:"version" maxLength:"100" example:"orders 1.4.2" doc:"Version of the caller's program; for people."`
	Keys        string `query:"keys" example:"lpkJk-MlDxWRkDInAlO2WgoKJQllf958DxvrTfim0kM" doc:"Ids of the signing keys that the caller holds, separated by commas, at most 32. authctl key promote waits until every caller holds the new one."`
	Accept      string `header:"Accept"`
	Peer        httpserver.Peer
	LastEventID string `header:"Last-Event-ID" example:"AQ" doc:"The same as after, as clients of server-sent events send it when they reconnect."`
}

// revocationsAnswer is a page, or events with a page each.
type revocationsAnswer struct {
	Body   httpserver.Encoded[Revocations]
	Events httpserver.Events
}

const (
	maxWait    = 30 * time.Second
	eventsWait = 5 * time.Second
	mostKeys   = 32

	maxName     = 100
	maxInstance = 64
)

var keyID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// The faults of the feed. After crowded the caller had better try another server.
var (
	errCursorGone = httpserver.OAuthError{Status: http.StatusGone, Code: "cursor_gone",
		Description: "The database cannot continue from this cursor: it is another one, was restarted, restored or " +
			"promoted, or its clock was set back. Start again without after.",
	}
	errCrowded = httpserver.OAuthError{Status: http.StatusServiceUnavailable, Code: "temporarily_unavailable",
		Description: "This server has reached its limit of followers. Try another server.", RetryAfter: 5 * time.Second,
	}
)

func badFollower(description string) error {
	return &httpserver.OAuthError{Status: http.StatusBadRequest, Code: "invalid_request", Description: description}
}

// follow reads and checks what a follower asks for.
func (in revocationsInput) follow(client string) (who auth.Follower, wait time.Duration, err error) {
	who = auth.Follower{Client: client, Name: in.Verifier, Instance: in.Instance, Version: in.Version}
	if !printable(in.Verifier, maxName) || !printable(in.Version, maxName) || !printable(in.Instance, maxInstance) {
		return who, 0, badFollower("verifier and version are at most 100 printable ASCII characters, and instance at " +
			"most 64.")
	}
	if who.Instance == "" && in.Peer.IP.IsValid() {
		who.Instance = in.Peer.IP.String()
	}
	if in.Keys != "" {
		who.Keys = strings.Split(in.Keys, ",")
		notKey := func(kid string) bool { return !keyID.MatchString(kid) }
		if len(who.Keys) > mostKeys || slices.ContainsFunc(who.Keys, notKey) {
			return who, 0, badFollower("keys are at most 32 key ids with commas between them.")
		}
	}
	if in.Wait == "" {
		if in.streams() {
			wait = eventsWait
		}
		return who, wait, nil
	}
	n, err := strconv.ParseUint(in.Wait, 10, 16)
	wait = time.Duration(n) * time.Second
	if err != nil || len(in.Wait) > 2 || wait > maxWait || wait == 0 && in.streams() {
		return who, 0, badFollower("wait is a whole number of seconds from 0 to 30, for events from 1.")
	}
	return who, wait, nil
}

func printable(text string, most int) bool {
	return len(text) <= most && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
}

// streams reports whether the caller wants server-sent events: Accept names them, and does not name
// JSON with a higher quality.
func (in revocationsInput) streams() bool {
	events := quality(in.Accept, "text/event-stream")
	return events > 0 && events >= quality(in.Accept, "application/json")
}

// quality is that of a media type in Accept (RFC 9110 §12.5.1); 0 if it is not named.
func quality(accept, media string) float64 {
	for one := range strings.SplitSeq(accept, ",") {
		name, parameters, _ := strings.Cut(one, ";")
		if !strings.EqualFold(strings.TrimSpace(name), media) {
			continue
		}
		for parameter := range strings.SplitSeq(parameters, ";") {
			name, value, _ := strings.Cut(strings.TrimSpace(parameter), "=")
			if strings.EqualFold(name, "q") {
				q, err := strconv.ParseFloat(value, 64)
				if err != nil {
					return 0
				}
				return q
			}
		}
		return 1
	}
	return 0
}

// revocations tells what has ended.
func (a *api) revocations(ctx context.Context, client string, in revocationsInput) (revocationsAnswer, error) {
	who, wait, err := in.follow(client)
	if err != nil {
		return revocationsAnswer{}, err
	}
	after := in.After
	if in.streams() && in.LastEventID != "" { // where the stream before this one ended
		after = in.LastEventID
	}
	f, err := a.svc.FollowRevocations(who)
	if err != nil {
		return revocationsAnswer{}, followFault(err)
	}
	if !in.streams() {
		defer f.Close()
		page, err := f.Next(ctx, after, wait)
		return revocationsAnswer{Body: page.JSON}, followFault(err)
	}
	// A cursor that is gone is refused before the stream begins.
	first, err := f.Next(ctx, after, 0)
	if err != nil {
		f.Close()
		return revocationsAnswer{}, followFault(err)
	}
	return revocationsAnswer{Events: func(ctx context.Context, send func(httpserver.Event) error) {
		defer f.Close()
		tellRevocations(ctx, f, first, wait, send)
	}}, nil
}

// tellRevocations sends each page as an event, until the client leaves or something fails.
func tellRevocations(
	ctx context.Context, f *auth.Following, page auth.RevocationPage, wait time.Duration,
	send func(httpserver.Event) error,
) {
	for {
		err := send(httpserver.Event{Name: "revocations", ID: page.Cursor, Data: page.JSON})
		if err != nil || ctx.Err() != nil {
			return
		}
		next, err := f.Next(ctx, page.Cursor, wait)
		if ctx.Err() != nil && err != nil {
			return // a stop is no outage
		}
		if err != nil {
			_ = send(httpserver.Event{Name: "error", Data: eventFault(err)})
			return
		}
		page = next
	}
}

// followFault is an error of a follower as the client may see it.
func followFault(err error) error {
	switch {
	case errors.Is(err, auth.ErrCursorGone):
		return &errCursorGone
	case errors.Is(err, auth.ErrNotACursor):
		return badFollower("after is not a cursor of this service.")
	case errors.Is(err, auth.ErrTooManyFollowers):
		return &errCrowded
	case errors.Is(err, auth.ErrRevocationsUnknown):
		return fmt.Errorf("%w: %w", httpserver.ErrUnavailable, err)
	}
	return err
}

// eventFault is the JSON of an error within a stream.
func eventFault(err error) []byte {
	problem := httpserver.OAuthProblem{
		Error: "temporarily_unavailable", Description: "The database does not answer: what has ended is not known now.",
	}
	if oauth, ok := errors.AsType[*httpserver.OAuthError](followFault(err)); ok {
		problem = httpserver.OAuthProblem{Error: oauth.Code, Description: oauth.Description}
	}
	text, err := json.Marshal(problem)
	if err != nil {
		panic(err) // two texts
	}
	return text
}
