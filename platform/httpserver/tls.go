package httpserver

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// certificate is the listener's certificate. It is read again when its file changes, so that a
// renewed one takes effect without a restart.
type certificate struct {
	cfg TLSConfig
	log *zap.Logger

	mu      sync.Mutex
	current *tls.Certificate
	written time.Time // the file's time when current was read
	looked  time.Time
}

func newTLS(cfg TLSConfig, log *zap.Logger) (*tls.Config, error) {
	if cfg.CertFile == "" {
		return nil, nil
	}
	c := &certificate{cfg: cfg, log: log}
	if err := c.read(); err != nil {
		return nil, fmt.Errorf("app.tls: %w", err)
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: c.get,
	}, nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.looked) > 10*time.Second {
		c.looked = now
		if info, err := os.Stat(c.cfg.CertFile); err == nil && !info.ModTime().Equal(c.written) {
			// Certificate and key are two files, which do not match between their writes; until
			// they do, the old pair is used.
			if err := c.read(); err != nil {
				c.log.Warn("tls_certificate_unusable", zap.Error(err),
					zap.String("hint", "the one before stays in use: app.tls must name a certificate and its key"))
			}
		}
	}
	return c.current, nil
}

func (c *certificate) read() error {
	info, err := os.Stat(c.cfg.CertFile)
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(c.cfg.CertFile, c.cfg.KeyFile)
	if err != nil {
		return err
	}
	c.current, c.written = &pair, info.ModTime()
	return nil
}
