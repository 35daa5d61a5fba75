package password

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
	"sync/atomic"
)

// population knows how the accounts' passwords are hashed, so that a name that does not
// exist can behave like one that does.
//
// Were every missing name answered after the work of one fixed hash, accounts whose hash
// costs something else (imported ones, those from before the cost was raised) would show
// by their time. So each missing name is given a kind of hash, in the proportions in which
// the accounts have them, and always the same one: the choice depends on the name and a key
// only. A kind that becomes rarer loses names and takes none, and the other way round (it
// is rendezvous hashing with weights), as accounts do when their hashes are upgraded.
//
// What accounts have is learned from a sample of the database and never from sign-ins:
// someone who tries one account a thousand times must not change the picture.
type population struct {
	key []byte
	mix atomic.Pointer[[]kind]
}

// kind stands for all hashes that cost the same.
type kind struct {
	name    string
	share   float64
	example hash // no password matches it
}

// SampleSize is how many hashes are enough to learn from. A share that is estimated from them
// has a standard error of half a percent at the most. An attacker who times 2,000 attempts at names
// that exist and 2,000 at names that do not sees their shares with an error of 1.6 percent,
// which hides the error of the sample. A thousand hashes would be off by 1.6 percent
// themselves, and that would show.
const SampleSize = 10_000

// maxKinds bounds what is kept of a sample. The rarest are left out.
const maxKinds = 64

// learn replaces what is known. Hashes that cannot be read are left out; when there are
// none, the mix is the one given hash.
func (p *population) learn(sample []string, fallback hash) {
	counted := make(map[string]*kind)
	total := 0
	for _, encoded := range sample {
		h, err := parse(encoded)
		if err != nil {
			continue
		}
		name := h.kind()
		if counted[name] == nil {
			counted[name] = &kind{name: name, example: h.likeness()}
		}
		counted[name].share++
		total++
	}
	if total == 0 {
		counted[""] = &kind{share: 1, example: fallback}
		total = 1
	}
	mix := make([]kind, 0, len(counted))
	for _, k := range counted {
		k.share /= float64(total)
		mix = append(mix, *k)
	}
	slices.SortFunc(mix, func(a, b kind) int {
		return cmp.Or(cmp.Compare(b.share, a.share), cmp.Compare(a.name, b.name))
	})
	mix = slices.Clip(mix[:min(len(mix), maxKinds)])
	p.mix.Store(&mix)
}

// pick returns the hash that the name would have.
func (p *population) pick(name string) hash {
	var best *kind
	lowest := math.Inf(1)
	mix := *p.mix.Load()
	for i := range mix {
		mac := hmac.New(sha256.New, p.key)
		mac.Write([]byte(mix[i].name))
		mac.Write([]byte{0})
		mac.Write([]byte(name))
		// In (0, 1]: 53 bits are what a float64 holds exactly.
		u := float64(binary.BigEndian.Uint64(mac.Sum(nil))>>11+1) / (1 << 53)
		if score := -math.Log(u) / mix[i].share; best == nil || score < lowest {
			best, lowest = &mix[i], score
		}
	}
	return best.example
}
