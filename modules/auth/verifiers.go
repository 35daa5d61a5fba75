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
// database knows it: Client, Name, Instance, Version and Keys are those of its [Follower], and Tells says whether it
// names its keys; At is when it was last seen, Ago how long ago, and Lag how old what it was told was then.
type Verifier = feed.Seen

// Verifiers lists those that were seen within a time, by client, name and instance.
func Verifiers(ctx context.Context, db database.IDB, within time.Duration) ([]Verifier, error) {
	return feed.Verifiers(ctx, db, within)
}

// verifierSeen is how lately a verifier was seen that a new key waits for.
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
	type named struct{ client, name string }
	clients, names, ofClient := map[string]map[string]bool{}, map[named]int{}, map[string]int{}
	for _, v := range list {
		if clients[v.Name] == nil {
			clients[v.Name] = map[string]bool{}
		}
		clients[v.Name][v.Client] = true
		names[named{v.Client, v.Name}]++
		ofClient[v.Client]++
	}
	tell, without := 0, []string(nil)
	for _, v := range list {
		if !v.Tells {
			continue
		}
		if tell++; !slices.Contains(v.Keys, kid) {
			name := v.Name
			if names[named{v.Client, v.Name}] > 1 {
				name += "/" + v.Instance
			}
			if len(clients[v.Name]) > 1 {
				name += " of " + v.Client
			}
			without = append(without, fmt.Sprintf("%s (seen %s ago)", name, v.Ago.Round(time.Second)))
		}
	}
	if len(without) > 0 {
		const most = 10 // names
		text := strings.Join(without[:min(most, len(without))], ", ")
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
