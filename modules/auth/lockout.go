package auth

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/database"
)

// lockOut is that an account is closed to strangers for a while.
type lockOut struct {
	user  uuid.UUID
	ip    string // who brought it about
	until time.Time
}

// lockOuts announces lock-outs behind the answers, one after the other. An answer that
// waited for its transaction would tell by its time that there is such an account: for a
// name that does not exist, there is nothing to announce.
type lockOuts struct {
	queue  chan lockOut
	queued sync.WaitGroup // those in the queue or in hand
	stop   chan struct{}
	ended  chan struct{}
	giveUp context.CancelFunc // ends what is in hand, and what is queued is dropped
}

// maxLockOuts is how many may wait. There is one for some failed sign-ins of an account, so
// that hashing is slower than this is; and what does not fit is announced at once.
const maxLockOuts = 256

func (s *Service) startLockOuts() {
	s.lockOuts.queue, s.lockOuts.stop, s.lockOuts.ended = make(chan lockOut, maxLockOuts), make(chan struct{}), make(chan struct{})
	ctx, giveUp := context.WithCancel(context.Background())
	s.lockOuts.giveUp = giveUp
	go func() { // until stopLockOuts, which waits for it
		defer close(s.lockOuts.ended)
		dropped := 0
		for {
			select {
			case l := <-s.lockOuts.queue:
				if ctx.Err() == nil {
					s.announceLockOut(ctx, l)
				} else {
					dropped++
				}
				s.lockOuts.queued.Done()
			case <-s.lockOuts.stop:
				if dropped > 0 {
					s.log.Error("lock_outs_not_announced", zap.Int("lock_outs", dropped))
				}
				return
			}
		}
	}()
}

// stopLockOuts announces what is queued first, as far as that takes no longer than [detachTimeout]
// for all of it: a database that hangs must not hold up the end of the process. A lock-out
// changes no account, so that nothing else depends on its event.
func (s *Service) stopLockOuts() {
	late := time.AfterFunc(detachTimeout, s.lockOuts.giveUp)
	s.lockOuts.queued.Wait()
	late.Stop()
	s.lockOuts.giveUp()
	close(s.lockOuts.stop)
	<-s.lockOuts.ended
}

func (s *Service) queueLockOut(ctx context.Context, l lockOut) {
	s.lockOuts.queued.Add(1)
	select {
	case s.lockOuts.queue <- l:
	default:
		s.announceLockOut(context.WithoutCancel(ctx), l)
		s.lockOuts.queued.Done()
	}
}

func (s *Service) announceLockOut(ctx context.Context, l lockOut) {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	head := s.head(l.user)
	err := s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		if _, err := lockAccount(ctx, tx, l.user); err != nil {
			return err
		}
		return s.announce(ctx, tx, EventUserLockedOut, head, userLockedOut{eventHead: head, IP: l.ip, RetryAfter: l.until.UTC()})
	})
	if err != nil && !errors.Is(err, ErrUserNotFound) {
		s.log.Error("lock_out_not_announced", zap.Stringer("user_id", l.user), zap.Error(err))
	}
}
