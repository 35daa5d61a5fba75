package throttle

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
)

// id names a counter: a keyed hash of what is counted, so that a dump of a store or of memory
// shows neither names nor addresses. The zero id names nothing.
type id [16]byte

func (i id) String() string { return base64.RawURLEncoding.EncodeToString(i[:]) }

func parseID(text string) (i id, err error) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil && len(raw) != len(i) {
		err = fmt.Errorf("%d bytes", len(raw))
	}
	if err != nil {
		return id{}, fmt.Errorf("read the name of a counter: %w", err)
	}
	return id(raw), nil
}

// class keeps the ids of different kinds of counters apart.
type class byte

const (
	classDevice   class = 'd'
	classPair     class = 'p'
	classAccount  class = 'a'
	classAddress  class = 'i'
	classPrefix   class = 'n'
	classGlobal   class = 'g'
	classRegister class = 'r'
	classSession  class = 's'
	classKnown    class = 'k'
)

// keys names the counters of one attempt. Device and known are zero without a valid device
// token or a session, and prefix with IPv4.
type keys struct {
	device, pair, account, address, prefix, global id
	known                                          id   // of the owner to whom the device is known
	stranger                                       bool // whatever the counters say of the address
}

// keysOf costs no I/O and the same for every account.
func (l *Limiter) keysOf(a Attempt) keys {
	address, prefix := networks(a.Address)
	name, kind := a.Account, ""
	if a.Kind != "" {
		kind = "\x00" + a.Kind
		name += kind
	}
	k := keys{
		stranger: a.Stranger,
		account:  l.id(classAccount, netip.Prefix{}, name),
		pair:     l.id(classPair, address, name),
		address:  l.id(classAddress, address, ""),
		global:   l.id(classGlobal, netip.Prefix{}, ""),
	}
	if prefix.IsValid() {
		k.prefix = l.id(classPrefix, prefix, "")
	}
	switch d, ok := l.device(a); {
	case a.Stranger:
	case a.Session != "":
		k.device, k.known = l.id(classSession, netip.Prefix{}, a.Session+kind), l.known(fingerprint(a.Owner))
	case ok:
		k.device, k.known = l.id(classDevice, netip.Prefix{}, string(d.id[:])+kind), l.known(d.owner)
	}
	return k
}

// known names the counter of all that an owner's known devices and addresses failed.
func (l *Limiter) known(owner [16]byte) id { return l.id(classKnown, netip.Prefix{}, string(owner[:])) }

// device returns the device whose token the attempt presents, if it is one of ours, for
// this account, and of age.
func (l *Limiter) device(a Attempt) (device, bool) {
	for _, key := range l.deviceKeys {
		if d, ok := parseDevice(key, a.Account, a.DeviceToken); ok {
			age := l.now().Sub(d.issued)
			return d, age <= l.cfg.DeviceTTL && age >= -deviceSkew
		}
	}
	return device{}, false
}

func (l *Limiter) id(c class, network netip.Prefix, name string) id {
	return idUnder(l.nameKeys[0], c, network, name)
}

func idUnder(key []byte, c class, network netip.Prefix, name string) id {
	mac := hmac.New(sha256.New, key)
	var head [18]byte // class, address and length of the prefix: fixed, so nothing runs into the name
	head[0] = byte(c)
	if network.IsValid() {
		as16 := network.Addr().As16()
		copy(head[1:], as16[:])
		head[17] = byte(network.Bits())
	}
	mac.Write(head[:])
	mac.Write([]byte(name))
	return id(mac.Sum(nil)[:16])
}

// networks returns what counts as one address, IPv4 /32 or IPv6 /64, and for IPv6 the /48
// around it. An IPv4 address written as IPv6 is an IPv4 address; a zone is not part of one.
// The invalid address is an address like any other: all clients without one share it.
func networks(a netip.Addr) (address, prefix netip.Prefix) {
	a = a.Unmap().WithZone("")
	switch {
	case a.Is4():
		return netip.PrefixFrom(a, 32), netip.Prefix{}
	case a.Is6():
		address, _ = a.Prefix(64) // fails only for lengths over 128
		prefix, _ = a.Prefix(48)
	}
	return address, prefix
}
