package engines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Kafka is a cluster that deploy/kafka.sh runs. The id of its first broker is 1.
type Kafka struct {
	Brokers []string
	SCRAM   []string // listeners that require authentication, if any
	dir     string
	script  string
}

// StartKafka starts brokers that keep everything in a folder. args are those of the script.
func StartKafka(ctx context.Context, dir string, args ...string) (*Kafka, error) {
	root, err := os.Getwd()
	for err == nil && root != filepath.Dir(root) {
		if _, none := os.Stat(filepath.Join(root, "go.mod")); none == nil {
			break
		}
		root = filepath.Dir(root)
	}
	if err != nil {
		return nil, err
	}
	k := &Kafka{dir: dir, script: filepath.Join(root, "deploy", "kafka.sh")}
	// A broker that was killed keeps its partitions, and may not return, until its session ends.
	out, err := k.run(ctx, "start", append([]string{"--set", "broker.session.timeout.ms=4000", "--set",
		"broker.heartbeat.interval.ms=500"}, args...)...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 3 {
		return nil, fmt.Errorf("what Kafka needs is %w: %w", ErrMissing, err)
	}
	if err != nil {
		return nil, errors.Join(err, k.Stop())
	}
	for line := range strings.Lines(out) {
		switch name, list, _ := strings.Cut(strings.TrimSpace(line), "="); name {
		case "BROKERS":
			k.Brokers = strings.Split(list, ",")
		case "SCRAM_BROKERS":
			k.SCRAM = strings.Split(list, ",")
		}
	}
	return k, nil
}

// run runs a command of the script and returns what it prints.
func (k *Kafka) run(ctx context.Context, command string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, k.script, append([]string{command, "--dir", k.dir}, args...)...)
	// A broker that does not optimise its code starts sooner.
	cmd.Env = append(os.Environ(), "KAFKA_JVM_OPTIONS=-XX:TieredStopAtLevel=1")
	cmd.SysProcAttr = OwnGroup()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("deploy/kafka.sh %s: %w: %s", command, err, stderr.String())
	}
	return string(out), err
}

// Stop kills the brokers that still run.
func (k *Kafka) Stop() error {
	_, err := k.run(context.Background(), "stop")
	return err
}

// Restart starts a broker that was killed, and returns once it serves.
func (k *Kafka) Restart(id int) error {
	_, err := k.run(context.Background(), "start-broker", strconv.Itoa(id))
	return err
}

// Signal sends a signal to a broker. It returns once a broker that is killed has ended.
func (k *Kafka) Signal(id int, sig syscall.Signal) error {
	text, err := os.ReadFile(filepath.Join(k.dir, fmt.Sprintf("broker-%d.pid", id)))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return err
	}
	deadline := time.Now().Add(3 * time.Minute) // a busy disk may stall
	for ; sig == syscall.SIGKILL; time.Sleep(10 * time.Millisecond) {
		if err := syscall.Kill(pid, 0); err != nil {
			return nil
		}
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil &&
			strings.Contains(string(stat), ") Z ") {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("broker %d was killed and does not end", id)
		}
	}
	return nil
}
