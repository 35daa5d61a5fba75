package httpserver

import (
	"cmp"
	"crypto/tls"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/toppira/authctl/platform/config"
)

// Config is app.*: the address of the public listener, which browser origins may call it, and its
// limits. Zero durations and limits mean their defaults; port 0 is any free port.
type Config struct {
	Port           int      `config:"app.port" default:"8080" min:"0" max:"65535" doc:"Port of the public listener. 0 takes any free port."`
	Host           string   `config:"app.host" doc:"Address of the public listener. Empty means every interface."`
	Origins        []string `config:"app.origins" doc:"Browser origins that may call the API and use the refresh cookie, of any scheme: https://app.example.com, http://localhost:3000, capacitor://localhost. Empty allows none."`
	CORSHeaders    []string `config:"app.cors_headers" doc:"More request headers that pages of app.origins may send. The API's own headers and those of tracing, caching and request frameworks are always allowed. X-Acme-* allows every name that begins with X-Acme-, and * allows all."`
	HSTSSubdomains bool     `config:"app.hsts_subdomains" doc:"Whether Strict-Transport-Security also binds every subdomain of this host to https."`
	TrustedProxies []string `config:"app.trusted_proxies" doc:"Addresses or networks (CIDR) of the proxies in front. Their X-Forwarded-For is trusted. Empty trusts none."`

	ShutdownTimeout time.Duration `config:"app.shutdown_timeout" default:"15s" min:"100ms" max:"10m" doc:"How long a stopping process waits for requests in progress before it cuts them off."`
	DrainDelay      time.Duration `config:"app.drain_delay" default:"0s" min:"0s" max:"5m" doc:"How long a stopping process still accepts requests while /readyz already answers 503, so that load balancers notice."`

	HTTP HTTPConfig `config:"app.http"`
	TLS  TLSConfig  `config:"app.tls"`
}

// HTTPConfig bounds what one connection and one client may cost.
type HTTPConfig struct {
	IdleTimeout         time.Duration `config:"idle_timeout" default:"75s" min:"1s" max:"1h" doc:"How long a connection may be idle before its first request and between two. Keep it above the load balancer's."`
	RequestTimeout      time.Duration `config:"request_timeout" default:"15s" min:"100ms" max:"5m" doc:"Longest time to work on one request."`
	MaxConnectionsPerIP int           `config:"max_connections_per_ip" default:"1024" min:"1" max:"262144" doc:"Most connections at once from one IPv4 address or IPv6 /64. One more closes the connection that has been idle longest, or the new one if none is idle; a browser opens six. Trusted proxies are not counted."`

	// Not settings, because nobody gains by other values. Tests set them; zero means the default
	// given here.
	ReadTimeout    time.Duration // 10s for a request to arrive after its first byte, and for the handshake of TLS
	WriteTimeout   time.Duration // 10s for an answer to be sent: none is larger than a few hundred KiB
	MaxHeaderBytes int           // 16 KiB of request line and headers, the body's own limit; more is answered 431
	MaxConnections int           // 16384 at once, some 200 MiB; lowered to what the process may open files for
}

// TLSConfig makes the listener speak HTTPS itself. The files are read again when they change.
type TLSConfig struct {
	CertFile string `config:"cert_file" doc:"PEM file with the certificate chain. Empty means plain HTTP, for use with a proxy in front."`
	KeyFile  string `config:"key_file" doc:"PEM file with the certificate's private key."`
}

// Validate reports settings that cannot work.
func (c Config) Validate(report func(path, problem string)) {
	if c.Host != "" { // empty is every interface
		if problem := config.HostProblem(c.Host); problem != "" {
			report("app.host", problem)
		}
	}
	for _, text := range c.Origins {
		if _, err := parseOrigin(text); err != nil {
			report("app.origins", text+": "+err.Error())
		}
	}
	for _, name := range c.CORSHeaders {
		if !isToken(name) || strings.Contains(strings.TrimSuffix(name, "*"), "*") {
			report("app.cors_headers", strconv.Quote(name)+": is not the name of a header, such as X-Tenant, nor the "+
				"beginning of names, such as X-Acme-*")
		}
	}
	for _, proxy := range c.TrustedProxies {
		if _, err := ParseNetwork(proxy); err != nil {
			report("app.trusted_proxies", proxy+": is neither an IP address nor a network like 10.0.0.0/8")
		}
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		report("app.tls", "needs both cert_file and key_file, or neither")
	}
	for path, file := range map[string]string{"app.tls.cert_file": c.TLS.CertFile, "app.tls.key_file": c.TLS.KeyFile} {
		if file == "" {
			continue
		}
		if _, err := os.Stat(file); err != nil {
			report(path, "cannot be read")
		}
	}
}

// Doubted reports networks of proxies that are wider than any private one, 10.0.0.0/8 or fc00::/7: clients are in them.
func (c Config) Doubted(report func(path, text string)) {
	for _, proxy := range c.TrustedProxies {
		network, err := ParseNetwork(proxy)
		if err == nil && network.Bits() < 8 && network != netip.MustParsePrefix("fc00::/7") {
			report("app.trusted_proxies", "trusts "+proxy+", so that clients are taken for proxies: they write the "+
				"address that they count as into X-Forwarded-For themselves, and no limit by address holds; name the "+
				"addresses of the proxies alone")
		}
	}
}

// CheckFiles reports a certificate that the listener could not use.
func (c Config) CheckFiles(report func(path, problem string)) {
	if c.TLS.CertFile == "" {
		return
	}
	if _, err := tls.LoadX509KeyPair(c.TLS.CertFile, c.TLS.KeyFile); err != nil {
		report("app.tls.cert_file", "cannot be used with app.tls.key_file: "+err.Error())
	}
}

// ParseNetwork parses an address or a CIDR. IPv4-mapped IPv6 counts as IPv4.
func ParseNetwork(text string) (netip.Prefix, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		if addr := prefix.Addr(); addr.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
		}
		return prefix.Masked(), nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	addr = addr.Unmap().WithZone("")
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

func (c Config) withDefaults() Config {
	c = config.WithDefaults(c)
	c.HTTP.ReadTimeout = cmp.Or(c.HTTP.ReadTimeout, 10*time.Second)
	c.HTTP.WriteTimeout = cmp.Or(c.HTTP.WriteTimeout, 10*time.Second)
	c.HTTP.MaxHeaderBytes = cmp.Or(c.HTTP.MaxHeaderBytes, 16<<10)
	c.HTTP.MaxConnections = cmp.Or(c.HTTP.MaxConnections, 16384)
	return c
}
