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

	"github.com/toppira/authctl/platform/retry"
)

// autogroup is the file in which Linux keeps the weight of this process's autogroup against other
// groups: sched(7), "The autogroup feature". A group is what was started from one terminal or by
// one unit. Nice values of threads only count within their group.
const autogroup = "/proc/self/autogroup"

// Renice gives the autogroup of this process a nice value, 1 to 19, which needs no privilege.
// Servers on the same machine that were started elsewhere then run first. The returned function
// undoes it.
//
// It does nothing and returns nil if the kernel has no autogroups, or if the value is not 0 because
// somebody has set it. Within a control group it has no effect.
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

// ungrouped stands for the nice value of a process without an autogroup. No nice value equals it.
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

// setGroupNice writes the value. The kernel allows ten writes a second for all users together,
// and answers EAGAIN beyond that.
func setGroupNice(ctx context.Context, nice int) error {
	for {
		err := os.WriteFile(autogroup, []byte(strconv.Itoa(nice)), 0)
		if !errors.Is(err, syscall.EAGAIN) || !retry.Sleep(ctx, 110*time.Millisecond) {
			return err
		}
	}
}
