package database_test

import (
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// A machine without power sends nothing, not even that it has gone. Losing one cannot be tried here; that the
// kernel was told to notice it can.
func TestAServerWhoseMachineIsGoneIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	db := dbtest.Open(t, dbtest.PostgresURL(t))
	var wait int
	err := db.Postgres(t.Context(), func(conn *pgx.Conn) error {
		socket, ok := database.Unwatched(conn.PgConn().Conn()).(syscall.Conn)
		if !ok {
			t.Fatalf("the connection is %T", conn.PgConn().Conn())
		}
		raw, err := socket.SyscallConn()
		if err != nil {
			return err
		}
		if failed := raw.Control(func(fd uintptr) {
			wait, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		}); failed != nil {
			return failed
		}
		return err
	})
	if err != nil || wait <= 0 || wait > 60_000 {
		t.Errorf("what was sent is tried again for %d ms: %v", wait, err)
	}
}
