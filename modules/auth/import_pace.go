package auth

import (
	"context"
	"time"
)

// pace is how an import shares the database with the servers beside it.
type pace struct {
	size int // of the next batch
	held time.Duration
}

const (
	firstBatch = 50
	mostBatch  = 500
)

func (p *pace) start() { p.size = firstBatch }

func (p *pace) batch() int { return p.size }

func (p *pace) took(n int, d time.Duration) { p.size, p.held = mostBatch, d }

func (p *pace) rest(ctx context.Context) error { return nil }
