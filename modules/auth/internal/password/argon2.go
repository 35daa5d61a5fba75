package password

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/argon2"
)

const argon2Digest = 32 // bytes of digests made here

// argon2Order is the order in which the specification writes the parameters.
var argon2Order = []string{"m", "t", "p"}

// argon2Hash is the scheme. The prefix is what stands before the parameters, which are
// written in the given order; memory is in KiB.
func argon2Hash(scheme Scheme, prefix string, memory, time, threads int, order []string) hash {
	key := argon2.IDKey
	if scheme == Argon2i {
		key = argon2.Key
	}
	return hash{
		scheme: scheme,
		// x/crypto computes each slice on a goroutine of its own, whoever calls it. Waiting
		// for every one of them on a worker's thread, which is locked and has to wait for its
		// turn, would cost a quarter of the CPU; this waits once.
		derive: func(password, salt []byte, size int) []byte {
			derived := make(chan []byte)
			go func() {
				derived <- key(password, salt, uint32(time), uint32(memory), uint8(threads), uint32(size))
			}()
			return <-derived
		},
		encode: func(salt, digest []byte) string {
			enc, values := base64.RawStdEncoding, map[string]int{"m": memory, "t": time, "p": threads}
			params := make([]string, len(order))
			for i, name := range order {
				params[i] = fmt.Sprintf("%s=%d", name, values[name])
			}
			return prefix + strings.Join(params, ",") + "$" + enc.EncodeToString(salt) + "$" +
				enc.EncodeToString(digest)
		},
	}
}

// names are those of "a=1,b=2", in their order.
func names(text string) []string {
	fields := strings.Split(text, ",")
	for i, field := range fields {
		fields[i], _, _ = strings.Cut(field, "=")
	}
	return fields
}

const argon2idPrefix = "$argon2id$v=19$"

func parseArgon2(scheme Scheme) parser {
	return func(prefix, rest string) (hash, error) {
		parts, err := split(rest, 3)
		if err != nil {
			return hash{}, err
		}
		// Not everybody keeps to the order: node-argon2 writes m, p, t.
		order := names(parts[0])
		if !slices.Equal(slices.Sorted(slices.Values(order)), []string{"m", "p", "t"}) {
			return hash{}, errors.New("argon2 is accepted with the parameters m, t and p only")
		}
		n, err := numbers(parts[0], order...)
		if err != nil {
			return hash{}, err
		}
		memory, time, threads := n[slices.Index(order, "m")], n[slices.Index(order, "t")], n[slices.Index(order, "p")]
		switch {
		case time < 1, threads < 1, memory < 8*threads:
			return hash{}, errors.New("argon2 parameters are lower than its specification allows")
		case threads > maxArgon2Threads, memory > maxArgon2Memory, memory*time > maxArgon2Work:
			return hash{}, fmt.Errorf("argon2 parameters cost more than is accepted: %d lanes, %d MiB, %d MiB "+
				"times passes", maxArgon2Threads, maxArgon2Memory>>10, maxArgon2Work>>10)
		}
		h, err := argon2Hash(scheme, prefix, memory, time, threads, order).decodePair(base64.RawStdEncoding, parts[1],
			parts[2])
		if err != nil {
			return hash{}, err
		}
		if len(h.salt) < 8 {
			return hash{}, errors.New("argon2 salt is shorter than 8 bytes")
		}
		if prefix == argon2idPrefix {
			size := len(h.digest)
			h.current = func(c Config) bool {
				return c.Algorithm == string(Argon2id) && memory >= c.Argon2Memory<<10 && size >= argon2Digest
			}
		}
		return h, nil
	}
}
