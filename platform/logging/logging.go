// Package logging makes the zap logger of the process.
//
// Where records go. Without log.path everything goes to the console, which is stderr. With
// it, everything goes to the file as JSON, and to the console as well: all of it in dev
// mode, where somebody watches; warnings and errors in prod mode, so that the journal or
// the container's log, which is where an operator looks first, shows what is wrong without
// keeping every record twice.
//
// What a record looks like. In prod mode, and in the file always, one JSON object: ts (RFC
// 3339, UTC, milliseconds), level, logger, msg, then the fields, durations in seconds. In
// dev mode the console shows words instead.
//
// One record is one line, whatever is in it: line breaks, terminal escapes, Unicode line
// separators, controls and text-direction marks are written as escapes, bytes that are not
// UTF-8 are replaced, and long values are cut with a mark that says how long they were.
//
// A record that cannot be written is counted and reported on the console, at most once a
// minute. It never fails or stops the caller; writing is direct, so that a record is out
// when the call returns and none is lost with the process.
package logging

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"
	"gopkg.in/natefinch/lumberjack.v2"
)

// Config is log.*.
type Config struct {
	Level      string `config:"log.level" default:"info" oneof:"debug,info,warn,error" doc:"The least important records that are kept. The security log is always kept."`
	Path       string `config:"log.path" doc:"File for the log, made with mode 0600 and turned over by size; empty: stderr alone. With a file, stderr shows everything in dev mode, and warnings and errors in prod mode."`
	MaxSizeMB  int    `config:"log.max_size_mb" default:"100" min:"1" max:"10240" doc:"Size in MiB at which the file is set aside and a new one begun."`
	MaxBackups int    `config:"log.max_backups" default:"7" min:"0" max:"10000" doc:"Most files set aside that are kept. 0: any number."`
	MaxAgeDays int    `config:"log.max_age_days" default:"30" min:"0" max:"3650" doc:"Days that a file set aside is kept. 0: for ever."`
	Compress   bool   `config:"log.compress" default:"true" doc:"Compress files set aside with gzip."`
}

// Options are what the settings alone do not say.
type Options struct {
	Dev     bool
	Console io.Writer        // nil means os.Stderr
	Level   zap.AtomicLevel  // the caller's, to change the level later; set to Config.Level by New
	Now     func() time.Time // nil means time.Now
}

// New makes the logger and a func that closes the file; the logger must not be used after
// it. It fails when the file cannot be written.
func New(cfg Config, opt Options) (*zap.Logger, func() error, error) {
	level, err := zapcore.ParseLevel(cfg.Level)
	if err != nil {
		return nil, nil, fmt.Errorf("log.level: %w", err)
	}
	if opt.Level == (zap.AtomicLevel{}) {
		opt.Level = zap.NewAtomicLevel()
	}
	opt.Level.SetLevel(level)
	if opt.Console == nil {
		opt.Console = os.Stderr
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}

	console := newOutput(jsonEncoder(), &sink{w: opt.Console, now: opt.Now})
	if opt.Dev {
		console = newOutput(consoleEncoder(wantsColour(opt.Console)), console.sink)
		console.plain = true
	}
	outputs := []output{console}
	closeFile := func() error { return nil }
	if cfg.Path != "" {
		file, err := openFile(cfg)
		if err != nil {
			return nil, nil, err
		}
		if !opt.Dev {
			outputs[0].least = zapcore.WarnLevel
		}
		complain := func(lost int, err error) {
			e := zapcore.Entry{Level: zapcore.ErrorLevel, Time: opt.Now(), Message: "log records lost"}
			console.write(e, nil, []zap.Field{zap.Int("lost", lost), zap.String("file", cfg.Path), zap.Error(err)})
		}
		outputs = append(outputs, newOutput(jsonEncoder(), &sink{w: file, now: opt.Now, complain: complain}))
		closeFile = file.Close
	}
	log := zap.New(&core{AtomicLevel: opt.Level, outputs: outputs},
		zap.WithClock(clock{opt.Now}),
		zap.ErrorOutput(zapcore.AddSync(io.Discard))) // the sinks report by themselves
	return log, closeFile, nil
}

// Security returns the security log of l: a child named "security" whose records carry
// "log":"security" and are kept whatever the level is. In prod mode with a log file, those
// below a warning are in the file alone, like any other.
func Security(l *zap.Logger) *zap.Logger {
	return l.Named("security").
		WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return always{c} })).
		With(zap.String("log", "security"))
}

type always struct{ zapcore.Core }

func (always) Enabled(zapcore.Level) bool             { return true }
func (a always) With(fields []zap.Field) zapcore.Core { return always{a.Core.With(fields)} }
func (a always) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return ce.AddCore(e, a)
}

// openFile makes the folder and the file if they are missing, the owner's alone, and shows
// at start rather than at the first record that the file can be written.
func openFile(cfg Config) (*lumberjack.Logger, error) {
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, fmt.Errorf("log.path: make the folder: %w", err)
	}
	// A device or a pipe cannot be turned over, and opening a pipe waits for its reader.
	if info, err := os.Stat(cfg.Path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("log.path: %s is not a file; leave log.path empty to log to stderr", cfg.Path)
	}
	f, err := os.OpenFile(cfg.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log.path: %w", err)
	}
	// A file from before may be open to others; one that is not ours to change is its
	// owner's decision. Files set aside keep the mode.
	_ = f.Chmod(0o600)
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("log.path: %w", err)
	}
	return &lumberjack.Logger{
		Filename:   cfg.Path,
		MaxSize:    cfg.MaxSizeMB,
		MaxBackups: cfg.MaxBackups,
		MaxAge:     cfg.MaxAgeDays,
		Compress:   cfg.Compress,
	}, nil
}

// sink writes lines to one place, whole or not at all as far as a reader can tell.
type sink struct {
	now      func() time.Time
	complain func(lost int, err error) // nil where there is nobody to tell

	mu   sync.Mutex
	w    io.Writer
	torn bool      // the last write stopped inside a line
	lost int       // records since the last complaint
	told time.Time // when that was
}

// Between two complaints about a sink that fails.
const quiet = time.Minute

func (s *sink) write(line []byte) {
	s.mu.Lock()
	if s.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := s.w.Write(line)
	if n > 0 {
		s.torn = n < len(line)
	}
	if err == nil {
		s.mu.Unlock()
		return
	}
	s.lost++
	lost, now := s.lost, s.now()
	tell := s.complain != nil && (s.told.IsZero() || now.Sub(s.told) >= quiet)
	if tell {
		s.lost, s.told = 0, now
	}
	s.mu.Unlock()
	if tell {
		s.complain(lost, err)
	}
}

// wantsColour reports a terminal whose user has not asked for plain text (no-color.org).
func wantsColour(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

type clock struct{ now func() time.Time }

func (c clock) Now() time.Time                         { return c.now() }
func (c clock) NewTicker(d time.Duration) *time.Ticker { return time.NewTicker(d) }
