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

// TestTheReadmesFiveMinutesWork pastes the README's lines into a shell, against a service
// that was started with nothing configured, and looks at what comes back.
func TestTheReadmesFiveMinutesWork(t *testing.T) {
	t.Parallel()
	curl, err := exec.LookPath("curl")
	switch {
	case err == nil:
	case testenv.Demanded():
		t.Fatal("curl is needed")
	default:
		t.Skip("no curl")
	}
	dir := t.TempDir()
	base := serve(t, dir)

	// The lines, as they are but for where things are. Their curl also tells the status.
	var blocks []string
	for _, b := range read(t, filepath.Join(root, "README.md")).fence {
		if b.language == "sh" && b.heading == "Five minutes" {
			blocks = append(blocks, b.text)
		}
	}
	if len(blocks) != 2 {
		t.Fatalf("%d blocks under Five minutes", len(blocks))
	}
	adapt := strings.NewReplacer(
		"localhost:8080", strings.TrimPrefix(base, "http://"),
		"/tmp/tokens.json", filepath.Join(dir, "tokens.json"),
		"go run ./cmd/authctl", authctl(t),
	)
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	shim := fmt.Sprintf("#!/bin/sh\nexec %s -w '%%{stderr}status=%%{http_code}\\n' --max-time 30 \"$@\"\n", curl)
	if err := os.WriteFile(filepath.Join(bin, "curl"), []byte(shim), 0o700); err != nil {
		t.Fatal(err)
	}
	shell := func(script string) (stdout, stderr string, err error) {
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

	requests, events, found := strings.Cut(adapt.Replace(blocks[0]), "\n# The events")
	if !found {
		t.Fatal("the events are not looked at")
	}
	inspect := adapt.Replace(blocks[1])
	stdout, stderr, err := shell(requests + "\nset +e\n" + inspect + "\necho \"exit=$?\"\n")
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout, stderr)
	}
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^status=(\d+)$`).FindAllStringSubmatch(stderr, -1) {
		got = append(got, m[1])
	}
	// Register, sign in, me, sessions, refresh, sign out, me.
	if want := []string{"201", "200", "200", "200", "200", "204", "401"}; !slices.Equal(got, want) {
		t.Errorf("statuses %q, want %q\n%s\n%s", got, want, stdout, stderr)
	}
	for _, want := range []string{`"username":"alice"`, `"device_name":"phone"`, `"code":"session_revoked"`, "session revoked", "exit=1"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("nothing says %s:\n%s", want, stdout)
		}
	}

	// Events come within moments.
	for deadline := time.Now().Add(testenv.Patience); ; time.Sleep(50 * time.Millisecond) {
		stdout, stderr, err = shell("# The events" + events)
		if err == nil && strings.Contains(stdout, "auth.UserRegistered.v1") && strings.Contains(stdout, "auth.SessionRevoked.v1") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the events: %v\n%s\n%s", err, stdout, stderr)
		}
	}
}

// serve starts the binary with nothing configured but its ports and what is given, and returns its
// address.
func serve(t *testing.T, dir string, env ...string) string {
	t.Helper()
	cmd := exec.Command(authctl(t), "serve")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "APP_HOST=127.0.0.1", "APP_PORT=0", "APP_OPERATOR_ADDR=127.0.0.1:0"}
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
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("serve ended with: %v", err)
		}
	})
	port := regexp.MustCompile(`"port": ?(\d+)`)
	address := make(chan string, 1)
	go func() { // reads to the end, or the process would be held up
		var all bytes.Buffer
		buf, told := make([]byte, 4096), false
		for {
			n, err := read.Read(buf)
			all.Write(buf[:n])
			if m := port.FindSubmatch(all.Bytes()); m != nil && !told {
				address <- "http://127.0.0.1:" + string(m[1])
				told = true
			}
			if err != nil {
				if !told {
					t.Logf("serve:\n%s", &all)
					close(address)
				}
				return
			}
		}
	}()
	base, ok := <-address
	if !ok {
		t.Fatal("serve did not start")
	}
	return base
}
