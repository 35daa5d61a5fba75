package tuning

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryIsTheLeastLimitOfTheControlGroups(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"memory.max": "max\n", "a/memory.max": "1073741824\n", "a/b/memory.max": "max\n",
		"a/c/memory.max": "536870912\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const none = ^uint64(0)
	for groups, want := range map[string]uint64{
		"0::/a/b\n":                  1 << 30, // the limit of the group around it
		"0::/a/c\n":                  1 << 29,
		"4:memory:/a/c\n0::/\n":      none,
		"0::/not/seen/from/inside\n": none,
		"":                           none,
	} {
		if got := groupMemory(root, groups); got != want {
			t.Errorf("%q: %d, want %d", groups, got, want)
		}
	}
	if limit, known := Memory(); !known || limit < 1<<26 {
		t.Errorf("%d bytes, known: %t", limit, known)
	}
}
