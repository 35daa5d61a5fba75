package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){"authctl": main, "fetch": fetch, "stopping": stopping, "writeevents": writeEvents})
}

// tests runs the tests, unless this process is a program of a script.
type tests struct{ *testing.M }

func (m tests) Run() int {
	// With the race detector a program sleeps for a second before it exits, unless told not to.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=10 "+os.Getenv("GORACE"))
	_ = os.Setenv("APP_AUTOGROUP_NICE", "0") // its coverage would count for the whole test run
	return m.M.Run()
}

// TestScripts runs the binary, as an operator does, through testdata/script. Each script has
// a folder, an environment and servers of its own.
//
// Beside testscript's own commands there are:
//
//	exits CODE PROGRAM [ARG]...      runs a program that must exit with the code
//	eventually REGEXP PROGRAM …      runs it again and again until its output matches
//	start NAME [ARG]...              runs authctl in the background, its output in NAME.out and NAME.err;
//	                                 of the environment it has its settings and what $pass names
//	start -deaf NAME [ARG]...        … and nobody reads what it writes to stderr
//	signal NAME TERM|INT|HUP|KILL        sends a signal to it
//	ended NAME CODE|SIGNAL           waits for its end, by that exit code or signal
//	await FILE REGEXP [VAR]          waits until the file matches, and keeps the first group in VAR
//	http STATUS METHOD URL [JSON]    sends a request, with the token in $token if there is one
//	fetch URL                        is a program that prints what is there, whatever the status
//	field PATH VAR                   keeps a member of the JSON on stdout, such as sessions.0.id, in VAR
//	events FILE                      prints id, type and sequence of each event in the file once
//	sql DATABASE STATEMENT           changes a SQLite database
//	postgres                         makes a PostgreSQL database, migrated, and names it in DATABASE_URL
//	port VAR                         keeps in VAR a free port that nobody gets meanwhile
//	receiver VAR                     keeps in VAR the URL of a receiver that says more than its answer
func TestScripts(t *testing.T) {
	t.Parallel()
	scripts := scriptParams(t)
	scripts.Dir = "testdata/script"
	testscript.Run(t, scripts)
}

// TestAnyNumberOfConnectionsIsEnoughForEverything runs one script with each.
func TestAnyNumberOfConnectionsIsEnoughForEverything(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"SQLite", "PostgreSQL"} {
		for _, conns := range []string{"1", "2", "1000"} {
			t.Run(engine+" "+conns, func(t *testing.T) {
				t.Parallel()
				scripts := scriptParams(t)
				scripts.Files = []string{"testdata/max_conns.txtar"}
				url, down := "", "authctl migrate down --yes"
				if engine == "PostgreSQL" {
					url, down = dbtest.PostgresURL(t), down+" --force"
				}
				set := scripts.Setup
				scripts.Setup = func(env *testscript.Env) error {
					env.Vars = append(env.Vars, "DATABASE_MAX_CONNS="+conns, "DATABASE_URL="+url, "down="+down)
					return set(env)
				}
				testscript.Run(t, scripts)
			})
		}
	}
}

func scriptParams(t *testing.T) testscript.Params {
	return testscript.Params{
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Values[processes{}] = map[string]*process{}
			for name, value := range map[string]string{
				"APP_HOST": "127.0.0.1", "APP_PORT": "0", "APP_OPERATOR_ADDR": "127.0.0.1:0",
				"AUTH_PASSWORD_BCRYPT_COST": "4", "token": "",
				"GORACE": os.Getenv("GORACE"), "APP_AUTOGROUP_NICE": "0",
				"TEST_REDIS": os.Getenv("AUTHCTL_TEST_REDIS"), "TEST_KAFKA": os.Getenv("AUTHCTL_TEST_KAFKA"),
				"TEST_TOPIC": "script-" + uuid.NewString(),
			} {
				env.Setenv(name, value)
			}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "postgres":
				return os.Getenv("AUTHCTL_TEST_POSTGRES") != "" || testenv.Demanded(), nil
			case "redis":
				return os.Getenv("AUTHCTL_TEST_REDIS") != "" || testenv.Demanded(), nil
			case "kafka":
				return os.Getenv("AUTHCTL_TEST_KAFKA") != "" || testenv.Demanded(), nil
			case "mounts": // a file system of its own, in a namespace
				return exec.Command("unshare", "-rm", "sh", "-c",
					"mount -t tmpfs -o size=1m none /tmp").Run() == nil, nil
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("no condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":      exits,
			"eventually": eventually,
			"start":      start,
			"signal":     sendSignal,
			"ended":      ended,
			"await":      await,
			"http":       request,
			"field":      field,
			"events":     events,
			"sql":        changeSQLite,
			"port": func(ts *testscript.TestScript, _ bool, args []string) {
				usage(ts, len(args) == 1, "port VAR")
				ts.Setenv(args[0], strconv.Itoa(testenv.FreePort(t)))
			},
			"receiver": func(ts *testscript.TestScript, _ bool, args []string) {
				usage(ts, len(args) == 1, "receiver VAR")
				server := httptest.NewServer(http.HandlerFunc(sayMore))
				ts.Defer(server.Close)
				ts.Setenv(args[0], server.URL)
			},
			"postgres": func(ts *testscript.TestScript, _ bool, _ []string) {
				ts.Setenv("DATABASE_URL", dbtest.PostgresURL(t))
			},
		},
	}
}

// sayMore takes a webhook, and sends words that belong to no answer.
func sayMore(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	conn, both, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = both.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nwords of the receiver")
	_ = both.Flush()
	_, _ = both.ReadByte() // until the other side has gone
	_ = conn.Close()
}

// patience is how long a script waits for something.
const patience = testenv.Patience

// poll repeats a question until the answer is yes.
func poll(reached func() bool) bool {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if reached() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

func usage(ts *testscript.TestScript, ok bool, text string) {
	if !ok {
		ts.Fatalf("usage: %s", text)
	}
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 2, "exits CODE PROGRAM [ARG]...")
	if got := outcome(ts.Exec(args[1], args[2:]...)); got != args[0] {
		ts.Fatalf("it ended with %s, want %s", got, args[0])
	}
}

// outcome is the exit code, or the name of the signal.
func outcome(err error) string {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if err != nil && !ok {
		return err.Error()
	}
	if err == nil {
		return "0"
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return map[syscall.Signal]string{syscall.SIGKILL: "KILL", syscall.SIGTERM: "TERM", syscall.SIGINT: "INT",
			syscall.SIGPIPE: "PIPE"}[status.Signal()]
	}
	return strconv.Itoa(exit.ExitCode())
}

func eventually(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 2, "eventually REGEXP PROGRAM [ARG]...")
	want := regexp.MustCompile("(?m)" + args[0])
	ok := poll(func() bool {
		_ = ts.Exec(args[1], args[2:]...)
		return want.MatchString(ts.ReadFile("stdout")) || want.MatchString(ts.ReadFile("stderr"))
	})
	if !ok {
		ts.Fatalf("nothing matches %s", args[0])
	}
}

// process is an authctl in the background.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when err is set
	err  error
}

type processes struct{}

func running(ts *testscript.TestScript, name string) *process {
	p := ts.Value(processes{}).(map[string]*process)[name]
	if p == nil {
		ts.Fatalf("nothing was started as %s", name)
	}
	return p
}

func start(ts *testscript.TestScript, _ bool, args []string) {
	deaf := len(args) > 0 && args[0] == "-deaf"
	if deaf {
		args = args[1:]
	}
	usage(ts, len(args) >= 2, "start [-deaf] NAME ARG...")
	name := args[0]
	path := ""
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if found, err := exec.LookPath(filepath.Join(dir, "authctl")); err == nil && path == "" {
			path = found
		}
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, variable := range append(strings.Fields(ts.Getenv("pass")), "PATH", "HOME", "TMPDIR", "GORACE") {
		cmd.Env = append(cmd.Env, variable+"="+ts.Getenv(variable))
	}
	for _, key := range config.Keys(&settings{}) {
		for _, variable := range []string{key.Env, key.Env + "_FILE"} {
			if value := ts.Getenv(variable); value != "" {
				cmd.Env = append(cmd.Env, variable+"="+value)
			}
		}
	}
	stdout, err := os.Create(ts.MkAbs(name + ".out"))
	ts.Check(err)
	defer stdout.Close()
	stderr, err := os.Create(ts.MkAbs(name + ".err"))
	ts.Check(err)
	defer stderr.Close()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if deaf {
		ear, mouth, err := os.Pipe()
		ts.Check(err)
		defer mouth.Close()
		ts.Check(ear.Close())
		cmd.Stderr = mouth
	}
	ts.Check(cmd.Start())
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		<-p.done
	})
	ts.Value(processes{}).(map[string]*process)[name] = p
}

func sendSignal(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2, "signal NAME TERM|INT|HUP|KILL")
	signal, known := map[string]os.Signal{"TERM": syscall.SIGTERM, "INT": os.Interrupt, "HUP": syscall.SIGHUP,
		"KILL": os.Kill}[args[1]]
	usage(ts, known, "signal NAME TERM|INT|HUP|KILL")
	ts.Check(running(ts, args[0]).cmd.Process.Signal(signal))
}

func ended(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2, "ended NAME CODE|SIGNAL")
	p := running(ts, args[0])
	select {
	case <-p.done:
	case <-time.After(patience):
		ts.Fatalf("%s has not ended; output:\n%s", args[0], ts.ReadFile(args[0]+".err"))
	}
	if got := outcome(p.err); got != args[1] {
		ts.Fatalf("%s ended with %s, want %s; output:\n%s", args[0], got, args[1], ts.ReadFile(args[0]+".err"))
	}
}

func await(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2 || len(args) == 3, "await FILE REGEXP [VAR]")
	want := regexp.MustCompile("(?m)" + args[1])
	var groups []string
	ok := poll(func() bool {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil {
			groups = want.FindStringSubmatch(string(text))
		}
		return groups != nil
	})
	if !ok {
		text, _ := os.ReadFile(ts.MkAbs(args[0]))
		ts.Fatalf("%s does not match %s:\n%s", args[0], args[1], text)
	}
	if len(args) == 3 {
		ts.Setenv(args[2], groups[1])
	}
}

func request(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 3 || len(args) == 4, "http STATUS METHOD URL [JSON]")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var body io.Reader
	if len(args) == 4 {
		body = strings.NewReader(args[3])
	}
	req, err := http.NewRequestWithContext(ctx, args[1], args[2], body)
	ts.Check(err)
	req.Close = true
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token := ts.Getenv("token"); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	ts.Check(err)
	_, err = ts.Stdout().Write(text)
	ts.Check(err)
	if strconv.Itoa(response.StatusCode) != args[0] {
		ts.Fatalf("status %d, want %s: %s", response.StatusCode, args[0], text)
	}
}

// fetch is a program that the scripts call.
func fetch() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, os.Args[1], nil)
	if err == nil {
		if token := os.Getenv("token"); token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		var response *http.Response
		if response, err = http.DefaultClient.Do(req); err == nil {
			_, err = io.Copy(os.Stdout, response.Body)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func field(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2, "field PATH VAR")
	var value any
	// Of several documents, one on each line, the first counts.
	ts.Check(json.NewDecoder(strings.NewReader(ts.ReadFile("stdout"))).Decode(&value))
	for name := range strings.SplitSeq(args[0], ".") {
		switch v := value.(type) {
		case map[string]any:
			value = v[name]
		case []any:
			i, err := strconv.Atoi(name)
			ts.Check(err)
			if i >= len(v) {
				ts.Fatalf("there are only %d in %s", len(v), args[0])
			}
			value = v[i]
		}
	}
	if value == nil {
		ts.Fatalf("there is no %s", args[0])
	}
	ts.Setenv(args[1], fmt.Sprint(value))
}

// events reads what the file sink writes and what outbox tail prints as JSON.
func events(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 1, "events FILE")
	var lines []string
	in := bufio.NewScanner(strings.NewReader(ts.ReadFile(args[0])))
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var e struct {
			ID       json.RawMessage `json:"id"`
			EventID  string          `json:"event_id"`
			Type     string          `json:"type"`
			Sequence json.RawMessage `json:"sequence"`
		}
		ts.Check(json.Unmarshal(in.Bytes(), &e))
		id := e.EventID
		if id == "" {
			id = string(bytes.Trim(e.ID, `"`))
		}
		line := fmt.Sprintf("%s %s %s\n", id, e.Type, bytes.Trim(e.Sequence, `"`))
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	ts.Check(in.Err())
	slices.Sort(lines)
	_, err := io.WriteString(ts.Stdout(), strings.Join(lines, ""))
	ts.Check(err)
}

func changeSQLite(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2, "sql DATABASE STATEMENT")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	db, err := database.Open(ctx, database.Config{URL: config.Secret("sqlite:" + ts.MkAbs(args[0]))},
		database.Options{})
	ts.Check(err)
	defer db.Close()
	_, err = db.Write(ctx, args[1])
	ts.Check(err)
}
