package webhook

import (
	"fmt"
	"net/netip"
	"slices"
)

// AddressError is the refusal to connect to an address.
type AddressError struct {
	Addr   netip.Addr
	Kind   string // what kind of address it is, such as "a private address"
	Remedy bool   // whether outbox.webhook.allow_private lets requests go there
}

func (e *AddressError) Error() string {
	text := fmt.Sprintf("%s is %s, and no request goes there", e.Addr, e.Kind)
	if e.Remedy {
		text += "; if the receiver is in your own network, set OUTBOX_WEBHOOK_ALLOW_PRIVATE=true"
	}
	return text
}

// block is a range of addresses that are not on the public internet.
type block struct {
	prefix netip.Prefix
	kind   string
	own    bool // may be the operator's own network
}

func prefixes(kind string, own bool, list ...string) []block {
	var blocks []block
	for _, text := range list {
		blocks = append(blocks, block{netip.MustParsePrefix(text), kind, own})
	}
	return blocks
}

// blocks4 has the addresses that are not globally reachable by the IANA registry of special-purpose
// addresses, and those where clouds hand out credentials of the machine.
var blocks4 = slices.Concat(
	prefixes("the address of a metadata service", false, "168.63.129.16/32", "100.100.100.200/32"),
	prefixes("an unspecified address", false, "0.0.0.0/8"),
	prefixes("a loopback address", true, "127.0.0.0/8"),
	prefixes("a private address", true, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
	prefixes("a link-local address", false, "169.254.0.0/16"),
	prefixes("a reserved address", false, "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
	prefixes("a multicast address", false, "224.0.0.0/4"),
)

// blocks6 gives refused addresses a name for the message; [checkAddress] refuses everything
// outside public6 anyway.
var blocks6 = slices.Concat(
	prefixes("an unspecified address", false, "::/128"),
	prefixes("a loopback address", true, "::1/128"),
	// AWS, Google, Oracle, Scaleway, Akamai, Alibaba.
	prefixes("the address of a metadata service", false, "fd00:ec2::/32", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128",
		"fd00:42::42/128", "fd00:a9fe:a9fe::1/128", "fd00:100::100:200/128"),
	prefixes("a private address", true, "fc00::/7"),
	prefixes("a link-local address", false, "fe80::/10"),
	prefixes("a multicast address", false, "ff00::/8"),
	// Teredo is in 2001::/23.
	prefixes("a reserved address", false, "2001::/23", "2001:db8::/32", "3fff::/20"),
	prefixes("a 6to4 address", false, "2002::/16"),
)

var (
	public6 = netip.MustParsePrefix("2000::/3")
	nat64   = netip.MustParsePrefix("64:ff9b::/96")
)

// checkAddress says whether a request may go to an address. An IPv4 address inside an IPv6 one
// counts as itself if a translator would extract it.
func checkAddress(addr netip.Addr, allowPrivate bool) error {
	ip := addr.Unmap().WithZone("")
	blocks := blocks4
	if ip.Is6() {
		if nat64.Contains(ip) {
			b := ip.As16()
			ip, blocks = netip.AddrFrom4([4]byte(b[12:])), blocks4
		} else {
			blocks = blocks6
		}
	}
	for _, b := range blocks {
		if !b.prefix.Contains(ip) {
			continue
		}
		if b.own && allowPrivate {
			return nil
		}
		return &AddressError{Addr: addr, Kind: b.kind, Remedy: b.own}
	}
	if ip.Is6() && !public6.Contains(ip) || !ip.IsValid() {
		return &AddressError{Addr: addr, Kind: "a reserved address"}
	}
	return nil
}
