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

// autogroup is where Linux says how much the processes of this one's session count beside
// those of other sessions, where it groups them so: sched(7), "The autogroup feature". Nice
// values compare the threads of one session only.
const autogroup = "/proc/self/autogroup"

// LowerSession gives the session of this process a nice value between sessions, 1 to 19,
// which needs no privilege: servers on the same machine that were started in other sessions
// are then run first. The function returned undoes it.
//
// It returns nil and does nothing where the kernel does not group by session, and where the
// session's value is not 0: somebody has chosen it. Within a control group it is of no
// consequence.
func LowerSession(ctx context.Context, nice int) (restore func() error, err error) {
	if now, err := sessionNice(); err != nil || now != 0 {
		return nil, err
	}
	if err := setSessionNice(ctx, nice); err != nil {
		return nil, err
	}
	return func() error {
		if now, err := sessionNice(); err != nil || now != nice {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		return setSessionNice(ctx, 0)
	}, nil
}

// ungrouped is the nice value of a session that is not a group. It equals none that is set.
const ungrouped = 20

func sessionNice() (int, error) {
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

// setSessionNice writes the value. The kernel lets users do so ten times a second, all of
// them together, and answers EAGAIN beyond that.
func setSessionNice(ctx context.Context, nice int) error {
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
