package testenv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Program returns the path of the first of these programs that is installed. Without any the test
// is skipped, or fails if engines are demanded; how says how to get it.
func Program(t testing.TB, how string, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	Lacking(t, "no %s: %s", names[0], how)
	return ""
}

// Lacking skips a test that cannot run here, or fails it if engines are demanded.
func Lacking(t testing.TB, format string, a ...any) {
	t.Helper()
	if Demanded() {
		t.Fatalf("demanded: "+format, a...)
	}
	t.Skipf(format, a...)
}

// NodeModules installs the packages that the package-lock.json of a folder pins, once for each
// content of it, and returns the folder that holds node_modules. Without npm or the packages it
// skips the test, or fails it if engines are demanded.
func NodeModules(t testing.TB, dir string) string {
	t.Helper()
	npm := Program(t, "it comes with Node.js", "npm")
	pins := []string{"package.json", "package-lock.json"}
	return installed(t, "node", dir, pins, func(ctx context.Context, into string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", //nolint:gosec // for tests
			"--no-fund",
			"--loglevel=error", retries("--fetch-retries"))
		cmd.Dir = into
		return cmd
	})
}

// PythonPackages installs the packages that the requirements.txt of a folder pins, once for each
// content of it, and returns the folder to name in PYTHONPATH. It skips or fails like
// [NodeModules].
func PythonPackages(t testing.TB, dir string) string {
	t.Helper()
	python := Program(t, "install Python 3", "python3")
	return installed(t, "python", dir, []string{"requirements.txt"}, func(ctx context.Context, into string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, python, "-m", "pip", "install", "--quiet", //nolint:gosec // for tests
			"--no-input",
			"--disable-pip-version-check",
			"--no-compile", "--no-deps", retries("--retries"), "--target", into,
			"--requirement", filepath.Join(into, "requirements.txt"))
		cmd.Env = append(os.Environ(), "PIP_ROOT_USER_ACTION=ignore")
		return cmd
	})
}

// retries makes a package client try longer if the packages are demanded.
func retries(flag string) string {
	if Demanded() {
		return flag + "=5"
	}
	return flag + "=1"
}

// installer is the command that installs into a folder.
type installer func(ctx context.Context, into string) *exec.Cmd

var installing sync.Mutex

// installed returns a folder of the cache with what a command installs for the pins. It runs the
// command if the folder does not exist yet.
func installed(t testing.TB, kind, dir string, pins []string, install installer) string {
	t.Helper()
	installing.Lock()
	defer installing.Unlock()
	digest := sha256.New()
	content := map[string][]byte{}
	for _, name := range pins {
		data, err := os.ReadFile(filepath.Join(dir, name))
		Must(t, err)
		content[name] = data
		fmt.Fprintf(digest, "%s %d\n%s", name, len(data), data)
	}
	cache, err := cacheDir()
	if err != nil {
		Lacking(t, "no folder for packages: %v", err)
	}
	at := filepath.Join(cache, kind+"-"+hex.EncodeToString(digest.Sum(nil)[:8]))
	if _, err := os.Stat(at); err == nil {
		return at
	}
	if err := again(func() error { return installOnce(t, cache, at, content, install) }); err != nil {
		Lacking(t, "the packages of %s cannot be installed: %v", dir, err)
	}
	return at
}

// again calls a function that fetches something, several times if that is demanded, until it succeeds.
func again(fetch func() error) (err error) {
	attempts := 1
	if Demanded() {
		attempts = 3
	}
	for attempt := range attempts {
		time.Sleep(time.Duration(attempt) * 3 * time.Second) // the registry may be busy
		if err = fetch(); err == nil {
			return nil
		}
	}
	return err
}

// GoModules fetches the modules that the go.mod of a folder names. It skips or fails like [NodeModules].
func GoModules(t testing.TB, dir string) {
	t.Helper()
	err := again(func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*Patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, "go", "-C", dir, "mod", "download") //nolint:gosec // for tests
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %.2000s", err, out)
		}
		return err
	})
	if err != nil {
		Lacking(t, "the modules of %s cannot be had: %v", dir, err)
	}
}

// installOnce fills a temporary folder and renames it, so that a folder of the cache is complete.
// Another process may do the same at the same time.
func installOnce(t testing.TB, cache, at string, content map[string][]byte, install installer) error {
	into, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(into)
	for name, data := range content {
		if err := os.WriteFile(filepath.Join(into, name), data, 0o600); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*Patience)
	defer cancel()
	cmd := install(ctx, into)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %.2000s", err, out.Bytes())
	}
	if err := os.Rename(into, at); err != nil && !errors.Is(err, os.ErrExist) {
		if _, there := os.Stat(at); there != nil {
			return err
		}
	}
	return nil
}

// cacheDir is the folder in which deploy/lint.sh and deploy/kafka.sh keep their downloads.
func cacheDir() (string, error) {
	dir := os.Getenv("AUTHCTL_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(user, "authctl")
	}
	return dir, os.MkdirAll(dir, 0o750) //nolint:gosec // the folder is the user's own choice
}
