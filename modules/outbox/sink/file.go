package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/toppira/authctl/modules/outbox/relay"
)

// File appends events to a file, as one line of structured JSON each. A batch counts as published
// once it is on the disk. Several processes may append to one file: they take turns with a lock file
// next to it. If the file was moved away, a new one is created. If a crash cut off the last line,
// the partial line is removed, and its event is written again.
type File struct {
	path    string
	closing context.Context // ends when the sink is closed
	close   func() error    // once

	turn chan struct{} // holds a token while somebody uses the fields below
	lock *flock.Flock
	f    *os.File
}

// OpenFile opens or creates the file, readable only by its owner.
func OpenFile(path string) (*File, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open the event file: %w", err)
	}
	s := &File{path: path, turn: make(chan struct{}, 1), lock: flock.New(path+".lock", flock.SetPermissions(0o600))}
	closing, end := context.WithCancel(context.Background())
	s.closing = closing
	s.close = sync.OnceValue(func() error {
		end()
		s.turn <- struct{}{} // and keeps it
		err := s.lock.Close()
		if s.f != nil {
			err = errors.Join(err, s.f.Close())
			s.f = nil
		}
		return err
	})
	if err := s.open(); err != nil {
		return nil, err
	}
	return s, nil
}

// FileName is the name of the sink for a file. The file need not exist.
func FileName(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find the event file: %w", err)
	}
	return "file:" + path, nil
}

// Name implements [relay.Sink].
func (s *File) Name() string { return "file:" + s.path }

// Identity implements [relay.Sink]: a file has only its path. The relay asks now and then. If the file was
// moved away, that closes it: its disk may be full, so that no event comes that would.
func (s *File) Identity(context.Context) (string, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
		return "", s.letGo()
	default:
		return "", nil
	}
}

// Partitions implements [relay.Sink]: a file is one sequence of lines.
func (s *File) Partitions(context.Context) (int, error) { return 1, nil }

// Publish implements [relay.Sink]. When it fails, the file has nothing of the batch.
func (s *File) Publish(ctx context.Context, b *relay.Batch) error {
	text, ok := b.Sealed.([]byte)
	if !ok {
		size := 0
		for i := range b.Records {
			size += b.Records[i].Bytes()
		}
		lines := bytes.NewBuffer(make([]byte, 0, size))
		for i := range b.Records {
			if err := writeLine(lines, &b.Records[i].Record); err != nil {
				return &relay.Refused{Records: []int{i}, Err: err}
			}
		}
		text = lines.Bytes()
		b.Sealed = text
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing.Done():
		return errFileClosed
	}
	defer func() { <-s.turn }()
	if err := s.take(ctx); err != nil {
		return err
	}
	defer func() { _ = s.lock.Unlock() }()
	if err := s.reopen(); err != nil {
		return err
	}
	end, err := s.repair()
	if err != nil {
		return err
	}
	if !b.Owned() {
		return relay.ErrNotOwned
	}
	if _, err = s.f.Write(text); err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		// After a failed sync the system may treat pages as clean that never reached the disk: they
		// must be removed and written again.
		err = errors.Join(err, s.f.Truncate(end), s.f.Close())
		s.f = nil
		return fmt.Errorf("append to the event file: %w", err)
	}
	return nil
}

var errFileClosed = errors.New("the event file is closed")

// Close implements [relay.Sink]. It waits for a batch that is being written.
func (s *File) Close() error { return s.close() }

// take waits for the lock, but only for a while: a process that was suspended may hold it, and the
// error should say so.
func (s *File) take(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	_, err := s.lock.TryLockContext(bounded, 5*time.Millisecond)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled) && ctx.Err() == nil:
		return errFileClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("another process holds %s.lock", s.path)
	}
	return fmt.Errorf("take the lock of the event file: %w", err)
}

const lockWait = 5 * time.Second

// reopen opens the path again if it no longer leads to the open file.
func (s *File) reopen() error {
	if err := s.letGo(); err != nil || s.f != nil {
		return err
	}
	return s.open()
}

// letGo closes the file if the path no longer leads to it.
func (s *File) letGo() error {
	if s.f == nil {
		return nil
	}
	have, err := s.f.Stat()
	if err != nil {
		return fmt.Errorf("look at the event file: %w", err)
	}
	is, err := os.Stat(s.path)
	if err == nil && os.SameFile(have, is) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at the event file: %w", err)
	}
	err = s.f.Close()
	s.f = nil
	if err != nil {
		return fmt.Errorf("close the event file that was moved away: %w", err)
	}
	return nil
}

func (s *File) open() error {
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the event file: %w", err)
	}
	// The name of a new file must survive a power failure, like its content.
	dir, err := os.Open(filepath.Dir(s.path))
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make the event file safe: %w", err), f.Close())
	}
	s.f = f
	return nil
}

// repair removes a partial last line and returns the length of the file.
func (s *File) repair() (int64, error) {
	end, err := s.f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("look at the event file: %w", err)
	}
	keep := end
	for block := make([]byte, 4096); keep > 0; {
		from := max(0, keep-int64(len(block)))
		part := block[:keep-from]
		if _, err := s.f.ReadAt(part, from); err != nil {
			return 0, fmt.Errorf("read the end of the event file: %w", err)
		}
		if end == keep && part[len(part)-1] == '\n' {
			return end, nil
		}
		i := len(part) - 1
		for i >= 0 && part[i] != '\n' {
			i--
		}
		keep = from + int64(i) + 1
		if i >= 0 {
			break
		}
	}
	if keep == end {
		return end, nil
	}
	if err := errors.Join(s.f.Truncate(keep), s.f.Sync()); err != nil {
		return 0, fmt.Errorf("repair the event file: %w", err)
	}
	return keep, nil
}
