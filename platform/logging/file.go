package logging

import (
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// file is the log file. It is only ever appended to, so that what truncates it (logrotate's
// copytruncate) leaves no hole, and several processes may write to one. When it has grown to its
// limit it is renamed and a new one is begun.
//
// Lumberjack and timberjack, which would do the turning over, assume that one process alone writes
// to a file, and that nobody else renames or truncates it.
//
// Others may rename or remove it, too. It is looked for by its name once a second and whenever
// [file.Reopen] is called, and what is written then goes to the file of that name.
type file struct {
	cfg   Config
	now   func() time.Time
	limit int64              // bytes at which it is turned over; 0 for never
	told  func(error)        // is told what failed beside writing
	end   context.CancelFunc // of tidying
	ended context.Context

	tidying   sync.WaitGroup
	oneTidies sync.Mutex

	mu     sync.Mutex
	f      *os.File // nil before it is opened
	info   fs.FileInfo
	size   int64
	looked time.Time
}

// lookEvery is how often the file is looked for by its name.
const lookEvery = time.Second

func newFile(cfg Config, now func() time.Time, told func(error)) *file {
	l := &file{cfg: cfg, now: now, told: told, limit: int64(cfg.MaxSizeMB) << 20}
	l.ended, l.end = context.WithCancel(context.Background())
	return l
}

// open makes the folder and the file if they are missing, the owner's alone. The file that was
// open stays when this fails.
func (l *file) open() error {
	if err := os.MkdirAll(filepath.Dir(l.cfg.Path), 0o700); err != nil {
		return fmt.Errorf("log.path: make the folder: %w", err)
	}
	// A device or a pipe cannot be turned over, and opening a pipe waits for its reader.
	if info, err := os.Stat(l.cfg.Path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("log.path: %s is not a file; leave log.path empty to log to stderr", l.cfg.Path)
	}
	f, err := os.OpenFile(l.cfg.Path, os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY, 0o600)
	switch {
	case err == nil:
		giveToFolderOwner(f, filepath.Dir(l.cfg.Path))
	case errors.Is(err, fs.ErrExist):
		f, err = os.OpenFile(l.cfg.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	}
	if err != nil {
		return fmt.Errorf("log.path: %w", err)
	}
	// A file from before may be open to others; one that is not ours to change is its owner's
	// decision. Files set aside keep the mode.
	_ = f.Chmod(0o600)
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("log.path: %w", err), f.Close())
	}
	if l.f != nil {
		_ = l.f.Close() // everything was written at once
	}
	l.f, l.info, l.size, l.looked = f, info, info.Size(), l.now()
	return nil
}

// Reopen opens the file of the name, which may be another one by now.
func (l *file) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open()
}

// Write appends a line. When the file of the name cannot be opened it goes to the one that is
// open, which may be nobody's any more, and the error says so.
func (l *file) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.look(lookEvery)
	if l.limit > 0 && l.size > 0 && l.size+int64(len(line)) > l.limit {
		err = errors.Join(err, l.turnOver())
	}
	if l.f == nil {
		return 0, err
	}
	n, failed := l.f.Write(line)
	l.size += int64(n)
	return n, errors.Join(err, failed)
}

// look opens the file again when its name means another file, or none.
func (l *file) look(every time.Duration) error {
	if l.f != nil && l.now().Sub(l.looked) < every {
		return nil
	}
	l.looked = l.now()
	info, err := os.Stat(l.cfg.Path)
	if l.f == nil || err != nil || !os.SameFile(info, l.info) {
		return l.open()
	}
	l.size = info.Size() // others may have written to it, or emptied it
	return nil
}

// turnOver sets the file aside and begins another one, unless somebody has just done it. A file
// that cannot be set aside is written on.
func (l *file) turnOver() error {
	if err := l.look(0); err != nil || l.size == 0 {
		return err
	}
	aside := l.aside(l.now())
	if err := os.Rename(l.cfg.Path, aside); err != nil {
		l.told(fmt.Errorf("set the log file aside: %w", err))
		l.size = 0 // tried again after as much more
		return nil
	}
	if err := l.open(); err != nil {
		return err
	}
	l.startTidying()
	return nil
}

// Close closes the file and ends the tidying.
func (l *file) Close() error {
	l.end()
	l.tidying.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	return l.f.Close()
}

const (
	asideTime  = "2006-01-02T15-04-05.000" // UTC, between the name and its extension
	zipped     = ".gz"
	unfinished = ".tmp"

	abandoned = time.Minute // after which an unfinished file that has not grown is a dead process's
)

func (l *file) split() (dir, name, ext string) {
	dir, base := filepath.Split(l.cfg.Path)
	ext = filepath.Ext(base)
	return dir, strings.TrimSuffix(base, ext), ext
}

// aside is a name for the file set aside, that no file has.
func (l *file) aside(at time.Time) string {
	dir, name, ext := l.split()
	for ; ; at = at.Add(time.Millisecond) {
		path := filepath.Join(dir, name+"-"+at.UTC().Format(asideTime)+ext)
		_, plain := os.Lstat(path)
		_, packed := os.Lstat(path + zipped)
		if errors.Is(plain, fs.ErrNotExist) && errors.Is(packed, fs.ErrNotExist) {
			return path
		}
	}
}

// startTidying removes and compresses files set aside, in the background and one at a time.
func (l *file) startTidying() {
	l.tidying.Go(func() {
		l.oneTidies.Lock()
		defer l.oneTidies.Unlock()
		if err := l.tidy(); err != nil && l.ended.Err() == nil {
			l.told(fmt.Errorf("tidy the log files set aside: %w", err))
		}
	})
}

// tidy removes what is too many or too old and compresses the rest but for the newest one, which
// another process may still be writing to.
func (l *file) tidy() error {
	dir, name, ext := l.split()
	entries, err := os.ReadDir(cmp.Or(dir, "."))
	if err != nil {
		return err
	}
	var times []string // of the files set aside, each once
	packed, plain := map[string]bool{}, map[string]bool{}
	for _, e := range entries {
		stem, found := strings.CutPrefix(e.Name(), name+"-")
		stem, isPacked := strings.CutSuffix(stem, zipped)
		stem, hasExt := strings.CutSuffix(stem, ext)
		if _, err := time.Parse(asideTime, stem); !found || !hasExt || err != nil || !e.Type().IsRegular() {
			continue
		}
		if !packed[stem] && !plain[stem] {
			times = append(times, stem)
		}
		if isPacked {
			packed[stem] = true
		} else {
			plain[stem] = true
		}
	}
	slices.Sort(times)
	slices.Reverse(times)
	oldest := l.now().Add(-time.Duration(l.cfg.MaxAgeDays) * 24 * time.Hour)
	var failed error
	for i, stem := range times {
		path := filepath.Join(dir, name+"-"+stem+ext)
		at, _ := time.Parse(asideTime, stem)
		switch {
		case l.cfg.MaxBackups > 0 && i >= l.cfg.MaxBackups, l.cfg.MaxAgeDays > 0 && at.Before(oldest):
			failed = errors.Join(failed, remove(path), remove(path+zipped))
		case l.cfg.Compress && plain[stem] && i > 0:
			failed = errors.Join(failed, l.compress(path))
		}
	}
	return failed
}

// compress replaces a file by its gzip, whole or not at all.
func (l *file) compress(path string) (err error) {
	from, err := os.Open(path)
	if err != nil {
		return ignoreMissing(err) // another process was faster
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	partial := path + zipped + unfinished
	if left, err := os.Stat(partial); err == nil && time.Since(left.ModTime()) > abandoned {
		_ = os.Remove(partial)
	}
	to, err := os.OpenFile(partial, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if errors.Is(err, fs.ErrExist) {
		return nil // another process is at it
	}
	if err != nil {
		return err
	}
	giveToFolderOwner(to, filepath.Dir(path))
	defer func() { err = errors.Join(err, remove(partial)) }() // not there any more when all is well
	packer := gzip.NewWriter(to)
	_, err = io.Copy(packer, untilDone{l.ended, from})
	if err := errors.Join(err, packer.Close(), to.Close()); err != nil {
		return err
	}
	if err := os.Rename(partial, path+zipped); err != nil {
		return ignoreMissing(err)
	}
	return remove(path)
}

// untilDone is a reader that fails once the process is about to end.
type untilDone struct {
	ctx context.Context
	io.Reader
}

func (r untilDone) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

func remove(path string) error { return ignoreMissing(os.Remove(path)) }

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
