package httpserver_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/toppira/authctl/platform/httpserver"
)

// pipeline is a connection on which n requests arrive, one per read. Answers are dropped.
type pipeline struct {
	request []byte
	left    int
}

func (p *pipeline) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	p.left--
	return copy(b, p.request), nil
}
func (*pipeline) Write(b []byte) (int, error)      { return len(b), nil }
func (*pipeline) Close() error                     { return nil }
func (*pipeline) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }
func (*pipeline) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 81} }
func (*pipeline) SetDeadline(time.Time) error      { return nil }
func (*pipeline) SetReadDeadline(time.Time) error  { return nil }
func (*pipeline) SetWriteDeadline(time.Time) error { return nil }

const post = "POST /echo HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: bench\r\nAccept: */*\r\nContent-Type: application/json\r\nContent-Length: 36\r\n\r\n" +
	`{"name":"somebody","tags":["a","b"]}`

// BenchmarkJSONPost measures a JSON POST without the network: through Fiber alone with its own
// parser, which is the bound, and through this package.
func BenchmarkJSONPost(b *testing.B) {
	run := func(b *testing.B, server *fasthttp.Server) {
		b.ReportAllocs()
		if err := server.ServeConn(&pipeline{request: []byte(post), left: b.N}); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("bare", func(b *testing.B) {
		app := fiber.New(fiber.Config{DisableStartupMessage: true})
		app.Post("/echo", func(c *fiber.Ctx) error {
			var body echo
			if err := c.BodyParser(&body); err != nil {
				return err
			}
			return c.JSON(body)
		})
		app.Handler()
		run(b, app.Server())
	})
	b.Run("served", func(b *testing.B) {
		core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard),
			zap.InfoLevel)
		server, err := httpserver.New(httpserver.Config{Origins: []string{"https://app.example.com"}},
			httpserver.Options{Log: zap.New(core)})
		if err != nil {
			b.Fatal(err)
		}
		server.Handle(routes()...)
		server.App().Handler()
		run(b, server.App().Server())
	})
}
