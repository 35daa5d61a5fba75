package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/userfile"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// importing collects the output of an import.
type importing struct {
	ImportReport
	err     error
	refused []Refusal
}

func (env *testEnv) importing(ctx context.Context, r io.Reader, from, format string) importing {
	var i importing
	opt := ImportOptions{From: from, Format: format,
		Refused: func(r Refusal) error { i.refused = append(i.refused, r); return nil }}
	if from == "firebase" {
		text, err := os.ReadFile("internal/userfile/testdata/firebase-hash.txt")
		if err != nil {
			panic(err)
		}
		if opt.Firebase, err = ParseFirebaseHash(string(text)); err != nil {
			panic(err)
		}
	}
	i.ImportReport, i.err = env.Import(ctx, r, opt)
	return i
}

func (env *testEnv) importText(t testing.TB, text, from string) importing {
	t.Helper()
	i := env.importing(t.Context(), strings.NewReader(text), from, FormatAuto)
	if i.err != nil {
		t.Fatalf("import: %v", i.err)
	}
	return i
}

// importFile imports a file from the system that its name begins with, or from another one.
func (env *testEnv) importFile(t testing.TB, name string, system ...string) importing {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("internal/userfile/testdata", name))
	testenv.Must(t, err)
	from, _, _ := strings.Cut(name, ".")
	if len(system) > 0 && system[0] != "" {
		from = system[0]
	}
	return env.importText(t, string(text), from)
}

func (i importing) expect(t testing.TB, imported, present, refused int64) {
	t.Helper()
	if i.Imported != imported || i.Present != present || i.Refused != refused || int64(len(i.refused)) != refused {
		t.Errorf("%d imported, %d exist, %d refused %v; want %d, %d, %d", i.Imported, i.Present, i.Refused, i.refused,
			imported, present, refused)
	}
}

// codes lists the refusals: line and code of each.
func (i importing) codes() string {
	var list []string
	for _, r := range i.refused {
		list = append(list, fmt.Sprintf("%d %s", r.Line, r.Code))
	}
	return strings.Join(list, "; ")
}

// Each file is as its system writes it. Django made its hashes, passlib those of the native file,
// and Firebase's is Google's published test vector.
func TestImportReadsWhatOtherSystemsExport(t *testing.T) {
	t.Parallel()
	for _, file := range []struct {
		name, from        string // the source, which begins the name
		imported, refused int64
		assumed           int64 // of those imported
		codes             string
		active, disabled  []string
		password          string
	}{
		{name: "native.ndjson", imported: 13,
			active: []string{"native.bcrypt-2a", "native.bcrypt-2b", "native.bcrypt-2y", "native.bcrypt-sha256",
				"native.argon2id", "native.argon2i", "native.scrypt", "native.pbkdf2-sha1", "native.pbkdf2-sha256",
				"native.pbkdf2-sha512",
				"native.ssha", "native.ssha256", "native.ssha512"}},
		{name: "spring.ndjson", from: "native", imported: 8, refused: 5, assumed: 2, // {pbkdf2}
			codes: "1 hash_refused; 2 hash_refused; 3 hash_refused; 8 hash_refused; 13 hash_refused",
			active: []string{"spring.argon2", "spring.argon2@SpringSecurity_v5_8", "spring.bcrypt", "spring.ldap",
				"spring.pbkdf2",
				"spring.pbkdf2@SpringSecurity_v5_8", "spring.scrypt", "spring.scrypt@SpringSecurity_v5_8"}},
		{name: "node.ndjson", from: "native", imported: 7, assumed: 2, // better-auth's
			active: []string{"node.argon2id", "node.argon2i", "node.bcrypt", "node.bcryptjs", "node.node-rs-argon2",
				"node.better-auth", "node.better-auth-wide"}},
		{name: "php.ndjson", from: "native", imported: 5,
			active: []string{"php.default", "php.argon2id", "php.argon2i", "php.sodium", "php.wordpress"}},
		{name: "passlib.ndjson", from: "native", imported: 10,
			active: []string{"argon2-cffi.argon2id", "argon2-cffi.argon2i", "passlib.argon2", "passlib.ldap_pbkdf2_sha1",
				"passlib.ldap_pbkdf2_sha256", "passlib.ldap_pbkdf2_sha512", "passlib.ldap_salted_sha1",
				"passlib.ldap_salted_sha256", "passlib.ldap_salted_sha512", "passlib.atlassian_pbkdf2_sha1"}},
		{name: "werkzeug.ndjson", from: "native", imported: 4,
			active: []string{"werkzeug.scrypt", "werkzeug.pbkdf2", "werkzeug.pbkdf2-sha1", "werkzeug.pbkdf2-sha512"}},
		{name: "aspnet.ndjson", from: "native", imported: 3,
			active: []string{"aspnet.v2", "aspnet.v3-core3", "aspnet.v3-net7"}},
		{name: "wordpress.ndjson", from: "native", imported: 2, active: []string{"wordpress.6.8", "wordpress.plugin"}},
		{name: "native.csv", imported: 2, active: []string{"csv.alice"}, disabled: []string{"csv.bob"}},
		{name: "keycloak.json", imported: 4, refused: 1, codes: "117 no_password",
			active: []string{"kc.pbkdf2", "kc.pbkdf2-sha512", "kc.argon2"}, disabled: []string{"kc.pbkdf2-sha256"}},
		{name: "keycloak-realms.json", from: "keycloak", imported: 13,
			active: []string{"kc26.default", "kc26.pbkdf2", "kc26.pbkdf2-sha256", "kc26.pbkdf2-sha512", "kc26.bcrypt",
				"kc26.argon2-plugin",
				"kc26.staff", "kc26.factors", "kc26.confirmed@example.com"}, disabled: []string{"kc26.off"}},
		{name: "zitadel.json", imported: 3, refused: 1, codes: "48 no_password",
			active: []string{"zitadel.first", "zitadel.otp", "zitadel.unverified@example.com"}},
		{name: "django-custom.json", from: "django", imported: 2, active: []string{"customer@example.com"},
			disabled: []string{"inactive@example.com"}},
		{name: "firebase.json", imported: 1, refused: 1, codes: "13 no_password",
			active: []string{"firebase@example.com"}, password: "user1password"},
		{name: "firebase-npm.json", from: "firebase", imported: 1, active: []string{"firebase.npm@example.com"}},
		{name: "firebase.csv", imported: 1, active: []string{"firebase.csv@example.com"}, password: "user1password"},
		{name: "django.json", imported: 6, refused: 1, codes: "104 no_password",
			active: []string{"dj.pbkdf2", "dj.pbkdf2sha1", "dj.argon2", "dj.bcryptsha256", "dj.bcrypt", "dj.scrypt"}},
		{name: "django.csv", imported: 2, active: []string{"djcsv.active"}, disabled: []string{"djcsv.inactive"}},
		{name: "auth0.ndjson", imported: 3,
			active: []string{"auth0@example.com", "auth0.named", "auth0.identifier@example.com"}},
		{name: "supabase.csv", imported: 4, refused: 1, codes: "5 deleted",
			active: []string{"supabase@example.com", "forgiven@example.com",
				"15550100"}, disabled: []string{"banned@example.com"}},
	} {
		t.Run(file.name, func(t *testing.T) {
			t.Parallel()
			dbtestEach(t, func(t *testing.T, env *testEnv) {
				first := env.importFile(t, file.name, file.from)
				first.expect(t, file.imported, 0, file.refused)
				if first.Assumed != file.assumed {
					t.Errorf("%d are assumed, want %d", first.Assumed, file.assumed)
				}
				again := env.importFile(t, file.name, file.from)
				again.expect(t, 0, file.imported, file.refused)
				if got := again.codes(); got != file.codes {
					t.Errorf("refused %q, want %q", got, file.codes)
				}
				password := file.password
				if password == "" {
					password = goodPassword
				}
				for _, name := range file.active {
					env.importedSignsIn(t, name, password)
				}
				for _, name := range file.disabled {
					if _, err := env.Login(t.Context(), Credentials{name, password},
						phone()); !errors.Is(err, ErrAccountDisabled) {
						t.Errorf("%s, disabled at its source: %v", name, err)
					}
					u, err := env.FindUser(t.Context(), name)
					testenv.Must(t, err)
					env.expectEvents(t, u.ID, "UserRegistered", "UserDisabled")
				}
			})
		})
	}
}

// dbtestEach runs the test on a testEnv for each database.
func dbtestEach(t *testing.T, test func(t *testing.T, env *testEnv)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { t.Parallel(); test(t, newEnv(t, testConfig(), dbtest.SQLite(t), nil)) })
	t.Run("postgres", func(t *testing.T) { t.Parallel(); test(t, newEnv(t, testConfig(), dbtest.Postgres(t), nil)) })
}

// importedSignsIn signs the user in and checks that this upgrades the hash.
func (env *testEnv) importedSignsIn(t testing.TB, name, password string) {
	t.Helper()
	if _, err := env.Login(t.Context(), Credentials{name, "another " + password},
		phone()); !errors.Is(err, ErrInvalidCredentials) {
		t.Errorf("%s with a wrong password: %v", name, err)
	}
	tokens, err := env.Login(t.Context(), Credentials{name, password}, phone())
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	env.live(t, tokens)
	a, err := accountByName(t.Context(), env.db, strings.ToLower(name))
	testenv.Must(t, err)
	if !strings.HasPrefix(a.passwordHash, "$2") && !strings.HasPrefix(a.passwordHash, "$bcrypt-sha256$v=2") {
		t.Errorf("%s signed in, but the hash is still %.12s…", name, a.passwordHash)
	}
	env.expectEvents(t, a.ID, "UserRegistered", "UserLoggedIn")
}

func TestImportKeepsWhatTheRecordSays(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		env.importFile(t, "native.ndjson")
		u, err := env.FindUser(t.Context(), "0192f0a1-7b1c-7d3e-8f00-0000000000a1")
		testenv.Must(t, err)
		got := fmt.Sprint(u.Username, " ", u.CreatedAt.Format("2006-01-02T15:04:05.000000Z07:00"), " ",
			u.PasswordChangedAt.Format("2006-01-02"))
		if want := "Native.bcrypt-2a 2021-03-04T05:06:07.123456Z 2022-03-04"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// importHash is a hash that can be imported; the tests do not verify it.
const importHash = "$2b$04$z5SzGiEQ3UVhTU1nXKtPSuEFozW7QnU0/j85AHYW19LdfomQ01msu"

// oneRecord is a line of native NDJSON.
func oneRecord(id, name string) string {
	text, err := json.Marshal(userfile.Exported{ID: id, Username: name, PasswordHash: importHash})
	if err != nil {
		panic(err)
	}
	return string(text) + "\n"
}

func TestImportRefusesWithAReasonAndGoesOn(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		id, other := uuid.NewString(), uuid.NewString()
		if got := env.importText(t, oneRecord(id, "owner"), "native"); got.Imported != 1 {
			t.Fatalf("the first: %+v", got)
		}
		bomb := func(hash string) string { return `{"username":"bomber","password_hash":"` + hash + `"}` }
		lines := []struct{ text, code string }{
			{"not json", "malformed"},
			{`{"username":`, "malformed"},
			{`[1,2]`, "malformed"},
			{`"text"`, "malformed"},
			{`{"username":"twice","username":"twice2","password_hash":"x"}`, "malformed"},
			{`{"username":7,"password_hash":"x"}`, "malformed"},
			{"{\"username\":\"bad\xff\",\"password_hash\":\"x\"}", "invalid_unicode"},
			{`{"password_hash":"` + importHash + `"}`, "no_username"},
			{`{"username":"ab","password_hash":"` + importHash + `"}`, "username_too_short"},
			{`{"username":"` + strings.Repeat("a", 256) + `","password_hash":"` + importHash + `"}`,
				"username_too_long"},
			{`{"username":"semi;colon","password_hash":"` + importHash + `"}`, "username_invalid_characters"},
			{`{"username":"nul\u0000byte","password_hash":"` + importHash + `"}`, "username_invalid_characters"},
			{`{"username":"nul-address","email":"a\u0000@example.com","password_hash":"` + importHash + `"}`, "malformed"},
			{bomb(`pbkdf2_sha256$1000$salt\u0000salt$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4=`), "malformed"},
			{`{"username":"nohash"}`, "no_password"},
			{`{"username":"Username","Password_Hash":"` + importHash + `"}`, "no_password"},
			{bomb("plaintext"), "hash_refused"},
			{bomb("$2a$31$DhjONM1yKUkJMOx/W7/pv.ZlK2eGPl1vQRP0RaJD5N5TBUoVQAmMS"), "hash_refused"},
			{bomb("$argon2id$v=19$m=4194304,t=1,p=1$OcfYm7NWCiGkVKoVIiQEwA$1iksvPI71QBofTyWeHqg15+tVo4QMOw0yEMew6vz95U"), "hash_refused"},
			{bomb("$pbkdf2-sha256$i=99999999,l=32$OcfYm7NWCiGkVKoVIiQEwA$1iksvPI71QBofTyWeHqg15+tVo4QMOw0yEMew6vz95U"), "hash_refused"},
			{bomb("$scrypt$ln=24,r=8,p=16$OcfYm7NWCiGkVKoVIiQEwA$1iksvPI71QBofTyWeHqg15+tVo4QMOw0yEMew6vz95U"),
				"hash_refused"},
			{bomb("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="), "hash_refused"},
			{`{"id":"7","username":"badid","password_hash":"` + importHash + `"}`, "invalid_id"},
			{`{"id":"00000000-0000-0000-0000-000000000000","username":"nilid","password_hash":"` + importHash + `"}`,
				"invalid_id"},
			{`{"username":"status","status":"deleted","password_hash":"` + importHash + `"}`, "invalid_status"},
			{`{"username":"when","created_at":"yesterday","password_hash":"` + importHash + `"}`, "invalid_time"},
			{`{"username":"future","created_at":"9024-01-01T00:00:00Z","password_hash":"` + importHash + `"}`,
				"invalid_time"},
			{`{"username":"big","note":"` + strings.Repeat("x", userfile.MaxRecord) + `"}`, "too_long"},
			{strings.TrimSpace(oneRecord(other, "OWNER")), "username_taken"},
			{strings.TrimSpace(oneRecord(id, "somebody")), "id_taken"},
		}
		var text strings.Builder
		var want []string
		for i, line := range lines {
			text.WriteString(line.text + "\r\n")
			want = append(want, fmt.Sprintf("%d %s", i+1, line.code))
		}
		text.WriteString("\n  \n" + oneRecord("", "after-all") + strings.TrimSpace(oneRecord("", "the-last")))
		got := env.importing(t.Context(), strings.NewReader("\xef\xbb\xbf"+text.String()), "native", FormatNDJSON)
		if got.err != nil || got.Imported != 2 || got.codes() != strings.Join(want, "; ") {
			t.Errorf("%v, %d imported, refused\n got %s\nwant %s", got.err, got.Imported, got.codes(),
				strings.Join(want, "; "))
		}
		for _, r := range got.refused {
			if r.Record != r.Line || strings.ContainsAny(r.Detail, "$\xff") || strings.Contains(r.Detail, "W6ph5") {
				t.Errorf("the refusal says %+v", r)
			}
		}
	})
}

func TestImportFindsTheSameAccountTwiceInOneFile(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		id := uuid.NewString()
		text := oneRecord(id, "Alice") + oneRecord(id, "alice") + oneRecord("", "ALICE") + oneRecord(uuid.NewString(),
			"alice") + oneRecord(id, "bob")
		got := env.importText(t, text, "native")
		got.expect(t, 1, 2, 2)
		if codes := got.codes(); codes != "4 username_taken; 5 id_taken" {
			t.Errorf("refused %s", codes)
		}
		env.expectEvents(t, uuid.MustParse(id), "UserRegistered")
	})
}

// What the source has changed since is not applied, so it must not be passed over in silence.
func TestImportCountsWhatTheSourceHasChangedSince(t *testing.T) {
	t.Parallel()
	const (
		changed = "$2b$04$DhjONM1yKUkJMOx/W7/pv.ZlK2eGPl1vQRP0RaJD5N5TBUoVQAmMS"
		foreign = "$pbkdf2-sha256$1000$9F6rNaY0Zqy11pozRohRSg$TTQI73AH.MAt7xO7OGXxLyGqTlppwwLTXO9Lrn0xc0g"
	)
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		first := oneRecord("", "same.here") + oneRecord(uuid.NewString(), "disabled.there") +
			oneRecord(uuid.NewString(), "changed.there") +
			strings.Replace(oneRecord("", "signed.in"), importHash, foreign, 1)
		env.importText(t, first, "native").expect(t, 4, 0, 0)
		if _, err := env.Login(t.Context(), Credentials{"signed.in", goodPassword}, phone()); err != nil {
			t.Fatal(err) // its hash is another one now, but its source has changed nothing
		}
		var later strings.Builder
		for line := range strings.Lines(first) {
			switch {
			case strings.Contains(line, "disabled.there"):
				line = strings.Replace(line, `"username"`, `"status":"disabled","username"`, 1)
			case strings.Contains(line, "changed.there"):
				line = strings.Replace(line, importHash, changed, 1)
			}
			later.WriteString(line)
		}
		want := map[string]int64{"disabled": 1, "password": 1}
		rehearsed, err := env.Import(t.Context(), strings.NewReader(later.String()),
			ImportOptions{From: "native", DryRun: true})
		if err != nil || !maps.Equal(rehearsed.Differs, want) {
			t.Errorf("a dry run counts %v (%v), want %v", rehearsed.Differs, err, want)
		}
		got := env.importText(t, later.String(), "native")
		got.expect(t, 0, 4, 0)
		if !maps.Equal(got.Differs, want) {
			t.Errorf("the import counts %v, want %v", got.Differs, want)
		}
		u, err := env.FindUser(t.Context(), "disabled.there")
		if err != nil || u.Status != StatusActive {
			t.Errorf("the account is %s (%v)", u.Status, err)
		}
		if again := env.importText(t, first, "native"); len(again.Differs) != 0 {
			t.Errorf("the first file differs by %v", again.Differs)
		}
	})
}

// A column that nobody reads may be what disabled the account or asked for a second factor.
func TestImportNamesWhatItDoesNotRead(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"objects": {`{"username":"first","password_hash":"` + importHash + `","enabled":false,"mfa":{"a":1},"none":null}` + "\n" +
			`{"username":"second","password_hash":"` + importHash + `","locked":1,"enabled":true,"\u001b[31mred":1}`,
			[]string{"enabled", "locked", "mfa"}},
		"a table": {"Username,PASSWORD_HASH,Enabled,empty,email\nthird," + importHash + ",f,NULL,a@example.com\n",
			[]string{"enabled"}},
		"nothing": {oneRecord(uuid.NewString(), "fourth"), nil},
	} {
		got := env.importText(t, test.text, "native")
		if !slices.Equal(got.Unread, test.want) || got.Imported == 0 {
			t.Errorf("%s: %d imported, not read %q, want %q", name, got.Imported, got.Unread, test.want)
		}
	}
	// A file of another system has much that is not for us; docs/import.md says what is read of it.
	if got := env.importFile(t, "keycloak.json"); len(got.Unread) != 0 {
		t.Errorf("of Keycloak: %q", got.Unread)
	}
}

func TestImportThatWasBrokenOffGoesOnWhenItIsRunAgain(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		const all = 3 * mostBatch
		var text strings.Builder
		for i := range all {
			text.WriteString(oneRecord("", fmt.Sprintf("user-%04d", i)))
		}
		ctx, stop := context.WithCancel(t.Context())
		var first importing
		first.ImportReport, first.err = env.Import(ctx, strings.NewReader(text.String()), ImportOptions{
			From: "native", Format: FormatAuto, Progress: func(ImportReport) { stop() },
		})
		if !errors.Is(first.err, context.Canceled) || first.Imported < 1 || first.Imported >= all ||
			first.Line != first.Imported {
			t.Fatalf("broken off: %+v, %v", first.ImportReport, first.err)
		}
		env.importText(t, text.String(), "native").expect(t, all-first.Imported, first.Imported, 0)
		env.countEvents(t, all)
		env.importText(t, text.String(), "native").expect(t, 0, all, 0)
		env.countEvents(t, all)
	})
}

// countEvents expects that many events, each for another account.
func (env *testEnv) countEvents(t testing.TB, want int) {
	t.Helper()
	var events, keys int
	err := env.db.QueryRowContext(t.Context(),
		"SELECT count(*), count(DISTINCT key) FROM outbox_event").Scan(&events, &keys)
	if err != nil || events != want || keys != want {
		t.Errorf("%d events of %d accounts (%v), want %d", events, keys, err, want)
	}
}

func TestImportsBesideEachOtherMakeEachAccountOnce(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		const all = 700
		var forth, back strings.Builder
		for i := range all {
			forth.WriteString(oneRecord("", fmt.Sprintf("user-%04d", i)))
			back.WriteString(oneRecord("", fmt.Sprintf("user-%04d", all-1-i)))
		}
		reports := make([]importing, 4)
		var group sync.WaitGroup
		for i := range reports {
			text := forth.String()
			if i%2 == 1 {
				text = back.String()
			}
			group.Go(func() { reports[i] = env.importing(t.Context(), strings.NewReader(text), "native", FormatAuto) })
		}
		group.Wait()
		imported := int64(0)
		for _, r := range reports {
			if r.err != nil || r.Imported+r.Present != all {
				t.Errorf("%+v, %v", r.ImportReport, r.err)
			}
			imported += r.Imported
		}
		if imported != all {
			t.Errorf("%d imported, want %d", imported, all)
		}
		env.countEvents(t, all)
	})
}

func TestAnAccountThatComesBackBringsNoTokensBack(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, old := env.newUser(t)
		u := env.caller(t, old).User
		testenv.Must(t, env.DeleteUser(t.Context(), u.ID))
		env.importText(t, oneRecord(u.ID.String(), name), "native").expect(t, 1, 0, 0)
		if _, err := env.Authenticate(t.Context(), old.AccessToken); !errors.Is(err, ErrSessionRevoked) {
			t.Errorf("an access token of the deleted account: %v", err)
		}
		if _, err := env.Refresh(t.Context(), old.RefreshToken, phone()); err == nil {
			t.Error("a refresh token of the deleted account works for the new one")
		}
	})
}

// endless makes records from a fixed number of names, as many as wanted.
type endless struct {
	names, lines int // the number of names, and of remaining lines
	next         int
	buf          bytes.Buffer
	at           map[int]func() // what to do when that many lines remain
}

func (e *endless) Read(p []byte) (int, error) {
	for e.buf.Len() < len(p) && e.lines > 0 {
		if do := e.at[e.lines]; do != nil {
			do()
		}
		fmt.Fprintf(&e.buf, `{"username":"user-%08d","password_hash":%q}`+"\n", e.next%e.names, importHash)
		if e.next%10 == 9 {
			e.buf.WriteString("{\"username\":\"refused\"}\n")
		}
		e.next++
		e.lines--
	}
	return e.buf.Read(p)
}

func TestImportOfAnyLengthTakesBoundedMemory(t *testing.T) { // not parallel: it looks at the heap of the process
	if testing.Short() {
		t.Skip("it takes some seconds")
	}
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	heap := func(into *uint64) func() {
		return func() {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			*into = m.HeapAlloc
		}
	}
	var early, late uint64
	const lines = 30_000
	in := &endless{names: 5000, lines: lines, at: map[int]func(){lines - 10_000: heap(&early), 1: heap(&late)}}
	refused := 0
	report, err := env.Import(t.Context(), in,
		ImportOptions{From: "native", Format: FormatAuto, Refused: func(Refusal) error { refused++; return nil }})
	if err != nil || report.Imported != 5000 || report.Present != lines-5000 || refused != lines/10 {
		t.Fatalf("%+v, %d refused, %v", report, refused, err)
	}
	if late > early+2<<20 { // a hundred bytes per line
		t.Errorf("the heap grew from %d to %d MiB in %d lines", early>>20, late>>20, lines-10_000)
	}
	t.Logf("heap %d KiB after 10,000 lines, %d KiB after %d", early>>10, late>>10, lines)
}

func TestALineWithoutEndTakesBoundedMemory(t *testing.T) { // not parallel: it looks at the heap of the process
	for _, test := range []struct{ name, from, start, end string }{
		{"ndjson", "native", `{"username":"`, "\"}\n" + oneRecord("", "the-next")},
		{"json", "native", `[{"username":"`, `"},` + oneRecord("", "the-next") + "]"},
		{"wrapper", "firebase", `{"kind":"`, `","users":[]}`},
		{"csv", "native", "username,password_hash\n" + `"`, "\",x\nthe-next," + importHash + "\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			in := io.MultiReader(strings.NewReader(test.start), io.LimitReader(repeat('x'), 8<<20),
				strings.NewReader(test.end))
			got := env.importing(t.Context(), in, test.from, FormatAuto)
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
				t.Errorf("allocated %d MiB for a line of 8 MiB", grown>>20)
			}
			if test.from == "native" && (got.err != nil || got.Imported != 1 || got.refused[0].Code == "") {
				t.Errorf("%+v, %v: %v", got.ImportReport, got.err, got.refused)
			}
		})
	}
}

type repeat byte

func (b repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

func TestImportSaysWhatIsWrongWithTheInputAsAWhole(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	for _, test := range []struct{ name, text, from, format, want string }{
		{"UTF-16", "\xff\xfe{\x00", "native", FormatAuto, "UTF-16"},
		{"compressed", "\x1f\x8b\x08", "native", FormatAuto, "gunzip"},
		{"a column is missing", "username,hash\na,b\n", "native", FormatAuto, `lacks the column "password_hash"`},
		{"two columns of a name", "username,Username,password_hash\n", "native", FormatAuto, `two columns "username"`},
		{"no heading", "\"\n", "native", FormatCSV, "heading"},
		{"a document that ends", `[` + oneRecord("", "alice"), "native", FormatAuto, "ends before"},
		{"an object that ends", `[` + oneRecord("", "alice") + `, {"user`, "native", FormatAuto, "ends inside"},
		{"numbers", `[1]`, "native", FormatAuto, "not a list of objects"},
		{"CSV of Keycloak", "id,username\n", "keycloak", FormatCSV, "writes no CSV"},
		{"an unknown source", "", "cognito", FormatAuto, "no source"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := env.importing(t.Context(), strings.NewReader(test.text), test.from, test.format)
			if got.err == nil || !strings.Contains(got.err.Error(), test.want) {
				t.Errorf("got %v, want %q", got.err, test.want)
			}
		})
	}
	// Records before the fault are kept.
	if _, err := env.FindUser(t.Context(), "alice"); err != nil {
		t.Error(err)
	}
	env.importText(t, "", "native").expect(t, 0, 0, 0)
}

func TestAStrayQuoteCostsOneLineOfACSV(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	row := func(name string) string { return name + "," + importHash + "\r\n" }
	text := "username,password_hash\r\n" + row("first") + row(`str"ay`) + row("second") + row("third") + row(`"another`) + row("fourth") +
		"too,many,fields\n" + "\"of two\nlines\"," + importHash + "\n" + row("fifth") + row(`"open`)
	got := env.importText(t, text, "native")
	if got.Imported != 5 ||
		got.codes() != "3 malformed; 6 malformed; 8 malformed; 9 username_invalid_characters; 12 malformed" {
		t.Errorf("%d imported, refused %s", got.Imported, got.codes())
	}
}

func TestWhatIsExportedCanBeImportedElsewhere(t *testing.T) {
	t.Parallel()
	for _, format := range []string{FormatNDJSON, FormatCSV} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			from := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
			name, tokens := from.newUser(t)
			u := from.caller(t, tokens).User
			closed, closedTokens := from.newUser(t)
			testenv.Must(t, from.DisableUser(t.Context(), from.caller(t, closedTokens).User.ID))
			from.importFile(t, "native.ndjson")
			var file bytes.Buffer
			n, err := from.Export(t.Context(), &file, ExportOptions{Format: format, PasswordHashes: true})
			if err != nil || n != 15 {
				t.Fatalf("exported %d, %v", n, err)
			}
			to := newEnv(t, testConfig(), dbtest.Postgres(t), nil)
			to.importText(t, file.String(), "native").expect(t, 15, 0, 0)
			to.importText(t, file.String(), "native").expect(t, 0, 15, 0)
			to.importedSignsIn(t, "native.argon2i", goodPassword)
			to.live(t, to.signIn(t, strings.ToUpper(name)))
			copied, err := to.FindUser(t.Context(), u.ID.String())
			if err != nil || copied.Username != u.Username || !copied.CreatedAt.Equal(u.CreatedAt) ||
				!copied.PasswordChangedAt.Equal(u.PasswordChangedAt) {
				t.Errorf("got %+v, %v, want %+v", copied, err, u)
			}
			if _, err := to.Login(t.Context(), Credentials{closed, goodPassword},
				phone()); !errors.Is(err, ErrAccountDisabled) {
				t.Errorf("an account exported while disabled: %v", err)
			}
			if _, err := to.Refresh(t.Context(), tokens.RefreshToken, phone()); err == nil {
				t.Error("a session of the other installation goes on here")
			}
		})
	}
}

func TestExportHasHashesOnlyWhenAskedFor(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	env.importFile(t, "native.ndjson")
	for _, format := range []string{FormatNDJSON, FormatCSV} {
		var file bytes.Buffer
		if _, err := env.Export(t.Context(), &file, ExportOptions{Format: format}); err != nil {
			t.Fatal(err)
		}
		if text := file.String(); strings.ContainsAny(text, "${") && strings.Contains(text, "$2") ||
			strings.Contains(text, "password_hash") {
			t.Errorf("%s", text)
		}
	}
	if _, err := env.Export(t.Context(), io.Discard, ExportOptions{Format: "xml"}); err == nil {
		t.Error("xml is a format")
	}
}

func FuzzNoRecordIsTooStrangeToJudge(f *testing.F) {
	env := newEnv(f, testConfig(), dbtest.SQLite(f), nil)
	for _, name := range []string{"native.ndjson", "keycloak.json", "auth0.ndjson", "django.json", "supabase.csv",
		"firebase.json"} {
		text, err := os.ReadFile("internal/userfile/testdata/" + name)
		testenv.Must(f, err)
		f.Add(string(text))
	}
	hash := &FirebaseHash{SignerKey: "AAAA", SaltSeparator: "Bw==", Rounds: 8, MemCost: 14}
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range ImportSources() {
			in, err := userfile.Open(strings.NewReader(text), name, FormatAuto, hash)
			if err != nil {
				continue
			}
			i := &importer{service: env.Service, opt: ImportOptions{From: name}}
			for {
				rec, err := in.Next()
				if err != nil {
					break
				}
				if n := i.check(rec); n.refused == nil && !n.other &&
					(n.ID == uuid.Nil || n.canonical == "" || n.passwordHash == "") {
					t.Errorf("%s: accepted %+v", name, n)
				}
			}
		}
	})
}

// Several sign-ins at once find the old hash, and each renews it. The second must not mistake the
// first one's new hash for a changed password.
func TestParallelSignInsOfAnImportedUserAllSucceed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		for _, name := range []string{"native.pbkdf2-sha256", "native.ssha", "native.scrypt"} {
			if name == "native.pbkdf2-sha256" {
				env.importFile(t, "native.ndjson")
			}
			var group sync.WaitGroup
			for range 8 {
				group.Go(func() {
					if _, err := env.Login(t.Context(), Credentials{name, goodPassword}, phone()); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			group.Wait()
		}
	})
}

// The same where a session asks for the password again.
func TestARenewedHashIsNoChangedPassword(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		env.importFile(t, "native.ndjson")
		tokens := env.signIn(t, "native.bcrypt-2a")
		caller := env.caller(t, tokens)
		checked, err := accountByID(t.Context(), env.db, caller.User.ID)
		testenv.Must(t, err)
		if _, err := env.db.Write(t.Context(), "UPDATE users SET password_hash = ? WHERE id = ?", importHash,
			checked.ID); err != nil {
			t.Fatal(err)
		}
		now, err := accountByID(t.Context(), env.db, checked.ID)
		if err != nil || now.passwordHash == checked.passwordHash || !now.samePassword(checked) {
			t.Errorf("a renewed hash counts as a changed password (%v)", err)
		}
		testenv.Must(t, env.SetPassword(t.Context(), checked.ID, "another quite good password"))
		if now, err = accountByID(t.Context(), env.db, checked.ID); err != nil || now.samePassword(checked) {
			t.Errorf("a changed password counts as unchanged (%v)", err)
		}
	})
}
