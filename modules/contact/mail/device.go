package mail

import (
	"regexp"
	"strings"
)

// deviceName is a short name for a device from its User-Agent. The client chooses that text, so only
// names of our own and one plain word of it reach the mail: a mail must not
// carry an attacker's sentence or address to the owner of the account.
func deviceName(agent string) string {
	if agent == "" {
		return ""
	}
	first := func(names [][2]string) string {
		for _, n := range names {
			if strings.Contains(agent, n[0]) {
				return n[1]
			}
		}
		return ""
	}
	browser := first([][2]string{
		{"Edg", "Edge"}, {"OPR/", "Opera"}, {"SamsungBrowser", "Samsung Internet"}, {"Firefox", "Firefox"},
		{"FxiOS", "Firefox"}, {"CriOS", "Chrome"}, {"Chrome", "Chrome"}, {"Safari", "Safari"},
	})
	system := first([][2]string{
		{"iPhone", "iPhone"}, {"iPad", "iPad"}, {"Android", "Android"}, {"Windows", "Windows"}, {"Mac OS X", "macOS"},
		{"CrOS", "ChromeOS"}, {"Linux", "Linux"},
	})
	switch {
	case browser != "" && system != "":
		return browser + ", " + system
	case browser != "":
		return browser
	}
	return plainWord.FindString(agent)
}

var plainWord = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{1,19}`)
