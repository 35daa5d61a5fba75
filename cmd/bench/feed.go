package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/toppira/authctl/platform/retry"
)

const (
	followers       = 1000
	refreshing      = 16
	endedEvery      = time.Second
	eventsOfAnother = 30 * time.Second // the longest wait of a follower for its first event
)

// benchFeed measures refreshes without followers of /oauth2/revocations, with a thousand that wait,
// and with a thousand that hear of ended sessions every second.
func benchFeed(ctx context.Context, o options, r *report) (err error) {
	s, err := startServer(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	_, list, err := s.users(2 * refreshing)
	if err != nil {
		return err
	}
	under := func(ends bool) result {
		ending, stop := context.WithCancel(ctx)
		var group sync.WaitGroup
		group.Go(func() {
			for ends && retry.Sleep(ending, endedEvery) {
				_, _, _ = s.call("DELETE", "/api/v1/auth/sessions?except=current", nil, "Authorization",
					"Bearer "+list[refreshing].Access) // with no other sessions
			}
		})
		got := load(refreshing, o.duration, func(w int) outcome { return s.refresh(&list[w]) })
		stop()
		group.Wait()
		return got
	}
	alone := under(false)
	following, stop := context.WithCancel(ctx)
	defer stop()
	told, err := s.follow(following, followers)
	if err != nil {
		return err
	}
	for _, ends := range []bool{false, true} {
		before := told.Load()
		got := under(ends)
		events := float64(told.Load()-before) / o.duration.Seconds()
		name := fmt.Sprintf("%d followers", followers)
		if ends {
			name += ", an end each second"
		}
		r.rate(fmt.Sprintf("refresh, %d connections, %s (failed %d)", refreshing, name, got.failed), got.rate,
			alone.rate, "no followers", 0)
		r.latency("refresh p99, "+name, got.p99, alone.p99, 0)
		r.plain("events, "+name, fmt.Sprintf("%.0f/s", events), "", true)
	}
	return nil
}

// follow runs n followers until ctx ends, and counts the events that they get. It returns once each
// has got its first one.
func (s *server) follow(ctx context.Context, n int) (told *atomic.Int64, err error) {
	told = new(atomic.Int64)
	client := http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{Timeout: eventsOfAnother}).DialContext, MaxConnsPerHost: n,
	}}
	first := make(chan error, n)
	for range n {
		go func() {
			once := sync.OnceFunc(func() { first <- nil })
			if err := s.followOnce(ctx, client, func() { told.Add(1); once() }); ctx.Err() == nil {
				first <- fmt.Errorf("a follower: %w", err)
			}
		}()
	}
	late := time.After(eventsOfAnother)
	for range n {
		select {
		case err := <-first:
			if err != nil {
				return nil, err
			}
		case <-late:
			return nil, errors.New("the followers get nothing")
		}
	}
	return told, nil
}

func (s *server) followOnce(ctx context.Context, client http.Client, event func()) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"/oauth2/revocations", nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth(clientID, clientSecret)
	req.Header.Set("Accept", "text/event-stream")
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", res.Status)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if lines.Text() == "" {
			event()
		}
	}
	return errors.Join(lines.Err(), errors.New("the stream has ended"))
}
