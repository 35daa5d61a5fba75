package cache

import (
	"context"
	"errors"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/platform/tracing"
)

// spans is the hook that makes a span for each command in a trace, without keys and values.
type spans struct{}

// DialHook implements redis.Hook.
func (spans) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (spans) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		ctx, span := tracing.Client(ctx, "redis")
		if span.Recorded() {
			span.Rename(strings.ToUpper(cmd.Name()))
		}
		return ended(span, next(ctx, cmd))
	}
}

// ProcessPipelineHook implements redis.Hook.
func (spans) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		ctx, span := tracing.Client(ctx, "PIPELINE")
		return ended(span, next(ctx, cmds))
	}
}

func ended(span tracing.Span, err error) error {
	span.Set("db.system.name", "redis")
	// A script that Redis does not know yet is sent, by the next command.
	if err != nil && !errors.Is(err, redis.Nil) && !redis.HasErrorPrefix(err, "NOSCRIPT") {
		span.Fail("the command failed") // the error may hold a value
	}
	span.End()
	return err
}
