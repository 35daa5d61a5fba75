package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/toppira/authctl/platform/testenv"
)

var update = flag.Bool("update", false, "write the golden files again")

// emitted is an event with the attributes of its envelope.
type emitted struct{ Type, Key, Subject, Source, Schema, Time, Data string }

// everything does everything that emits events, and returns all of them. The limit of sessions is
// three, and there is no grace window.
func everything(t *testing.T, env *testEnv) []emitted {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		testenv.Must(t, err)
	}
	name, first := env.newUser(t)
	user := env.caller(t, first).User

	// Single sessions.
	nameless, err := env.Login(t.Context(), Credentials{name, goodPassword}, Device{})
	ok(err)
	named, err := env.Login(t.Context(), Credentials{name, goodPassword}, Device{Name: "Alice's phone", IP: phone().IP})
	ok(err)
	known := phone()
	known.Token = named.DeviceToken
	_, err = env.Login(t.Context(), Credentials{name, goodPassword}, known) // evicts the first session
	ok(err)
	ok(env.LogoutRefresh(t.Context(), nameless.RefreshToken))
	here := env.signIn(t, name)
	ok(env.EndSession(t.Context(), env.caller(t, here), named.SessionID))
	other := env.signIn(t, name)
	ok(env.revoke(t, SessionFilter{ID: uuid.NullUUID{UUID: other.SessionID, Valid: true}}))
	ok(env.Revoke(t.Context(), here.AccessToken))
	stolen := env.signIn(t, name)
	env.live(t, stolen)
	if _, err := env.Refresh(t.Context(), stolen.RefreshToken, phone()); !errors.Is(err, ErrRefreshTokenReused) {
		t.Fatalf("a token used twice: %v", err)
	}
	_, another := env.newUser(t)
	env.live(t, another)
	if _, err := env.Refresh(t.Context(), another.RefreshToken, Device{}); !errors.Is(err, ErrRefreshTokenReused) {
		t.Fatalf("a token used twice by nobody known: %v", err)
	}

	// All sessions at once.
	here = env.signIn(t, name)
	ok(env.EndSessions(t.Context(), env.caller(t, here), true))
	ok(env.revoke(t, SessionFilter{UserID: uuid.NullUUID{UUID: user.ID, Valid: true}}))
	here = env.signIn(t, name)
	_, err = env.ChangePassword(t.Context(), env.caller(t, here), goodPassword, "another quite good one", phone())
	ok(err)
	ok(env.ResetPassword(t.Context(), user.ID, "another quite good one", phone(), nil))
	ok(env.ClosePassword(t.Context(), user.ID, phone(), nil))
	ok(env.SetPassword(t.Context(), user.ID, goodPassword))

	// The account.
	ok(env.DisableUser(t.Context(), user.ID))
	ok(env.EnableUser(t.Context(), user.ID))
	for _, dev := range []Device{phone(), {}} { // from an address that the account knows, and from none
		for range 50 {
			_, err := env.Login(t.Context(), Credentials{name, "not the password"}, dev)
			if errors.Is(err, ErrTooManyAttempts) {
				break
			}
			if !errors.Is(err, ErrInvalidCredentials) {
				t.Fatal(err)
			}
		}
		env.lockOuts.queued.Wait() // they are announced after the answers, and at once in any order
	}
	ok(env.DeleteUser(t.Context(), user.ID))
	_, leaver := env.newUser(t)
	ok(env.DeleteOwn(t.Context(), env.caller(t, leaver), goodPassword, phone()))
	_, err = env.CreateUser(t.Context(),
		Credentials{"user-" + strings.ReplaceAll(uuid.NewString(), "-", ""), goodPassword})
	ok(err)
	hash, err := env.passwords.Hash(t.Context(), goodPassword)
	ok(err)
	report, err := env.Import(t.Context(),
		strings.NewReader(fmt.Sprintf(`{"username":"user-%s","status":"disabled","password_hash":%q}`,
			strings.ReplaceAll(uuid.NewString(), "-", ""), hash)), ImportOptions{From: "native", Format: FormatNDJSON})
	ok(err)
	if report.Imported != 1 {
		t.Fatalf("import: %+v", report)
	}

	rows, err := env.db.QueryContext(t.Context(),
		"SELECT type, key, subject, source, dataschema, time, data FROM outbox_event ORDER BY id")
	ok(err)
	defer rows.Close()
	var list []emitted
	for rows.Next() {
		var e emitted
		ok(rows.Scan(&e.Type, &e.Key, &e.Subject, &e.Source, &e.Schema, &e.Time, &e.Data))
		list = append(list, e)
	}
	ok(rows.Err())
	return list
}

// schemas compiles docs/schemas under the addresses that events name.
func schemas(t *testing.T) map[string]*jsonschema.Schema {
	t.Helper()
	files, err := filepath.Glob("../../docs/schemas/*.json")
	testenv.Must(t, err)
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	for _, path := range files {
		text, err := os.ReadFile(path)
		testenv.Must(t, err)
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		eventType := strings.TrimSuffix(filepath.Base(path), ".json")
		if id, has := doc.(map[string]any)["$id"]; has {
			t.Errorf("%s has the id %v, whoever serves it", path, id)
		}
		if err := compiler.AddResource(SchemaURL("https://auth.test", eventType), doc); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	compiled := map[string]*jsonschema.Schema{}
	for _, path := range files {
		eventType := strings.TrimSuffix(filepath.Base(path), ".json")
		if compiled[eventType], err = compiler.Compile(SchemaURL("https://auth.test", eventType)); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return compiled
}

func TestEveryTypeOfEventHasASchemaAndNothingElseHas(t *testing.T) {
	t.Parallel()
	got := slices.Sorted(maps.Keys(schemas(t)))
	// of other modules
	got = slices.DeleteFunc(got, func(name string) bool { return !strings.HasPrefix(name, "auth.") })
	if want := slices.Sorted(slices.Values(EventTypes())); !slices.Equal(got, want) {
		t.Errorf("schemas exist for\n%q, and EventTypes lists\n%q: list a new type there, or delete its schema", got, want)
	}
}

// Consumers get what the schemas say: nothing else, nothing less, and every value of every list in
// them occurs. The lists are examples: a schema that somebody keeps must accept what a later release adds.
func TestEventsAreWhatTheirSchemasSay(t *testing.T) {
	t.Parallel()
	compiled := schemas(t)
	limits := func(c *Config) {
		c.MaxSessions, c.RefreshGrace = 3, 0
		c.Throttle.Enabled = true
	}
	eachWith(t, limits, func(t *testing.T, env *testEnv) {
		said := map[string]map[string]bool{} // by type and member: the values
		shapes := map[string][]string{}      // by type: the data, normalised
		for _, e := range everything(t, env) {
			schema := compiled[e.Type]
			if schema == nil {
				t.Errorf("%s has no schema", e.Type)
				continue
			}
			value, err := jsonschema.UnmarshalJSON(strings.NewReader(e.Data))
			testenv.Must(t, err)
			if err := schema.Validate(value); err != nil {
				t.Errorf("%s %s: %v", e.Type, e.Data, err)
			}
			data := value.(map[string]any)
			for name, v := range data {
				member := schema.Properties[name]
				if member == nil {
					t.Errorf("%s has a member that its schema does not know: %s", e.Type, name)
					continue
				}
				if text, isText := v.(string); isText && member.Examples != nil {
					if !slices.Contains(member.Examples, v) {
						t.Errorf("the schema of %s does not list the %s %q", e.Type, name, text)
					}
					if said[e.Type+" "+name] == nil {
						said[e.Type+" "+name] = map[string]bool{}
					}
					said[e.Type+" "+name][text] = true
				}
			}
			want := emitted{e.Type, data["user_id"].(string), data["user_id"].(string), env.cfg.Token.Issuer,
				SchemaURL(env.cfg.Token.Issuer, e.Type), data["occurred_at"].(string), e.Data}
			if e != want {
				t.Errorf("the envelope is\n%+v, want\n%+v", e, want)
			}
			if until, has := data["expires_at"]; has {
				from, err1 := time.Parse(time.RFC3339, data["occurred_at"].(string))
				to, err2 := time.Parse(time.RFC3339, until.(string))
				if lasts := to.Sub(from); err1 != nil || err2 != nil || lasts < env.cfg.Token.AccessTTL {
					t.Errorf("%s: a denylist may forget after %s, but access tokens live %s", e.Type, lasts,
						env.cfg.Token.AccessTTL)
				}
			}
			if shape := normalised(t, e.Data); !slices.Contains(shapes[e.Type], shape) {
				shapes[e.Type] = append(shapes[e.Type], shape)
			}
		}
		for _, eventType := range EventTypes() {
			golden(t, filepath.Join("testdata", "events", eventType+".json"), shapes[eventType])
			for name, member := range compiled[eventType].Properties {
				if member.Enum != nil {
					t.Errorf("%s: the schema refuses values of %s that a later release adds", eventType, name)
				}
				for _, v := range member.Examples {
					if !said[eventType+" "+name][v.(string)] {
						t.Errorf("the schema of %s lists the %s %q, which never occurs", eventType, name, v)
					}
				}
			}
		}
	})
}

var (
	anID   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	aTime  = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	aName  = regexp.MustCompile(`user-[0-9a-f]{32}`)
	anyKey = `"session_epoch":` // numbers of what the test did before
)

// normalised is the data with ids, times and names that are the same in each run.
func normalised(t *testing.T, data string) string {
	t.Helper()
	data = anID.ReplaceAllString(data, "00000000-0000-7000-8000-000000000000")
	data = aTime.ReplaceAllString(data, "2026-01-02T15:04:05.123456Z")
	data = aName.ReplaceAllString(data, "alice")
	data = regexp.MustCompile(anyKey+`\d+`).ReplaceAllString(data, anyKey+"1")
	var out bytes.Buffer
	testenv.Must(t, json.Indent(&out, []byte(data), "", "  "))
	return out.String()
}

// golden compares the forms of a type's data with the stored ones. Consumers read the stored ones,
// so a difference is a change of the contract.
func golden(t *testing.T, path string, shapes []string) {
	t.Helper()
	got := "[" + strings.Join(shapes, ",\n") + "]\n"
	if *update {
		testenv.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testenv.Must(t, os.WriteFile(path, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is\n%swant\n%s\nIf the contract should change, write it again with: "+
			"go test ./modules/auth -run TestEventsAreWhatTheirSchemasSay -update", path, got, want)
	}
}
