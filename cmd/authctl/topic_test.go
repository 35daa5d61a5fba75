package main

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

// Brokers that are frozen accept connections and never answer.
func TestAFrozenKafkaIsGivenUpWithARemedy(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	defer l.Close()
	a := &app{log: zap.NewNop()}
	testenv.Must(t, config.Load(&a.settings, config.Options{File: os.DevNull,
		Environ:  []string{"AUTH_TOKEN_SECRET=0123456789abcdefghijklmnopqrstuvwxyzABCD"},
		Override: map[string]string{"kafka.brokers": l.Addr().String()}}))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = a.askTarget(ctx)
	if err == nil || !strings.Contains(err.Error(), "no broker has answered in time; check whether they hang") {
		t.Errorf("it says: %v", err)
	}
}
