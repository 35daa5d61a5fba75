package main

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/toppira/authctl/platform/engines"
)

// Simulations of a slower machine.
//
// A slow disk: a library that is compiled for the run makes each fsync and fdatasync of the run's
// PostgreSQL longer. So commits wait longer and share flushes, as on such a
// disk; reading, and writing without a flush, is as fast as before.
//
// Slow cores: a process takes a part of each core at real-time priority, in turns of a fraction of a
// millisecond. Everything else on the machine, whatever its priority, shares the rest.

//go:embed slowdisk/slowdisk.c
var slowDiskSource string

// slowDisk returns the environment variables of a PostgreSQL whose flushes take d longer, and a
// function that removes the library.
func slowDisk(d time.Duration) (env []string, remove func() error, err error) {
	dir, err := os.MkdirTemp("", "authctl-bench-disk-")
	if err != nil {
		return nil, nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	source, library := filepath.Join(dir, "slowdisk.c"), filepath.Join(dir, "slowdisk.so")
	err = os.WriteFile(source, []byte(slowDiskSource), 0o644)
	if err == nil {
		if out, e := exec.Command("cc", "-shared", "-fPIC", "-O2", "-o", library, source,
			"-ldl").CombinedOutput(); e != nil {
			err = fmt.Errorf("compile the library that simulates a slow disk: %w: %s", e, out)
		}
	}
	if err == nil {
		err = os.Chmod(dir, 0o755) // PostgreSQL may run as another user
	}
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return []string{"LD_PRELOAD=" + library, fmt.Sprintf("AUTHCTL_SLOW_DISK_US=%d", d.Microseconds())}, remove, nil
}

// burnerCommand makes this program take a part of each core, in percent: see [slowCPU].
const burnerCommand = "burner"

// slowCPU leaves everything on the machine a part of each core, in percent, until restore is called.
func slowCPU(percent int) (restore func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, burnerCommand, strconv.Itoa(percent))
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, engines.OwnGroup()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe() // it ends with this process
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	restore = func() error { return errors.Join(in.Close(), cmd.Wait()) }
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, errors.Join(errors.New("--slow-cpu needs the right to use real-time priority, as root has"),
			restore())
	}
	return restore, nil
}

// slowMachine makes the machine of a run as slow as the options say. A PostgreSQL with a slow disk is named
// in the environment, where the parts look for one.
func slowMachine(o *options) (restore func() error, err error) {
	var back undo
	defer func() {
		if err != nil {
			err = errors.Join(err, back.run())
		}
	}()
	if o.slowCPU > 0 {
		free, err := slowCPU(o.slowCPU)
		if err != nil {
			return nil, err
		}
		back = append(back, free)
	}
	if o.slowDisk <= 0 {
		return back.run, nil
	}
	env, remove, err := slowDisk(o.slowDisk)
	if err != nil {
		return nil, err
	}
	back = append(back, remove)
	o.diskEnv = env
	pg, err := startPostgres(o.diskEnv)
	if err != nil {
		return nil, err
	}
	back = append(back, pg.Remove)
	return back.run, os.Setenv("AUTHCTL_TEST_POSTGRES", pg.URL)
}
