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

// File is the log file; nil if there is none. It is only appended to, so that truncating it
// (logrotate's copytruncate) leaves no hole, and several processes may write to it. When it reaches
// its limit, it is renamed and a new one is begun.
//
// Lumberjack and timberjack, which also rotate files, assume that only one process writes to a file
// and nobody else renames or truncates it.
//
// Others may also rename or remove it. Once a second, and on [File.Reopen], the file of this name
// is looked up, and opened if it is another one.
type File struct {
	cfg   Config
	now   func() time.Time
	limit int64              // bytes at which it is rotated; 0 for never
	told  func(error)        // is told what failed other than writing
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

// lookEvery is how often the file is looked up by its name.
const lookEvery = time.Second

func newFile(cfg Config, now func() time.Time, told func(error)) *File {
	l := &File{cfg: cfg, now: now, told: told, limit: int64(cfg.MaxSizeMB) << 20}
	l.ended, l.end = context.WithCancel(context.Background())
	return l
}

// open creates the folder and the file if they are missing, for their owner alone. If it fails,
// the file that was open stays open.
func (l *File) open() error {
	if err := os.MkdirAll(filepath.Dir(l.cfg.Path), 0o700); err != nil {
		return fmt.Errorf("log.path: make the folder: %w", err)
	}
	if err := notAFile(l.cfg.Path); err != nil {
		return fmt.Errorf("log.path: %w", err)
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
	// An existing file may be readable by others. This fails if it belongs to another user, whose
	// decision it is. Rotated files keep the mode.
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

// Reopen opens the file of this name, which may be another one now. If that fails, the old one stays
// in use.
func (l *File) Reopen() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open()
}

// Write appends a line. If the file of this name cannot be opened, the line goes to the one that is
// open, which may have been removed, and the error says so.
func (l *File) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.look(lookEvery)
	if l.limit > 0 && l.size > 0 && l.size+int64(len(line)) > l.limit {
		err = errors.Join(err, l.rotate())
	}
	if l.f == nil {
		return 0, err
	}
	n, failed := l.f.Write(line)
	l.size += int64(n)
	return n, errors.Join(err, failed)
}

// look opens the file again if there is another one of this name, or none.
func (l *File) look(every time.Duration) error {
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

// rotate renames the file and begins another one, unless another process has just done so. A file
// that cannot be renamed stays in use.
func (l *File) rotate() error {
	if err := l.look(0); err != nil || l.size == 0 {
		return err
	}
	if err := os.Rename(l.cfg.Path, l.rotated(l.now())); err != nil {
		l.told(fmt.Errorf("rotate the log file: %w", err))
		l.size = 0 // the next try comes after as many bytes again
		return nil
	}
	if err := l.open(); err != nil {
		return err
	}
	l.startTidying()
	return nil
}

// Close closes the file and ends the tidying. The logger must not be used afterwards.
func (l *File) Close() error {
	if l == nil {
		return nil
	}
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
	rotatedTime = "2006-01-02T15-04-05.000" // UTC, between the name and its extension
	zipped      = ".gz"
	unfinished  = ".tmp"

	abandoned = time.Minute // an unfinished file that has not grown for so long is of a dead process
)

func (l *File) split() (dir, name, ext string) {
	dir, base := filepath.Split(l.cfg.Path)
	ext = filepath.Ext(base)
	return dir, strings.TrimSuffix(base, ext), ext
}

// rotated returns an unused name for the rotated file.
func (l *File) rotated(at time.Time) string {
	dir, name, ext := l.split()
	for ; ; at = at.Add(time.Millisecond) {
		path := filepath.Join(dir, name+"-"+at.UTC().Format(rotatedTime)+ext)
		_, plain := os.Lstat(path)
		_, packed := os.Lstat(path + zipped)
		if errors.Is(plain, fs.ErrNotExist) && errors.Is(packed, fs.ErrNotExist) {
			return path
		}
	}
}

// startTidying removes and compresses rotated files in the background, one run at a time.
func (l *File) startTidying() {
	l.tidying.Go(func() {
		l.oneTidies.Lock()
		defer l.oneTidies.Unlock()
		if err := l.tidy(); err != nil && l.ended.Err() == nil {
			l.told(fmt.Errorf("tidy the rotated log files: %w", err))
		}
	})
}

// tidy removes rotated files that are too many or too old, and compresses the rest except the
// newest one, which another process may still be writing to.
func (l *File) tidy() error {
	dir, name, ext := l.split()
	entries, err := os.ReadDir(cmp.Or(dir, "."))
	if err != nil {
		return err
	}
	var times []string // of the rotated files, each once
	packed, plain := map[string]bool{}, map[string]bool{}
	for _, e := range entries {
		stem, found := strings.CutPrefix(e.Name(), name+"-")
		stem, isPacked := strings.CutSuffix(stem, zipped)
		stem, hasExt := strings.CutSuffix(stem, ext)
		if _, err := time.Parse(rotatedTime, stem); !found || !hasExt || err != nil || !e.Type().IsRegular() {
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
		at, _ := time.Parse(rotatedTime, stem)
		switch {
		case l.cfg.MaxBackups > 0 && i >= l.cfg.MaxBackups, l.cfg.MaxAgeDays > 0 && at.Before(oldest):
			failed = errors.Join(failed, remove(path), remove(path+zipped))
		case l.cfg.Compress && plain[stem] && i > 0:
			failed = errors.Join(failed, l.compress(path))
		}
	}
	return failed
}

// compress replaces a file by its gzip, completely or not at all.
func (l *File) compress(path string) (err error) {
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
		return nil // another process is compressing it
	}
	if err != nil {
		return err
	}
	giveToFolderOwner(to, filepath.Dir(path))
	defer func() { err = errors.Join(err, remove(partial)) }() // gone already after a success
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

// untilDone is a reader that fails when ctx ends.
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
