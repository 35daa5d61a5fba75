package throttle

import (
	"net/netip"
	"testing"
)

func TestWhatCountsAsOneAddress(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]string{
		"192.0.2.7":               {"192.0.2.7/32", "invalid Prefix"},
		"::ffff:192.0.2.7":        {"192.0.2.7/32", "invalid Prefix"},
		"2001:db8:1:2:3:4:5:6":    {"2001:db8:1:2::/64", "2001:db8:1::/48"},
		"fe80::1:2:3:4%eth0":      {"fe80::/64", "fe80::/48"},
		"::ffff:192.0.2.7%tunnel": {"192.0.2.7/32", "invalid Prefix"},
	} {
		address, prefix := networks(netip.MustParseAddr(text))
		if address.String() != want[0] || prefix.String() != want[1] {
			t.Errorf("%s: %v and %v, want %v", text, address, prefix, want)
		}
	}
	if address, prefix := networks(netip.Addr{}); address.IsValid() || prefix.IsValid() {
		t.Errorf("no address: %v and %v", address, prefix)
	}
}

func TestCountersOfDifferentThingsNeverMeet(t *testing.T) {
	t.Parallel()
	l, err := New(defaults(t), Options{Secret: "one"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := New(defaults(t), Options{Secret: "another"})
	if err != nil {
		t.Fatal(err)
	}
	a := Attempt{Account: "alice", Address: v6(1, 1)}
	a.DeviceToken = mintDevice(l.deviceKeys[0], "alice", ownerOf("alice"), l.now())
	k := l.keysOf(a)
	seen := map[id]bool{}
	for _, i := range []id{k.account, k.pair, k.device, k.address, k.prefix, k.global,
		l.keysOf(Attempt{Account: "alice", Address: v6(2, 1)}).pair,
		l.keysOf(Attempt{Account: "bob", Address: v6(1, 1)}).pair,
		l.keysOf(Attempt{Account: "bob"}).account,
		other.keysOf(a).account,
	} {
		if seen[i] || i == (id{}) {
			t.Errorf("id %v is used twice, or empty", i)
		}
		seen[i] = true
	}
}
