package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/redis/go-redis/v9"
	"golang.org/x/crypto/bcrypt"
)

// bareHashing is how many bcrypt verifications a second the machine does when it does
// nothing else: the bound of sign-in and registration.
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

// bareCommand makes this program the bare server: Fiber, JSON in and out, one Redis script.
const bareCommand = "bare-server"

const bareScript = `local h = redis.call('HGET', KEYS[1], 'h')
redis.call('HSET', KEYS[1], 'h', ARGV[1], 'p', h or '')
redis.call('PEXPIRE', KEYS[1], 60000)
return h`

func runBare(ctx context.Context) error {
	opt, err := redis.ParseURL(os.Getenv("AUTHCTL_TEST_REDIS"))
	if err != nil {
		return fmt.Errorf("AUTHCTL_TEST_REDIS: %w", err)
	}
	client := redis.NewClient(opt)
	defer client.Close()
	script := redis.NewScript(bareScript)
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.Post("/", func(c *fiber.Ctx) error {
		var body struct {
			Token string `json:"token"`
		}
		if err := c.BodyParser(&body); err != nil {
			return err
		}
		if err := script.Run(c.UserContext(), client, []string{"bench:{" + body.Token + "}"}, body.Token).Err(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		return c.JSON(body)
	})
	port, err := freePort()
	if err != nil {
		return err
	}
	fmt.Printf("127.0.0.1:%d\n", port)
	failed := make(chan error, 1)
	go func() { failed <- app.Listen(fmt.Sprintf("127.0.0.1:%d", port)) }() // received below
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return errors.Join(app.Shutdown(), <-failed)
	}
}

// bareHandler measures the bare server at a number of connections.
func bareHandler(ctx context.Context, workers int, d time.Duration) (result, error) {
	self, err := os.Executable()
	if err != nil {
		return result{}, err
	}
	cmd := exec.CommandContext(ctx, self, bareCommand)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return result{}, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return result{}, err
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	s := &server{base: "http://" + strings.TrimSpace(addr), client: newClient()}
	var r result
	if err == nil {
		for range 200 { // until it listens
			if status, _, err := s.call("POST", "/", map[string]string{"token": "warm"}); err == nil && status == 200 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		keys := make([]map[string]string, workers)
		for i := range keys {
			keys[i] = map[string]string{"token": fmt.Sprintf("%032d", i)}
		}
		r = load(workers, d, func(w int) outcome {
			status, _, err := s.call("POST", "/", keys[w])
			if err != nil || status != 200 {
				return wrong
			}
			return done
		})
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	return r, errors.Join(err, cmd.Wait())
}
