package page

import "golang.org/x/text/language"

// words are the texts of the pages in one language.
type words struct {
	tag    language.Tag
	common map[string]string
	codes  map[string]string // of faults, and of what else goes wrong
	pages  map[string]pageWords
}

type pageWords struct {
	title      string
	paragraphs []string
	act, done  string
}

// all begins with the default language.
var all = []words{{
	tag: language.English,
	common: map[string]string{
		"noscript": "This page needs JavaScript, which is turned off in this browser.",
		"ask":      "We send a code to the confirmed address of your account.",
		"who":      "Username or e-mail address",
		"send":     "Send the code",
		"sent": "If there is such an account, a mail with a code is on its way to it. Keep this page open and " +
			"enter the code here.",
		"code":     "Code from the mail",
		"password": "New password",
		"show":     "Show the password",
		"signsout": "The new password signs out every device.",
		"set":      "Set the password",
		"again":    "Ask for another code",
		"incomplete": "This link is incomplete. Open the link in the mail again, or copy all of it into the " +
			"address bar.",
		"toreset": "Set a new password",
	},
	codes: map[string]string{
		"unreachable": "The service cannot be reached. Check your connection and try again.",
		"failed":      "That did not work. Try again in a moment.",

		"new_password.too_short":         "The password is too short.",
		"new_password.too_long":          "The password is too long.",
		"new_password.too_common":        "This password is one of those that attackers try first. Choose another one.",
		"new_password.contains_username": "The password is little more than your username. Choose another one.",
		"new_password.contains_context": "The password is little more than the name of this service. Choose " +
			"another one.",
		"new_password.breached": "This password is known from a breach elsewhere. Choose another one.",
		"invalid_code":          "The code or the link is wrong, or no longer works. Ask for another one.",
		"undo.invalid_code":     "The link is wrong, or no longer works: it works once, and for 72 hours.",
		"contact_taken":         "This address belongs to another account.",
		"too_many_attempts":     "Too many attempts. Wait a while and try again.",
		"overloaded":            "The service is busy. Try again in a moment.",
		"unavailable":           "The service is not available at the moment. Try again in a moment.",
	},
	pages: map[string]pageWords{
		"verify": {
			title:      "Confirm your address",
			paragraphs: []string{"Press the button to confirm that this e-mail address belongs to your account."},
			act:        "Confirm the address",
			done:       "The address is confirmed. You can close this page.",
		},
		"reset": {
			title: "Set a new password",
			done:  "The password is set, and every device is signed out. Sign in with the new password.",
		},
		"undo": {
			title: "Undo a change",
			paragraphs: []string{
				"If somebody else has changed your account, press the button. " +
					"It signs out every device, restores the addresses that your account had before, and blocks the " +
					"password until you set a new one.",
				"If it was you, close this page.",
			},
			act: "Undo and sign out everywhere",
			done: "The change is undone and every device is signed out. Nobody can sign in with a password until " +
				"you set a new one.",
		},
	},
}, {
	tag: language.German,
	common: map[string]string{
		"noscript": "Diese Seite benötigt JavaScript, das in diesem Browser ausgeschaltet ist.",
		"ask":      "Wir senden einen Code an die bestätigte E-Mail-Adresse Ihres Kontos.",
		"who":      "Benutzername oder E-Mail-Adresse",
		"send":     "Code senden",
		"sent": "Wenn es dieses Konto gibt, haben wir eine E-Mail mit einem Code gesendet. Lassen Sie diese " +
			"Seite geöffnet und geben Sie den Code hier ein.",
		"code":     "Code aus der E-Mail",
		"password": "Neues Passwort",
		"show":     "Passwort anzeigen",
		"signsout": "Mit dem neuen Passwort werden alle Geräte abgemeldet.",
		"set":      "Passwort festlegen",
		"again":    "Neuen Code anfordern",
		"incomplete": "Dieser Link ist unvollständig. Öffnen Sie den Link in der E-Mail noch einmal, oder kopieren " +
			"Sie ihn vollständig in die Adresszeile.",
		"toreset": "Neues Passwort festlegen",
	},
	codes: map[string]string{
		"unreachable": "Der Dienst ist nicht erreichbar. Prüfen Sie Ihre Internetverbindung und versuchen Sie es " +
			"noch einmal.",
		"failed": "Das hat nicht funktioniert. Versuchen Sie es gleich noch einmal.",

		"new_password.too_short": "Das Passwort ist zu kurz.",
		"new_password.too_long":  "Das Passwort ist zu lang.",
		"new_password.too_common": "Dieses Passwort gehört zu denen, die Angreifer zuerst ausprobieren. Wählen Sie " +
			"ein anderes.",
		"new_password.contains_username": "Das Passwort besteht fast nur aus Ihrem Benutzernamen. Wählen Sie ein " +
			"anderes.",
		"new_password.contains_context": "Das Passwort besteht fast nur aus dem Namen dieses Dienstes. Wählen Sie " +
			"ein anderes.",
		"new_password.breached": "Dieses Passwort ist durch ein Datenleck bekannt geworden. Wählen Sie ein " +
			"anderes.",
		"invalid_code":      "Der Code oder der Link ist falsch oder nicht mehr gültig. Fordern Sie einen neuen an.",
		"undo.invalid_code": "Der Link ist falsch oder nicht mehr gültig: Er funktioniert einmal, und 72 Stunden lang.",
		"contact_taken":     "Diese E-Mail-Adresse gehört zu einem anderen Konto.",
		"too_many_attempts": "Zu viele Versuche. Warten Sie eine Weile und versuchen Sie es dann noch einmal.",
		"overloaded":        "Der Dienst ist ausgelastet. Versuchen Sie es gleich noch einmal.",
		"unavailable":       "Der Dienst ist zurzeit nicht verfügbar. Versuchen Sie es gleich noch einmal.",
	},
	pages: map[string]pageWords{
		"verify": {
			title:      "E-Mail-Adresse bestätigen",
			paragraphs: []string{"Bestätigen Sie, dass diese E-Mail-Adresse zu Ihrem Konto gehört."},
			act:        "Adresse bestätigen",
			done:       "Die E-Mail-Adresse ist bestätigt. Sie können diese Seite schließen.",
		},
		"reset": {
			title: "Neues Passwort festlegen",
			done: "Das neue Passwort ist festgelegt, und alle Geräte sind abgemeldet. Melden Sie sich mit dem " +
				"neuen Passwort an.",
		},
		"undo": {
			title: "Änderung rückgängig machen",
			paragraphs: []string{
				"Wenn jemand anderes Ihr Konto geändert hat, machen Sie das hier rückgängig. Dabei werden alle " +
					"Geräte abgemeldet und die bisherigen E-Mail-Adressen Ihres Kontos wiederhergestellt. " +
					"Ihr Passwort wird gesperrt, bis Sie ein neues festlegen.",
				"Wenn Sie das selbst waren, schließen Sie diese Seite.",
			},
			act: "Rückgängig machen und überall abmelden",
			done: "Die Änderung ist rückgängig gemacht, und alle Geräte sind abgemeldet. Mit Passwort kann sich " +
				"erst wieder jemand anmelden, wenn Sie ein neues festgelegt haben.",
		},
	},
}}
