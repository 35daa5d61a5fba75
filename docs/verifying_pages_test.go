package docs_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The pages of a snapshot tell what had ended when the first one was asked for. A follower that counts from the
// last one takes its knowledge for newer than it is.
func TestFollowersCountFromTheFirstPage(t *testing.T) {
	t.Parallel()
	const held = time.Second // the second of three pages
	feed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, _ := strconv.Atoi(r.URL.Query().Get("after"))
		switch page {
		case 1:
			<-time.After(held) // the age that the follower must tell
		case 3:
			<-r.Context().Done()
			return
		}
		_, _ = fmt.Fprintf(w, `{"cursor": "%d", "as_of": "2026-01-02T15:04:05Z", "more": %t, "revocations": []}`,
			page+1, page < 2)
	}))
	t.Cleanup(feed.Close)
	node, python := inNode(t), inPython(t)
	for name, run := range map[string]struct {
		program
		text string
	}{
		"node": {program{dir: node.dir, args: []string{node.args[0], "--input-type=module", "-e"}}, `
import { Ended, follow } from "` + node.dir + `/follow.mjs";
const ended = new Ended(), stop = new AbortController();
follow(ended, { feed: process.argv[1], id: "orders", secret: "secret", name: "orders", signal: stop.signal });
while (ended.lag() === Infinity) await new Promise((resume) => setTimeout(resume, 5));
console.log(ended.lag());
process.exit();`},
		"python": {program{dir: python.dir, args: []string{python.args[0], "-c"}, env: python.env}, `
import sys, threading, time
from follow import Ended, follow
ended, stopped = Ended(), threading.Event()
threading.Thread(target=follow, args=(ended, sys.argv[1], "orders", "secret", "orders", stopped), daemon=True).start()
while ended.lag() == float("inf"):
    time.sleep(0.005)
print(1000 * ended.lag())`},
	} {
		cmd := exec.CommandContext(t.Context(), run.args[0], append(run.args[1:], run.text, feed.URL)...)
		cmd.Dir, cmd.Env, cmd.Stderr = run.dir, append(os.Environ(), run.env...), t.Output()
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		lag, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		if least := 0.99 * float64(held.Milliseconds()); err != nil || lag < least {
			t.Errorf("%s: the lag is %s ms, %v; want at least %v", name, out, err, least)
		}
	}
}
