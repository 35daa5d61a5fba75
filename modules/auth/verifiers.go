package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/auth/internal/feed"
	"github.com/toppira/authctl/platform/database"
)

// Verifier is a service that verifies access tokens itself and follows what has ended, as the
// database knows it: Client, Name, Instance, Version and Keys are those of its [Follower]; At is when it was last
// seen, Ago how long ago, and Lag how old what it was told was then.
type Verifier = feed.Seen

// Verifiers lists those that were seen within a time, by client, name and instance.
func Verifiers(ctx context.Context, db database.IDB, within time.Duration) ([]Verifier, error) {
	return feed.Verifiers(ctx, db, within)
}

// verifierSeen is how recently a verifier must have been seen for a new key to wait for it.
const verifierSeen = time.Minute

// PromoteKey is Promote of [Keys] that also waits for the verifiers: it returns [ErrKeyTooNew] while
// one that was seen in the last minute says that it does not hold the key, unless force.
func PromoteKey(ctx context.Context, db *database.DB, keys *Keys, kid string, force bool) (KeyInfo, error) {
	if !force {
		list, err := keys.List(ctx)
		if err != nil {
			return KeyInfo{}, err
		}
		if slices.ContainsFunc(list, func(k KeyInfo) bool { return k.KID == kid && k.Status == KeyStaged }) {
			if err := heldByAll(ctx, db, kid); err != nil {
				return KeyInfo{}, err
			}
		}
	}
	return keys.Promote(ctx, kid, force)
}

// heldByAll returns [ErrKeyTooNew] while a verifier does not hold a key, or may not since its client has
// more verifiers than are remembered. Of those that do not say what they hold nothing is known.
func heldByAll(ctx context.Context, db database.IDB, kid string) error {
	list, err := Verifiers(ctx, db, verifierSeen)
	if err != nil {
		return err
	}
	tell, ofClient := 0, map[string]int{}
	var without []Verifier
	for _, v := range list {
		ofClient[v.Client]++
		if v.Keys == nil {
			continue
		}
		if tell++; !slices.Contains(v.Keys, kid) {
			without = append(without, v)
		}
	}
	if len(without) > 0 {
		const most = 10 // names
		var names []string
		for _, v := range without[:min(most, len(without))] {
			names = append(names, fmt.Sprintf("%s (seen %s ago)", nameAmong(list, v), v.Ago.Round(time.Second)))
		}
		text := strings.Join(names, ", ")
		if len(without) > most {
			text += fmt.Sprintf(" and %d more", len(without)-most)
		}
		const detail = "%d of %d verifiers do not hold it yet: %s. With --force they refuse its tokens until they " +
			"fetch it."
		return ErrKeyTooNew.Detail(fmt.Sprintf(detail, len(without), tell, text))
	}
	for client, n := range ofClient {
		if n >= feed.MostOfClient {
			const detail = "Only %d verifiers of the client %s are remembered, and there are as many: others may not " +
				"hold it yet. With --force they refuse its tokens until they fetch it."
			return ErrKeyTooNew.Detail(fmt.Sprintf(detail, n, client))
		}
	}
	return nil
}

// nameAmong is the name of a verifier, with its instance and its client where others of the list have the same name.
func nameAmong(list []Verifier, v Verifier) string {
	name := v.Name
	if slices.ContainsFunc(list, func(w Verifier) bool {
		return w.Name == v.Name && w.Client == v.Client && w.Instance != v.Instance
	}) {
		name += "/" + v.Instance
	}
	if slices.ContainsFunc(list, func(w Verifier) bool { return w.Name == v.Name && w.Client != v.Client }) {
		name += " of " + v.Client
	}
	return name
}
