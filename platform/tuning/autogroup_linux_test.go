package tuning

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestMain runs the tests in their own autogroup: they must not change that of the person who runs
// them.
func TestMain(m *testing.M) {
	const child = "TUNING_TEST_IN_ITS_OWN_AUTOGROUP"
	if os.Getenv(child) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), child+"=yes")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
}

func TestAnAutogroupIsRenicedUntilItIsRestored(t *testing.T) {
	ctx := t.Context()
	if nice, err := groupNice(); nice == ungrouped && err == nil {
		if restore, err := Renice(ctx, 5); restore != nil || err != nil {
			t.Fatalf("without autogroups it changed something, or failed: %v", err)
		}
		return
	}
	want := func(want int, when string) {
		t.Helper()
		if nice, err := groupNice(); nice != want || err != nil {
			t.Fatalf("%s: nice %d and %v, want %d", when, nice, err, want)
		}
	}
	want(0, "at first")

	restore, err := Renice(ctx, 5)
	if err != nil || restore == nil {
		t.Fatalf("the autogroup was left alone: %v", err)
	}
	want(5, "reniced")
	if again, err := Renice(ctx, 7); again != nil || err != nil {
		t.Fatalf("a nice value that somebody has set was changed: %v", err)
	}
	want(5, "it offers to renice again")
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	want(0, "restored")

	if restore, err = Renice(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if err := setGroupNice(ctx, 9); err != nil {
		t.Fatal(err)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	want(9, "restored although somebody has set another value")
}
