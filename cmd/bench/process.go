package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/toppira/authctl/platform/engines"
)

// process is an authctl serve or authctl relay, in its own process as in production.
type process struct {
	name     string
	path     string // of the binary
	args     []string
	env      []string
	dir      string
	operator string // host:port of its metrics
	ready    string // URL that answers once it works

	mu      sync.Mutex
	cmd     *exec.Cmd
	exited  chan error
	output  tail
	started time.Duration // from its start to the first answer
}

// tail keeps the end of a process's output.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-16<<10):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.Clone(t.text))
}

// newProcess says what to run. env is added to the environment of the benchmark, without the
// variables that name engines, and to what every process has.
func (o options) newProcess(dir, name string, env []string, args ...string) (*process, error) {
	path, err := o.authctl()
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p := &process{name: name, path: path, args: args, dir: dir, operator: fmt.Sprintf("127.0.0.1:%d", port)}
	p.ready = "http://" + p.operator + "/metrics"
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !strings.HasPrefix(name, "AUTHCTL_") {
			p.env = append(p.env, v)
		}
	}
	p.env = append(append(p.env, env...), "APP_DATA_DIR="+dir, "APP_OPERATOR_ADDR="+p.operator, "APP_MODE=dev",
		"LOG_LEVEL=warn")
	return p, nil
}

// start returns once the process answers.
func (p *process) start(ctx context.Context) error {
	begin := time.Now()
	cmd := exec.Command(p.path, p.args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = p.env, p.dir, &p.output, &p.output, engines.OwnGroup()
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // received by stop or kill
	p.mu.Lock()
	p.cmd, p.exited = cmd, exited
	p.mu.Unlock()
	for time.Since(begin) < 30*time.Second {
		if _, err := get(p.ready); err == nil {
			p.started = time.Since(begin)
			return nil
		}
		select {
		case err := <-exited:
			exited <- err
			return fmt.Errorf("%s ended: %w: %s", p.name, err, &p.output)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not answer: %s", p.name, &p.output)
}

// running returns what runs and the channel that tells of its end, for the one who ends it; nil if nothing runs.
func (p *process) running() (cmd *exec.Cmd, exited <-chan error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd, p.cmd = p.cmd, nil
	return cmd, p.exited
}

// stop ends the process as an operator does.
func (p *process) stop() error {
	cmd, exited := p.running()
	if cmd == nil {
		return nil
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-exited:
		if err != nil {
			return fmt.Errorf("%s: %w: %s", p.name, err, &p.output)
		}
		return nil
	case <-time.After(20 * time.Second):
		return errors.Join(fmt.Errorf("%s does not stop within 20 s: %s", p.name, &p.output), cmd.Process.Kill())
	}
}

func (p *process) kill() {
	if cmd, exited := p.running(); cmd != nil {
		_ = cmd.Process.Kill()
		<-exited
	}
}

// usage is what a process uses of the machine.
type usage struct {
	memory, peak float64 // MiB resident
	descriptors  float64
	goroutines   float64
}

// proc is the folder of the process in /proc, or "" if it does not run.
func (p *process) proc() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return ""
	}
	return filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid))
}

// memory returns resident and peak resident memory in MiB.
func (p *process) memory() (now, peak float64) {
	data, err := os.ReadFile(filepath.Join(p.proc(), "status"))
	if err != nil {
		return 0, 0
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		name, value, _ := strings.Cut(line, ":")
		kb, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		switch name {
		case "VmRSS":
			now = kb / 1024
		case "VmHWM":
			peak = kb / 1024
		}
	}
	return now, peak
}

// usage reads it; false means that the process does not run.
func (p *process) usage() (u usage, running bool) {
	u.memory, u.peak = p.memory()
	files, err := os.ReadDir(filepath.Join(p.proc(), "fd"))
	if err != nil || u.memory == 0 {
		return usage{}, false
	}
	u.descriptors = float64(len(files))
	text, err := get("http://" + p.operator + "/metrics")
	if err != nil {
		return usage{}, false
	}
	u.goroutines = metric(text, "go_goroutines")
	return u, true
}

// metric returns the value of a metric without labels in the text form of Prometheus, 0 if it has none.
func metric(text, name string) float64 {
	for line := range strings.Lines(text) {
		if key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key == name {
			v, _ := strconv.ParseFloat(value, 64)
			return v
		}
	}
	return 0
}

var slowClient = http.Client{Timeout: 10 * time.Second}

func get(url string) (string, error) {
	res, err := slowClient.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", url, res.Status)
	}
	return string(body), err
}
