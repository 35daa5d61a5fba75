package auth

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

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
	places  *semaphore.Weighted // for those that wait
	turn    *semaphore.Weighted
	queued  sync.WaitGroup  // those that wait or are in hand
	ctx     context.Context // ends with giveUp
	giveUp  context.CancelFunc
	dropped atomic.Int64 // since giveUp
}

// maxLockOuts is how many may wait. Each takes several failed sign-ins, so hashing is slower than
// announcing; what does not fit is announced at once.
const maxLockOuts = 256

func (s *Service) startLockOuts() {
	s.lockOuts.places, s.lockOuts.turn = semaphore.NewWeighted(maxLockOuts), semaphore.NewWeighted(1)
	s.lockOuts.ctx, s.lockOuts.giveUp = context.WithCancel(context.Background())
}

// stopLockOuts first announces what is queued, for [detachTimeout] at most: a database that hangs
// must not hold up the end of the process. A lock-out changes no account, so nothing else depends
// on its event.
func (s *Service) stopLockOuts() {
	late := time.AfterFunc(detachTimeout, s.lockOuts.giveUp)
	s.lockOuts.queued.Wait()
	late.Stop()
	s.lockOuts.giveUp()
	if dropped := s.lockOuts.dropped.Load(); dropped > 0 {
		s.log.Error("lock_outs_not_announced", zap.Int64("lock_outs", dropped))
	}
}

func (s *Service) queueLockOut(ctx context.Context, l lockOut) {
	q := &s.lockOuts
	if !q.places.TryAcquire(1) {
		s.announceLockOut(ctx, l)
		return
	}
	q.queued.Go(func() {
		defer q.places.Release(1)
		if q.turn.Acquire(q.ctx, 1) != nil {
			q.dropped.Add(1)
			return
		}
		defer q.turn.Release(1)
		s.announceLockOut(ctx, l)
	})
}

// announceLockOut goes on when the request of ctx has ended. The event is part of its trace.
func (s *Service) announceLockOut(ctx context.Context, l lockOut) {
	ctx, cancel := detached(ctx, detachTimeout)
	defer cancel()
	defer context.AfterFunc(s.lockOuts.ctx, cancel)()
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
