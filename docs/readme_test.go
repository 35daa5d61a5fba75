package docs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/testenv"
)

// pasted starts a service with nothing configured. It returns the shell blocks of a section of the
// README, adapted to this service, and a shell to paste them into. The shell's curl also prints the
// status of each answer on standard error.
func pasted(t *testing.T, heading string) (blocks []string, shell func(string) (stdout, stderr string, err error)) {
	t.Helper()
	curl, err := exec.LookPath("curl")
	switch {
	case err == nil:
	case testenv.Demanded():
		t.Fatal("curl is needed")
	default:
		t.Skip("no curl")
	}
	dir := t.TempDir()
	adapt := strings.NewReplacer(
		"localhost:8080", strings.TrimPrefix(serve(t, dir), "http://"),
		"/tmp/tokens.json", filepath.Join(dir, "tokens.json"),
		"go run ./cmd/authctl", authctl(t),
	)
	for _, b := range read(t, filepath.Join(root, "README.md")).fence {
		if b.language == "sh" && b.heading == heading {
			blocks = append(blocks, adapt.Replace(b.text))
		}
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	shim := fmt.Sprintf("#!/bin/sh\nexec %s -w '%%{stderr}status=%%{http_code}\\n' --max-time %d \"$@\"\n", curl,
		int(testenv.Patience.Seconds()))
	if err := os.WriteFile(filepath.Join(bin, "curl"), []byte(shim), 0o700); err != nil {
		t.Fatal(err)
	}
	return blocks, func(script string) (stdout, stderr string, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, "sh", "-eu", "-c", script)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + dir}
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err = cmd.Run()
		return out.String(), errs.String(), err
	}
}

// statuses returns the statuses that the curl of [pasted] has printed.
func statuses(stderr string) (got []string) {
	for _, m := range regexp.MustCompile(`(?m)^status=(\d+)$`).FindAllStringSubmatch(stderr, -1) {
		got = append(got, m[1])
	}
	return got
}

// TestTheReadmesForgottenPasswordWorks pastes the README's lines from a registration to a new
// password.
func TestTheReadmesForgottenPasswordWorks(t *testing.T) {
	t.Parallel()
	blocks, shell := pasted(t, "A forgotten password")
	stdout, stderr, err := shell(strings.Join(blocks, "\n"))
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout, stderr)
	}
	// Register, contacts, confirm, forgot, reset, sign in.
	want := []string{"201", "200", "200", "202", "204", "200"}
	if got := statuses(stderr); !slices.Equal(got, want) {
		t.Errorf("statuses %q, want %q\n%s\n%s", got, want, stdout, stderr)
	}
}

// TestTheReadmesFiveMinutesWork pastes the README's lines, and checks the answers.
func TestTheReadmesFiveMinutesWork(t *testing.T) {
	t.Parallel()
	blocks, shell := pasted(t, "Five minutes")
	if len(blocks) != 2 {
		t.Fatalf("%d blocks under Five minutes", len(blocks))
	}
	requests, events, found := strings.Cut(blocks[0], "\n# The events")
	if !found {
		t.Fatal("the section does not show the events")
	}
	stdout, stderr, err := shell(requests + "\nset +e\n" + blocks[1] + "\necho \"exit=$?\"\n")
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout, stderr)
	}
	// Register, sign in, me, sessions, refresh, sign out, me.
	if want := []string{"201", "200", "200", "200", "200", "204", "401"}; !slices.Equal(statuses(stderr), want) {
		t.Errorf("statuses %q, want %q\n%s\n%s", statuses(stderr), want, stdout, stderr)
	}
	for _, want := range []string{`"username":"alice"`, `"device_name":"phone"`, `"code":"session_revoked"`,
		"session revoked", "exit=1"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no output has %s:\n%s", want, stdout)
		}
	}

	// Events arrive within moments.
	for deadline := time.Now().Add(testenv.Patience); ; time.Sleep(50 * time.Millisecond) {
		stdout, stderr, err = shell("# The events" + events)
		if err == nil && strings.Contains(stdout, "auth.UserRegistered.v1") &&
			strings.Contains(stdout, "auth.SessionRevoked.v1") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the events: %v\n%s\n%s", err, stdout, stderr)
		}
	}
}

// serve starts the binary with its ports, a cheap hash and the given settings, and returns its address.
// A hash of the default cost, at its low priority, takes longer than a request may beside the compilers
// and generators of other tests.
func serve(t *testing.T, dir string, env ...string) string {
	t.Helper()
	cmd := exec.Command(authctl(t), "serve")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "APP_HOST=127.0.0.1", "APP_PORT=0",
		"APP_OPERATOR_ADDR=127.0.0.1:0", "AUTH_PASSWORD_BCRYPT_COST=4"}
	cmd.Env = append(cmd.Env, env...)
	read, write := io.Pipe()
	cmd.Stderr = write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		_ = write.Close()
		ended <- err
	}()
	port := regexp.MustCompile(`"port": ?(\d+)`)
	address := make(chan string, 1)
	var log bytes.Buffer
	logged := make(chan struct{})
	go func() { // reads to the end, or the process would block
		defer close(logged)
		buf, told := make([]byte, 4096), false
		for {
			n, err := read.Read(buf)
			log.Write(buf[:n])
			if m := port.FindSubmatch(log.Bytes()); m != nil && !told {
				address <- "http://127.0.0.1:" + string(m[1])
				told = true
			}
			if err != nil {
				if !told {
					close(address)
				}
				return
			}
		}
	}()
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("serve ended with: %v", err)
		}
		<-logged
		if t.Failed() {
			t.Logf("serve:\n%s", &log)
		}
	})
	base, ok := <-address
	if !ok {
		t.Fatal("serve did not start")
	}
	return base
}
