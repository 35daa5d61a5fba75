package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// PathProblem says why a path of a file or folder cannot be meant as it is written, or is empty.
func PathProblem(path string) string {
	if strings.HasPrefix(path, "~") || strings.Contains(path, "$") {
		return "has a ~ or a $, which only a shell replaces: write the path in full"
	}
	return ""
}

// FolderProblem says why a folder could not be created because something is in its way, or is empty.
func FolderProblem(dir string) string {
	for {
		info, err := os.Stat(dir)
		above := filepath.Dir(dir)
		switch {
		case err == nil && !info.IsDir():
			return dir + " is not a folder"
		case errors.Is(err, fs.ErrNotExist) && isLink(dir):
			return dir + " is a link that leads nowhere"
		case err == nil, above == dir:
			return ""
		}
		dir = above
	}
}

func isLink(path string) bool {
	_, err := os.Readlink(path)
	return err == nil
}
