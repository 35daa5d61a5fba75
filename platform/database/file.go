package database

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
)

// openFile is the file of SQLite that the process has open. SQLite does not notice that it was removed or
// replaced: it goes on with a file that nobody finds again, and opens new connections on another one. Whatever
// is written then is lost although it was answered, and what is read is out of date: a session that was ended in the
// new file would live.
type openFile struct {
	path   string
	at     string // the same from whichever folder the process works in
	place  string // where that led: SQLite has the -wal and -shm beside it
	opened fs.FileInfo
	// While it is open, no other file gets the number by which this one is known.
	file  *os.File
	pools int64 // and connections that are being made; guarded by openHere
	conns atomic.Int64
	wal   atomic.Bool // its header was seen to say that it has a -wal
	lost  atomic.Bool // another file was copied into it
}

// openHere are the files that this process has open, each once: closing a file gives up all locks that the process has
// on it, and so those of SQLite.
var openHere = struct {
	sync.Mutex
	files map[*openFile]bool
}{files: map[*openFile]bool{}}

// openAs returns what this process has open as the file; nil: nothing. Caller holds openHere.
func openAs(is fs.FileInfo) *openFile {
	for f := range openHere.files {
		if is != nil && os.SameFile(f.opened, is) {
			return f
		}
	}
	return nil
}

// newOpenFile makes the file if there is none. While this process has the file open that was there before, both would
// use one -wal, and lose commits.
func newOpenFile(path string) (*openFile, error) {
	at, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	place, err := placeOf(at)
	if err != nil {
		return nil, err
	}
	openHere.Lock()
	defer openHere.Unlock()
	is, _ := os.Stat(place)
	if f := openAs(is); f != nil && f.lost.Load() { // SQLite has kept its connections, and so what it knows of a -wal
		return nil, errReplaced{path, true}
	} else if f != nil {
		f.pools++
		return f, nil
	}
	_, errSHM := os.Stat(place + "-shm")
	for f := range openHere.files {
		if f.place == place && errSHM == nil && !f.lost.Load() {
			return nil, errReplaced{path, false}
		}
	}
	left := walLeft(place) // before looking at the file: one that is being made has none yet
	if _, err := os.Stat(place); left && errors.Is(err, fs.ErrNotExist) {
		return nil, errMissing(place)
	}
	// SQLite would create its files with the umask's mode. Created here, the file belongs to the
	// owner alone, and so do its -wal and -shm, which copy the mode.
	f := &openFile{path: path, at: at, place: place, pools: 1}
	if f.file, err = os.OpenFile(place, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	if f.opened, err = f.file.Stat(); err == nil && left {
		err = checkWAL(place, f.file)
	}
	if err != nil {
		return nil, errors.Join(err, f.file.Close())
	}
	openHere.files[f] = true
	return f, nil
}

// placeOf follows links as SQLite does. The folder must be there, but not the file.
func placeOf(path string) (string, error) {
	for range 40 {
		dir, name := filepath.Split(path)
		dir, err := filepath.EvalSymlinks(cmp.Or(dir, "."))
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir, name)
		to, err := os.Readlink(path)
		if err != nil {
			return path, nil //nolint:nilerr // it is no link
		}
		if path = to; !filepath.IsAbs(to) {
			path = dir + string(filepath.Separator) + to
		}
	}
	return "", &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
}

// walLeft reports whether a file has, or had, commits that are only in its -wal.
func walLeft(path string) bool {
	wal, err := os.Stat(path + "-wal")
	return err == nil && wal.Size() > 0
}

// checkWAL refuses a file that the -wal in its place is not of. SQLite would bring that into it, which damages it. The
// header of a file says that it has a -wal. It does not in what VACUUM INTO makes, as backups are.
func checkWAL(path string, file io.ReaderAt) error {
	var header [20]byte
	switch n, _ := file.ReadAt(header[:], 0); {
	case n == 0:
		return errMissing(path)
	case header[18] != 2:
		return &strayWAL{path + " is not the file that " + path + "-wal is of, which would damage it",
			"move the -wal away, to the file that was there before"}
	}
	return nil
}

// errMissing refuses a -wal without a file. SQLite would delete it, and with it what the file had not taken in yet.
func errMissing(path string) error {
	return &strayWAL{path + " is missing, and " + path + "-wal has what was written to it last",
		"put the file back, or move its -wal away to begin with an empty database"}
}

// strayWAL is the error of a -wal without its file.
type strayWAL struct{ found, remedy string }

func (e *strayWAL) Error() string { return e.found }

// check returns an error if the path does not lead to the open file any more. It takes about a microsecond.
func (f *openFile) check() error {
	switch {
	case f.lost.Load(), f.overwritten():
		return errReplaced{f.path, true}
	case !f.isAt(f.at):
		return errReplaced{f.path, false}
	}
	return nil
}

// isAt reports whether the open file is in a place, as far as that can be told.
func (f *openFile) isAt(place string) bool {
	is, err := os.Stat(place)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) // others, as of a folder that may not be searched, say nothing about it
	}
	return os.SameFile(f.opened, is)
}

// isOthers reports whether another file is in the place of the open one, and somebody has a database of SQLite open
// there. This process may not even look at what it has open itself: its locks would end.
func (f *openFile) isOthers() bool {
	openHere.Lock()
	defer openHere.Unlock()
	is, err := os.Stat(f.place)
	return err == nil && (openAs(is) != nil || openElsewhere(f.place))
}

// overwritten reports whether another file was copied into this one, as cp does. SQLite would go on with pages of
// both, and write the -wal into the copy. It shows while cp has emptied the file, and afterwards where the copy is one
// that VACUUM INTO has made: its header does not say that there is a -wal. Nobody else can take that out of the header
// while this process has connections.
func (f *openFile) overwritten() bool {
	if f.conns.Load() == 0 {
		return false
	}
	var header [20]byte
	switch _, err := f.file.ReadAt(header[:], 0); {
	case err != nil && !errors.Is(err, io.EOF): // says nothing about the file
	case header[18] == 2:
		f.wal.Store(true)
	case f.wal.Load():
		f.lost.Store(true)
	}
	return f.lost.Load()
}

// hold keeps it open while a connection is made, which SQLite would else have without a lock.
func (f *openFile) hold() error {
	openHere.Lock()
	defer openHere.Unlock()
	if !openHere.files[f] {
		return fs.ErrClosed
	}
	f.pools++
	return nil
}

// release is called once for each pool and for each connection.
func (f *openFile) release(pools, conns int64) error {
	openHere.Lock()
	defer openHere.Unlock()
	f.pools -= pools
	if f.conns.Add(-conns) > 0 {
		return nil
	}
	f.wal.Store(false) // now others may do with it what they like
	if f.pools > 0 {
		return nil
	}
	delete(openHere.files, f)
	return f.file.Close()
}

// errReplaced says that the database file is not the one that was opened. The open one may come back, unless another
// one was copied into it.
type errReplaced struct {
	path        string
	overwritten bool
}

func (e errReplaced) Error() string {
	if e.overwritten {
		return fmt.Sprintf("another file was copied over %s while it was in use", e.path)
	}
	return fmt.Sprintf("%s was removed or replaced while it was in use", e.path)
}

// only makes connections to the open file, and to none that was put in its place.
func (f *openFile) only(c driver.Connector) driver.Connector { return fileConnector{c, f} }

type fileConnector struct {
	driver.Connector
	file *openFile
}

// Connect implements [driver.Connector].
func (c fileConnector) Connect(ctx context.Context) (driver.Conn, error) {
	if err := c.file.hold(); err != nil {
		return nil, err
	}
	defer func() { _ = c.file.release(1, 0) }()
	// SQLite would bring the -wal of the open file into another one.
	if err := c.file.check(); err != nil {
		return nil, err
	}
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.file.check(); err != nil {
		_ = conn.Close() // nothing was done on it
		return nil, err
	}
	c.file.conns.Add(1)
	return fileConn{conn.(sqliteConn), c.file}, nil
}

// Close implements [io.Closer]. It is called with the pool's.
func (c fileConnector) Close() error { return c.file.release(1, 0) }

// sqliteConn is what connections of the driver are.
type sqliteConn interface {
	sessionConn
	driver.ConnBeginTx
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

type fileConn struct {
	sqliteConn
	file *openFile
}

// Close implements [driver.Conn]. If the file is not in its place any more, SQLite leaves the -wal there, and whoever
// starts next would bring it into what is there then. So what it has goes into its own file before, unless others
// still use that: then they do it. Nor if somebody has started already, whose commits would be in it. Where another
// file was copied into the open one, nothing may go there any more: SQLite does not hear of the end, and the -wal
// stays.
func (c fileConn) Close() error {
	_ = c.file.check()
	if c.file.lost.Load() {
		return nil
	}
	defer func() { _ = c.file.release(0, 1) }()
	if !c.file.isAt(c.file.place) && !c.file.isOthers() {
		for _, statement := range []string{"PRAGMA busy_timeout(0)", "PRAGMA wal_checkpoint(TRUNCATE)"} {
			_, _ = c.ExecContext(context.Background(), statement, nil)
		}
	}
	return c.sqliteConn.Close()
}

// ResetSession implements [driver.SessionResetter]. It is called before each use but the first.
func (c fileConn) ResetSession(ctx context.Context) error {
	if c.file.check() != nil {
		return driver.ErrBadConn // the attempt to make another one says why
	}
	return c.sqliteConn.ResetSession(ctx)
}
