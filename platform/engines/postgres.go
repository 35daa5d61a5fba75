package engines

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Postgres is a server of PostgreSQL.
type Postgres struct {
	URL  string // of its superuser
	Bin  string // the folder of its programs
	Dir  string // with its data and its log
	port int
	env  []string // of its programs, besides that of this process
	attr *syscall.SysProcAttr
}

// NewPostgres prepares a server, which has no data yet. env is added to the environment of its programs.
func NewPostgres(port int, env ...string) (*Postgres, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pg_ctl")
	if path, err := exec.LookPath("pg_ctl"); err == nil && len(found) == 0 {
		found = append(found, path)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the programs of PostgreSQL's server, of the package postgresql, are %w", ErrMissing)
	}
	slices.Sort(found)
	uid, gid, attr := os.Getuid(), os.Getgid(), OwnGroup()
	if uid == 0 { // PostgreSQL refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, fmt.Errorf("a user postgres, as whom root runs PostgreSQL, is %w", ErrMissing)
		}
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	dir, err := os.MkdirTemp("", "authctl-postgres-") // that user may not enter the folder of a test
	if err != nil {
		return nil, err
	}
	return &Postgres{URL: fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port),
		Bin: filepath.Dir(found[len(found)-1]), Dir: dir, port: port, env: env, attr: attr}, os.Chown(dir, uid, gid)
}

// Create makes the data of a new server, with these lines in postgresql.conf, and starts it.
func (p *Postgres) Create(settings ...string) error {
	if err := p.Run("initdb", "-D", p.Data(), "-U", "postgres", "-A", "trust", "-N", "--no-sync", "-E", "UTF8",
		"--locale=C"); err != nil {
		return err
	}
	return p.configure(settings)
}

// Follow makes the server a streaming standby of another one, and starts it.
func (p *Postgres) Follow(primary *Postgres, settings ...string) error {
	if err := p.Run("pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(primary.port), "-U", "postgres", "-D",
		p.Data(), "-R", "-X", "stream", "-c", "fast", "--no-sync"); err != nil {
		return err
	}
	return p.configure(settings)
}

func (p *Postgres) configure(settings []string) error {
	lines := append([]string{fmt.Sprintf("port = %d", p.port), "listen_addresses = '127.0.0.1'",
		"unix_socket_directories = ''"}, settings...)
	f, err := os.OpenFile(filepath.Join(p.Data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(strings.Join(lines, "\n") + "\n"); err != nil {
		return err
	}
	return p.Start()
}

// Data is the folder of the server's data.
func (p *Postgres) Data() string { return filepath.Join(p.Dir, "data") }

// Start starts the server and returns once it serves.
func (p *Postgres) Start() error { return p.control("-l", filepath.Join(p.Dir, "log"), "start") }

// Stop ends the server: fast, as an operator does, or immediate, as a power failure would, except that the system
// keeps what it has received.
func (p *Postgres) Stop(mode string) error { return p.control("-m", mode, "stop") }

// Promote makes a standby the primary.
func (p *Postgres) Promote() error { return p.control("promote") }

// control waits for up to three minutes: a busy disk may stall.
func (p *Postgres) control(args ...string) error {
	return p.Run("pg_ctl", append([]string{"-D", p.Data(), "-w", "-t", "180"}, args...)...)
}

// Remove ends the server and deletes its folder.
func (p *Postgres) Remove() error {
	if _, err := os.Stat(filepath.Join(p.Data(), "postmaster.pid")); err == nil {
		_ = p.Stop("immediate") // its data is deleted anyway
	}
	return os.RemoveAll(p.Dir)
}

// Run runs a program of the server.
func (p *Postgres) Run(name string, args ...string) error {
	out, err := p.Execute(append(os.Environ(), p.env...), filepath.Join(p.Bin, name), args...)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(p.Dir, "log"))
		err = fmt.Errorf("%s: %w: %s\n%s", name, err, out, log[max(0, len(log)-2000):])
	}
	return err
}

// Execute runs any program as the server's user, in its folder, and returns the output.
func (p *Postgres) Execute(env []string, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = p.Dir, env, p.attr
	// Not a pipe: the server that pg_ctl starts would keep it open.
	out, err := os.CreateTemp("", "authctl-postgres-out-")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	text, _ := os.ReadFile(out.Name())
	return string(text), err
}
