package config

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Remark is something about the settings that is not a fault but probably a mistake.
type Remark struct {
	Name   string `json:"name"`   // of the variable, or the path of the setting
	Source string `json:"source"` // "environment", ".env", or where the setting's value comes from
	Text   string `json:"text"`   // continues the name
	// Likely tells what is probably a mistake in our settings from a variable that may belong to another
	// program.
	Likely bool `json:"likely"`
}

func (r Remark) String() string { return r.Name + " " + r.Text + " (" + r.Source + ")" }

// overrider is a struct that reports which of its settings another one overrides, with paths as for
// Validate. Only settings that were set become remarks.
type overrider interface {
	Overridden(report func(path, by string))
}

// doubter is a struct that reports settings that have an effect, but probably not the one that was meant. text
// continues the path.
type doubter interface {
	Doubted(report func(path, text string))
}

// remarkStrangers finds variables that begin like a setting and are not one. Without it, a typing
// error would silently mean the default, since nothing else notices an unknown variable. It is
// not a fault, because other programs have variables too.
func (l *loader) remarkStrangers(source string, vars map[string]string) {
	removed := map[string]string{}
	for path := range l.removed {
		removed[envName(path)] = path
	}
	known := map[string]bool{}
	first := map[string]bool{} // APP, AUTH, …
	var names []string
	for _, k := range l.schema.keys {
		known[k.Env], known[k.Env+"_FILE"] = true, true
		names = append(names, k.Env)
		if k.Secret {
			names = append(names, k.Env+"_FILE")
		}
		word, _, _ := strings.Cut(k.Env, "_")
		first[word] = true
	}
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		upper := strings.ToUpper(name)
		word, _, _ := strings.Cut(upper, "_")
		if known[name] || !first[word] || word == upper || vars[name] == "" || foreign(upper, vars[name]) {
			continue
		}
		r := Remark{Name: oneLine(name), Source: source, Text: "is not a setting of authctl"}
		if path, gone := removed[name]; gone {
			r.Text, r.Likely = l.unknown(path), true
		} else if near := nearestNames(upper, names); len(near) > 0 {
			r.Text, r.Likely = r.Text+meant(strings.Join(near, " or ")), true
		}
		l.remarks = append(l.remarks, r)
	}
}

// What container engines and Kubernetes set for other containers and services, and what is
// clearly meant for another program.
var (
	linkName    = regexp.MustCompile(`_SERVICE_(HOST|PORT(_.+)?)$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$`)
	linkValue   = regexp.MustCompile(`^(tcp|udp|sctp)://`)
	foreignName = regexp.MustCompile(`^APP_(ENV|NAME|VERSION|HOME|USER|DEBUG|KEY|URL|ROOT|DIR)$|_(OPTS|VERSION|HOME)$` +
		`|^KAFKA_(LOG4J|JMX|GC|JVM|HEAP)_|^DB_(MIGRATE|SERVE|RELAY)_PASSWORD$`) // the last: deploy/env.sh
)

func foreign(name, value string) bool {
	return linkName.MatchString(name) || linkValue.MatchString(value) || foreignName.MatchString(name)
}

// nearestNames returns the names that may have been meant by this one: a typing error away, or
// with words left out, as in DB_HOST for DB_POSTGRES_HOST. More than two are no help, so then it
// returns none.
func nearestNames(name string, names []string) []string {
	if len(name) > 200 {
		return nil
	}
	var near []string
	least := 1 + min(len(name)/6, 2) // letters that may be wrong
	for _, candidate := range names {
		if d := distance(name, candidate); d < least {
			near, least = []string{candidate}, d
		} else if d == least {
			near = append(near, candidate)
		}
	}
	if len(near) == 0 {
		words, isFile := strings.Split(name, "_"), strings.HasSuffix(name, "_FILE")
		for _, candidate := range names {
			if (isFile || !strings.HasSuffix(candidate, "_FILE")) && leftOut(words, strings.Split(candidate, "_")) {
				near = append(near, candidate)
			}
		}
	}
	if len(near) > 2 {
		return nil
	}
	return near
}

// sameWord maps words that people use to the ones that the settings use.
var sameWord = map[string]string{
	"DATABASE": "DB", "NAME": "DB", "CACHE": "REDIS", "PASS": "PASSWORD", "USERNAME": "USER",
	"HOSTNAME": "HOST", "ADDR": "HOST", "FILE": "PATH", "SSL": "TLS",
}

// leftOut reports whether words are those of a name, in order, with some missing.
func leftOut(words, name []string) bool {
	canonical := func(word string) string { return cmp.Or(sameWord[word], word) }
	i := 0
	for _, word := range name {
		if i < len(words) && canonical(words[i]) == canonical(word) {
			i++
		}
	}
	return i == len(words) && len(words) > 1
}
