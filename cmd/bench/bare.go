package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/redis/go-redis/v9"
	"golang.org/x/crypto/bcrypt"
)

// bareHashing is how many bcrypt verifications a second the machine does without other work: the
// bound of sign-in and registration.
func bareHashing(cost int, d time.Duration) (float64, error) {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		return 0, err
	}
	r := load(runtime.NumCPU(), d, func(int) outcome {
		if bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil {
			return wrong
		}
		return done
	})
	return r.rate, nil
}

// bareCommand makes this program the bare server: Fiber, JSON in and out, one Redis script. The
// second path adds one row of PostgreSQL by its key and one ES256 signature, which a refresh cannot
// do without.
const (
	bareCommand    = "bare-server"
	barePath       = "/"
	bareSignedPath = "/signed"
)

type bareBody struct {
	Token     string `json:"token"`
	Signature []byte `json:"signature,omitempty"`
}

const bareScript = `local h = redis.call('HGET', KEYS[1], 'h')
redis.call('HSET', KEYS[1], 'h', ARGV[1], 'p', h or '')
redis.call('PEXPIRE', KEYS[1], 60000)
return h`

// prepareSigned returns what the second path does in addition. Without PostgreSQL it only signs.
func prepareSigned(ctx context.Context) (sign func(context.Context, string) ([]byte, error), closeDB func() error,
	err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	look := func(context.Context) error { return nil }
	closeDB = func() error { return nil }
	if dsn := os.Getenv("AUTHCTL_TEST_POSTGRES"); dsn != "" {
		db, err := openDatabase(ctx, dsn, 0)
		if err != nil {
			return nil, nil, err
		}
		stmt, err := db.PrepareContext(ctx, "SELECT relname FROM pg_class WHERE oid = $1")
		if err != nil {
			return nil, nil, errors.Join(err, db.Close())
		}
		closeDB = func() error { return errors.Join(stmt.Close(), db.Close()) }
		look = func(ctx context.Context) error {
			var name string
			return stmt.QueryRowContext(ctx, 1259).Scan(&name) // pg_class itself
		}
	}
	return func(ctx context.Context, text string) ([]byte, error) {
		if err := look(ctx); err != nil {
			return nil, err
		}
		digest := sha256.Sum256([]byte(text))
		return ecdsa.SignASN1(rand.Reader, key, digest[:])
	}, closeDB, nil
}

func runBare(ctx context.Context, addr string) (err error) {
	opt, err := redis.ParseURL(os.Getenv("AUTHCTL_TEST_REDIS"))
	if err != nil {
		return fmt.Errorf("AUTHCTL_TEST_REDIS: %w", err)
	}
	client := redis.NewClient(opt)
	defer client.Close()
	script := redis.NewScript(bareScript)
	sign, closeDB, err := prepareSigned(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeDB()) }()
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	handler := func(signed bool) fiber.Handler {
		return func(c *fiber.Ctx) error {
			var body bareBody
			err := c.BodyParser(&body)
			if err == nil {
				err = script.Run(c.UserContext(), client, []string{"bench:{" + body.Token + "}"}, body.Token).Err()
			}
			if signed && (err == nil || errors.Is(err, redis.Nil)) {
				body.Signature, err = sign(c.UserContext(), body.Token)
			}
			if err != nil && !errors.Is(err, redis.Nil) {
				return err
			}
			return c.JSON(body)
		}
	}
	app.Get(barePath, func(*fiber.Ctx) error { return nil }) // it listens
	app.Post(barePath, handler(false))
	app.Post(bareSignedPath, handler(true))
	failed := make(chan error, 1)
	go func() { failed <- app.Listen(addr) }() // received below
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return errors.Join(app.Shutdown(), <-failed)
	}
}

// startBare runs the bare server until stop is called.
func startBare(ctx context.Context) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	p := &process{name: "the bare server", path: self, args: []string{bareCommand, addr},
		ready: "http://" + addr + barePath}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return &server{base: "http://" + addr, client: newClient(), stop: p.stop}, nil
}

// bareHandler measures a path of the bare server at a number of connections.
func (s *server) bareHandler(path string, workers int, d time.Duration) result {
	keys := make([]map[string]string, workers)
	for i := range keys {
		keys[i] = map[string]string{"token": fmt.Sprintf("%032d", i)}
	}
	return load(workers, d, func(w int) outcome {
		status, _, err := s.call("POST", path, keys[w])
		if err != nil || status != 200 {
			return wrong
		}
		return done
	})
}
