package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/tracing"
)

func newDoctor(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check everything the service depends on and say what to do",
		Long: `Check everything the service depends on with these settings, and say how to correct what is
wrong: the settings themselves, the data folder, the log, the ports, the secret, the
database and its schema, the signing keys, the outbox, webhooks and mail, Redis, Kafka, what a
password hash costs here, and the collector of traces if the environment names one.

Each line is ok, warn or fail, or skip if a check is impossible because another one failed.
Nothing is changed, and each check takes at most five seconds. The exit code is
1 when something failed.`,
		Example: `  authctl doctor
  APP_MODE=prod authctl doctor --config /etc/authctl/config.yaml -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.doctor(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
}

// The results of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
	checkSkip = "skip"
)

// checkTimeout is how long one check may take.
const checkTimeout = 5 * time.Second

// finding is one line of the report.
type finding struct {
	Status string `json:"status"`
	Check  string `json:"check"`
	Found  string `json:"found"`
	Advice string `json:"advice,omitempty"`
}

func fine(format string, args ...any) finding {
	return finding{Status: checkOK, Found: fmt.Sprintf(format, args...)}
}

func skipped(why string) finding { return finding{Status: checkSkip, Found: why} }

func doubtful(found, advice string) finding {
	return finding{Status: checkWarn, Found: found, Advice: advice}
}

func failing(found, advice string) finding {
	return finding{Status: checkFail, Found: found, Advice: advice}
}

// doctor checks an app whose parts may be missing.
type doctor struct {
	*app
	findings []finding
	print    func(finding) error

	schemaFits bool // the database is open and its schema up to date
	relays     bool // its role is a relay's, which can do nothing else
}

func (g *global) doctor(ctx context.Context, stdout, stderr io.Writer) (err error) {
	d := &doctor{print: func(f finding) error { return printFinding(stdout, f) }}
	if g.output == "json" {
		d.print = func(finding) error { return nil }
	}
	s, err := g.load(settings{}, nil)
	faults, wrong := errors.AsType[config.Faults](err)
	if _, misused := errors.AsType[misuse](err); misused || err != nil && !wrong {
		return err
	}
	// Settings that only serve needs are not missing where only a relay runs.
	if wrong {
		if relay, err := g.load(settings{keyless: true}, nil); err == nil && relay.relaysAlone(ctx) {
			s, wrong = relay, false
		}
	}
	if wrong {
		var list []finding
		for _, f := range faults {
			list = append(list,
				failing(f.String(), "correct it; everything else is checked once the settings are right"))
		}
		list = append(list, remarkable(s.remarks)...)
		err = d.report("settings", list...)
	} else {
		err = d.examine(ctx, s, stderr)
	}
	if err != nil {
		return err
	}
	if g.output == "json" {
		if err := printJSON(stdout, d.findings); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(d.findings, func(f finding) bool { return f.Status == checkFail }) {
		return silent{errors.New("a check failed")}
	}
	return nil
}

// relaysAlone reports whether the settings name a database with a role that can relay events but
// not sign people in.
func (s settings) relaysAlone(ctx context.Context) bool {
	if !s.Database.UsesPostgres() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	db, err := database.Open(ctx, s.Database, database.Options{Prod: s.App.prod(), AppName: "authctl"})
	if err != nil {
		return false
	}
	defer db.Close()
	return isRelayRole(ctx, db)
}

func isRelayRole(ctx context.Context, db *database.DB) bool {
	return isSo(ctx, db, relays+" AND NOT has_table_privilege('signing_key', 'SELECT')")
}

// relays is true of a role that relays, perhaps without all rights of it.
const relays = "has_table_privilege('outbox_pending', 'SELECT, DELETE')"

func isSo(ctx context.Context, db *database.DB, condition string) (yes bool) {
	err := db.QueryRowContext(ctx, "SELECT "+condition).Scan(&yes)
	return err == nil && yes
}

func printFinding(w io.Writer, f finding) error {
	text := strings.ReplaceAll(harmless(f.Found), "\n", " ")
	if f.Advice != "" {
		text += " — " + f.Advice
	}
	const before = 4 + 2 + 16 + 2
	lines := []string{text}
	if limit := terminalWidth(w); limit > 0 {
		lines = wrap(text, limit-before)
	}
	_, err := fmt.Fprintf(w, "%-4s  %-16s  %s\n", f.Status, f.Check,
		strings.Join(lines, "\n"+strings.Repeat(" ", before)))
	return err
}

func (d *doctor) report(check string, list ...finding) error {
	for _, f := range list {
		f.Check = check
		d.findings = append(d.findings, f)
		if err := d.print(f); err != nil {
			return fmt.Errorf("write the result: %w", err)
		}
	}
	return nil
}

func (d *doctor) examine(ctx context.Context, s settings, stderr io.Writer) (err error) {
	if d.app, err = newApp(s, stderr, true); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	for _, check := range []struct {
		name string
		run  func(context.Context) []finding
	}{
		{"settings", d.settingsFit},
		{"data folder", d.dataFolder},
		{"log", d.logFile},
		{"ports", d.ports},
		{"disk space", d.diskSpace},
		{"secret", d.secret},
		{"database", d.databaseWorks},
		{"schema", d.schema},
		{"clock", d.clock},
		{"signing keys", d.signingKeys},
		{"outbox", d.outbox},
		{"targets", d.targets},
		{"redis", d.redisFit},
		{"kafka", d.kafkaFit},
		{"password hashing", d.hashing},
		{"traces", d.traces},
	} {
		bounded, cancel := context.WithTimeout(ctx, checkTimeout)
		list := check.run(bounded)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := d.report(check.name, list...); err != nil {
			return err
		}
	}
	return nil
}

func (d *doctor) settingsFit(context.Context) []finding {
	set := 0
	for _, source := range d.Sources {
		if source != "default" {
			set++
		}
	}
	list := []finding{fine("%s mode, %s given", d.App.Mode, count(set, "setting", "settings"))}
	if !d.Operator.Loopback() {
		list = append(list, doubtful("the operator listener "+d.Operator.OperatorAddr+" can be reached from other "+
			"machines, and has no authentication",
			"keep it off public networks, or set APP_OPERATOR_ADDR=127.0.0.1:9090"))
	}
	for _, f := range config.CheckFiles(&d.settings) {
		if f.Path != "app.data_dir" && f.Path != "log.path" { // they have checks of their own
			list = append(list, failing(f.String(), "correct the file, or the setting"))
		}
	}
	return append(list, remarkable(d.remarks)...)
}

// remarkable are the settings that are probably mistakes.
func remarkable(remarks []config.Remark) []finding {
	var list []finding
	for _, r := range remarks {
		if r.Likely {
			list = append(list, doubtful(r.String(), "correct it, or delete it"))
		}
	}
	return list
}

func (d *doctor) dataFolder(context.Context) []finding {
	dir := d.App.DataDir
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || err == nil && !info.IsDir() {
		if !d.needsDataFolder() {
			return []finding{fine("%s is not there, and nothing needs it", dir)}
		}
		if err := tryMakingFolder(dir); err != nil {
			return []finding{failing(folderProblem("APP_DATA_DIR", dir, err))}
		}
		return []finding{fine("%s is not there yet; it is made when it is needed", dir)}
	}
	if err == nil {
		err = tryWritingTo(dir)
	}
	if err != nil {
		return []finding{failing(folderProblem("APP_DATA_DIR", dir, err))}
	}
	if !openToOthers(info) {
		return []finding{fine("%s, for its owner alone", dir)}
	}
	advice := "chmod 700 " + dir
	// Times, like the mode, are for the owner alone to set. A volume of Kubernetes is root's.
	if errors.Is(os.Chtimes(dir, time.Time{}, info.ModTime()), fs.ErrPermission) {
		advice = "it is another user's: do nothing if only this container sees it, or else name one of authctl's " +
			"user with APP_DATA_DIR"
	}
	list := []finding{doubtful(dir+" can be entered by others", advice)}
	if !d.needsDataFolder() {
		list = []finding{fine("%s, and nothing needs it", dir)}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return append(list, failing(folderProblem("APP_DATA_DIR", dir, err)))
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && openToOthers(info) {
			list = append(list, failing(filepath.Join(dir, e.Name())+" can be read by others", "chmod 600 "+
				filepath.Join(dir, e.Name())))
		}
	}
	return list
}

func (d *doctor) logFile(context.Context) []finding {
	path := d.Log.Path
	if path == "" {
		return []finding{fine("stderr")}
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return []finding{failing(path+" is not a file", "name a file with LOG_PATH, or leave it empty to log "+
			"to stderr")}
	case err == nil:
		var f *os.File
		if f, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err == nil {
			err = errors.Join(f.Close(), tryWritingTo(filepath.Dir(path))) // where it is rotated
		}
	case errors.Is(err, fs.ErrNotExist):
		err = tryFolder(filepath.Dir(path))
	}
	if err != nil {
		return []finding{failing(folderProblem("LOG_PATH", filepath.Dir(path), err))}
	}
	return []finding{fine("%s", path)}
}

func (d *doctor) ports(ctx context.Context) []finding {
	list := []finding{d.port(ctx, "APP_PORT", net.JoinHostPort(d.HTTP.Host, strconv.Itoa(d.HTTP.Port)), d.servesTLS())}
	if addr := d.Operator.OperatorAddr; addr != "" && addr != "off" {
		list = append(list, d.port(ctx, "APP_OPERATOR_ADDR", addr, false))
	}
	return list
}

// port says whether an address can be listened on, or authctl already does.
func (d *doctor) port(ctx context.Context, setting, addr string, secured bool) finding {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return failing(addr+": "+err.Error(), "set "+setting)
	}
	var free net.ListenConfig
	listener, err := free.Listen(ctx, "tcp", addr)
	switch {
	case err == nil && port == "0":
		_ = listener.Close()
		return fine("%s takes any free port", setting)
	case err == nil:
		_ = listener.Close()
		return fine("%s is free", addr)
	case !errors.Is(err, syscall.EADDRINUSE):
		return failing(err.Error(), listenAdvice(setting, err))
	}
	scheme := "http://"
	if secured {
		scheme = "https://"
	}
	_, err = askReadiness(ctx, scheme+net.JoinHostPort(reachable(host), port)+"/readyz")
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return failing("what listens on "+addr+" does not answer", "if it is authctl, look at its log and its "+
			"machine: it hangs, or has no time; if it is another program, set "+setting+" to another one")
	case err != nil:
		return failing(addr+" is in use by another program", "stop it, or set "+setting+" to another one")
	}
	return fine("authctl listens on %s", addr)
}

func listenAdvice(setting string, err error) string {
	switch {
	case errors.Is(err, syscall.EACCES):
		return "this user may not have it: set " + setting + " to a port above 1023"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		if setting == "APP_PORT" {
			setting = "APP_HOST"
		}
		return "it is not an address of this machine: set " + setting + " to one that is"
	}
	return "set " + setting + " to an address that can be listened on"
}

func openToOthers(info fs.FileInfo) bool { return info.Mode().Perm()&0o077 != 0 }

func (d *doctor) diskSpace(context.Context) []finding {
	const low, lowest = 1 << 30, 64 << 20
	dir, err := filepath.Abs(d.App.DataDir)
	if err != nil {
		return []finding{failing(err.Error(), "name the data folder with APP_DATA_DIR")}
	}
	for { // the folder may not be there yet
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	free, known := freeSpace(dir)
	text := fmt.Sprintf("%.1f GiB free for %s", gib(free), d.App.DataDir)
	switch {
	case !known:
		return []finding{skipped("the free space cannot be read on this system")}
	case free < lowest:
		return []finding{failing(text, "make room: nobody can sign in when the database cannot write")}
	case free < low:
		return []finding{doubtful(text, "make room before it is full")}
	}
	return []finding{fine("%s", text)}
}

func (d *doctor) secret(context.Context) []finding {
	const advice = "set AUTH_TOKEN_SECRET, or AUTH_TOKEN_SECRET_FILE, to what this prints: openssl rand -base64 48"
	secret := d.Auth.Token.Secret
	if d.keyless && secret == "" {
		return []finding{skipped("this database role is a relay's, which needs it for webhooks and mails alone")}
	}
	if secret == "" {
		path := filepath.Join(d.App.DataDir, "secret")
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return []finding{fine("none yet; the first start makes one in %s", path)}
		}
		var err error
		if d.ownSecret, err = d.ensureSecret(false); err != nil {
			return []finding{failing(err.Error(), advice)}
		}
		if d.Database.UsesPostgres() || d.Redis.Enabled() {
			return []finding{doubtful("this machine's own, in "+path+", fingerprint "+d.Auth.Token.Secret.Fingerprint(),
				"other servers on the same database need the same one: "+advice)}
		}
		return []finding{fine("made here, in %s, fingerprint %s", path, d.Auth.Token.Secret.Fingerprint())}
	}
	bits := strength(secret.Reveal())
	from := d.Sources["auth.token.secret"]
	if bits < 100 {
		return []finding{doubtful(fmt.Sprintf("from %s, and easy to guess: about %.0f bits", from, bits), advice)}
	}
	list := []finding{fine("from %s, %d bytes, fingerprint %s: the same on every server", from, len(secret.Reveal()),
		secret.Fingerprint())}
	if len(d.Auth.Token.Untrimmed) > 0 {
		list = append(list, doubtful("there is white space around it, which is ignored", adviceWhiteSpace))
	}
	return list
}

// strength is the Shannon entropy of the text in bits, by the frequency of each byte. It finds
// repetition, but not words.
func strength(text string) float64 {
	often := map[byte]int{}
	for i := range len(text) {
		often[text[i]]++
	}
	bits := 0.0
	for _, n := range often {
		bits -= float64(n) * math.Log2(float64(n)/float64(len(text)))
	}
	return bits
}

func (d *doctor) databaseWorks(ctx context.Context) []finding {
	name := d.Database.Describe(d.App.DataDir)
	if !d.Database.Exists(d.App.DataDir) {
		dir := filepath.Dir(d.Database.File(d.App.DataDir))
		if err := tryFolder(dir); err != nil && d.Database.URL != "" { // that of data was looked at
			return []finding{failing(folderProblem("DATABASE_URL", dir, err))}
		}
		return []finding{fine("no %s yet; the first start makes it", name)}
	}
	begun := time.Now()
	if err := d.connectDatabase(ctx); err != nil {
		return []finding{d.databaseFails(err, "name another one with DATABASE_URL")}
	}
	took := time.Since(begun)
	query := "SELECT sqlite_version(), false"
	if d.db.IsPostgres() {
		query = "SELECT current_setting('server_version'), current_setting('synchronous_commit') = 'off'"
	}
	var version string
	var forgets bool
	if err := d.db.QueryRowContext(ctx, query).Scan(&version, &forgets); err != nil {
		return []finding{d.databaseFails(err, "look at the database's log")}
	}
	if err := d.db.TryWrite(ctx); err != nil {
		return []finding{d.databaseFails(fmt.Errorf("%s: %w", name, err),
			"let authctl's user write to it, and check that its disk is not full")}
	}
	list := []finding{fine("%s, version %s, answers and takes writes, connected in %s", name, version,
		took.Round(time.Millisecond/10))}
	if forgets {
		list = append(list,
			doubtful("synchronous_commit is off: a crash of PostgreSQL can forget changes that were answered, such "+
				"as the end of a session", "set it on for authctl's user: ALTER ROLE … SET synchronous_commit = on"))
	}
	if servers := d.Database.Primaries(ctx, d.App.prod()); len(servers) > 1 {
		list = append(list, failing("several servers take writes: "+strings.Join(servers, ", "), "stop those that are "+
			"not the primary: authctl uses whichever it reaches first, and what the others take is lost"))
	}
	if servers := d.Database.Unverified(d.App.prod()); len(servers) > 0 && d.App.prod() {
		list = append(list, doubtful("somebody on the network could read and change what is exchanged: "+
			strings.Join(servers, ", "), "unless the network is your own, set sslmode=verify-full, or do not "+
			"set sslmode"))
	}
	return list
}

// databaseFails gives the advice for this kind of error, or the given one.
func (d *doctor) databaseFails(err error, otherwise string) finding {
	return failing(err.Error(), cmp.Or(database.Remedy(err, database.AnyTask), otherwise))
}

func (d *doctor) schema(ctx context.Context) []finding {
	if d.db == nil {
		return []finding{skipped("the database is not open")}
	}
	switch err := migrations.Check(ctx, d.db); {
	case errors.Is(err, migrations.ErrForeign):
		return []finding{failing(err.Error(), unlessForeign)}
	case errors.Is(err, migrations.ErrBehind) && !d.db.IsPostgres():
		return []finding{fine("%s; the next start runs them", err)}
	case errors.Is(err, migrations.ErrBehind):
		return []finding{failing(err.Error(), "run: authctl migrate up")}
	case errors.Is(err, migrations.ErrTriggersOff):
		return []finding{failing(err.Error(), "until then the revocation feed misses what ends: end the sessions "+
			"of everybody afterwards, with: authctl session revoke --before 0s")}
	case err != nil:
		return []finding{d.databaseFails(err, "let authctl's user read the table bun_migrations")}
	}
	d.schemaFits = true
	d.relays = d.db.IsPostgres() && isRelayRole(ctx, d.db)
	found := fine("up to date")
	if list, err := migrations.Status(ctx, d.db); err == nil && list[len(list)-1].Newer {
		found = fine("up to date; a newer release has migrated it further")
	}
	list := []finding{found}
	if !d.relays {
		list = append(list, d.rights(ctx, "authctl_serve")...)
	}
	if d.relays || d.Outbox.Relay == "inline" && isSo(ctx, d.db, relays) {
		list = append(list, d.rights(ctx, "authctl_relay")...)
	}
	switch raise, err := migrations.LateSequences(ctx, d.db); {
	case err != nil:
		list = append(list, d.databaseFails(err, "look at the database's log"))
	case len(raise) > 0:
		list = append(list, failing(copiedWithoutSequences, raiseSequences(raise)))
	}
	return append(list, d.fenceFindings(ctx)...)
}

const copiedWithoutSequences = "the database was copied without its sequences: they would give numbers that are in " +
	"use, so that changes fail"

func raiseSequences(statements []string) string {
	return "raise them, as the tables' owner: " + strings.Join(statements, "; ")
}

// rights says what the role of these settings lacks, which is what grants.sql gives the one with its work.
func (d *doctor) rights(ctx context.Context, role string) []finding {
	lacks, remedy, err := missingRights(ctx, d.db, role)
	switch {
	case err != nil:
		return []finding{d.databaseFails(err, "look at the database's log")}
	case lacks == "":
		return nil
	}
	return []finding{failing(lacks, remedy)}
}

// missingRights says what the role of the connection lacks of the rights of another one, if anything, and what to do.
func missingRights(ctx context.Context, db *database.DB, role string) (lacks, remedy string, err error) {
	missing, err := migrations.MissingRights(ctx, db, role)
	if err != nil || len(missing) == 0 {
		return "", "", err
	}
	lacks = "this database role lacks rights of " + role + ": " + strings.Join(missing[:min(3, len(missing))], ", ")
	if more := len(missing) - 3; more > 0 {
		lacks += fmt.Sprintf(" and %d more", more)
	}
	return lacks, "run authctl migrate grants as authctl_migrate, after each authctl migrate up; or " +
		"use the role " + role + ", or the one that owns the tables", nil
}

func (d *doctor) clock(ctx context.Context) []finding {
	if d.db == nil {
		return []finding{skipped("the database is not open")}
	}
	if !d.db.IsPostgres() {
		return []finding{fine("the database has this machine's")}
	}
	off, err := clockOffset(ctx, d.db)
	if err != nil {
		return []finding{d.databaseFails(err, "look at the database's log")}
	}
	return []finding{checkClock(off, "database")}
}

// checkClock judges the clock of somebody else, which is off ahead of this machine's.
func checkClock(off time.Duration, whose string) finding {
	const advice = "synchronise both clocks (NTP): tokens, sessions and leases depend on them"
	by, relation := off.Abs().Round(time.Millisecond), "behind"
	if off < 0 {
		relation = "ahead of"
	}
	text := fmt.Sprintf("this machine's clock is %s %s the %s's", by, relation, whose)
	switch {
	case off.Abs() > 30*time.Second:
		return failing(text, advice)
	case off.Abs() > time.Second:
		return doubtful(text, advice)
	}
	return fine("differs from the %s's by %s", whose, by)
}

func (d *doctor) signingKeys(ctx context.Context) []finding {
	switch {
	case d.Auth.Token.Algorithm == "HS256":
		if d.schemaFits && d.Auth.Token.Secret != "" &&
			errors.Is(auth.OpenKeys(d.db, d.Auth, d.log).Check(ctx), auth.ErrOtherSecret) {
			return []finding{doubtful(auth.ErrOtherSecret.Error(), "unless it was just replaced, give all servers "+
				"the same AUTH_TOKEN_SECRET: with HS256 they refuse each other's tokens")}
		}
		return []finding{fine("none: with HS256 the secret itself signs")}
	case !d.schemaFits:
		return []finding{skipped("the database cannot be read yet")}
	case d.Auth.Token.Secret == "":
		return []finding{skipped("there is no secret yet")}
	}
	keys := auth.OpenKeys(d.db, d.Auth, d.log)
	switch err := keys.Check(ctx); {
	case errors.Is(err, auth.ErrWrongSecret):
		return []finding{failing(err.Error(), "name the old secret in AUTH_TOKEN_PREVIOUS_SECRETS; if it is lost: "+
			"authctl key list, authctl key revoke KID --force")}
	case database.IsForbidden(err):
		return []finding{skipped("this database role may not read them; ask as the one that serves")}
	case err != nil:
		return []finding{failing(err.Error(), "see: authctl key list; a key that does not open can be revoked")}
	}
	list, err := keys.List(ctx)
	if err != nil {
		return []finding{failing(err.Error(), "look at the database's log")}
	}
	for _, k := range list {
		switch {
		case k.Status != auth.KeyActive:
		case k.Algorithm != d.Auth.Token.Algorithm:
			return []finding{doubtful(fmt.Sprintf("the active one is for %s and the setting is %s", k.Algorithm,
				d.Auth.Token.Algorithm), "rotate: authctl key stage, authctl key promote KID")}
		default:
			return []finding{fine("%s signs with %s, and every published one opens", k.KID, k.Algorithm)}
		}
	}
	return []finding{fine("none yet; the first start makes one")}
}

func (d *doctor) outbox(ctx context.Context) []finding {
	if !d.schemaFits {
		return []finding{skipped("the database cannot be read yet")}
	}
	st, err := outbox.Status(ctx, d.db)
	if database.IsForbidden(err) && d.Outbox.Relay == "inline" {
		return []finding{failing("serve relays (outbox.relay is inline), and this database role may not",
			"set OUTBOX_RELAY=off where relays run apart, or let it: GRANT authctl_relay TO authctl_serve")}
	}
	if database.IsForbidden(err) {
		return []finding{skipped("this database role may not look into it; ask as the relay's or the owner")}
	}
	if err != nil {
		return []finding{failing(err.Error(), "look at the database's log")}
	}
	list := d.targetFits(ctx, nil)
	if st.ParkedKeys > 0 {
		list = append(list, doubtful(count(int(st.ParkedKeys), "key is", "keys are")+" parked",
			"see: authctl outbox parked list"))
	}
	if st.LeasesAhead > 0 {
		list = append(list, doubtful(count(st.LeasesAhead, "lease ends", "leases end")+" later than possible: the "+
			"database's clock was ahead when a relay wrote it, or has been set back since",
			"keep that clock synchronised (NTP); a relay that runs takes the work over within a lease, a "+
				"minute at most"))
	}
	return append(list, checkWaiting(st)...)
}

// checkWaiting says what keeps events waiting, and what it means that they do. Before the first event nobody needs a
// relay.
func checkWaiting(st outbox.State) (list []finding) {
	outages := 0
	for _, o := range currentOutages(st) {
		who, then := o.Relay+" cannot", "go on by themselves"
		if o.Lasts {
			outages++
		} else { // its last report, and no other relay runs
			who, then = o.Relay+", which has ended, could not", "go on if a relay runs"
		}
		found := fmt.Sprintf("%s publish since %s: %s", who, moment(o.Since), o.Error)
		wait := "events wait"
		if st.Pending == 0 {
			wait = "new events wait"
		}
		if o.NeedsPerson() {
			list = append(list, failing(found, wait+", and "+then+" once that is done"))
		} else {
			list = append(list, doubtful(found, wait+", and "+then+" once the target is back"))
		}
	}
	return append(list, waitingNow(st, outages))
}

// waitingNow says how many events wait, while relays that run report so many outages.
func waitingNow(st outbox.State, outages int) finding {
	waiting := waits(st.Pending)
	if st.OldestAge > 0 { // not one that is sent again
		waiting += fmt.Sprintf(", the oldest for %s", st.OldestAge.Round(time.Second))
	}
	switch {
	case st.Pending == 0 && len(st.Relays) == 0 && st.LastID > 0:
		return doubtful(waiting+", but no relay runs, and the next event will wait", startRelay)
	case st.Pending == 0:
		return fine("%s; %s", waiting, count(len(st.Relays), "relay runs", "relays run"))
	case len(st.Relays) == 0 && outages == 0:
		return doubtful(waiting+", and no relay runs", startRelay)
	case st.OldestAge > time.Minute && outages == 0:
		return doubtful(waiting, "see the log of the relays")
	}
	return fine("%s", waiting)
}

// targetFits compares the target of the settings with the outbox's. A serve that leaves events to
// relays need not name it.
func (d *doctor) targetFits(ctx context.Context, identity *string) []finding {
	name, known, err := d.target()
	if err != nil {
		return []finding{failing(err.Error(), "name the data folder with APP_DATA_DIR")}
	}
	if identity == nil {
		identity = known
	}
	off := d.Outbox.Relay == "off"
	err = outbox.CheckTarget(ctx, d.db, name, identity)
	switch {
	case errors.Is(err, outbox.ErrOtherTarget) && off && !d.Kafka.UsesKafka():
		return nil
	case errors.Is(err, outbox.ErrOtherTarget) && off:
		return []finding{doubtful(err.Error(), "serve is fine with it, since OUTBOX_RELAY is off; a relay with these "+
			"settings is refused")}
	case errors.Is(err, outbox.ErrOtherTarget):
		return []finding{failing(err.Error(), "until then serve does not start with these settings, and "+
			"neither does a relay")}
	case err != nil:
		return []finding{failing(err.Error(), "look at the database's log")}
	}
	return nil
}

func (d *doctor) redisFit(ctx context.Context) []finding {
	if d.relays {
		return []finding{skipped("this database role is a relay's, which needs none")}
	}
	if !d.Redis.Enabled() && d.Database.UsesPostgres() {
		return []finding{fine("none is named: sessions and the counters of sign-in limits are in the database")}
	}
	if !d.Redis.Enabled() {
		return []finding{fine("none is named: sessions are in the database, sign-in limits are counted by each " +
			"process alone")}
	}
	client, err := cache.Open(ctx, d.Redis, cache.Options{Prod: d.App.prod(), AppName: "authctl"})
	if err != nil {
		problem := cache.Describe(err)
		return []finding{failing("connect to "+d.Redis.Describe()+": "+problem.Found, problem.Advice)}
	}
	d.closers = append(d.closers, client.Close)
	var list []finding
	for _, problem := range cache.Unfit(ctx, client) {
		list = append(list, failing(d.Redis.Describe()+": "+problem.Found, problem.Advice))
	}
	if len(list) > 0 {
		return list
	}
	switch missing, err := cache.Rights(ctx, client); {
	case err != nil:
		return []finding{failing(err.Error(), cache.Describe(err).Advice)}
	case missing != nil:
		list = append(list, failing(missing.Found, missing.Advice))
	}
	problems, err := cache.Check(ctx, client)
	if err != nil {
		list = append(list, doubtful("its maxmemory-policy and persistence cannot be checked: "+err.Error(),
			"let the Redis user run INFO, or check them yourself"))
	}
	for _, p := range problems {
		list = append(list, doubtful(p.Found, p.Advice))
	}
	if _, err := cache.Layout(ctx, client); errors.Is(err, cache.ErrMoved) {
		problem := cache.Describe(err)
		list = append(list, doubtful(problem.Found, problem.Advice))
	}
	if len(list) == 0 {
		list = append(list, fine("%s answers, takes writes and keeps its data", d.Redis.Describe()))
	}
	servers, err := cache.Servers(ctx, client)
	if err != nil {
		return append(list, failing(err.Error(), cache.Describe(err).Advice))
	}
	for _, server := range servers {
		before := time.Now()
		there, err := server.Client.Time(ctx).Result()
		if err != nil {
			return append(list, failing(err.Error(), cache.Describe(err).Advice))
		}
		name := strings.TrimSpace("Redis " + server.Name)
		if f := checkClock(there.Sub(before.Add(time.Since(before)/2)), name); f.Status != checkOK {
			list = append(list, f)
		}
	}
	return list
}

func (d *doctor) kafkaFit(ctx context.Context) []finding {
	switch {
	case d.Kafka.UsesKafka():
	case d.Outbox.Relay == "off" && !d.relays:
		return []finding{fine("none is named: OUTBOX_RELAY is off, so events are left to relays elsewhere")}
	default:
		return []finding{fine("none is named: events go to %s", d.eventsFile())}
	}
	kafka, err := d.openKafka()
	if err != nil {
		return []finding{failing(err.Error(), "see kafka.* in docs/configuration.md")}
	}
	d.closers = append(d.closers, kafka.Close)
	st, err := kafka.CheckTopic(ctx)
	if stalled, ok := errors.AsType[*relay.Stalled](err); ok {
		return []finding{failing(stalled.Error(), "events wait until then")}
	}
	if err != nil {
		advice, found := kafkaAway{err}.words()
		return []finding{failing(found.Error(), advice+"; events wait meanwhile")}
	}
	var list []finding
	if identity, err := kafka.Identity(ctx); err == nil && d.schemaFits && len(d.targetFits(ctx, nil)) == 0 {
		list = d.targetFits(ctx, &identity) // the name was checked before, with the outbox
	}
	list = append(list, d.partitionsFit(ctx, kafka.Name(), st.Partitions)...)
	for _, problem := range d.topicProblems(st) {
		list = append(list, doubtful("topic "+st.Topic+": "+problem.Found, problem.Advice))
	}
	if len(list) == 0 {
		list = append(list, fine("%s, topic %s with %s", strings.Join(d.Kafka.Brokers, ","), st.Topic,
			count(st.Partitions, "partition", "partitions")))
	}
	return list
}

// partitionsFit compares the number of partitions with the one that the order of events relies on. Relays end when
// they differ, and would end again.
func (d *doctor) partitionsFit(ctx context.Context, name string, partitions int) []finding {
	if !d.schemaFits {
		return nil
	}
	targets, err := outbox.Targets(ctx, d.db)
	t := outbox.State{Targets: targets}.Target()
	if err != nil || t == nil || t.Name != name || t.Partitions == 0 || t.Partitions == partitions {
		return nil
	}
	now := *t
	now.Partitions = partitions
	return []finding{failing(outbox.Repartitioned(now, t.Partitions).Error(), "until then no relay runs")}
}

// traces says nothing where none are sent.
func (d *doctor) traces(ctx context.Context) []finding {
	switch on, err := tracing.Probe(ctx, version()); {
	case !on:
		return nil
	case err != nil:
		return []finding{doubtful("the collector takes no spans: "+err.Error(),
			"correct the OTEL_EXPORTER_OTLP_* variables, or remove them: requests are answered without a "+
				"collector too")}
	}
	return []finding{fine("the collector takes spans")}
}

func (d *doctor) hashing(ctx context.Context) []finding {
	const advice = "see: authctl password calibrate"
	took, err := auth.HashTime(ctx, d.Auth)
	if err != nil {
		return []finding{skipped("it could not be measured in time: " + err.Error())}
	}
	text := fmt.Sprintf("one %s takes about %s here", d.Auth.Password.Algorithm, milliseconds(took))
	need, memory, tooMuch := hashMemory(d.Auth)
	switch {
	case took > d.HTTP.HTTP.RequestTimeout:
		return []finding{failing(text+", longer than a request may (app.http.request_timeout): nobody can sign in",
			advice)}
	case tooMuch:
		return []finding{doubtful(fmt.Sprintf("%s, and during a flood of sign-ins hashing takes up to %.1f GiB of the "+
			"%.1f GiB of memory: the kernel may kill serve", text, gib(need), gib(memory)), hashMemoryHint)}
	case took > time.Second:
		return []finding{doubtful(text+": sign-in is slow", advice)}
	case took < 20*time.Millisecond:
		return []finding{doubtful(text+": that hardly protects a stolen database", advice)}
	}
	return []finding{fine("%s", text)}
}

func gib(bytes uint64) float64 { return float64(bytes) / (1 << 30) }
