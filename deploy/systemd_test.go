package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/testenv"
)

const (
	serveUnit = "systemd/authctl.service"
	relayUnit = "systemd/authctl-relay@.service"
)

// unit is a unit file: the values of each setting, in order.
type unit map[string][]string

func readUnit(t *testing.T, path string) unit {
	t.Helper()
	return unit{}.with(read(t, path))
}

// with returns the unit after a change to it: a value is added to the others of its setting, and an empty one
// removes them.
func (u unit) with(text string) unit {
	u = maps.Clone(u)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, value, found := strings.Cut(line, "=")
		switch {
		case !found || strings.HasPrefix(line, "#"):
		case value == "":
			delete(u, name)
		default:
			u[name] = append(slices.Clip(u[name]), value)
		}
	}
	return u
}

// environment is what the unit sets for the named instance.
func (u unit) environment(instance string) map[string]string {
	env := map[string]string{}
	for _, entry := range u["Environment"] {
		name, value, _ := strings.Cut(entry, "=")
		env[name] = strings.ReplaceAll(value, "%i", instance)
	}
	for _, names := range u["UnsetEnvironment"] {
		for name := range strings.FieldsSeq(names) {
			delete(env, name)
		}
	}
	return env
}

func TestUnitsSurviveADatabaseThatComesLate(t *testing.T) {
	t.Parallel()
	for path, command := range map[string]string{serveUnit: "serve", relayUnit: "relay"} {
		u := readUnit(t, path)
		for name, want := range map[string]string{
			"Type": "notify", "Restart": "on-failure", "RestartSec": "2", "StartLimitIntervalSec": "0",
			"ExecStart":  "/usr/local/bin/authctl " + command + " --config %d/config.yaml",
			"ExecReload": "/bin/kill -HUP $MAINPID",
		} {
			if !slices.Equal(u[name], []string{want}) {
				t.Errorf("%s: %s is %q, want %q", path, name, u[name], want)
			}
		}
		// A Go program that panics exits with 2, as one that is misused does.
		if no := u["RestartPreventExitStatus"]; no != nil {
			t.Errorf("%s: after exit status %q it is not started again", path, no)
		}
	}
}

// A relay that stops waits for the answers to what it has sent. Without them it would be sent
// twice.
func TestRelaysAreGivenTheTimeThatAnswersMayTake(t *testing.T) {
	t.Parallel()
	const longest = 2*time.Minute + 10*time.Second // the answer to a mail, and the time to record it
	compose, _ := readCompose(t, "../docker-compose.yml")
	for where, text := range map[string]string{
		relayUnit:            readUnit(t, relayUnit)["TimeoutStopSec"][0] + "s",
		"docker-compose.yml": compose.Services["relay"].StopGrace,
	} {
		if grace, err := time.ParseDuration(text); err != nil || grace < longest {
			t.Errorf("%s: a relay that stops is killed after %q, but may need %v: %v", where, text, longest, err)
		}
	}
}

func TestUnitsMeetOnNoPort(t *testing.T) {
	t.Parallel()
	serve, relay := readUnit(t, serveUnit), readUnit(t, relayUnit)
	seen := map[string]bool{}
	for _, env := range []map[string]string{serve.environment(""), relay.environment("1"), relay.environment("2")} {
		for _, name := range []string{"APP_OPERATOR_ADDR", "APP_DATA_DIR"} {
			if env[name] == "" || seen[env[name]] {
				t.Errorf("%s=%s, as in another unit", name, env[name])
			}
			seen[env[name]] = true
		}
	}
	if serve.environment("")["OUTBOX_RELAY"] != "off" {
		t.Error("the API relays although relays exist")
	}
}

func TestUnitsSetOnlyWhatCanBeSet(t *testing.T) {
	t.Parallel()
	known := environmentNames(t)
	for path, u := range units(t) {
		for name := range u.environment("1") {
			if !known[name] && !known[strings.TrimSuffix(name, "_FILE")] {
				t.Errorf("%s sets %s, which is no setting", path, name)
			}
		}
	}
	for name := range readUnit(t, relayUnit).environment("1") {
		if strings.HasPrefix(name, "AUTH_") && name != "AUTH_TOKEN_SECRET_FILE" || strings.HasPrefix(name, "CACHE_") {
			t.Errorf("the relay gets %s, which it does not need", name)
		}
	}
}

// The units run as users of their own, and by the lines of the page only root may enter /etc/authctl.
func TestUnitsReadWhatOnlyRootMayRead(t *testing.T) {
	t.Parallel()
	if page := read(t, "../docs/operations.md"); !strings.Contains(page, "install -d -m 700 /etc/authctl\n") {
		t.Error("the page makes another folder")
	}
	for path, u := range units(t) {
		handed, used := map[string]bool{}, map[string]bool{}
		for _, credential := range u["LoadCredential"] {
			name, _, _ := strings.Cut(credential, ":")
			handed[name] = true
		}
		values := slices.AppendSeq(slices.Clone(u["ExecStart"]), maps.Values(u.environment("1")))
		for _, value := range values {
			if strings.Contains(value, "/etc/authctl") {
				t.Errorf("%s: %s names a file that its user may not read", path, value)
			}
			if _, name, found := strings.Cut(value, "%d/"); found {
				used[name] = true
			}
		}
		// systemd does not start a unit without a file that it hands on.
		if !maps.Equal(used, handed) {
			t.Errorf("%s uses the credentials %v and gets %v", path, used, handed)
		}
	}
}

// units are those of the folder, and that of the API with each change that the page shows.
func units(t *testing.T) map[string]unit {
	t.Helper()
	all := map[string]unit{serveUnit: readUnit(t, serveUnit), relayUnit: readUnit(t, relayUnit)}
	blocks := regexp.MustCompile("(?ms)^```ini\n(.*?)^```$").FindAllStringSubmatch(read(t, "../docs/operations.md"), -1)
	if len(blocks) != 2 {
		t.Errorf("the page shows %d changes to the unit", len(blocks))
	}
	for _, block := range blocks {
		all[serveUnit+" with\n"+block[1]] = all[serveUnit].with(block[1])
	}
	return all
}

// The secrets of webhooks and the contents of mails are sealed with the servers' secret.
func TestTheRelayUnitCanSendWebhooksAndMails(t *testing.T) {
	t.Parallel()
	serve, relay := readUnit(t, serveUnit), readUnit(t, relayUnit)
	const credential = "secret:/etc/authctl/secret"
	for path, u := range map[string]unit{serveUnit: serve, relayUnit: relay} {
		if !slices.Contains(u["LoadCredential"], credential) ||
			u.environment("1")["AUTH_TOKEN_SECRET_FILE"] != "%d/secret" {
			t.Errorf("%s does not get %s", path, credential)
		}
	}
}

func TestSystemdTakesTheUnits(t *testing.T) {
	t.Parallel()
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if testenv.Demanded() {
			t.Fatal("systemd-analyze is demanded, but not installed")
		}
		t.Skip("no systemd-analyze")
	}
	dir := t.TempDir()
	for path, name := range map[string]string{serveUnit: "authctl.service", relayUnit: "authctl-relay@1.service"} {
		text := strings.ReplaceAll(read(t, path), "/usr/local/bin/authctl",
			binary(t)) // systemd checks that the program exists
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), verify, "verify", "--man=no",
			filepath.Join(dir, name)).CombinedOutput()
		if ours := regexp.MustCompile(`(?m)^.*authctl.*$`).FindAllString(string(out), -1); err != nil || len(ours) > 0 {
			t.Errorf("%s: %v\n%s", path, err, out)
		}
	}
}

// TestADatabaseThatComesLateIsServedFromThen does what systemd does with the units: it starts the
// process, waits for its end or for READY, and starts it again.
func TestADatabaseThatComesLateIsServedFromThen(t *testing.T) {
	t.Parallel()
	late := newLateServer(t, testenv.Postgres(t))
	for path, args := range map[string][]string{serveUnit: {"serve"}, relayUnit: {"relay"}} {
		db := newRolesDatabase(t)
		u, err := url.Parse(db.as(map[string]string{serveUnit: "authctl_serve", relayUnit: "authctl_relay"}[path]))
		if err != nil {
			t.Fatal(err)
		}
		u.Host = late.addr
		dir := t.TempDir()
		socket, err := net.ListenUnixgram("unixgram",
			&net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		env := []string{"NOTIFY_SOCKET=" + filepath.Join(dir, "notify"), "DATABASE_URL=" + u.String(),
			"AUTH_TOKEN_SECRET=" + strings.Repeat("0123456789abcdef", 3),
			"AUTH_TOKEN_ISSUER=https://auth.example.com", "APP_PORT=0", "APP_HOST=127.0.0.1",
			"KAFKA_BROKERS=127.0.0.1:1",
			"KAFKA_ALLOW_PLAINTEXT=true"}
		for name, value := range readUnit(t, path).environment("1") {
			switch name {
			case "APP_OPERATOR_ADDR":
				env = append(env, name+"=127.0.0.1:0")
			case "APP_DATA_DIR":
				env = append(env, name+"="+dir)
			case "APP_MODE", "OUTBOX_RELAY":
				env = append(env, name+"="+value)
			}
		}
		start := func() (*exec.Cmd, *lockedBuffer, chan error) {
			ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
			cmd := exec.CommandContext(ctx, binary(t), args...)
			var said lockedBuffer
			cmd.Dir, cmd.Env, cmd.Stderr = dir, env, &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			t.Cleanup(cancel)
			return cmd, &said, ended
		}
		late.stop()
		for range 3 {
			_, said, ended := start()
			select {
			case err := <-ended:
				if failed, ok := errors.AsType[*exec.ExitError](err); !ok || failed.ExitCode() != 1 {
					t.Errorf("%v ended with %v, which systemd would not start again:\n%s", args, err, said)
				}
			case <-time.After(testenv.Patience):
				t.Fatalf("%v does not end without a database:\n%s", args, said)
			}
		}
		late.start()
		cmd, said, ended := start()
		_ = socket.SetReadDeadline(time.Now().Add(testenv.Patience))
		message := make([]byte, 100)
		n, err := socket.Read(message)
		if err != nil || string(message[:n]) != "READY=1" {
			t.Fatalf("%v says %q, %v:\n%s", args, message[:n], err, said)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("%v: %v\n%s", args, err, said)
		}
	}
}

// lateServer passes connections on to a server once it is started.
type lateServer struct {
	t        *testing.T
	addr, to string
	listener net.Listener
}

func newLateServer(t *testing.T, server string) *lateServer {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	l := &lateServer{t: t, addr: fmt.Sprint("127.0.0.1:", testenv.FreePort(t)), to: u.Host}
	l.start()
	t.Cleanup(l.stop)
	return l
}

func (l *lateServer) stop() { _ = l.listener.Close() }

func (l *lateServer) start() {
	l.t.Helper()
	listener, err := net.Listen("tcp", l.addr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.listener = listener
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				server, err := net.Dial("tcp", l.to)
				if err != nil {
					return
				}
				defer server.Close()
				go func() { _, _ = io.Copy(server, client); server.Close() }()
				_, _ = io.Copy(client, server)
			}()
		}
	}()
}
