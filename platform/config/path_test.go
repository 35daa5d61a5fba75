package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAPathThatAShellWouldHaveReplacedIsRefused(t *testing.T) {
	t.Parallel()
	for path, refused := range map[string]bool{"~/data": true, "~": true, "$HOME/data": true, "/srv/${NAME}": true,
		"./data": false, "/srv/data~": false, "": false} {
		if problem := PathProblem(path); (problem != "") != refused {
			t.Errorf("%q: %q", path, problem)
		}
	}
}

func TestAFileIsNoFolder(t *testing.T) {
	t.Parallel()
	dir, file, link := t.TempDir(), write(t, "file", ""), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("nowhere", link); err != nil { // such as to a volume that is not mounted
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir: "", filepath.Join(dir, "a", "b"): "", ".": "", "nowhere/at/all": "",
		file: file + " is not a folder", filepath.Join(file, "a", "b"): file + " is not a folder",
		link: link + " is a link that leads nowhere", filepath.Join(link, "a"): link + " is a link that leads nowhere",
	} {
		if got := FolderProblem(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
