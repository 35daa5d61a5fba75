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

// lockOut says that unknown devices cannot sign in to an account for a while.
type lockOut struct {
	user  uuid.UUID
	ip    string // of the attempt that caused it
	until time.Time
}

// lockOuts announces lock-outs after the answers, one after the other. An answer that waited for
// the transaction would show by its time that the account exists: for an unknown name there is
// nothing to announce.
type lockOuts struct {
	queue  chan lockOut
	queued sync.WaitGroup // those in the queue or in hand
	stop   chan struct{}
	ended  chan struct{}
	giveUp context.CancelFunc // cancels the one in hand and empties the queue
}

// maxLockOuts is how many may wait. Each takes several failed sign-ins, so hashing is slower than
// announcing; what does not fit is announced at once.
const maxLockOuts = 256

func (s *Service) startLockOuts() {
	s.lockOuts.queue, s.lockOuts.stop, s.lockOuts.ended = make(chan lockOut, maxLockOuts), make(chan struct{}),
		make(chan struct{})
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

// stopLockOuts first announces what is queued, for [detachTimeout] at most: a database that hangs
// must not hold up the end of the process. A lock-out changes no account, so nothing else depends
// on its event.
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
	env := s.newEnvelope(l.user)
	err := s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		if _, err := lockAccount(ctx, tx, l.user); err != nil {
			return err
		}
		return s.announce(ctx, tx, EventUserLockedOut, env,
			userLockedOut{Envelope: env, IP: l.ip, RetryAfter: l.until.UTC()})
	})
	if err != nil && !errors.Is(err, ErrUserNotFound) {
		s.log.Error("lock_outs_not_announced", zap.Stringer("user_id", l.user), zap.Error(err))
	}
}
