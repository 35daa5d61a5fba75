package auth

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/modules/auth/internal/userfile"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// otherHash is another hash that can be imported.
const otherHash = "$2b$04$gVZEoifzz5ZqlpxiWv3OEeKebItIkCQ726sTcJhviVWURtwcaiES2"

// line is a line of native NDJSON; empty members are left out.
func line(id, name, hash, created string) string {
	text := `{"username":"` + name + `","password_hash":"` + hash + `"`
	if id != "" {
		text += `,"id":"` + id + `"`
	}
	if created != "" {
		text += `,"created_at":"` + created + `"`
	}
	return text + "}\n"
}

func TestAnotherPersonOfTheSameNameIsRefusedAndTheSameOneIsThere(t *testing.T) {
	t.Parallel()
	const there, taken = "there", "taken"
	id, other := uuid.NewString(), uuid.NewString()
	const early, late = "2020-01-02T03:04:05Z", "2021-01-02T03:04:05Z"
	for _, test := range []struct{ name, first, second, want string }{
		{"the same id, whatever else", line(id, "Maria", importHash, early), line(id, "maria", otherHash, late), there},
		{"another id", line(id, "maria", importHash, early), line(other, "Maria", importHash, early), taken},
		{"an id where there was none", line("", "maria", importHash, ""), line(other, "maria", importHash, ""), taken},
		{"no id, the same hash", line("", "maria", importHash, ""), line("", "maria", importHash, ""), there},
		{"no id any more, the same hash", line(id, "maria", importHash, ""), line("", "maria", importHash, ""), there},
		{"no id, another hash", line("", "Maria", importHash, ""), line("", "maria", otherHash, ""), taken},
		{"the same time", line("", "maria", importHash, early), line("", "maria", otherHash, early), there},
		{"the same time in milliseconds", line("", "maria", importHash, "2020-01-02T03:04:05.678912Z"),
			line("", "maria", otherHash, "2020-01-02T03:04:05.678Z"), there},
		{"the same time, rounded to seconds", line("", "maria", importHash, "2020-01-02T03:04:05.678912Z"),
			line("", "maria", otherHash, "2020-01-02T03:04:06Z"), there},
		{"a moment later", line("", "maria", importHash, "2020-01-02T03:04:05.678912Z"),
			line("", "maria", importHash, "2020-01-02T03:04:05.678913Z"), taken},
		{"the same time without seconds, the same hash", line("", "maria", importHash, "2020-01-02T03:04:05.678Z"),
			line("", "maria", importHash, "2020-01-02 03:04"), there},
		{"the same date, the same hash", line("", "maria", importHash, "2020-01-02T03:04:05.678Z"),
			line("", "maria", importHash, "2020-01-02"), there},
		{"the same date, another hash", line("", "maria", importHash, "2020-01-02T03:04:05.678Z"),
			line("", "maria", otherHash, "2020-01-02"), taken},
		{"the same date twice, another hash", line("", "maria", importHash, "2020-01-02"),
			line("", "maria", otherHash, "2020-01-02"), taken},
		{"the same date twice, the same hash", line("", "maria", importHash, "2020-01-02"),
			line("", "maria", importHash, "2020-01-02"), there},
		{"the same minute twice", line("", "maria", importHash, "2020-01-02 03:04"),
			line("", "maria", otherHash, "2020-01-02 03:04"), there},
		{"another date", line("", "maria", importHash, "2020-01-02T03:04:05.678Z"),
			line("", "maria", importHash, "2020-01-04"), taken},
		{"the same time and another spelling", line("", "Maria", importHash, early),
			line("", "maria", otherHash, early), taken},
		{"another time", line("", "Maria", importHash, early), line("", "maria", otherHash, late), taken},
		{"another time and the same hash", line("", "Maria", importHash, early), line("", "maria", importHash, late),
			taken},
		{"a time where there was none", line("", "maria", importHash, ""), line("", "maria", importHash, late), there},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, how := range []string{"in one file", "in two", "after a password change", "after a rehearsal"} {
				eachNamed(t, how, func(t *testing.T, env *testEnv) {
					var got importing
					switch how {
					case "in one file":
						got = env.importText(t, test.first+test.second, "native")
					default:
						if how == "after a rehearsal" {
							dry := env.rehearse(t, test.first+test.second)
							if dry.Imported != 1 || dry.Refused != map[string]int64{there: 0, taken: 1}[test.want] {
								t.Errorf("rehearsed: %+v %s", dry.ImportReport, dry.codes())
							}
						}
						env.importText(t, test.first, "native").expect(t, 1, 0, 0)
						if how == "after a password change" {
							u, err := env.FindUser(t.Context(), "maria")
							testenv.Must(t, err)
							testenv.Must(t, env.SetPassword(t.Context(), u.ID, "another quite good password"))
						}
						if dry := env.rehearse(t, test.second); dry.Present+dry.Refused != 1 ||
							dry.Refused != map[string]int64{there: 0, taken: 1}[test.want] {
							t.Errorf("rehearsed: %+v %s", dry.ImportReport, dry.codes())
						}
						got = env.importText(t, test.second, "native")
					}
					if test.want == there && (got.Present != 1 || got.Refused != 0) || test.want == taken &&
						(got.Refused != 1 || got.refused[0].Code != "username_taken") {
						t.Errorf("%s: %d imported, %d exist, refused %s; want %s", how, got.Imported, got.Present,
							got.codes(), test.want)
					}
				})
			}
		})
	}
}

// eachNamed runs dbtestEach as a subtest, for tests that have several.
func eachNamed(t *testing.T, name string, test func(t *testing.T, env *testEnv)) {
	t.Helper()
	t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) { t.Parallel(); dbtestEach(t, test) })
}

func (env *testEnv) rehearse(t testing.TB, text string) importing {
	t.Helper()
	var i importing
	i.ImportReport, i.err = env.Import(t.Context(), strings.NewReader(text), ImportOptions{
		From: "native", Format: FormatAuto, DryRun: true,
		Refused: func(r Refusal) error { i.refused = append(i.refused, r); return nil },
	})
	if i.err != nil {
		t.Fatalf("rehearse: %v", i.err)
	}
	return i
}

func TestANameThatSomebodyRegisteredHereIsTaken(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		name, _ := env.newUser(t)
		for _, text := range []string{
			line("", strings.ToUpper(name), importHash, ""), line("", name, importHash,
				"2020-01-02T03:04:05Z"), line(uuid.NewString(), name, importHash, ""),
		} {
			got := env.importText(t, text, "native")
			if got.codes() != "1 username_taken" {
				t.Errorf("%s: refused %q", text, got.codes())
			}
			if nothing := strings.Contains(got.refused[0].Detail, "does not show"); nothing != (text == line("",
				strings.ToUpper(name), importHash, "")) {
				t.Errorf("%s: %s", text, got.refused[0].Detail)
			}
		}
	})
}

// Where a system numbers its accounts, the numbers tell people of one name apart; numbers of two
// different systems prove nothing.
func TestNumbersOfASourceTellPeopleApart(t *testing.T) {
	t.Parallel()
	user := func(pk int, name, hash, joined string) string {
		return fmt.Sprintf(`{"model":"auth.user","pk":%d,"fields":{"username":%q,"password":%q,"date_joined":%q,"is_active":true}}`, pk, name, hash, joined)
	}
	const joined = "2020-01-02T03:04:05Z"
	firebase := func(id, hash string) string {
		return `{"users":[{"localId":"` + id + `","email":"maria@example.com","passwordHash":"` + hash + `","salt":"42xEC+ixf3L2lw=="}]}`
	}
	// Of the right length, but nobody's.
	digest := func(first string) string { return first + strings.Repeat("z9", 42) + "w==" }
	for _, test := range []struct {
		name, from, first, second, want string
	}{
		{"another number", "django", user(1, "Maria", importHash, joined), user(2, "maria", importHash, joined),
			"1 username_taken"},
		{"the same number and time, password changed there", "django", user(1, "maria", importHash, joined),
			user(1, "maria", otherHash, joined), ""},
		{"the same number of another system", "django", user(1, "admin", importHash, joined),
			user(1, "admin", otherHash, "2021-01-02T03:04:05Z"), "1 username_taken"},
		{"the same id of Firebase, password changed there", "firebase",
			firebase("Xk2pQ9dD0bTtZq3yYw1hVvNn5mL2", digest("A")), firebase("Xk2pQ9dD0bTtZq3yYw1hVvNn5mL2",
				digest("B")), ""},
		{"another id of Firebase", "firebase", firebase("Xk2pQ9dD0bTtZq3yYw1hVvNn5mL2", digest("A")),
			firebase("Yk2pQ9dD0bTtZq3yYw1hVvNn5mL2", digest("A")), "1 username_taken"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dbtestEach(t, func(t *testing.T, env *testEnv) {
				if got := env.importing(t.Context(), strings.NewReader(test.first), test.from,
					FormatAuto); got.Imported != 1 {
					t.Fatalf("the first: %v, %s", got.err, got.codes())
				}
				if got := env.importing(t.Context(), strings.NewReader(test.second), test.from,
					FormatAuto); got.err != nil || got.codes() != test.want {
					t.Errorf("%v, %d exist, refused %q, want %q", got.err, got.Present, got.codes(), test.want)
				}
			})
		})
	}
}

// The first gets the name, and the other is told: no owner is ever lost.
func TestAnImportRacesWithRegistrations(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		const all = 20
		var text strings.Builder
		for i := range all {
			text.WriteString(line("", fmt.Sprintf("Racer-%02d", i), importHash, ""))
		}
		registered := make([]error, all)
		var group sync.WaitGroup
		for i := range registered {
			group.Go(func() {
				_, registered[i] = env.Register(t.Context(), Credentials{fmt.Sprintf("racer-%02d", i), goodPassword},
					phone())
			})
		}
		var got importing
		group.Go(func() { got = env.importing(t.Context(), strings.NewReader(text.String()), "native", FormatAuto) })
		group.Wait()
		if got.err != nil || got.Present != 0 || got.Imported+got.Refused != all {
			t.Fatalf("%+v, %v", got.ImportReport, got.err)
		}
		taken := make(map[int64]bool)
		for _, r := range got.refused {
			taken[r.Line] = r.Code == "username_taken"
		}
		for i, err := range registered {
			if taken[int64(i+1)] != (err == nil) || err != nil && !errors.Is(err, ErrUsernameTaken) {
				t.Errorf("racer %d: register returns %v; the import says that the name is taken: %v", i, err,
					taken[int64(i+1)])
			}
		}
		env.countEvents(t, all)
	})
}

func TestTheOriginGoesWithTheAccount(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		text := line("", "maria", importHash, "")
		env.importText(t, text, "native").expect(t, 1, 0, 0)
		u, err := env.FindUser(t.Context(), "maria")
		testenv.Must(t, err)
		testenv.Must(t, env.DeleteUser(t.Context(), u.ID))
		var left int
		if err := env.db.QueryRowContext(t.Context(), "SELECT count(*) FROM user_origin").Scan(&left); err != nil ||
			left != 0 {
			t.Errorf("%d origins of a deleted account remain (%v)", left, err)
		}
		env.importText(t, text, "native").expect(t, 1, 0, 0)
	})
}

func TestWhatProtectedAnAccountIsCountedAndKept(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		file, from string
		lost       map[string]int64
		disabled   int64
		kept       map[string]string // not_carried_over of each row, by canonical name
	}{
		{"keycloak-realms.json", "keycloak",
			map[string]int64{"required_action:UPDATE_PASSWORD": 1, "required_action:VERIFY_EMAIL": 1,
				"required_action:CONFIGURE_TOTP": 1, "otp": 1, "webauthn": 1, "unconfirmed_address": 1}, 1,
			map[string]string{"kc26.factors": "otp,webauthn", "kc26.must-change": "required_action:UPDATE_PASSWORD",
				"kc26.default": ""}},
		{"zitadel.json", "zitadel", map[string]int64{"otp": 1, "unconfirmed_address": 1}, 0,
			map[string]string{"zitadel.otp": "otp"}},
		{"django-custom.json", "django", map[string]int64{"otp": 1}, 1, nil},
		{"firebase-factors.json", "firebase", map[string]int64{"second_factor": 1, "unconfirmed_address": 1}, 1,
			map[string]string{"mfa@example.com": "second_factor,unconfirmed_address"}},
		{"auth0-factors.ndjson", "auth0", map[string]int64{"second_factor": 2, "unconfirmed_address": 1}, 1, nil},
		{"supabase-factors.csv", "supabase", map[string]int64{"otp": 1, "unconfirmed_address": 1}, 0,
			map[string]string{"otp@example.com": "otp"}},
	} {
		t.Run(test.file, func(t *testing.T) {
			t.Parallel()
			dbtestEach(t, func(t *testing.T, env *testEnv) {
				got := env.importFile(t, test.file, test.from)
				if !maps.Equal(got.Lost, test.lost) || got.Disabled != test.disabled {
					t.Errorf("not carried over %v, %d disabled; want %v, %d", got.Lost, got.Disabled, test.lost,
						test.disabled)
				}
				for name, want := range test.kept {
					var kept string
					err := env.db.QueryRowContext(t.Context(),
						`SELECT not_carried_over FROM user_origin JOIN users ON users.id = user_id
						WHERE username_canonical = ?`, name).Scan(&kept)
					if err != nil || kept != want {
						t.Errorf("%s: recorded %q (%v), want %q", name, kept, err, want)
					}
				}
			})
		})
	}
}

func TestAnUnconfirmedAddressAsANameIsTakenDisabledOrSkipped(t *testing.T) {
	t.Parallel()
	text := `{"username":"Un@example.com","email":"un@example.com","email_verified":false,"password_hash":"` + importHash + `"}
{"username":"known@example.com","email":"known@example.com","email_verified":true,"password_hash":"` + importHash + `"}
{"username":"silent@example.com","email":"silent@example.com","password_hash":"` + importHash + `"}
{"username":"named","email":"named@example.com","email_verified":false,"password_hash":"` + importHash + `"}
`
	for choice, want := range map[string]string{
		"": "4 imported, 0 disabled, refused ", UnconfirmedTake: "4 imported, 0 disabled, refused ",
		UnconfirmedDisable: "4 imported, 1 disabled, refused ",
		UnconfirmedSkip:    "3 imported, 0 disabled, refused 1 unconfirmed_address",
	} {
		eachNamed(t, "choice "+choice, func(t *testing.T, env *testEnv) {
			for _, dry := range []bool{true, false} {
				var i importing
				i.ImportReport, i.err = env.Import(t.Context(), strings.NewReader(text), ImportOptions{
					From: "native", Unconfirmed: choice, DryRun: dry,
					Refused: func(r Refusal) error { i.refused = append(i.refused, r); return nil },
				})
				if got := fmt.Sprintf("%d imported, %d disabled, refused %s", i.Imported, i.Disabled,
					i.codes()); i.err != nil || got != want {
					t.Errorf("%q: %s, %v; want %s", choice, got, i.err, want)
				}
			}
			confirmed := make(map[string]string)
			rows, err := env.db.QueryContext(t.Context(), "SELECT address, address_confirmed FROM user_origin")
			testenv.Must(t, err)
			defer rows.Close()
			for rows.Next() {
				var address string
				var is *bool
				testenv.Must(t, rows.Scan(&address, &is))
				confirmed[address] = "unknown"
				if is != nil {
					confirmed[address] = fmt.Sprint(*is)
				}
			}
			testenv.Must(t, rows.Err())
			if confirmed["known@example.com"] != "true" || confirmed["named@example.com"] != "false" ||
				confirmed["silent@example.com"] != "unknown" {
				t.Errorf("recorded of the addresses: %v", confirmed)
			}
			if choice != UnconfirmedDisable {
				return
			}
			if _, err := env.Login(t.Context(), Credentials{"un@example.com", goodPassword},
				phone()); !errors.Is(err, ErrAccountDisabled) {
				t.Errorf("the unconfirmed one signs in: %v", err)
			}
		})
	}
}

func TestAConfirmedAddressSurvivesAnExport(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		env.importText(t, `{"username":"maria","email":"m@example.com","email_verified":true,"password_hash":"`+
			importHash+`"}`, "native").expect(t, 1, 0, 0)
		for _, format := range []string{FormatNDJSON, FormatCSV} {
			var file, again bytes.Buffer
			if _, err := env.Export(t.Context(), &file,
				ExportOptions{Format: format, PasswordHashes: true}); err != nil {
				t.Fatal(err)
			}
			to := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
			to.importText(t, file.String(), "native").expect(t, 1, 0, 0)
			if _, err := to.Export(t.Context(), &again,
				ExportOptions{Format: format, PasswordHashes: true}); err != nil {
				t.Fatal(err)
			}
			if again.String() != file.String() || !strings.Contains(file.String(), "m@example.com") {
				t.Errorf("exported again:\n%s\nwas\n%s", again.String(), file.String())
			}
		}
	})
}

// What a real PostgreSQL writes for missing values, with the usual words for them, and what MySQL
// writes.
func TestWordsForNoValueAreNone(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	if _, err := db.Write(t.Context(),
		`CREATE TABLE foreign_user (id uuid, email text, phone text, encrypted_password text, created_at timestamptz,
		banned_until timestamptz, deleted_at timestamptz, email_confirmed_at timestamptz, phone_confirmed_at timestamptz)`); err != nil {
		t.Fatal(err)
	}
	for _, row := range [][]any{
		{uuid.New(), "first@example.com", nil, importHash}, {uuid.New(), nil, "15550100", importHash}, {uuid.New(),
			nil, nil, importHash},
		{nil, "NULL", nil, importHash}, {nil, "without-password@example.com", nil, nil},
	} {
		if _, err := db.Write(t.Context(),
			"INSERT INTO foreign_user (id, email, phone, encrypted_password) VALUES (?, ?, ?, ?)", row...); err != nil {
			t.Fatal(err)
		}
	}
	for i, copyOption := range []string{"", ", NULL 'NULL'", `, NULL '\N'`, ", NULL 'null'", ", NULL '(null)'",
		", NULL 'NULL', DELIMITER ';'", `, NULL '\N', DELIMITER E'\t'`} {
		var file bytes.Buffer
		err := db.Postgres(t.Context(), func(conn *pgx.Conn) error {
			_, err := conn.PgConn().CopyTo(t.Context(), &file, "COPY foreign_user TO STDOUT (FORMAT csv, HEADER"+
				copyOption+")")
			return err
		})
		testenv.Must(t, err)
		eachNamed(t, fmt.Sprint("option ", i), func(t *testing.T, env *testEnv) {
			got := env.importText(t, file.String(), "supabase")
			// PostgreSQL quotes a text that equals the word for no value, so a person can have that
			// name. Without quotes nobody can tell, and the line is refused.
			want, imported := "4 no_username; 5 no_username; 6 no_password", int64(2)
			if strings.Contains(copyOption, "'NULL'") {
				want, imported = "4 no_username; 6 no_password", 3
			}
			if got.Imported != imported || got.Disabled != 0 || got.codes() != want {
				t.Errorf("COPY%s: %d imported, refused %s of\n%s", copyOption, got.Imported, got.codes(), file.String())
			}
			for _, name := range []string{"first@example.com", "15550100"} {
				if _, err := env.FindUser(t.Context(), name); err != nil {
					t.Errorf("COPY%s: %s: %v", copyOption, name, err)
				}
			}
		})
	}
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	got := env.importText(t, "id\tusername\tpassword\temail\tis_active\tdate_joined\n"+
		"1\tfirst\t"+importHash+"\tNULL\t1\tNULL\n2\tNULL\t"+importHash+"\tsecond@example.com\tNULL\t0000-00-00 00:00:00\n"+
		`\N`+"\t"+`\N`+"\t"+importHash+"\t"+`\N`+"\t1\t"+`\N`+"\n4\tfourth\t"+importHash+"\t\"half\t0\t2020-01-02 03:04:05\n", "django")
	if got.Imported != 3 || got.Disabled != 1 || got.codes() != "4 no_username" {
		t.Errorf("mysql --batch: %+v, refused %s", got.ImportReport, got.codes())
	}
	got = env.importText(t, "username,password_hash,id,status,created_at,email,email_verified\n"+
		"\"NULL\","+importHash+",NULL,NULL,NULL,NULL,NULL\nnull,"+importHash+",,,,,\n", "native")
	if got.Imported != 1 || got.codes() != "3 no_username" {
		t.Errorf("native: %+v, refused %s", got.ImportReport, got.codes())
	}
}

func TestANameThatIsAWordForNoValueSurvivesAnExport(t *testing.T) {
	t.Parallel()
	from := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	from.importText(t, line("", "NULL", importHash, "")+line("", "o|neill", importHash, "")+
		line("", "plain", importHash, ""), "native")
	u, err := from.FindUser(t.Context(), "null")
	testenv.Must(t, err)
	for _, format := range []string{FormatNDJSON, FormatCSV} {
		var file bytes.Buffer
		n, err := from.Export(t.Context(), &file, ExportOptions{Format: format, PasswordHashes: true})
		testenv.Must(t, err)
		to := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
		to.importText(t, file.String(), "native").expect(t, n, 0, 0)
		if same, err := to.FindUser(t.Context(), "null"); err != nil || same.ID != u.ID {
			t.Errorf("%s: %v, %v", format, same, err)
		}
		rows, err := csv.NewReader(&file).ReadAll()
		if format == FormatCSV && (err != nil || len(rows) != int(n)+1) {
			t.Errorf("%d rows, %v", len(rows), err)
		}
	}
}

func TestTheTimesOfARecordAreKept(t *testing.T) {
	t.Parallel()
	want := time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		env.importText(t, `{"username":"seconds","created_at":1614834367,"password_hash":"`+importHash+`"}
{"username":"milliseconds","created_at":"1614834367000","password_hash":"`+importHash+`"}
{"username":"postgres","created_at":"2021-03-04 05:06:07+00","password_changed_at":null,"password_hash":"`+importHash+`"}
`, "native").expect(t, 3, 0, 0)
		for _, name := range []string{"seconds", "milliseconds", "postgres"} {
			if u, err := env.FindUser(t.Context(), name); err != nil || !u.CreatedAt.Equal(want) {
				t.Errorf("%s: %v, %v", name, u.CreatedAt, err)
			}
		}
	})
}

func TestARehearsalReportsEverythingAndWritesNothing(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		env.importText(t, line("", "there", importHash, ""), "native").expect(t, 1, 0, 0)
		text := line("", "there", importHash, "") + line("", "There", otherHash, "") + line("", "twice", importHash,
			"") + line("", "Twice", otherHash, "") +
			line("", "twice", importHash, "") + "{}\n" + line("", "new", importHash, "")
		dry := env.rehearse(t, text)
		if again := env.rehearse(t, text); dry.Imported != 2 || dry.Present != 2 ||
			dry.codes() != "2 username_taken; 4 username_taken; 6 no_username" ||
			again.Imported != dry.Imported || again.codes() != dry.codes() {
			t.Errorf("%+v, refused %s", dry.ImportReport, dry.codes())
		}
		env.countEvents(t, 1)
		real := env.importText(t, text, "native")
		if real.Imported != dry.Imported || real.Present != dry.Present || real.codes() != dry.codes() ||
			!maps.Equal(real.Schemes, dry.Schemes) {
			t.Errorf("rehearsed %+v %s, done %+v %s", dry.ImportReport, dry.codes(), real.ImportReport, real.codes())
		}
		env.countEvents(t, 3)
	})
}

func TestOnePasswordIsCheckedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	good, err := os.ReadFile("internal/userfile/testdata/firebase-hash.txt")
	testenv.Must(t, err)
	users, err := os.ReadFile("internal/userfile/testdata/firebase.json")
	testenv.Must(t, err)
	// The key of another project has the right form, but fails for everybody.
	wrong := strings.Replace(string(good), "jxspr8Ki0RYycVU8zykbdLGj", "kxspr8Ki0RYycVU8zykbdLGj", 1)
	for _, test := range []struct{ name, parameters, account, password, want string }{
		{"right", string(good), "Firebase@example.com", "user1password", ""},
		{"a wrong password", string(good), "firebase@example.com", "user2password", "is not that of"},
		{"a wrong signer key", wrong, "firebase@example.com", "user1password", "is not that of"},
		{"nobody", string(good), "nobody@example.com", "user1password", "has no account"},
		{"no password", string(good), "google@example.com", "user1password", "no_password"},
		{"no name", string(good), "", "user1password", "username"},
	} {
		hash, err := ParseFirebaseHash(test.parameters)
		testenv.Must(t, err)
		err = env.CheckImport(t.Context(), bytes.NewReader(users), ImportOptions{From: "firebase", Firebase: hash},
			test.account, test.password)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	// Several people whose names are one here: the name has the password of each.
	text := line("", "Maria", importHash, "") + "nonsense\n" + line("", "maria",
		"$2b$04$iPK9tlcf2K/EOVt6YjSEVeveAGQzQqemW1TrjMptKKQgVbIARQ2iO", "")
	if err := env.CheckImport(t.Context(), strings.NewReader(text), ImportOptions{From: "native"}, "MARIA",
		goodPassword); err != nil {
		t.Error(err)
	}
	if n, err := env.Export(t.Context(), &bytes.Buffer{}, ExportOptions{Format: FormatNDJSON}); n != 0 || err != nil {
		t.Errorf("%d accounts were written (%v)", n, err)
	}
}

func TestHashParametersOfFirebaseThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile("internal/userfile/testdata/firebase-hash.txt")
	testenv.Must(t, err)
	for name, text := range map[string]string{
		"a key cut short": strings.Replace(string(good), "CKbm0QsEmYUSDzZvpjeJ9WmXA==", "CKbm0QsEmYUSDzZvpjeJ9Wk=", 1),
		"key and separator exchanged": strings.Replace(strings.Replace(string(good), "base64_signer_key", "x", 1),
			"base64_salt_separator: Bw==", "base64_signer_key: Bw==", 1),
		"no separator": strings.Replace(string(good), "Bw==", "", 1),
	} {
		if _, err := ParseFirebaseHash(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	// A hash with another length than the key was made with another key.
	got := env.importText(t, `{"users":[{"localId":"x","email":"a@example.com","passwordHash":"`+
		strings.Repeat("z9", 20)+`","salt":"42xEC+ixf3L2lw=="},
		{"localId":"y","email":"b@example.com","passwordHash":"fakeHash:salt=fakeSalt:password=secret","salt":"fakeSalt"}]}`, "firebase")
	if got.codes() != "1 hash_refused; 2 hash_refused" || !strings.Contains(got.refused[0].Detail, "signer key") ||
		!strings.Contains(got.refused[1].Detail, "emulator") {
		t.Errorf("%v", got.refused)
	}
}

func TestAnImportThatIsToldTheWrongSourceSaysTheRightOne(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	files := map[string]string{
		"native.ndjson": "native", "keycloak.json": "keycloak", "keycloak-realms.json": "keycloak",
		"django.json": "django", "django-custom.json": "django",
		"auth0.ndjson": "auth0", "firebase.json": "firebase", "zitadel.json": "zitadel", "firebase.csv": "firebase",
		"django.csv": "django", "supabase.csv": "supabase",
	}
	for file, is := range files {
		text, err := os.ReadFile(filepath.Join("internal/userfile/testdata", file))
		testenv.Must(t, err)
		for _, from := range ImportSources() {
			if from == is {
				continue
			}
			got := env.importing(t.Context(), bytes.NewReader(text), from, FormatAuto)
			said := got.Hint
			if got.err != nil {
				said = got.err.Error()
			}
			noSuchForm := strings.Contains(said, "writes no CSV") || strings.Contains(said, "lacks the column") ||
				strings.Contains(said, "without a heading")
			if !strings.Contains(said, "--from "+is) && !noSuchForm || got.Imported > 0 {
				t.Errorf("%s as %s: %d imported, %q", file, from, got.Imported, said)
			}
		}
	}
}

func TestAnImportOfSomethingElseStopsAfterTwentyRecords(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	user := func(i int) string {
		return fmt.Sprintf(`{"_id":{"$oid":"5dea9f9c82dd7c0e76e4%04d"},"email":"u%d@example.com","passwordHash":%q,"tenant":"t"}`+"\n", i, i, importHash)
	}
	var text strings.Builder
	for i := range 3000 {
		text.WriteString(user(i))
	}
	got := env.importing(t.Context(), strings.NewReader(text.String()), "native", FormatAuto)
	if !errors.Is(got.err, ErrOtherSource) || !strings.Contains(got.err.Error(), "--from auth0") ||
		got.Refused != userfile.HintAfter || len(got.refused) != userfile.HintAfter {
		t.Errorf("%v, %d refused", got.err, got.Refused)
	}
	// Bad records from the right source never stop an import.
	text.Reset()
	for i := range 3 * userfile.HintAfter {
		fmt.Fprintf(&text, `{"id":%q,"username":"x","password_hash":%q}`+"\n", uuid.NewString(), importHash)
		fmt.Fprintf(&text, "nonsense %d\n", i)
	}
	text.WriteString(line("", "after-all", importHash, ""))
	got = env.importText(t, text.String(), "native")
	if got.Imported != 1 || got.Refused != 6*userfile.HintAfter {
		t.Errorf("%+v", got.ImportReport)
	}
}

func TestACSVSaysWhatItLacks(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	for _, test := range []struct{ text, from, want, not string }{
		{"username,hash\na,b\n", "native", `lacks the column "password_hash"; it has username, hash`, "run it again"},
		{"ID,user_login,user_pass\n1,a,b\n", "native", "wp_users of WordPress", ""},
		{"alice," + importHash + "\n", "native", "begins without a heading", importHash},
		{"alice@example.com,x\n", "native", "begins without a heading", "alice"},
		{"id;first;second\n", "django", `lacks the column "username or email"; it has id, first, second`, ""},
		{"id,username,encrypted_password,email\n", "native", "--from supabase", ""},
	} {
		got := env.importing(t.Context(), strings.NewReader(test.text), test.from, FormatCSV)
		if got.err == nil || !strings.Contains(got.err.Error(), test.want) || test.not != "" &&
			strings.Contains(got.err.Error(), test.not) {
			t.Errorf("%q: %v, want %q", test.text, got.err, test.want)
		}
	}
	for _, separated := range []string{"username;password_hash;id\nsemi;" + importHash + ";\n",
		"username\tpassword_hash\ntab\t" + importHash + "\n",
		"sep=;\nusername;password_hash\nexcel;" + importHash + "\n",
		"username|password_hash\npipe|" + importHash + "\n"} {
		if got := env.importing(t.Context(), strings.NewReader(separated), "native", FormatAuto); got.err != nil ||
			got.Imported != 1 {
			t.Errorf("%q: %v, %s", separated, got.err, got.codes())
		}
	}
	for _, name := range []string{"n", "perhaps"} {
		text := "username,password,is_active\nactive-" + name + "," + importHash + "," + name + "\n"
		got := env.importText(t, text, "django")
		if (name == "n") != (got.Disabled == 1) || name == "perhaps" && got.codes() != "2 invalid_status" {
			t.Errorf("is_active %s: %+v, %s", name, got.ImportReport, got.codes())
		}
	}
}

func TestADocumentOfOneObjectInManyLinesIsRead(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	pretty := "{\n  \"username\": \"pretty\",\n  \"password_hash\": \"" + importHash + "\"\n}\n"
	env.importText(t, pretty, "native").expect(t, 1, 0, 0)
	env.importText(t, `{"users":[`+line("", "wrapped", importHash, "")+`]}`, "native").expect(t, 1, 0, 0)
	env.importText(t, "{\n\"users\":["+line("", "wrapped-too", importHash, "")+`]}`, "native").expect(t, 1, 0, 0)
}

// The records of a realm of any size are found, and realms without users are skipped.
func TestARealmWithoutUsersIsNoUser(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	big := `{"id":"r","realm":"empty","clients":["` + strings.Repeat("x", 2*userfile.MaxRecord) + `"]}`
	user := `{"username":"kc.one","enabled":true,"credentials":[{"type":"password","secretData":"{\"value\":\"` + importHash + `\",\"salt\":\"\"}","credentialData":"{\"hashIterations\":4,\"algorithm\":\"bcrypt\"}"}]}`
	got := env.importText(t, `[`+big+`,{"realm":"small"},{"realm":"shop","users":[`+user+
		`],"clients":[{"users":[{}]}]},{"realm":"none","users":[]}]`, "keycloak")
	got.expect(t, 1, 0, 0)
}
