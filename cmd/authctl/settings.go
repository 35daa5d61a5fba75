package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/contact/mail"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/modules/outbox/sink"
	"github.com/toppira/authctl/modules/outbox/webhook"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/logging"
	"github.com/toppira/authctl/platform/telemetry"
)

// settings are everything that can be set. Each part is declared where it is used.
type settings struct {
	App      appSettings
	HTTP     httpserver.Config
	Operator telemetry.Config
	Log      logging.Config
	Database database.Config
	Redis    cache.Config
	Auth     auth.Config
	Contact  contact.Config
	Outbox   relay.Config
	Delivery delivery.Config
	Kafka    sink.KafkaConfig
	Mail     mail.Config
	Webhook  webhook.Config
	Sources  config.Sources

	remarks []config.Remark // probably mistakes, but not faults

	// keyless says that the command neither signs nor reads tokens, so that it does not need the
	// secret.
	keyless bool
	reads   bool // the command only shows what does not depend on the secret
}

type appSettings struct {
	Mode    string `config:"app.mode" default:"dev" oneof:"dev,prod" doc:"dev: readable logs, .env is read, a missing signing secret is created. prod: JSON logs, a secret is required, TLS to backends is verified."`
	DataDir string `config:"app.data_dir" default:"./data" doc:"Folder for what is not on a server: the SQLite database, the events file, the signing secret. Created with mode 0700."`

	AutogroupNice int `config:"app.autogroup_nice" default:"5" min:"0" max:"19" doc:"On a Linux that schedules by autogroup, see sched(7): the nice value of the autogroup that serve runs in, so that during a flood of sign-ins a PostgreSQL or Redis on the same machine runs first. Undone when serve stops. 0 leaves it alone; so does a value that somebody else has set, and so does serve with neither server named."`
}

func (a appSettings) prod() bool { return a.Mode == "prod" }

// CheckFiles reports a data folder that is a file. A missing one is created.
func (s settings) CheckFiles(report func(path, problem string)) {
	if problem := config.FolderProblem(s.App.DataDir); problem != "" && s.needsDataFolder() {
		report("app.data_dir", "cannot be used: "+problem)
	}
}

// Validate reports a data folder that would be made somewhere else than was meant.
func (a appSettings) Validate(report func(path, problem string)) {
	if problem := config.PathProblem(a.DataDir); problem != "" {
		report("app.data_dir", problem)
	}
}

// Validate reports what a mode does not allow.
func (s settings) Validate(report func(path, problem string)) {
	if !s.App.prod() {
		return
	}
	s.Kafka.ValidateProd(report)
	if !s.keyless { // such a command does not need Redis either
		s.Redis.ValidateProd(report)
	}
	if s.Auth.Token.Secret == "" && !s.keyless && !s.reads {
		report("auth.token.secret", "must be set in prod mode: AUTH_TOKEN_SECRET, or AUTH_TOKEN_SECRET_FILE; make one "+
			"with: openssl rand -base64 48")
	}
	if strings.TrimRight(s.Auth.Token.Issuer, "/") == auth.DefaultIssuer && !s.keyless && !s.reads {
		report("auth.token.issuer", "must be set in prod mode: AUTH_TOKEN_ISSUER, the URL by which clients know this "+
			"service, such as https://auth.example.com")
	}
	if s.samePort() && !s.keyless && !s.reads { // dev mode does without the listener for operators
		report("app.operator_addr", "is the address of the public listener, too; one of them needs another port")
	}
	if s.Auth.Password.BcryptCost < 10 {
		report("auth.password.bcrypt_cost", "must be 10 or more in prod mode")
	}
}

// samePort reports whether the two listeners could not run at the same time.
func (s settings) samePort() bool {
	host, port, err := net.SplitHostPort(s.Operator.OperatorAddr)
	every := func(host string) bool {
		ip := net.ParseIP(host)
		return host == "" || ip != nil && ip.IsUnspecified()
	}
	return err == nil && s.HTTP.Port != 0 && port == strconv.Itoa(s.HTTP.Port) &&
		(every(host) || every(s.HTTP.Host) || host == s.HTTP.Host)
}

// checkServed reports all files at once that serve could not use. Where it does not relay, it opens
// nothing for Kafka and mails.
func (s *settings) checkServed() error {
	faults := config.CheckFiles(s)
	if s.Outbox.Relay == "off" {
		faults = slices.DeleteFunc(faults, func(f config.Fault) bool {
			return strings.HasPrefix(f.Path, "kafka.") || strings.HasPrefix(f.Path, "mail.") ||
				f.Path == "contact.templates_dir"
		})
	}
	if len(faults) == 0 {
		return nil
	}
	return faults
}

// load reads every layer. s says whether a secret is needed, and flags are settings given as flags of the command.
func (g *global) load(s settings, flags map[string]string) (settings, error) {
	override := make(map[string]string, len(g.set)+len(flags))
	for _, pair := range g.set {
		path, value, found := strings.Cut(pair, "=")
		if !found {
			return s, misuse{fmt.Errorf("--set %s: it takes key=value, such as app.port=8081", pair)}
		}
		override[path] = value
	}
	maps.Copy(override, flags)
	var remarks []config.Remark
	var untrimmed []config.Secret
	err := config.Load(&s, config.Options{
		File: g.configFile, Environ: os.Environ(), DotEnv: ".env", Override: override,
		Removed: removedSettings(),
		Remark:  func(r config.Remark) { remarks = append(remarks, r) },
		Trimmed: func(path string, before config.Secret) {
			if path == "auth.token.secret" {
				untrimmed = append(untrimmed, before)
			}
		},
	})
	s.remarks, s.Auth.Token.Untrimmed = remarks, untrimmed
	faults, _ := errors.AsType[config.Faults](err)
	if slices.ContainsFunc(faults, func(f config.Fault) bool { return f.Source == "flag" }) {
		return s, misuse{err}
	}
	if len(faults) > 0 {
		return s, withRemarks(err, remarks)
	}
	return s, err
}

// withRemarks adds to the faults of the settings the remarks that may explain them, such as a
// variable with a typing error.
func withRemarks(err error, remarks []config.Remark) error {
	words := ""
	for _, r := range remarks {
		if r.Likely {
			words += "\n  note: " + r.String()
		}
	}
	if words == "" {
		return err
	}
	return fmt.Errorf("%w%s", err, words)
}

// errNoSecret refuses a command that needs the secret of the servers and cannot find it.
var errNoSecret = errors.New("there is no signing secret: set AUTH_TOKEN_SECRET or AUTH_TOKEN_SECRET_FILE to the " +
	"one that the servers have")

// ensureSecret reads the signing secret from the data folder if none is configured, and creates it
// there if it may. It reports whether the secret is from the data folder.
func (s *settings) ensureSecret(mayMake bool) (own bool, err error) {
	if s.Auth.Token.Secret != "" {
		return false, nil
	}
	path := filepath.Join(s.App.DataDir, "secret")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !mayMake {
		return true, errNoSecret
	}
	if errors.Is(err, fs.ErrNotExist) {
		text, err = makeSecret(path)
	}
	if err != nil {
		return true, fmt.Errorf("the signing secret in the data folder: %w", err)
	}
	s.Auth.Token.Secret = config.Secret(strings.TrimSpace(string(text)))
	if len(s.Auth.Token.Secret.Reveal()) < 32 {
		return true, fmt.Errorf("the signing secret in %s is damaged: restore the file, or set AUTH_TOKEN_SECRET", path)
	}
	return true, nil
}

// makeSecret creates a secret file. The first one stays, so that processes that start at the same time use the
// same one.
func makeSecret(path string) ([]byte, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	secret := make([]byte, 48)
	_, _ = rand.Read(secret) // never fails
	err := writePrivately(path, os.Link, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, base64.StdEncoding.EncodeToString(secret))
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.ReadFile(path)
}
