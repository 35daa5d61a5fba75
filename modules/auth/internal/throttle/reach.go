package throttle

import (
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"
)

// retryAway is how long the shared counters are left alone after they failed: then one sign-in tries
// whether they are back.
const retryAway = time.Second

// errAway says that the shared counters cannot be asked now and the caller must go on without.
var errAway = errors.New("the shared counters are away")

// reach remembers whether the engine with the shared counters answers.
type reach struct {
	engine string // redis or postgres
	now    func() time.Time
	log    *zap.Logger

	mu      sync.Mutex
	away    bool
	retryAt time.Time
}

// usable reports whether the engine is to be asked. While it is away that is one caller a second.
func (r *reach) usable() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.away {
		return true
	}
	now := r.now()
	if now.Before(r.retryAt) {
		return false
	}
	r.retryAt = now.Add(retryAway)
	return true
}

// note remembers whether the engine answered and logs when that changes.
func (r *reach) note(err error) {
	r.mu.Lock()
	changed := r.away != (err != nil)
	r.away = err != nil
	if r.away {
		r.retryAt = r.now().Add(retryAway)
	}
	r.mu.Unlock()
	away, back := "throttle_postgres_away", "throttle_postgres_back"
	if r.engine == "redis" {
		away, back = "throttle_redis_away", "throttle_redis_back"
	}
	switch {
	case changed && err != nil:
		r.log.Warn(away, zap.Error(err), zap.String("hint", "sign-ins are limited in each process by itself"))
	case changed:
		r.log.Info(back)
	}
}

func (r *reach) up() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.away
}
