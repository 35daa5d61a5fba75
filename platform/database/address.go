package database

import (
	"cmp"
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/toppira/authctl/platform/config"
)

// Only the driver parses an address, from the unchanged text, and what it found decides where to
// connect and whether the server's certificate is verified. The checks here only make sure that
// the text can be read in one way. A URL whose parts run into each other, because a password has
// an @ or a / that is not percent-encoded, is refused without showing any of it.

// percentEncode is what to do about a URL that cannot be read.
const percentEncode = "percent-encode special characters of the user name, the password and the database name: " +
	"%40 for @, %3A for :, %2F for /, %3F for ?, %23 for #, %5B and %5D for brackets, %20 for a blank, %25 for %"

var (
	// The parts of a URL between the separators: RFC 3986, without characters that only get there
	// by mistake.
	userinfo  = regexp.MustCompile(`^(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*$`)
	hostPort  = regexp.MustCompile(`^(?:(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})*|\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?\])(?::[0-9]{0,5})?$`)
	segment   = regexp.MustCompile(`^(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*$`)
	parameter = regexp.MustCompile(`^((?:[A-Za-z0-9._-]|%[0-9A-Fa-f]{2})+)=((?:[A-Za-z0-9._~!$'()*+,;:/-]|%[0-9A-Fa-f]{2})*)$`)
)

// splitURL checks that a PostgreSQL URL can be read in one way only, and returns the parameters
// after its question mark as they are written. The error shows nothing of the URL.
func splitURL(text string) (parameters []string, err error) {
	_, rest, _ := strings.Cut(text, "://")
	authority, rest := rest, ""
	if i := strings.IndexAny(authority, "/?#"); i >= 0 {
		authority, rest = authority[:i], authority[i:]
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	hosts := authority
	if user, after, ok := strings.Cut(authority, "@"); ok {
		hosts = after
		if !userinfo.MatchString(user) {
			return nil, errors.New("has a user name or a password that cannot be read: " + percentEncode)
		}
	}
	for host := range strings.SplitSeq(hosts, ",") {
		if !hostPort.MatchString(host) {
			return nil, errors.New("has a host or a port that cannot be read: " + percentEncode)
		}
	}
	if path = strings.TrimPrefix(path, "/"); !segment.MatchString(path) {
		return nil, errors.New("has a database name that cannot be read: " + percentEncode)
	}
	if !hasQuery || query == "" {
		return nil, nil
	}
	for one := range strings.SplitSeq(query, "&") {
		if !parameter.MatchString(one) {
			return nil, errors.New("has something after its question mark that is not NAME=VALUE&NAME=VALUE: " +
				percentEncode)
		}
		parameters = append(parameters, one)
	}
	return parameters, nil
}

// saidMode is the sslmode that the parameters of a URL name; the last one counts.
func saidMode(parameters []string) (mode string) {
	for _, p := range parameters {
		name, value, _ := strings.Cut(p, "=")
		if name, err := url.PathUnescape(name); err == nil {
			value, err := url.PathUnescape(value)
			switch {
			case err != nil:
			case name == "sslmode":
				mode = value
			case name == "ssl" && value == "true":
				mode = "require"
			}
		}
	}
	return mode
}

// errAddress is a fault of the settings that name the database.
type errAddress struct{ path, problem string }

func (e errAddress) Error() string { return e.path + " " + e.problem }

// postgresConfig is what the driver makes of the settings. Unless they name an sslmode, prod mode
// verifies every server.
func (c Config) postgresConfig(prod bool) (*pgx.ConnConfig, error) {
	path, text, separator, said := "db.postgres", c.Postgres.keywords(), " ", c.Postgres.SSLMode
	var parameters []string
	if c.URL != "" {
		path, text, separator = "database.url", c.URL.Reveal(), "&"
		var err error
		if parameters, err = splitURL(text); err != nil {
			return nil, errAddress{path, err.Error()}
		}
		if said = saidMode(parameters); len(parameters) == 0 {
			separator = strings.Repeat("?", 1-strings.Count(text, "?"))
		}
	}
	cc, err := pgx.ParseConfig(text)
	if err != nil {
		return nil, errAddress{path, refused(parameters, err)}
	}
	if prod && said == "" && os.Getenv("PGSSLMODE") == "" && len(unverified(cc)) > 0 {
		if cc, err = pgx.ParseConfig(text + separator + "sslmode=verify-full"); err != nil {
			return nil, errAddress{path, refused(parameters, err)}
		}
		if len(unverified(cc)) > 0 {
			return nil, errAddress{path, "does not verify every server: set sslmode"}
		}
	}
	return cc, nil
}

// keywords quotes the parts for the driver, whatever characters they have.
func (p PostgresConfig) keywords() string {
	var pairs []string
	for _, pair := range [][2]string{
		{"host", p.Host}, {"port", strconv.Itoa(cmp.Or(p.Port, 5432))}, {"user", p.User},
		{"password", p.Password.Reveal()},
		{"dbname", p.DB}, {"sslmode", p.SSLMode},
	} {
		if pair[1] != "" {
			pairs = append(pairs, pair[0]+"='"+strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(pair[1])+"'")
		}
	}
	return strings.Join(pairs, " ")
}

// hostProblem says why the host cannot be used. A path means the folder of a socket.
func (p PostgresConfig) hostProblem() string {
	if strings.HasPrefix(p.Host, "/") && !strings.Contains(p.Host, ",") {
		return ""
	}
	return config.HostProblem(p.Host)
}

// refused says why the driver does not accept a text, without showing it: it names a parameter,
// but not its value.
func refused(parameters []string, err error) string {
	if cause, ok := errors.AsType[*fs.PathError](err); ok {
		return "names a file that cannot be used: " + cause.Error()
	}
	for _, p := range parameters {
		if _, err := pgx.ParseConfig("postgres://h/d?" + p); err != nil {
			name, _, _ := strings.Cut(p, "=")
			return "has a value of " + name + " that the driver does not accept"
		}
	}
	return "is not accepted by the driver, together with the PG… variables and the service file"
}

// Unverified lists the servers that connections may go to without a verified certificate. Each is
// preceded by "plain" without TLS, otherwise by "unverified". A socket of this machine needs none.
func (c Config) Unverified(prod bool) []string {
	if !c.UsesPostgres() {
		return nil
	}
	cc, err := c.postgresConfig(prod)
	if err != nil {
		return nil // Open reports it
	}
	return unverified(cc)
}

func unverified(cc *pgx.ConnConfig) (list []string) {
	for _, to := range destinations(cc) {
		how := ""
		switch {
		case to.local():
		case to.TLSConfig == nil:
			how = "plain "
		case to.TLSConfig.InsecureSkipVerify || to.TLSConfig.ServerName != to.Host:
			how = "unverified "
		}
		if one := how + to.String(); how != "" && !slices.Contains(list, one) {
			list = append(list, one)
		}
	}
	return list
}

// destination is one server that a connection may go to, and how.
type destination struct{ pgconn.FallbackConfig }

func (d destination) local() bool {
	network, _ := pgconn.NetworkAddress(d.Host, d.Port)
	return network == "unix"
}

func (d destination) String() string {
	if d.local() {
		return d.Host
	}
	return net.JoinHostPort(d.Host, strconv.Itoa(int(d.Port)))
}

func destinations(cc *pgx.ConnConfig) []destination {
	all := []destination{{pgconn.FallbackConfig{Host: cc.Host, Port: cc.Port, TLSConfig: cc.TLSConfig}}}
	for _, f := range cc.Fallbacks {
		all = append(all, destination{*f})
	}
	return all
}

// requireTLS12 refuses older versions of TLS, for every server.
func requireTLS12(cc *pgx.ConnConfig) {
	for _, to := range destinations(cc) {
		if to.TLSConfig != nil && to.TLSConfig.MinVersion == 0 {
			to.TLSConfig.MinVersion = tls.VersionTLS12
		}
	}
}

// describePostgres names where connections go, without credentials.
func (c Config) describePostgres() string {
	cc, err := c.postgresConfig(false)
	if err != nil {
		return "PostgreSQL"
	}
	var hosts []string
	for _, to := range destinations(cc) {
		if name := to.String(); !slices.Contains(hosts, name) {
			hosts = append(hosts, name)
		}
	}
	return "PostgreSQL " + strings.Join(hosts, ",") + "/" + cmp.Or(cc.Database, cc.User)
}

// File is the file that is used when no PostgreSQL is named.
func (c Config) File(dataDir string) string {
	return cmp.Or(strings.TrimPrefix(c.URL.Reveal(), sqliteScheme), filepath.Join(dataDir, "authctl.db"))
}

const sqliteScheme = "sqlite:"

// checkSQLite refuses paths that mean something else to other programs. The path is used as it is
// written, relative to the working directory unless it begins with a slash.
func checkSQLite(path string) error {
	problem := ""
	switch {
	case path == "":
		problem = "names no file: sqlite:PATH"
	case strings.HasPrefix(path, ":"):
		problem = "names no file: a database in memory is gone with its connection, so write sqlite:PATH"
	case strings.HasPrefix(path, "//"):
		problem = "has slashes that mean different things to different programs: " +
			"write sqlite:data/x.db for a path from the working directory, sqlite:/data/x.db for one from the root"
	case strings.HasPrefix(path, "file:"):
		problem = "has two schemes: write sqlite:PATH"
	case strings.Contains(path, "?"):
		problem = "has options, which are not supported for SQLite: write the path alone"
	case config.PathProblem(path) != "":
		problem = config.PathProblem(path)
	case strings.TrimSpace(path) != path:
		problem = "has white space around its path"
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }):
		problem = "has a character that no path should have"
	case strings.HasSuffix(path, "/"), isFolder(path):
		problem = "names a folder: name a file in it"
	default:
		return nil
	}
	return errAddress{"database.url", problem}
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
