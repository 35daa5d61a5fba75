package tuning

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// autogroup is where Linux says how much the processes of this one's autogroup count beside those
// of others: sched(7), "The autogroup feature". It makes a group of what was started from one
// terminal or by one unit. Nice values compare the threads of one group only.
const autogroup = "/proc/self/autogroup"

// Renice gives the autogroup of this process a nice value, 1 to 19, which needs no privilege:
// servers on the same machine that were started elsewhere are then run first. The function
// returned undoes it.
//
// It returns nil and does nothing where the kernel makes no autogroups, and where the group's
// value is not 0: somebody has chosen it. Within a control group it is of no consequence.
func Renice(ctx context.Context, nice int) (restore func() error, err error) {
	if now, err := groupNice(); err != nil || now != 0 {
		return nil, err
	}
	if err := setGroupNice(ctx, nice); err != nil {
		return nil, err
	}
	return func() error {
		if now, err := groupNice(); err != nil || now != nice {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		return setGroupNice(ctx, 0)
	}, nil
}

// ungrouped is the nice value of what is in no autogroup. It equals none that is set.
const ungrouped = 20

func groupNice() (int, error) {
	text, err := os.ReadFile(autogroup)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(text) == 0 {
		return ungrouped, nil
	}
	if err != nil {
		return 0, err
	}
	_, value, _ := strings.Cut(strings.TrimSpace(string(text)), " nice ") // /autogroup-7 nice 0
	nice, err := strconv.Atoi(value)
	if err != nil {
		return 0, fmt.Errorf("%s is %q, not a group and its nice value", autogroup, text)
	}
	return nice, nil
}

// setGroupNice writes the value. The kernel lets users do so ten times a second, all of
// them together, and answers EAGAIN beyond that.
func setGroupNice(ctx context.Context, nice int) error {
	for {
		err := os.WriteFile(autogroup, []byte(strconv.Itoa(nice)), 0)
		if !errors.Is(err, syscall.EAGAIN) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(110 * time.Millisecond):
		}
	}
}
