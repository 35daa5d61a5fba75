package contact

// Config is contact.*, except the settings of mails and pages.
type Config struct {
	FromUsername bool   `config:"contact.from_username" default:"true" doc:"A username that is an e-mail address becomes the contact of a new account, which its owner then verifies."`
	Required     string `config:"contact.required" default:"off" oneof:"off,register,verified" doc:"Whether an account needs a contact. off: it does not. register: registration asks for one. verified: sign-in also waits until one is verified. Accounts that operators create or import are exempt from register, not from verified."`
	Notify       string `config:"contact.notify" default:"changes" oneof:"changes,new_device" doc:"Which notices the verified contacts of an account get. changes: that the password or a contact has changed, with a link that undoes it. new_device: also that somebody signed in on an unknown device."`
}

// Values of contact.required and contact.notify.
const (
	requiredRegister = "register"
	requiredVerified = "verified"
	notifyNewDevice  = "new_device"
)
