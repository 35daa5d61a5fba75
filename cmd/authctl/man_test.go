package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestEveryCommandHasAManualPage(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	dir := filepath.Join(t.TempDir(), "man1")
	var out bytes.Buffer
	if code := run(t.Context(), []string{"man", dir}, nil, &out, &out); code != exitDone || out.Len() > 0 {
		t.Fatalf("exit %d: %s", code, &out)
	}
	want := 0
	everyCommand(newRoot(), func(cmd *cobra.Command) {
		if cmd.Name() == "help" {
			return
		}
		want++
		page, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		for _, part := range []string{cmd.Short, `"Nov 2023"`, ".SH EXAMPLE"} {
			if !strings.Contains(strings.ReplaceAll(string(page), `\-`, "-"), part) {
				t.Errorf("the manual page of %s lacks %q", cmd.CommandPath(), part)
			}
		}
	})
	if pages, err := os.ReadDir(dir); err != nil || len(pages) != want {
		t.Errorf("%d pages for %d commands, %v", len(pages), want, err)
	}
}
