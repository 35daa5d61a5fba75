package webhook

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestWhichAddressesRequestsGoTo(t *testing.T) {
	t.Parallel()
	const public, own, never = "public", "own", "never" // own: only with allow_private
	for _, test := range []struct{ addr, want string }{
		{"8.8.8.8", public}, {"1.1.1.1", public}, {"100.63.255.255", public}, {"100.128.0.0", public},
		{"172.15.255.255", public}, {"172.32.0.0", public}, {"11.0.0.0", public}, {"223.255.255.255", public},
		{"2606:4700:4700::1111", public}, {"2a00:1450::1", public}, {"2001:4860:4860::8888", public},
		{"127.0.0.1", own}, {"127.255.255.254", own}, {"10.0.0.1", own}, {"10.255.255.255", own}, {"172.16.0.1", own},
		{"172.31.255.255", own}, {"192.168.0.1", own}, {"100.64.0.1", own}, {"100.127.255.255", own},
		{"::1", own}, {"fc00::1", own}, {"fd12:3456::1", own},
		{"0.0.0.0", never}, {"0.1.2.3", never}, {"169.254.0.1", never}, {"169.254.169.254", never}, {"169.254.170.2",
			never},
		{"100.100.100.200", never}, {"168.63.129.16", never}, {"192.0.0.192", never}, {"192.0.2.1", never},
		{"192.88.99.1", never}, {"198.18.0.1", never}, {"198.51.100.1", never}, {"203.0.113.1", never},
		{"224.0.0.1", never}, {"239.255.255.255", never}, {"240.0.0.1", never}, {"255.255.255.255", never},
		{"::", never}, {"fe80::1", never}, {"fe80::1%eth0", never}, {"fec0::1", never}, {"ff02::1", never},
		{"fd00:ec2::254", never}, {"fd20:ce::254", never}, {"fd20:ce::253", own}, {"fd00:c1::a9fe:a9fe", never},
		{"fd00:42::42", never}, {"fd00:a9fe:a9fe::1", never}, {"fd00:100::100:200", never},
		{"2001:db8::1", never}, {"3fff::1", never}, {"100::1", never}, {"4000::1", never},
		{"5f00::1", never},
		// IPv4 inside IPv6: mapped, compatible, translated, NAT64, 6to4, Teredo.
		{"::ffff:8.8.8.8", public}, {"::ffff:127.0.0.1", own}, {"::ffff:10.0.0.1", own},
		{"::ffff:169.254.169.254", never}, {"::127.0.0.1", never}, {"::10.0.0.1", never}, {"::ffff:0:10.0.0.1", never},
		{"64:ff9b::8.8.8.8", public}, {"64:ff9b::10.0.0.1", own}, {"64:ff9b::127.0.0.1", own},
		{"64:ff9b::169.254.169.254", never}, {"64:ff9b:1::10.0.0.1", never}, {"64:ff9b:1::8.8.8.8", never},
		{"2002:a00:1::", never}, {"2002:7f00:1::", never}, {"2002:808:808::", never},
		{"2001::f5ff:fffe", never}, {"2001:0:4136:e378:8000:63bf:3fff:fdd2", never},
	} {
		addr := netip.MustParseAddr(test.addr)
		strict, loose := checkAddress(addr, false), checkAddress(addr, true)
		got := public
		if strict != nil {
			got = never
			if loose == nil {
				got = own
			}
			refused, is := errors.AsType[*AddressError](strict)
			if !is || refused.Remedy != (got == own) || !strings.HasPrefix(refused.Error(), addr.String()+" is ") {
				t.Errorf("%s: the error is %v", test.addr, strict)
			}
		} else if loose != nil {
			t.Errorf("%s: allowed, but not with allow_private: %v", test.addr, loose)
		}
		if got != test.want {
			t.Errorf("%s: %s, want %s", test.addr, got, test.want)
		}
	}
	if checkAddress(netip.Addr{}, true) == nil {
		t.Error("no address at all is allowed")
	}
}

// FuzzAddress: no spelling of an address is allowed where the address itself is not.
func FuzzAddress(f *testing.F) {
	for _, text := range []string{"10.0.0.1", "169.254.169.254", "127.0.0.1", "8.8.8.8"} {
		b := netip.MustParseAddr(text).As4()
		f.Add(b[:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != 4 {
			return
		}
		plain := netip.AddrFrom4([4]byte(b))
		for _, private := range []bool{false, true} {
			if checkAddress(plain, private) == nil {
				continue
			}
			for _, form := range [][]byte{
				append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, b...), append(make([]byte, 12), b...),
				append([]byte{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0}, b...),
				append(append([]byte{0x20, 0x02}, b...), make([]byte, 10)...),
				append([]byte{0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, b[0]^0xff, b[1]^0xff, b[2]^0xff, b[3]^0xff),
			} {
				form := netip.AddrFrom16([16]byte(form))
				if form == netip.IPv6Loopback() && private {
					continue // ::0.0.0.1 is the loopback address of IPv6
				}
				if checkAddress(form, private) == nil {
					t.Errorf("%s is allowed and %s is not, allow_private %v", form, plain, private)
				}
			}
		}
	})
}

func TestWhichURLsAreTaken(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		url           string
		prod, private bool
		problem       string // part of the error; empty if accepted
	}{
		{url: "https://example.com/webhooks", prod: true},
		{url: "https://example.com", prod: true},
		{url: "https://example.com:8443/a/b?c=d&e=%20", prod: true},
		{url: "https://EXAMPLE.com./", prod: true},
		{url: "https://xn--bcher-kva.example/", prod: true},
		{url: "https://8.8.8.8/", prod: true},
		{url: "https://[2606:4700:4700::1111]:443/", prod: true},
		{url: "http://example.com/"},
		{url: "http://127.0.0.1:8080/hook", private: true},
		{url: "http://localhost:8080/hook"}, // refused once its name is resolved
		{url: "https://my_host.internal/"},
		{url: "http://example.com/", prod: true, problem: "https:// in prod mode"},
		{url: "http://127.0.0.1/", problem: "loopback address"},
		{url: "http://[::1]/", problem: "loopback address"},
		{url: "http://[::ffff:10.0.0.1]/", problem: "private address"},
		{url: "http://[64:ff9b::a00:1]/", problem: "private address"},
		{url: "http://169.254.169.254/latest/meta-data/", private: true, problem: "link-local"},
		{url: "https://user:secret-word@example.com/", problem: "names a user"},
		{url: "https://user@example.com/", problem: "names a user"},
		{url: "https://example.com@evil.example/", problem: "names a user"},
		{url: "https://@example.com/", problem: "names a user"},
		{url: "https://example.com/#part", problem: "fragment"},
		{url: "https://example.com/#", problem: "fragment"},
		{url: "ftp://example.com/", problem: "https://"},
		{url: "file:///etc/passwd", problem: "https://"},
		{url: "gopher://example.com/", problem: "https://"},
		{url: "unix:///run/x.sock", problem: "https://"},
		{url: "https:example.com", problem: "cannot be understood"},
		{url: "example.com/webhooks", problem: "cannot be understood"},
		{url: "//example.com/", problem: "cannot be understood"},
		{url: "", problem: "cannot be understood"},
		{url: "https://", problem: "no host"},
		{url: "https:///path", problem: "no host"},
		{url: "https://:443/", problem: "no host"},
		{url: "https://a..b/", problem: "no host"},
		{url: "https://.example.com/", problem: "no host"},
		{url: "https://-example.com/", problem: "no host"},
		{url: "https://example.com:/", problem: "port"},
		{url: "https://example.com:0/", problem: "port"},
		{url: "https://example.com:65536/", problem: "port"},
		{url: "https://example.com:http/", problem: "cannot be understood"},
		{url: "https://2130706433/", problem: "neither a name nor an address"},
		{url: "https://0x7f000001/", problem: "neither a name nor an address"},
		{url: "https://127.1/", problem: "neither a name nor an address"},
		{url: "https://0177.0.0.1/", problem: "neither a name nor an address"},
		{url: "https://example.0x7f/", problem: "neither a name nor an address"},
		{url: "https://[fe80::1%25eth0]/", problem: "no IPv6 address"},
		{url: "https://[127.0.0.1]/", problem: "cannot be understood"},
		{url: "https://[v1.x]/", problem: "cannot be understood"},
		{url: "https://example.com/\r\nX: y", problem: "escaped"},
		{url: "https://exa mple.com/", problem: "escaped"},
		{url: "https://bücher.example/", problem: "escaped"},
		{url: "https://example.com\\@evil.example/", problem: "escaped"},
		{url: "https://%31%32%37.0.0.1/", problem: "cannot be understood"},
		{url: "https://example.com/" + strings.Repeat("x", maxURL), problem: "at most"},
	} {
		err := CheckURL(test.url, test.prod, test.private)
		switch {
		case test.problem == "" && err != nil:
			t.Errorf("%s: refused: %v", test.url, err)
		case test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem)):
			t.Errorf("%s: %v; want an error with %q", test.url, err, test.problem)
		case err != nil && strings.Contains(err.Error(), "secret-word"):
			t.Errorf("%s: the error repeats what may be a password: %v", test.url, err)
		}
	}
}
