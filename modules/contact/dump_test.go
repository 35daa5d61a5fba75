package contact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/database"
)

// logBuffer keeps what is logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) Sync() error { return nil }

// dump returns every value of every table as text.
func (env *testEnv) dump(t *testing.T) string {
	t.Helper()
	tables := "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
	if env.db.IsPostgres() {
		tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = to_regnamespace(current_schema())"
	}
	names, err := database.Collect(t.Context(), env.db, "list tables", database.Value[string], tables)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, name := range names {
		rows, err := env.db.QueryContext(t.Context(), "SELECT * FROM "+name)
		if err != nil {
			t.Fatal(err)
		}
		columns, err := rows.Columns()
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			values := make([]any, len(columns))
			for i := range values {
				values[i] = new(any)
			}
			if err := rows.Scan(values...); err != nil {
				t.Fatal(err)
			}
			for _, v := range values {
				switch v := (*v.(*any)).(type) {
				case []byte:
					fmt.Fprintf(&out, "%s %x\n", v, v)
				default:
					fmt.Fprintln(&out, v)
				}
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		_ = rows.Close()
	}
	return out.String()
}

// K7: nothing in the database or the log lets anybody in. Codes and links are in neither, in any
// form.
func TestADumpHoldsNoCodeAndNoLink(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		log := &logBuffer{}
		env.log = zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), log,
			zap.DebugLevel))
		env.security = env.log
		caller := env.register(t, "alice@example.com")
		messages := env.messages(t)
		verify := messages[0]
		if _, err := env.VerifyByProof(t.Context(), Proof{Token: verify.LinkToken}, phone()); err != nil {
			t.Fatal(err)
		}
		if _, err := env.Forgot(t.Context(), Forgotten{Username: caller.User.Username}, phone()); err != nil {
			t.Fatal(err)
		}
		if err := env.accounts.SetPassword(t.Context(), caller.User.ID, newPassword); err != nil {
			t.Fatal(err)
		}
		messages = append(messages, env.messages(t)...)
		for _, m := range messages { // wrongly as well
			_ = env.Reset(t.Context(), Proof{ChallengeID: m.ChallengeID, Code: m.Code}, "a third good password",
				phone())
			_ = env.Undo(t.Context(), m.LinkToken+"x", phone())
		}
		haystack := env.dump(t) + log.buf.String()
		for _, known := range []string{"alice@example.com", "code_wrong", "contact.Verified.v1",
			verify.ChallengeID.String()} {
			if !strings.Contains(haystack, known) {
				t.Errorf("the dump is incomplete: no %s", known)
			}
		}
		if len(messages) != 3 {
			t.Errorf("%d messages", len(messages))
		}
		for _, m := range messages {
			_, secret, _ := parseLink(undoPrefix, m.LinkToken)
			if m.Purpose == PurposeVerify || m.Purpose == PurposeReset {
				_, secret, _ = parseLink(challengePrefix, m.LinkToken)
			}
			if len(secret) == 0 {
				t.Errorf("%s has no link: %q", m.Purpose, m.LinkToken)
			}
			for what, text := range map[string]string{"code": m.Code, "typed code": typedCode(m.Code),
				"link": m.LinkToken, "secret": string(secret)} {
				if text == "" {
					continue
				}
				for _, form := range []string{text, base64.StdEncoding.EncodeToString([]byte(text)),
					base64.RawURLEncoding.EncodeToString([]byte(text)),
					hex.EncodeToString([]byte(text))} {
					if strings.Contains(haystack, form) {
						t.Errorf("the dump has the %s of %s as %s", what, m.Purpose, form)
					}
				}
			}
		}
	})
}

// Consumers get what the schemas say, and every type occurs.
func TestEventsAreWhatTheirSchemasSay(t *testing.T) {
	t.Parallel()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	for _, kind := range EventTypes() {
		text, err := os.ReadFile("../../docs/schemas/" + kind + ".json")
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := compiler.AddResource(auth.SchemaURL("https://auth.test", kind), doc); err != nil {
			t.Fatal(err)
		}
	}
	each(t, plain(), func(t *testing.T, env *testEnv) {
		caller := env.verified(t, "alice@example.com")
		ctx := t.Context()
		if _, err := env.Forgot(ctx, Forgotten{Email: "alice@example.com"}, phone()); err != nil {
			t.Fatal(err)
		}
		c, err := env.AddByOperator(ctx, caller.User.ID, "b@example.com")
		if err != nil {
			t.Fatal(err)
		}
		if err := env.RemoveByOperator(ctx, caller.User.ID, c.ID, false); err != nil {
			t.Fatal(err)
		}
		type emitted struct{ kind, schema, data string }
		list, err := database.Collect(ctx, env.db, "read events", func(row database.Row) (e emitted, err error) {
			err = row.Scan(&e.kind, &e.schema, &e.data)
			return e, err
		}, "SELECT type, dataschema, data FROM outbox_event WHERE type LIKE 'contact.%'")
		if err != nil {
			t.Fatal(err)
		}
		bounced, err := Undeliverable(Message{Purpose: PurposeReset, UserID: caller.User.ID,
			Recipient: "alice@example.com"}, "https://auth.test",
			"550 no such user", env.now())
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, emitted{bounced.Type, bounced.DataSchema, string(bounced.Data)})
		seen := map[string]bool{}
		for _, e := range list {
			seen[e.kind] = true
			schema, err := compiler.Compile(e.schema)
			if err != nil {
				t.Fatal(err)
			}
			value, err := jsonschema.UnmarshalJSON(strings.NewReader(e.data))
			if err == nil {
				err = schema.Validate(value)
			}
			var members map[string]any
			if json.Unmarshal([]byte(e.data), &members) != nil || err != nil {
				t.Errorf("%s %s: %v", e.kind, e.data, err)
			}
			for _, secret := range []string{"code", "token", "link", "digest"} {
				if _, has := members[secret]; has {
					t.Errorf("%s has %s", e.kind, secret)
				}
			}
		}
		for _, kind := range EventTypes() {
			if !seen[kind] {
				t.Errorf("%s did not occur", kind)
			}
		}
	})
}
