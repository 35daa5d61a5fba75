// Package logging makes the zap logger of the process.
//
// Where records go. Without log.path, everything goes to the console, which is stderr. With it,
// everything goes to the file as JSON, and to the console too: in dev mode all of it, in prod mode
// only warnings and errors. So an operator sees problems in the journal or the container's log,
// and not every record is kept twice.
//
// What a record looks like. In prod mode, and always in the file, it is one JSON object: ts (RFC
// 3339, UTC, milliseconds), level, logger, msg, then the fields, with durations in seconds. In dev
// mode the console shows plain text instead.
//
// A record is always one line: line breaks, terminal escapes, Unicode line separators, controls
// and text-direction marks are escaped, bytes that are not UTF-8 are replaced, and long values are
// cut with a mark that gives their length.
//
// A record that cannot be written is counted and reported on the console, at most once a minute.
// The caller never fails or waits because of it. Nothing is buffered, so that no record is lost
// with the process.
package logging

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"github.com/toppira/authctl/platform/config"
)

// Config is log.*.
type Config struct {
	Level      string `config:"log.level" default:"info" oneof:"debug,info,warn,error" doc:"Lowest level that is logged. The security log is always written."`
	Path       string `config:"log.path" doc:"Log file, created with mode 0600 and rotated by size. Empty means only stderr. With a file, stderr also shows everything in dev mode, and warnings and errors in prod mode. SIGHUP opens the file again."`
	MaxSizeMB  int    `config:"log.max_size_mb" default:"100" min:"1" max:"10240" doc:"Size in MiB at which the file is rotated."`
	MaxBackups int    `config:"log.max_backups" default:"7" min:"0" max:"10000" doc:"Most rotated files to keep. 0 keeps any number."`
	MaxAgeDays int    `config:"log.max_age_days" default:"30" min:"0" max:"3650" doc:"Days to keep a rotated file. 0 sets no limit."`
	Compress   bool   `config:"log.compress" default:"true" doc:"Compress rotated files with gzip."`
}

// Validate reports settings that cannot work.
func (c Config) Validate(report func(path, problem string)) {
	if problem := config.PathProblem(c.Path); problem != "" {
		report("log.path", problem)
	}
}

// CheckFiles reports a log file that cannot be one. A missing one is created, with its folder.
func (c Config) CheckFiles(report func(path, problem string)) {
	if c.Path == "" {
		return
	}
	if problem := config.FolderProblem(filepath.Dir(c.Path)); problem != "" {
		report("log.path", "cannot be used: "+problem)
	} else if err := notAFile(c.Path); err != nil {
		report("log.path", "cannot be used: "+err.Error())
	}
}

// notAFile refuses a folder, a device and a pipe. The last two cannot be rotated, and opening a
// pipe waits for its reader. /dev/stdout may lead to a file, and rotating would rename the link.
func notAFile(path string) error {
	info, err := os.Stat(path)
	full, _ := filepath.Abs(path)
	if strings.HasPrefix(full, "/dev/") || strings.HasPrefix(full, "/proc/") || err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file; leave log.path empty to log to stderr", path)
	}
	return nil
}

// Options are what the settings alone do not say.
type Options struct {
	Dev     bool
	Console io.Writer        // nil means os.Stderr
	Level   zap.AtomicLevel  // the caller's, to change the level later; set to Config.Level by New
	Now     func() time.Time // nil means time.Now

	// Brief is for commands: the file gets what the console gets, is created when there is
	// something to write, and is left to the servers to rotate.
	Brief bool
}

// New makes the logger. It fails if the file cannot be opened.
func New(cfg Config, opt Options) (*zap.Logger, *File, error) {
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
	var file *File
	if cfg.Path != "" {
		say := func(message string, fields ...zap.Field) {
			e := zapcore.Entry{Level: zapcore.ErrorLevel, Time: opt.Now(), Message: message}
			console.write(e, nil, append(fields, zap.String("file", cfg.Path)))
		}
		file = newFile(cfg, opt.Now, func(err error) { say("log_file_not_rotated", zap.Error(err)) })
		if opt.Brief {
			file.limit = 0
		} else {
			if err := file.open(); err != nil {
				return nil, nil, err
			}
			file.startTidying()
		}
		if !opt.Dev && !opt.Brief {
			outputs[0].least = zapcore.WarnLevel
		}
		complain := func(lost int, err error) { say("log_records_lost", zap.Int("lost", lost), zap.Error(err)) }
		outputs = append(outputs, newOutput(jsonEncoder(), &sink{w: file, now: opt.Now, complain: complain}))
	}
	log := zap.New(&core{AtomicLevel: opt.Level, outputs: outputs},
		zap.WithClock(clock{opt.Now}),
		zap.ErrorOutput(zapcore.AddSync(io.Discard))) // the sinks report errors
	return log, file, nil
}

// Security returns the security log of a log: a child named "security" whose records have
// "log":"security" and are written at every level. In prod mode with a log file, records below a
// warning are only in the file, like all others.
func Security(log *zap.Logger) *zap.Logger {
	return log.Named("security").
		WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return always{c} })).
		With(zap.String("log", "security"))
}

type always struct{ zapcore.Core }

func (always) Enabled(zapcore.Level) bool             { return true }
func (a always) With(fields []zap.Field) zapcore.Core { return always{a.Core.With(fields)} }
func (a always) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return ce.AddCore(e, a)
}

// sink writes lines to one place, and begins a new line after one that was cut off.
type sink struct {
	now      func() time.Time
	complain func(lost int, err error) // may be nil

	mu   sync.Mutex
	w    io.Writer
	torn bool      // the last write stopped inside a line
	lost int       // records since the last complaint
	told time.Time // when that was
}

// quiet is the time between two complaints about a sink that fails.
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

// wantsColour reports whether w is a terminal whose user has not asked for plain text
// (no-color.org).
func wantsColour(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

type clock struct{ now func() time.Time }

func (c clock) Now() time.Time                         { return c.now() }
func (c clock) NewTicker(d time.Duration) *time.Ticker { return time.NewTicker(d) }
