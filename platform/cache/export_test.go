package cache

import "slices"

// Commands lists what the Redis user of the service must be able to run, except what every
// connection uses (HELLO, AUTH, PING, SELECT). CLIENT SETNAME and INFO are useful but not needed.
func Commands() []string {
	names := make([]string, 0, len(attempts))
	for _, a := range attempts {
		names = append(names, a.name)
	}
	slices.Sort(names)
	return names
}

var Outdated = outdated
