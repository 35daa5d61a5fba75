// Package userfile reads the accounts in what another system, or ours, has exported: NDJSON, JSON
// or CSV, record by record and in bounded memory. It also writes our own form.
package userfile

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/platform/fault"
)

// Record is an account as its source has it. Nothing of it has been checked yet.
type Record struct {
	Line     int64          // where it begins, from 1
	Number   int64          // from 1, the heading not counted
	Refused  *fault.Refusal // not nil: it cannot be read, and the other fields say nothing
	ID       uuid.UUID      // not zero: to be kept
	SourceID string         // what the source calls it, where that is not kept
	// Numbered says that SourceID is unique only within one database: the same one proves nothing, a
	// different one does.
	Numbered bool
	Username string
	Hash     string // in a form that package password reads; empty: there is none
	Disabled bool
	Created  time.Time
	Changed  time.Time // the password
	Banned   time.Time // disabled until then
	// Address is that of a mailbox or a telephone. Confirmed says whether its owner has proved to
	// have it; nil: the source does not say.
	Address   string
	Confirmed *bool
	Addresses []Address // all of them, where the source has more than one; Address is then one of them
	// Lost are the protections at the source that are not imported.
	Lost []string
	// Unread are the members that our own form does not have. They may be what protects the account.
	Unread []string
	// Other says that it is no account, but may have a protection in Lost.
	Other bool
}

// Kinds of protections that are not imported. Keycloak's required actions and kinds of credentials
// have their own names.
const (
	lostOTP          = "otp"
	lostSecondFactor = "second_factor"
	lostPhone        = "phone_number" // beside the name: many systems let people sign in with either
	LostUnconfirmed  = "unconfirmed_address"
	lostAction       = "required_action:" // and its name
)

// source reads the records of one system.
type source struct {
	name      string
	json      func(object []byte) (Record, error) // nil: it writes no JSON
	csv       func(row) (Record, error)           // nil: it writes no CSV
	columns   []string                            // that a CSV must have; a|b is one of them
	headless  bool                                // its CSV has no heading
	document  bool                                // its JSON is a document rather than lines
	lists     []string                            // see document
	container string
}

// Sources are the systems whose exports are read, the first one our own.
func Sources() []string {
	return []string{"native", "keycloak", "firebase", "django", "auth0", "supabase", "zitadel"}
}

func newSource(name string, hash *FirebaseHash) (source, error) {
	s := source{name: name, lists: []string{"users"}}
	switch name {
	case "native":
		s.json, s.csv, s.columns = nativeObject, nativeRow, []string{"username", "password_hash"}
	case "keycloak":
		s.json, s.document, s.container = keycloakObject, true, "realm"
	case "firebase":
		if hash == nil {
			return source{}, errors.New("the hashes of Firebase need the hash parameters of the project")
		}
		s.json, s.csv, s.headless, s.document = hash.object, hash.row, true, true
	case "django":
		s.json, s.csv, s.columns, s.document = djangoObject, djangoRow, []string{"username|email", "password"}, true
	case "auth0":
		s.json = auth0Object
	case "supabase":
		s.json, s.csv, s.columns = supabaseObject, supabaseRow, []string{"email|phone", "encrypted_password"}
	case "zitadel":
		s.json, s.document = zitadelObject, true
		s.lists, s.container = []string{"data_orgs", "dataOrgs", "orgs", "humanUsers"}, "orgId"
	default:
		return source{}, fmt.Errorf("there is no source %q", name)
	}
	return s, nil
}

// checkColumns says which column is missing, and which there are. A first line that is no heading may be
// an account or binary, and is not shown.
func (s source) checkColumns(columns []string) error {
	for _, want := range s.columns {
		if slices.ContainsFunc(strings.Split(want, "|"),
			func(name string) bool { return slices.Contains(columns, name) }) {
			continue
		}
		err := fmt.Errorf("the heading of the CSV lacks the column %q; it has %s",
			strings.ReplaceAll(want, "|", " or "), strings.Join(columns, ", "))
		hint := looksLike(s.name, strings.Join(columns, "\n"))
		if slices.ContainsFunc(columns, func(name string) bool { return !mayBeName(name) }) {
			err = errors.New("the CSV begins without a heading: its first line must name the columns")
			hint = looksLike(s.name, strings.Join(columns, ","))
		}
		if hint != "" {
			return fmt.Errorf("%w. %s", err, hint)
		}
		return err
	}
	return nil
}

// mayBeName reports whether a text may be the name of a column or a member, rather than a value.
func mayBeName(text string) bool {
	const longest = 40
	return len(text) <= longest && !strings.ContainsAny(text, "$@{}/+=:\\()<>'\";*") &&
		!strings.ContainsFunc(text, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) })
}

// row is a row of a CSV.
type row struct {
	columns []string
	fields  []string
}

func (r row) has(column string) bool { return slices.Contains(r.columns, column) }

// get returns "" for a column that is not there.
func (r row) get(column string) string {
	if i := slices.Index(r.columns, column); i >= 0 {
		return r.fields[i]
	}
	return ""
}

func (r row) at(i int) string {
	if i < len(r.fields) {
		return r.fields[i]
	}
	return ""
}

func (s source) read(columns []string, raw rawRecord) (Record, error) {
	switch {
	case raw.err != nil:
		return Record{}, raw.err
	case raw.object != nil:
		if !utf8.Valid(raw.object) {
			return Record{}, errNotUTF8
		}
		return s.json(raw.object)
	}
	return s.csv(row{columns, raw.fields})
}

// decodeObject reads a JSON object and ignores unknown members, of which exports are full.
func decodeObject[T any](object []byte) (T, error) {
	var v T
	err := json.Unmarshal(object, &v)
	semantic, known := errors.AsType[*json.SemanticError](err)
	switch {
	case err == nil:
		return v, nil
	case errors.Is(err, jsontext.ErrDuplicateName):
		return v, fault.Refuse("malformed", "has a member twice")
	case known && semantic.JSONPointer != "": // a member of ours, so its name says nothing
		return v, fault.Refuse("malformed",
			"has a member of the wrong type: "+strings.TrimPrefix(string(semantic.JSONPointer), "/"))
	}
	return v, errNotJSON
}

// Exported is an account as our own export writes it and an import reads it.
type Exported struct {
	ID                string `json:"id,omitempty"`
	Username          string `json:"username"`
	Status            string `json:"status,omitempty"`
	CreatedAt         string `json:"created_at,omitempty"`
	PasswordChangedAt string `json:"password_changed_at,omitempty"`
	Email             string `json:"email,omitempty"`
	EmailVerified     *bool  `json:"email_verified,omitempty"`
	// Contacts are all addresses, of which Email is one.
	Contacts     []Address `json:"contacts,omitempty"`
	PasswordHash string    `json:"password_hash,omitempty"`
}

// Address is an address of an account.
type Address struct {
	Address   string `json:"address"`
	Confirmed bool   `json:"verified"`
}

func nativeObject(object []byte) (Record, error) {
	e, err := decodeObject[struct {
		Exported
		CreatedAt         jsontext.Value            `json:"created_at"` // also a number
		PasswordChangedAt jsontext.Value            `json:"password_changed_at"`
		EmailVerified     jsontext.Value            `json:"email_verified"` // also 0 and 1, as databases write it
		Unread            map[string]jsontext.Value `json:",embed"`
	}](object)
	if err != nil {
		return Record{}, err
	}
	e.Exported.CreatedAt, e.Exported.PasswordChangedAt = timeText(e.CreatedAt), timeText(e.PasswordChangedAt)
	if e.Exported.EmailVerified, err = truth("the member email_verified", timeText(e.EmailVerified)); err != nil {
		return Record{}, err
	}
	rec, err := nativeUser(e.Exported)
	for name, value := range e.Unread {
		if value.Kind() != 'n' {
			rec.Unread = append(rec.Unread, name)
		}
	}
	return rec, err
}

// nativeColumns are those of our own form, in the order in which an export writes them.
var nativeColumns = []string{"id", "username", "status", "created_at", "password_changed_at", "email",
	"email_verified", "contacts", "password_hash"}

func nativeRow(r row) (Record, error) {
	verified, err := r.truth("email_verified")
	if err != nil {
		return Record{}, err
	}
	var contacts []Address
	if text := r.get("contacts"); text != "" && json.Unmarshal([]byte(text), &contacts) != nil {
		return Record{}, fault.Refuse("malformed", "the contacts are no JSON array of addresses")
	}
	rec, err := nativeUser(Exported{
		ID: r.get("id"), Username: r.get("username"), Status: r.get("status"),
		CreatedAt: r.get("created_at"), PasswordChangedAt: r.get("password_changed_at"),
		Email: r.get("email"), EmailVerified: verified, Contacts: contacts, PasswordHash: r.get("password_hash"),
	})
	for i, name := range r.columns {
		if r.at(i) != "" && !slices.Contains(nativeColumns, name) {
			rec.Unread = append(rec.Unread, name)
		}
	}
	return rec, err
}

func nativeUser(e Exported) (Record, error) {
	rec := Record{
		Username: e.Username, Hash: e.PasswordHash, Disabled: e.Status == "disabled", Address: e.Email,
		Confirmed: e.EmailVerified, Addresses: e.Contacts,
	}
	if e.Status != "" && e.Status != "active" && !rec.Disabled {
		return Record{}, fault.Refuse("invalid_status", "the status is neither active nor disabled")
	}
	var err error
	if rec.ID, err = parseID(e.ID); err != nil && e.ID != "" {
		return Record{}, err
	}
	if rec.Created, err = parseTime("created_at", e.CreatedAt); err != nil {
		return Record{}, err
	}
	rec.Changed, err = parseTime("password_changed_at", e.PasswordChangedAt)
	return rec, err
}

// keycloakObject reads a user of a realm export (a UserRepresentation with credentials).
func keycloakObject(object []byte) (Record, error) {
	u, err := decodeObject[struct {
		ID               string   `json:"id"`
		Username         string   `json:"username"`
		Email            string   `json:"email"`
		EmailVerified    *bool    `json:"emailVerified"`
		CreatedTimestamp int64    `json:"createdTimestamp"` // milliseconds
		Enabled          *bool    `json:"enabled"`
		RequiredActions  []string `json:"requiredActions"`
		Credentials      []struct {
			Type           string `json:"type"`
			CreatedDate    int64  `json:"createdDate"`
			SecretData     string `json:"secretData"`     // JSON
			CredentialData string `json:"credentialData"` // JSON
		} `json:"credentials"`
	}](object)
	if err != nil {
		return Record{}, err
	}
	rec := Record{Username: u.Username, Created: milliseconds(u.CreatedTimestamp), Address: u.Email,
		Confirmed: u.EmailVerified}
	rec.name(u.ID)
	rec.Disabled = u.Enabled != nil && !*u.Enabled
	for _, action := range u.RequiredActions {
		rec.Lost = append(rec.Lost, lostAction+action)
	}
	for _, c := range u.Credentials {
		switch {
		case c.Type == "password-history":
		case c.Type != "password":
			rec.Lost = append(rec.Lost, c.Type) // otp, webauthn, recovery-authn-codes, …
		case rec.Hash == "":
			rec.Changed = milliseconds(c.CreatedDate)
			if rec.Hash, err = keycloakHash(c.SecretData, c.CredentialData); err != nil {
				return Record{}, err
			}
		}
	}
	return rec, nil
}

// keycloakHash puts a password credential into the form of a PHC string.
func keycloakHash(secretData, credentialData string) (string, error) {
	bad := fault.Refuse("hash_refused", "the password credential is not as Keycloak writes it")
	secret, errSecret := decodeObject[struct {
		Value string `json:"value"`
		Salt  string `json:"salt"`
	}]([]byte(secretData))
	credential, errCredential := decodeObject[struct {
		HashIterations int    `json:"hashIterations"`
		Algorithm      string `json:"algorithm"`
		Additional     struct {
			Type        []string `json:"type"`
			Version     []string `json:"version"`
			Memory      []string `json:"memory"`
			Parallelism []string `json:"parallelism"`
		} `json:"additionalParameters"`
	}]([]byte(credentialData))
	if errSecret == nil && strings.HasPrefix(secret.Value, "$") { // of a plug-in, whose hashes say all by themselves
		return secret.Value, nil
	}
	value, errValue := base64.StdEncoding.DecodeString(secret.Value)
	salt, errSalt := base64.StdEncoding.DecodeString(secret.Salt)
	if errSecret != nil || errCredential != nil || errValue != nil || errSalt != nil {
		return "", bad
	}
	raw := base64.RawStdEncoding
	end := "$" + raw.EncodeToString(salt) + "$" + raw.EncodeToString(value)
	switch a := credential.Algorithm; a {
	case "pbkdf2", "pbkdf2-sha256", "pbkdf2-sha512":
		return fmt.Sprintf("$%s$i=%d,l=%d%s", a, credential.HashIterations, len(value), end), nil
	case "argon2":
		p := credential.Additional
		if len(p.Type) != 1 || len(p.Memory) != 1 || len(p.Parallelism) != 1 || len(p.Version) != 1 ||
			p.Version[0] != "1.3" {
			return "", bad
		}
		return fmt.Sprintf("$argon2%s$v=19$m=%s,t=%d,p=%s%s", p.Type[0], p.Memory[0], credential.HashIterations,
			p.Parallelism[0], end), nil
	}
	return "", fault.Refuse("hash_refused",
		"the password is hashed with an algorithm of Keycloak's that is not read here")
}

// FirebaseHash is what Firebase says once for all users of a project.
type FirebaseHash struct {
	SignerKey     string // base64; a secret
	SaltSeparator string // base64
	Rounds        int
	MemCost       int
}

// ParseFirebaseHash reads the hash parameters as the Firebase console shows them:
//
//	hash_config {
//	  algorithm: SCRYPT,
//	  base64_signer_key: …,
//	  base64_salt_separator: Bw==,
//	  rounds: 8,
//	  mem_cost: 14,
//	}
func ParseFirebaseHash(text string) (*FirebaseHash, error) {
	values := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, found := strings.Cut(line, ":"); found {
			values[strings.Trim(name, " \t\"")] = strings.Trim(strings.TrimRight(strings.TrimSpace(value), ","), `"`)
		}
	}
	if algorithm := values["algorithm"]; algorithm != "SCRYPT" {
		return nil, errors.New("the hash parameters are not those of Firebase's SCRYPT, as its console shows them")
	}
	h := &FirebaseHash{SignerKey: values["base64_signer_key"], SaltSeparator: values["base64_salt_separator"]}
	var errRounds, errMemory error
	h.Rounds, errRounds = strconv.Atoi(values["rounds"])
	h.MemCost, errMemory = strconv.Atoi(values["mem_cost"])
	if errRounds != nil || errMemory != nil || h.SignerKey == "" {
		return nil, errors.New("the hash parameters lack one of base64_signer_key, rounds and mem_cost")
	}
	const keySize = 64 // bytes, of every project
	if key, err := base64.StdEncoding.DecodeString(standardBase64(h.SignerKey)); err != nil || len(key) != keySize {
		return nil, fmt.Errorf("base64_signer_key is not the base64 of %d bytes: it must be copied whole", keySize)
	}
	if separator, err := base64.StdEncoding.DecodeString(standardBase64(h.SaltSeparator)); err != nil ||
		len(separator) == 0 {
		return nil, errors.New("base64_salt_separator is missing or is not base64; for most projects it is Bw==")
	}
	digest := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0x9d}, keySize))
	if _, _, err := password.Import(h.hash(digest, "nf65EOgLrQM=")); err != nil {
		return nil, fmt.Errorf("the hash parameters cannot be used: %w", err)
	}
	return h, nil
}

// standardBase64 undoes the two letters by which base64 for URLs differs.
func standardBase64(text string) string { return strings.NewReplacer("-", "+", "_", "/").Replace(text) }

// hash puts a user's password hash into the form of a modular-crypt string.
func (h *FirebaseHash) hash(passwordHash, salt string) string {
	if passwordHash == "" || strings.HasPrefix(passwordHash, "fakeHash:") { // of the emulator, which is named
		return passwordHash
	}
	return fmt.Sprintf("$fbscrypt$v=1,n=%d,r=%d,p=1,ss=%s,sk=%s$%s$%s", h.MemCost, h.Rounds,
		standardBase64(h.SaltSeparator), standardBase64(h.SignerKey), standardBase64(salt),
		standardBase64(passwordHash))
}

// object reads a user of firebase auth:export --format=json, or of the Admin SDK.
func (h *FirebaseHash) object(object []byte) (Record, error) {
	type factors []jsontext.Value
	u, err := decodeObject[struct {
		LocalID       string         `json:"localId"`
		UID           string         `json:"uid"`
		Email         string         `json:"email"`
		EmailVerified *bool          `json:"emailVerified"`
		PasswordHash  string         `json:"passwordHash"`
		Salt          string         `json:"salt"`
		PasswordSalt  string         `json:"passwordSalt"`
		CreatedAt     jsontext.Value `json:"createdAt"` // milliseconds
		Disabled      bool           `json:"disabled"`
		PhoneNumber   string         `json:"phoneNumber"`
		MFAInfo       factors        `json:"mfaInfo"`
		MultiFactor   struct {
			EnrolledFactors factors `json:"enrolledFactors"`
		} `json:"multiFactor"`
		Metadata struct {
			CreationTime jsontext.Value `json:"creationTime"`
		} `json:"metadata"`
	}](object)
	if err != nil {
		return Record{}, err
	}
	created := cmp.Or(timeText(u.CreatedAt), timeText(u.Metadata.CreationTime))
	rec, err := h.user(cmp.Or(u.LocalID, u.UID), u.Email, u.PasswordHash, cmp.Or(u.Salt, u.PasswordSalt), created)
	if err != nil {
		return Record{}, err
	}
	rec.Confirmed = u.EmailVerified
	rec.Disabled = u.Disabled
	rec.leaveOutPhone(u.PhoneNumber)
	if len(u.MFAInfo)+len(u.MultiFactor.EnrolledFactors) > 0 {
		rec.Lost = append(rec.Lost, lostSecondFactor)
	}
	return rec, nil
}

// row reads a user of firebase auth:export --format=csv, which has no heading.
func (h *FirebaseHash) row(r row) (Record, error) {
	if len(r.fields) < 5 {
		return Record{}, fault.Refuse("malformed", "has fewer fields than Firebase writes")
	}
	rec, err := h.user(r.at(0), r.at(1), r.at(3), r.at(4), r.at(23))
	if err != nil {
		return Record{}, err
	}
	if rec.Confirmed, err = truth("the field emailVerified", r.at(2)); err != nil {
		return Record{}, err
	}
	rec.leaveOutPhone(r.at(25))
	disabled, err := truth("the field disabled", r.at(26))
	rec.Disabled = disabled != nil && *disabled
	return rec, err
}

func (h *FirebaseHash) user(id, email, hash, salt, created string) (Record, error) {
	rec := Record{Username: email, Hash: h.hash(hash, salt), Address: email}
	rec.name(id)
	// The hash is the signer key, encrypted under what is derived from the password.
	digest, errDigest := base64.StdEncoding.DecodeString(standardBase64(hash))
	key, errKey := base64.StdEncoding.DecodeString(standardBase64(h.SignerKey))
	if errDigest == nil && errKey == nil && hash != "" && len(digest) != len(key) {
		return Record{}, fault.Refuse("hash_refused",
			"the password was not hashed with these hash parameters: its hash is not as long as the signer key")
	}
	var err error
	rec.Created, err = parseTime("createdAt", created)
	return rec, err
}

// djangoObject reads an object of manage.py dumpdata: a user, or something else that was dumped
// with them.
func djangoObject(object []byte) (Record, error) {
	// What has no password is of a model whose fields may have the same names and mean something else.
	other, err := decodeObject[struct {
		Model  string `json:"model"`
		Fields struct {
			Password  jsontext.Value `json:"password"`
			Confirmed jsontext.Value `json:"confirmed"` // of a device of django-otp
			Verified  jsontext.Value `json:"verified"`  // of an address of django-allauth
		} `json:"fields"`
	}](object)
	if err != nil {
		return Record{}, err
	}
	if o := other.Fields; (o.Password == nil || o.Password.Kind() == 'n') && other.Model != "" &&
		!strings.HasSuffix(other.Model, ".user") {
		return djangoOther(other.Model, string(o.Confirmed) == "false", string(o.Verified) == "false"), nil
	}
	d, err := decodeObject[struct {
		PK     jsontext.Value `json:"pk"`
		Fields struct {
			Username   string         `json:"username"`
			Email      jsontext.Value `json:"email"`
			Password   string         `json:"password"`
			IsActive   *bool          `json:"is_active"`
			DateJoined jsontext.Value `json:"date_joined"`
		} `json:"fields"`
	}](object)
	if err != nil {
		return Record{}, err
	}
	u := d.Fields
	var email string
	if text, err := jsontext.AppendUnquote(nil, u.Email); err == nil {
		email = string(text)
	}
	rec, err := djangoUser(u.Username, email, u.Password, timeText(u.DateJoined), u.IsActive)
	rec.SourceID, rec.Numbered = string(d.PK), true
	return rec, err
}

// djangoOther reads what is no user: second factors and addresses have tables of their own.
func djangoOther(model string, unconfirmed, unverified bool) Record {
	rec := Record{Other: true}
	app, name, _ := strings.Cut(strings.ToLower(model), ".")
	switch {
	case name == "emailaddress" && unverified:
		rec.Lost = []string{LostUnconfirmed}
	case name == "statictoken", unconfirmed: // of a device that is counted, or none yet
	case strings.HasSuffix(name, "totpdevice"), strings.HasSuffix(name, "hotpdevice"):
		rec.Lost = []string{lostOTP}
	case strings.HasSuffix(name, "device"), app == "mfa", strings.Contains(app, "webauthn"),
		strings.Contains(app, "passkey"), strings.Contains(app, "fido"):
		rec.Lost = []string{lostSecondFactor}
	}
	return rec
}

// djangoRow reads a row of the table auth_user, or of the table of a model like it.
func djangoRow(r row) (Record, error) {
	active, err := r.truth("is_active")
	if err != nil {
		return Record{}, err
	}
	rec, err := djangoUser(r.get("username"), r.get("email"), r.get("password"), r.get("date_joined"), active)
	rec.SourceID, rec.Numbered = r.get("id"), true
	return rec, err
}

// djangoUser takes the email where the model has no username (USERNAME_FIELD = "email").
func djangoUser(username, email, hash, joined string, active *bool) (Record, error) {
	rec := Record{Username: cmp.Or(username, email), Hash: hash, Address: email}
	if strings.HasPrefix(hash, "!") { // set_unusable_password
		rec.Hash = ""
	}
	rec.Disabled = active != nil && !*active
	var err error
	rec.Created, err = parseTime("date_joined", joined)
	return rec, err
}

// auth0Object reads a user of the export of password hashes that Auth0 makes on request.
func auth0Object(object []byte) (Record, error) {
	u, err := decodeObject[struct {
		ID struct {
			OID string `json:"$oid"`
		} `json:"_id"`
		UserID        string         `json:"user_id"`
		Username      string         `json:"username"`
		Email         string         `json:"email"`
		EmailVerified *bool          `json:"email_verified"`
		PhoneNumber   string         `json:"phone_number"`
		PasswordHash  string         `json:"passwordHash"`
		Blocked       bool           `json:"blocked"`
		SetDate       jsontext.Value `json:"password_set_date"`
		CreatedAt     jsontext.Value `json:"created_at"`
		Identifiers   []struct {
			Type     string `json:"type"`
			Value    string `json:"value"`
			Verified *bool  `json:"verified"`
		} `json:"identifiers"`
		Multifactor           []jsontext.Value `json:"multifactor"`
		MFAFactors            []jsontext.Value `json:"mfa_factors"`
		GuardianEnrollments   []jsontext.Value `json:"guardian_enrollments"`
		AuthenticationMethods []struct {
			Type string `json:"type"`
		} `json:"authentication_methods"`
	}](object)
	if err != nil {
		return Record{}, err
	}
	rec := Record{Username: cmp.Or(u.Username, u.Email), Hash: u.PasswordHash, Address: u.Email,
		Confirmed: u.EmailVerified}
	rec.name(cmp.Or(u.ID.OID, u.UserID))
	for _, name := range u.Identifiers {
		if rec.Username == "" && (name.Type == "username" || name.Type == "email") {
			rec.Username = name.Value
		}
		if rec.Address == "" && name.Type == "email" {
			rec.Address, rec.Confirmed = name.Value, name.Verified
		}
		if name.Type == "phone_number" || name.Type == "phone" {
			u.PhoneNumber = name.Value
		}
	}
	rec.leaveOutPhone(u.PhoneNumber)
	rec.Disabled = u.Blocked
	factors := len(u.Multifactor) + len(u.MFAFactors) + len(u.GuardianEnrollments)
	for _, method := range u.AuthenticationMethods {
		if method.Type != "password" {
			factors++
		}
	}
	if factors > 0 {
		rec.Lost = append(rec.Lost, lostSecondFactor)
	}
	if rec.Changed, err = parseTime("password_set_date", timeText(u.SetDate)); err != nil {
		return Record{}, err
	}
	rec.Created, err = parseTime("created_at", timeText(u.CreatedAt))
	return rec, err
}

// supabase is a row of auth.users, perhaps with the column factors of its second factors.
type supabase struct {
	ID                string  `json:"id"`
	Email             string  `json:"email"`
	Phone             string  `json:"phone"`
	EncryptedPassword string  `json:"encrypted_password"`
	CreatedAt         string  `json:"created_at"`
	EmailConfirmedAt  *string `json:"email_confirmed_at"`
	ConfirmedAt       *string `json:"confirmed_at"` // one of the two others; all there was in old versions
	PhoneConfirmedAt  *string `json:"phone_confirmed_at"`
	BannedUntil       string  `json:"banned_until"`
	DeletedAt         string  `json:"deleted_at"`
	Factors           []struct {
		Type   string `json:"factor_type"`
		Status string `json:"status"`
	} `json:"factors"`

	// says tells whether the record says when its addresses were confirmed, which a null does.
	says bool
}

func supabaseObject(object []byte) (Record, error) {
	u, err := decodeObject[supabase](object)
	if err != nil {
		return Record{}, err
	}
	members, err := decodeObject[map[string]jsontext.Value](object)
	if err != nil {
		return Record{}, err
	}
	for _, name := range []string{"email_confirmed_at", "confirmed_at", "phone_confirmed_at"} {
		_, says := members[name]
		u.says = u.says || says
	}
	return u.record()
}

func supabaseRow(r row) (Record, error) {
	u := supabase{
		ID: r.get("id"), Email: r.get("email"), Phone: r.get("phone"), EncryptedPassword: r.get("encrypted_password"),
		CreatedAt: r.get("created_at"), BannedUntil: r.get("banned_until"), DeletedAt: r.get("deleted_at"),
	}
	for name, to := range map[string]**string{"email_confirmed_at": &u.EmailConfirmedAt, "confirmed_at": &u.ConfirmedAt,
		"phone_confirmed_at": &u.PhoneConfirmedAt} {
		u.says = u.says || r.has(name)
		if at := r.get(name); at != "" {
			*to = &at
		}
	}
	if text := r.get("factors"); text != "" {
		if err := json.Unmarshal([]byte(text), &u.Factors); err != nil {
			return Record{}, fault.Refuse("malformed", "the column factors is not the JSON of an array of factors")
		}
	}
	return u.record()
}

func (u supabase) record() (Record, error) {
	if u.DeletedAt != "" {
		return Record{}, fault.Refuse("deleted", "its source has deleted the account")
	}
	rec := Record{Username: cmp.Or(u.Email, u.Phone), Hash: u.EncryptedPassword, Address: cmp.Or(u.Email, u.Phone)}
	rec.name(u.ID)
	if u.Email != "" {
		rec.leaveOutPhone(u.Phone)
	}
	if u.says {
		at := u.EmailConfirmedAt
		if u.Email == "" {
			at = u.PhoneConfirmedAt
		}
		confirmed := at != nil || u.EmailConfirmedAt == nil && u.PhoneConfirmedAt == nil && u.ConfirmedAt != nil
		rec.Confirmed = &confirmed
	}
	for _, factor := range u.Factors {
		if factor.Status == "unverified" {
			continue
		}
		kind := map[string]string{"totp": lostOTP, "webauthn": "webauthn"}[factor.Type]
		rec.Lost = append(rec.Lost, cmp.Or(kind, lostSecondFactor))
	}
	var err error
	if rec.Banned, err = parseTime("banned_until", u.BannedUntil); err != nil {
		return Record{}, err
	}
	rec.Created, err = parseTime("created_at", u.CreatedAt)
	return rec, err
}

// zitadelObject reads one of the humanUsers of an organisation, or what is in it: a request
// to import such a user.
func zitadelObject(object []byte) (Record, error) {
	type user struct {
		UserName string `json:"userName"`
		Email    struct {
			Email           string `json:"email"`
			IsEmailVerified bool   `json:"isEmailVerified"` // left out when false
		} `json:"email"`
		Phone struct {
			Phone string `json:"phone"`
		} `json:"phone"`
		HashedPassword struct {
			Value string `json:"value"`
		} `json:"hashedPassword"`
		OTPCode                string           `json:"otpCode"`
		RecoveryCodes          []jsontext.Value `json:"recoveryCodes"`
		PasswordChangeRequired bool             `json:"passwordChangeRequired"`
	}
	d, err := decodeObject[struct {
		UserID string `json:"userId"`
		user
		User *user `json:"user"`
	}](object)
	if err != nil {
		return Record{}, err
	}
	u := d.user
	if d.User != nil {
		u = *d.User
	}
	rec := Record{Username: u.UserName, Hash: u.HashedPassword.Value, Address: u.Email.Email}
	rec.name(d.UserID)
	rec.leaveOutPhone(u.Phone.Phone)
	if u.Email.Email != "" {
		rec.Confirmed = &u.Email.IsEmailVerified
	}
	if u.OTPCode != "" {
		rec.Lost = append(rec.Lost, lostOTP)
	}
	if len(u.RecoveryCodes) > 0 {
		rec.Lost = append(rec.Lost, "recovery_codes")
	}
	if u.PasswordChangeRequired {
		rec.Lost = append(rec.Lost, lostAction+"UPDATE_PASSWORD")
	}
	return rec, nil
}

// parseID reads an id that an account may keep.
func parseID(text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 || id == uuid.Nil {
		return uuid.Nil, fault.Refuse("invalid_id", "the id is not a UUID")
	}
	return id, nil
}

// name keeps the ids of systems that use UUIDs as we do; accounts of others get new ones.
func (rec *Record) name(id string) {
	var err error
	if rec.ID, err = parseID(id); err != nil {
		rec.SourceID = id
	}
}

// leaveOutPhone counts a telephone number that the account has beside its name.
func (rec *Record) leaveOutPhone(number string) {
	if number != "" {
		rec.Lost = append(rec.Lost, lostPhone)
	}
}

// truth reads a boolean of a CSV. Nil: there is none.
func (r row) truth(column string) (*bool, error) { return truth("the column "+column, r.get(column)) }

func truth(name, text string) (*bool, error) {
	yes, no := true, false
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "":
		return nil, nil
	case "t", "true", "1", "y", "yes", "on", "\x01", `\x01`:
		return &yes, nil
	case "f", "false", "0", "n", "no", "off", "\x00", `\x00`, `\0`:
		return &no, nil
	}
	return nil, fault.Refuse("invalid_status", name+" is neither true nor false")
}

func milliseconds(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// timeText is a time in JSON: a text, a number, or MongoDB's {"$date": …}. What is none of
// these is left as it is, to be refused as no time.
func timeText(v jsontext.Value) string {
	switch v.Kind() {
	case 'n', 0:
		return ""
	case '"':
		if text, err := jsontext.AppendUnquote(nil, v); err == nil {
			return string(text)
		}
	case '{':
		var date struct {
			Date jsontext.Value `json:"$date"`
			Long jsontext.Value `json:"$numberLong"`
		}
		if json.Unmarshal(v, &date) == nil && (date.Date != nil || date.Long != nil) {
			return cmp.Or(timeText(date.Date), timeText(date.Long))
		}
	}
	return string(v)
}

// Times as RFC 3339 and ISO 8601 have them, as databases write them into a CSV, and as
// programs print them. One without a zone is in UTC.
var timeLayouts = sync.OnceValue(func() []string {
	var layouts []string
	for _, base := range []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04",
		"2006-01-02 15:04"} {
		for _, zone := range []string{"", "Z07:00", "Z0700", "Z07", " Z07:00", " Z0700", " MST", " Z0700 MST"} {
			layouts = append(layouts, base+zone)
		}
	}
	return append(layouts, time.RFC1123, time.RFC1123Z, "20060102T150405Z07", "20060102T150405", "2006-01-02",
		"20060102")
})

// forever is when a ban ends that does not.
var forever = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// parseTime reads a time in whatever way systems write one. Zero: there is none.
func parseTime(name, text string) (time.Time, error) {
	text = strings.TrimSpace(text)
	switch {
	case text == "", text == "0", text == "-infinity", strings.HasPrefix(text, "0000-00-00"):
		return time.Time{}, nil
	case text == "infinity":
		return forever, nil
	}
	if t, ok := parseEpoch(text); ok {
		return t, nil
	}
	for _, layout := range timeLayouts() {
		t, err := time.ParseInLocation(layout, text, time.UTC)
		if err != nil {
			continue
		}
		if zone, offset := t.Zone(); offset == 0 && zone != "UTC" && zone != "GMT" && zone != "" {
			continue // a name of a zone that may mean several
		}
		return t.UTC(), nil
	}
	return time.Time{}, fault.Refuse("invalid_time", name+" is not a time")
}

// parseEpoch reads seconds since 1970, or milli-, micro- or nanoseconds: which ones shows, as
// all are of our time.
func parseEpoch(text string) (time.Time, bool) {
	whole, fraction, _ := strings.Cut(text, ".")
	if len(whole) < 9 || len(whole) > 19 || strings.Trim(whole+fraction, "0123456789") != "" {
		return time.Time{}, false // with fewer digits it is a date without signs, or before 1973
	}
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	switch {
	case n < 1e11:
		nanos, _ := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
		return time.Unix(n, nanos).UTC(), true
	case n < 1e14:
		return time.UnixMilli(n).UTC(), true
	case n < 1e17:
		return time.UnixMicro(n).UTC(), true
	}
	return time.Unix(0, n).UTC(), true
}
