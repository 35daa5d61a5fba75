package verify

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mutant is an easily made mistake, and the test that has to find it. The text that it replaces
// must occur exactly once, so after a change of the code the mutant fails.
type mutant struct {
	name, file, old, new, test string
	always                     bool // not only with AUTHCTL_CAMPAIGN=long
}

var mutants = []mutant{
	{"a snapshot that loses what came meanwhile", "feed.go", "if k.next != nil && problem == nil {", "if false {",
		"TestACursorThatIsGone", true},
	{"forgetting too early, by the clock of this machine", "feed.go", "	_, early := v.clock.issuerTime()\n",
		"	early := v.now()\n",
		"TestClocksThatDifferByHours", true},
	{"an unknown key id that fetches each time", "keys.go", "time.Since(k.asked) < unknownEvery",
		"time.Since(k.asked) < 0",
		"TestAFloodOfUnknownKeys", true},
	{"a snapshot without accounts", "feed.go", "		d.addAccount(sub, r.SessionEpoch, kept, r.ExpiresAt)\n",
		"		_, _ = sub, kept\n",
		"TestEveryKindOfEndIsRefused", false},
	{"a token that outlives the memory of its end", "clock.go", "if judged.Before(early) {", "if false {",
		"TestClocksThatDifferByHours", false},
	{"ends that are never forgotten", "feed.go", "	list.forget(early, sweepShards)\n", "	_ = early\n",
		"TestClocksThatDifferByHours", false},
	{"lag from when an answer came", "clock.go", "at.UnixNano()-c.elapsed(m.asked)",
		"at.UnixNano()-c.elapsed(m.read)", "TestLagIsNeverTooLow", false},
	{"a server that stands still is believed", "clock.go", " && m.asOf.Sub(c.beganAsOf) > clockWindow/2", "",
		"TestLagIsNeverTooLow", false},
	{"another database by the clock of the old one", "feed.go", "another: f.another && !f.paged,", "another: false,",
		"TestThePromotedStandbyHasAnotherClock", false},
	{"a server that is behind and kept", "feed.go", "lag > v.cfg.MaxLag && len(v.servers) > 1", "lag < 0",
		"TestAServerThatIsBehindIsLeft", false},
	{"tokens judged by the database's clock alone", "clock.go", "	if m.server.IsZero() {", "	if true {",
		"TestADatabaseWhoseClockIsWrong", false},
	{"forgetting by a clock that was corrected", "feed.go", "	f.v.clock.doubt()\n", "",
		"TestWhatAWrongClockMadeForgottenComesBack", false},
	{"a page of a snapshot that measures the clock", "clock.go", "	if !m.page {\n", "	if true {\n",
		"TestAnOldPageIsNoMeasure", false},
	{"an older end that replaces a newer one", "denylist.go", "case !known || epoch > now.epoch:",
		"case !known || epoch != now.epoch:",
		"TestEveryKindOfEndIsRefused", false},
	{"old knowledge that goes with its cursor", "feed.go", "	k.next = &denylist{}\n",
		"	k.list.Store(&denylist{})\n", "TestACursorThatIsGone", false},
	{"keys of before the issuer's database was restored", "feed.go", "				f.v.keys.renew(ctx)\n", "",
		"TestKeysAreFetchedWhenTheCursorIsGone", false},
	{"a revoked key that is still in the key set", "denylist.go", "	return revoked\n",
		"	return revoked && false\n", "TestEveryKindOfEndIsRefused", false},
	{"redirects that are followed", "verify.go", "return http.ErrUseLastResponse", "return nil",
		"TestKeysAreKeptThroughAnOutage", false},
	{"a token without its audience", "token.go", "case !slices.Contains(c.Audience, audience):", "case false:",
		"TestPublishedVectors", false},
}

func TestTheSuiteFindsMistakes(t *testing.T) {
	t.Parallel()
	for _, m := range mutants {
		if !m.always && os.Getenv("AUTHCTL_CAMPAIGN") != "long" {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			file, err := filepath.Abs(m.file)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(text), m.old); n != 1 {
				t.Fatalf("%s has %q %d times", m.file, m.old, n)
			}
			dir := t.TempDir()
			changed, overlay := filepath.Join(dir, m.file), filepath.Join(dir, "overlay.json")
			if err := os.WriteFile(changed, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			plan, err := json.Marshal(map[string]map[string]string{"Replace": {file: changed}})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(overlay, plan, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), "go", "test", "-overlay", overlay, "-vet=off", "-count=1",
				"-run", "^"+m.test+"$", ".").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: "+m.test) {
				t.Errorf("%s does not find it: %v\n%.2000s", m.test, err, out)
			}
		})
	}
}
