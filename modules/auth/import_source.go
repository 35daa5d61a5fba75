package auth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/toppira/authctl/modules/auth/internal/password"
)

// foreign is an account in the words of this package, as another system has it. Nothing of
// it has been judged yet.
type foreign struct {
	id       string // not empty: to be kept
	username string
	hash     string // in a form that package password reads; empty: there is none
	status   Status // empty: active
	created  time.Time
	changed  time.Time // the password
	banned   time.Time // disabled until then
}

// source reads the records of one system.
type source struct {
	json     func(object []byte) (foreign, error) // nil: it writes no JSON
	csv      func(row) (foreign, error)           // nil: it writes no CSV
	columns  []string                             // that a CSV must have
	headless bool                                 // its CSV has no heading
	document bool                                 // its JSON is a document rather than lines
}

// ImportSources are the systems whose exports are read, the first one our own.
func ImportSources() []string {
	return []string{"native", "keycloak", "firebase", "django", "auth0", "supabase"}
}

func newSource(name string, hash *FirebaseHash) (source, error) {
	switch name {
	case "native":
		return source{json: nativeObject, csv: nativeRow, columns: []string{"username", "password_hash"}}, nil
	case "keycloak":
		return source{json: keycloakObject, document: true}, nil
	case "firebase":
		if hash == nil {
			return source{}, errors.New("the hashes of Firebase need the hash parameters of the project")
		}
		return source{json: hash.object, csv: hash.row, headless: true, document: true}, nil
	case "django":
		return source{json: djangoObject, csv: djangoRow, columns: []string{"username", "password"}, document: true}, nil
	case "auth0":
		return source{json: auth0Object}, nil
	case "supabase":
		return source{json: supabaseObject, csv: supabaseRow, columns: []string{"email", "encrypted_password"}}, nil
	}
	return source{}, fmt.Errorf("there is no source %q", name)
}

// row is a row of a CSV.
type row struct {
	columns []string
	fields  []string
}

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

// read turns a record into an account.
func (s source) read(columns []string, rec record) (foreign, error) {
	switch {
	case rec.err != nil:
		return foreign{}, rec.err
	case rec.object != nil:
		if !utf8.Valid(rec.object) {
			return foreign{}, errNotUTF8
		}
		return s.json(rec.object)
	}
	return s.csv(row{columns, rec.fields})
}

// decodeObject reads a JSON object. Members that are not known are passed over: exports are full
// of them.
func decodeObject[T any](object []byte) (T, error) {
	var v T
	err := json.Unmarshal(object, &v)
	semantic, known := errors.AsType[*json.SemanticError](err)
	switch {
	case err == nil:
		return v, nil
	case errors.Is(err, jsontext.ErrDuplicateName):
		return v, refuse("malformed", "has a member twice")
	case known && semantic.JSONPointer != "": // a member of ours, so its name says nothing
		return v, refuse("malformed", "has a member of the wrong type: "+strings.TrimPrefix(string(semantic.JSONPointer), "/"))
	}
	return v, errNotJSON
}

// exported is an account as [Service.Export] writes it and an import reads it.
type exported struct {
	ID                string `json:"id,omitempty"`
	Username          string `json:"username"`
	Status            string `json:"status,omitempty"`
	CreatedAt         string `json:"created_at,omitempty"`
	PasswordChangedAt string `json:"password_changed_at,omitempty"`
	PasswordHash      string `json:"password_hash,omitempty"`
}

func (e exported) foreign() (foreign, error) {
	f := foreign{id: e.ID, username: e.Username, hash: e.PasswordHash, status: Status(e.Status)}
	if e.Status != "" && f.status != StatusActive && f.status != StatusDisabled {
		return foreign{}, refuse("invalid_status", "the status is neither active nor disabled")
	}
	var err error
	if f.created, err = rfc3339("created_at", e.CreatedAt); err != nil {
		return foreign{}, err
	}
	f.changed, err = rfc3339("password_changed_at", e.PasswordChangedAt)
	return f, err
}

func nativeObject(object []byte) (foreign, error) {
	e, err := decodeObject[exported](object)
	if err != nil {
		return foreign{}, err
	}
	return e.foreign()
}

func nativeRow(r row) (foreign, error) {
	return exported{
		ID: r.get("id"), Username: r.get("username"), Status: r.get("status"), CreatedAt: r.get("created_at"),
		PasswordChangedAt: r.get("password_changed_at"), PasswordHash: r.get("password_hash"),
	}.foreign()
}

// keycloakObject reads a user of a realm export (a UserRepresentation with credentials).
func keycloakObject(object []byte) (foreign, error) {
	u, err := decodeObject[struct {
		ID               string `json:"id"`
		Username         string `json:"username"`
		CreatedTimestamp int64  `json:"createdTimestamp"` // milliseconds
		Enabled          *bool  `json:"enabled"`
		Credentials      []struct {
			Type           string `json:"type"`
			CreatedDate    int64  `json:"createdDate"`
			SecretData     string `json:"secretData"`     // JSON
			CredentialData string `json:"credentialData"` // JSON
		} `json:"credentials"`
	}](object)
	if err != nil {
		return foreign{}, err
	}
	f := foreign{id: uuidOrNone(u.ID), username: u.Username, created: milliseconds(u.CreatedTimestamp)}
	if u.Enabled != nil && !*u.Enabled {
		f.status = StatusDisabled
	}
	for _, c := range u.Credentials {
		if c.Type == "password" {
			f.changed = milliseconds(c.CreatedDate)
			f.hash, err = keycloakHash(c.SecretData, c.CredentialData)
			return f, err
		}
	}
	return f, nil
}

// keycloakHash puts a password credential into the form of a PHC string.
func keycloakHash(secretData, credentialData string) (string, error) {
	bad := refuse("hash_refused", "the password credential is not as Keycloak writes it")
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
		if len(p.Type) != 1 || len(p.Memory) != 1 || len(p.Parallelism) != 1 || len(p.Version) != 1 || p.Version[0] != "1.3" {
			return "", bad
		}
		return fmt.Sprintf("$argon2%s$v=19$m=%s,t=%d,p=%s%s", p.Type[0], p.Memory[0], credential.HashIterations, p.Parallelism[0], end), nil
	}
	return "", refuse("hash_refused", "the password is hashed with an algorithm of Keycloak's that is not read here")
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
	if _, _, err := password.Import(h.hash(strings.Repeat("A", 86)+"==", "AAAAAAAAAAAAAA==")); err != nil {
		return nil, fmt.Errorf("the hash parameters cannot be used: %w", err)
	}
	return h, nil
}

// hash puts a user's password hash into the form of a modular-crypt string.
func (h *FirebaseHash) hash(passwordHash, salt string) string {
	if passwordHash == "" {
		return ""
	}
	standard := strings.NewReplacer("-", "+", "_", "/")
	return fmt.Sprintf("$fbscrypt$v=1,n=%d,r=%d,p=1,ss=%s,sk=%s$%s$%s", h.MemCost, h.Rounds,
		standard.Replace(h.SaltSeparator), standard.Replace(h.SignerKey), standard.Replace(salt), standard.Replace(passwordHash))
}

// object reads a user of firebase auth:export --format=json.
func (h *FirebaseHash) object(object []byte) (foreign, error) {
	u, err := decodeObject[struct {
		LocalID      string `json:"localId"`
		Email        string `json:"email"`
		PasswordHash string `json:"passwordHash"`
		Salt         string `json:"salt"`
		CreatedAt    string `json:"createdAt"` // milliseconds
		Disabled     bool   `json:"disabled"`
	}](object)
	if err != nil {
		return foreign{}, err
	}
	return h.user(u.LocalID, u.Email, u.PasswordHash, u.Salt, u.CreatedAt, u.Disabled)
}

// row reads a user of firebase auth:export --format=csv, which has no heading.
func (h *FirebaseHash) row(r row) (foreign, error) {
	if len(r.fields) < 5 {
		return foreign{}, refuse("malformed", "has fewer fields than Firebase writes")
	}
	return h.user(r.at(0), r.at(1), r.at(3), r.at(4), r.at(23), r.at(26) == "true")
}

func (h *FirebaseHash) user(id, email, hash, salt, created string, disabled bool) (foreign, error) {
	f := foreign{id: uuidOrNone(id), username: email, hash: h.hash(hash, salt)}
	if disabled {
		f.status = StatusDisabled
	}
	if ms, err := strconv.ParseInt(created, 10, 64); err == nil {
		f.created = milliseconds(ms)
	}
	return f, nil
}

// djangoObject reads a user of manage.py dumpdata auth.user.
func djangoObject(object []byte) (foreign, error) {
	d, err := decodeObject[struct {
		Fields struct {
			Username   string `json:"username"`
			Password   string `json:"password"`
			IsActive   *bool  `json:"is_active"`
			DateJoined string `json:"date_joined"`
		} `json:"fields"`
	}](object)
	if err != nil {
		return foreign{}, err
	}
	u := d.Fields
	return djangoUser(u.Username, u.Password, u.DateJoined, u.IsActive == nil || *u.IsActive)
}

// djangoRow reads a row of the table auth_user.
func djangoRow(r row) (foreign, error) {
	active := !slices.Contains([]string{"f", "false", "0"}, strings.ToLower(r.get("is_active")))
	return djangoUser(r.get("username"), r.get("password"), r.get("date_joined"), active)
}

func djangoUser(username, hash, joined string, active bool) (foreign, error) {
	f := foreign{username: username, hash: hash}
	if strings.HasPrefix(hash, "!") { // set_unusable_password
		f.hash = ""
	}
	if !active {
		f.status = StatusDisabled
	}
	var err error
	f.created, err = databaseTime("date_joined", joined)
	return f, err
}

// auth0Object reads a user of the export of password hashes that Auth0 makes on request.
func auth0Object(object []byte) (foreign, error) {
	u, err := decodeObject[struct {
		Username     string `json:"username"`
		Email        string `json:"email"`
		PasswordHash string `json:"passwordHash"`
		Blocked      bool   `json:"blocked"`
		SetDate      struct {
			Date jsontext.Value `json:"$date"`
		} `json:"password_set_date"`
		Identifiers []struct {
			Type  string `json:"type"`
			Value string `json:"value"`
		} `json:"identifiers"`
	}](object)
	if err != nil {
		return foreign{}, err
	}
	f := foreign{username: u.Username, hash: u.PasswordHash}
	if f.username == "" {
		f.username = u.Email
	}
	for _, name := range u.Identifiers {
		if f.username == "" && (name.Type == "username" || name.Type == "email") {
			f.username = name.Value
		}
	}
	if u.Blocked {
		f.status = StatusDisabled
	}
	if text, err := jsontext.AppendUnquote(nil, u.SetDate.Date); err == nil {
		f.changed, err = rfc3339("password_set_date", string(text))
		return f, err
	}
	return f, nil
}

// supabase is a row of auth.users.
type supabase struct {
	ID                string `json:"id"`
	Email             string `json:"email"`
	Phone             string `json:"phone"`
	EncryptedPassword string `json:"encrypted_password"`
	CreatedAt         string `json:"created_at"`
	BannedUntil       string `json:"banned_until"`
	DeletedAt         string `json:"deleted_at"`
}

func supabaseObject(object []byte) (foreign, error) {
	u, err := decodeObject[supabase](object)
	if err != nil {
		return foreign{}, err
	}
	return u.foreign()
}

func supabaseRow(r row) (foreign, error) {
	return supabase{
		ID: r.get("id"), Email: r.get("email"), Phone: r.get("phone"), EncryptedPassword: r.get("encrypted_password"),
		CreatedAt: r.get("created_at"), BannedUntil: r.get("banned_until"), DeletedAt: r.get("deleted_at"),
	}.foreign()
}

func (u supabase) foreign() (foreign, error) {
	if u.DeletedAt != "" {
		return foreign{}, refuse("deleted", "the account was deleted where it comes from")
	}
	f := foreign{id: uuidOrNone(u.ID), username: u.Email, hash: u.EncryptedPassword}
	if f.username == "" {
		f.username = u.Phone
	}
	var err error
	if f.banned, err = databaseTime("banned_until", u.BannedUntil); err != nil {
		return foreign{}, err
	}
	f.created, err = databaseTime("created_at", u.CreatedAt)
	return f, err
}

// uuidOrNone keeps the ids of systems that use UUIDs as we do; others get new ones.
func uuidOrNone(id string) string {
	if _, err := parseImportID(id); err != nil {
		return ""
	}
	return id
}

func milliseconds(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func rfc3339(name, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, refuse("invalid_time", name+" is not an RFC 3339 time")
	}
	return t.UTC(), nil
}

// databaseTime reads a time as PostgreSQL and other databases write it into a CSV, or as
// RFC 3339 has it.
func databaseTime(name, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05Z07", "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05", "2006-01-02T15:04:05"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, refuse("invalid_time", name+" is not a time")
}
