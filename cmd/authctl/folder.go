package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// needsDataFolder reports whether something is kept there because no server is named for it.
func (s settings) needsDataFolder() bool {
	return s.Database.URL == "" && !s.Database.UsesPostgres() || !s.Kafka.UsesKafka() && s.Outbox.Relay == "inline" ||
		s.Auth.Token.Secret == "" && !s.keyless
}

// makeDataFolder creates the data folder before anything writes there, so that a problem with it is
// reported once, with what to do.
func (s settings) makeDataFolder() error {
	dir := s.App.DataDir
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = tryWritingTo(dir)
	}
	if err != nil {
		found, advice := folderProblem("APP_DATA_DIR", dir, err)
		return fmt.Errorf("the data folder: %s: %s", found, advice)
	}
	return nil
}

func tryWritingTo(dir string) error {
	probe, err := os.CreateTemp(dir, ".authctl-*")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// tryFolder checks whether files could be made in a folder, which may be missing yet.
func tryFolder(dir string) error {
	err := tryWritingTo(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = tryMakingFolder(dir)
	}
	return err
}

// tryMakingFolder checks whether a missing folder could be created, without creating it.
func tryMakingFolder(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	for {
		above := filepath.Dir(dir)
		info, err := os.Stat(above)
		switch {
		case err == nil && !info.IsDir():
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		case err == nil:
			if _, err := os.Lstat(dir); err == nil { // a file, or a dangling link
				return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
			}
			return tryWritingTo(above)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR):
			return err
		}
		if above == dir {
			return err
		}
		dir = above
	}
}

// folderProblem says what is wrong with a folder that a setting names, and what to do about it.
func folderProblem(setting, dir string, err error) (found, advice string) {
	found = err.Error()
	switch {
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EEXIST):
		return dir + " cannot be a folder: there is a file of that name, or on the way to it",
			"name another one with " + setting
	case errors.Is(err, fs.ErrPermission):
		return found, fmt.Sprintf("let the user that runs authctl write there (chown, chmod), or name another "+
			"one with %s", setting)
	case errors.Is(err, syscall.EROFS):
		return found, fmt.Sprintf("name one on a file system that can be written to with %s, such as a volume", setting)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return found, "make room there, or name another one with " + setting
	}
	return found, "check the file system of " + dir + ", or name another one with " + setting
}

// writePrivately writes a file that only its owner can read. It appears complete or not at all: place, such as
// [os.Rename], puts it there.
func writePrivately(path string, place func(from, to string) error, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	return place(f.Name(), path)
}
