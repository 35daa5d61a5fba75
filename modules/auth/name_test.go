package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/username"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/testenv"
)

// older makes an account with a name that registering refuses today.
func (env *testEnv) older(t testing.TB, name string) User {
	t.Helper()
	id := newID()
	hash, err := env.passwords.Hash(t.Context(), goodPassword)
	testenv.Must(t, err)
	now := env.timestamp()
	a := account{
		User: User{
			ID:                id,
			Username:          name,
			Status:            StatusActive,
			CreatedAt:         now,
			UpdatedAt:         now,
			PasswordChangedAt: now,
		},
		canonical: strings.ToLower(name), passwordHash: hash,
	}
	testenv.Must(t, env.addAccount(t.Context(), a, uuid.NullUUID{}, NewContact{}))
	return a.User
}

// usernameProblem returns the code of the problem with the username.
func usernameProblem(err error) string {
	if f, ok := errors.AsType[*fault.Fault](err); ok && errors.Is(err, ErrValidation) {
		for _, field := range f.Fields {
			if field.Field == "username" {
				return field.Code
			}
		}
	}
	return fmt.Sprint(err)
}

func TestNoAccountGetsANameOfTheFormOfAnID(t *testing.T) {
	t.Parallel()
	eachWith(t, func(cfg *Config) { cfg.UsernameProfile = "unicode" }, func(t *testing.T, env *testEnv) {
		_, tokens := env.newUser(t)
		id := env.caller(t, tokens).User.ID.String()
		bare := strings.ReplaceAll(id, "-", "")
		for _, name := range []string{id, strings.ToUpper(id), bare, "{" + id + "}", "urn:uuid:" + id, "<" + id + ">",
			uuid.NewString(), "０" + bare[1:]} {
			if _, err := env.Register(t.Context(), Credentials{name, goodPassword}, phone()); usernameProblem(
				err,
			) != "looks_like_id" {
				t.Errorf("registering as %s: %v", name, err)
			}
			if _, err := env.CreateUser(t.Context(), Credentials{name, goodPassword}); usernameProblem(
				err,
			) != "looks_like_id" {
				t.Errorf("an account %s: %v", name, err)
			}
			line := fmt.Sprintf(
				`{"username":%q,"password_hash":"$2a$04$abcdefghijklmnopqrstuu5Lo0g67CiD3M4RpN1BmBb4Crp5w7dbK"}`,
				name,
			)
			if i := env.importText(t, line, "native"); i.codes() != "1 username_looks_like_id" {
				t.Errorf("importing %s: %s", name, i.codes())
			}
		}
	})
}

func TestAWordThatFitsTwoAccountsFindsNeither(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		name, tokens := env.newUser(t)
		alice := env.caller(t, tokens).User
		bob := env.older(t, strings.ToUpper(alice.ID.String())) // as an older release allowed
		bare := env.older(t, strings.ReplaceAll(alice.ID.String(), "-", ""))

		for _, word := range []string{alice.ID.String(), bob.Username, " " + bare.Username} {
			u, err := env.FindUser(t.Context(), word)
			two, ok := errors.AsType[*AmbiguousUser](err)
			if !ok || two.ByID.ID != alice.ID || two.ByName.ID != bob.ID && two.ByName.ID != bare.ID ||
				u.ID != uuid.Nil {
				t.Errorf("%s: %+v, %v", word, u, err)
			}
		}
		for word, want := range map[string]User{
			name: alice, strings.ToUpper(name) + "\u00a0": alice, "{" + alice.ID.String() + "}": alice,
			"urn:uuid:" + alice.ID.String(): alice,
			bob.ID.String():                 bob, bare.ID.String(): bare,
		} {
			if u, err := env.FindUser(t.Context(), word); err != nil || u.ID != want.ID {
				t.Errorf("%s: %+v, %v", word, u, err)
			}
		}
		for _, word := range []string{"<" + alice.ID.String() + ">", "x" + alice.ID.String() + "y", uuid.NewString(),
			"nobody", ""} {
			if u, err := env.FindUser(t.Context(), word); !errors.Is(err, ErrUserNotFound) {
				t.Errorf("%q: %+v, %v", word, u, err)
			}
		}
		if u, err := env.FindUserByID(t.Context(), alice.ID); err != nil || u.ID != alice.ID {
			t.Errorf("by id: %+v, %v", u, err)
		}
		if u, err := env.FindUserByName(t.Context(), alice.ID.String()); err != nil || u.ID != bob.ID {
			t.Errorf("by name: %+v, %v", u, err)
		}

		// The name keeps working for its owner, and belongs to nobody once the owner is deleted.
		env.signIn(t, bob.Username)
		if _, _, err := env.SignInState(t.Context(), bob); err != nil {
			t.Error(err)
		}
		testenv.Must(t, env.DeleteUser(t.Context(), bob.ID))
		if u, err := env.FindUser(t.Context(), alice.ID.String()); err != nil || u.ID != alice.ID {
			t.Errorf("after the other account was deleted: %+v, %v", u, err)
		}
	})
}

func TestSignInIgnoresWhatSurroundsAName(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		v := s.newVictim(t)
		for _, typed := range []string{v.name + " ", "\t" + v.name, v.name + "\r\n", "\u00a0" + v.name + "\u200b",
			"\ufeff" + v.name, "\u202a" + strings.ToUpper(v.name) + "\u202c"} {
			if _, err := s.Login(t.Context(), Credentials{typed, goodPassword}, Device{IP: v.home}); err != nil {
				t.Errorf("signing in as %q: %v", typed, err)
			}
		}
		// Failures count against the account, however the name was typed.
		for i, typed := range []string{v.name, v.name + " ", " " + v.name, v.name + "\u00a0"} {
			s.guess(t, typed, bot(1))
			if failures, _, err := s.SignInState(t.Context(), User{ID: v.id, Username: v.name}); err != nil ||
				failures != i+1 {
				t.Errorf("after %d guesses, %d count: %v", i+1, failures, err)
			}
		}
	})
}

func TestRegisterNamesWhatSurroundsAName(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		_, err := env.Register(t.Context(), Credentials{"alice\u00a0", goodPassword}, phone())
		f, _ := errors.AsType[*fault.Fault](err)
		if f == nil || len(f.Fields) != 1 || f.Fields[0].Code != "invalid_characters" ||
			!strings.Contains(f.Fields[0].Detail, "ends with U+00A0 NO-BREAK SPACE") {
			t.Errorf("got %+v", err)
		}
	})
}

// Characters of a name arrive unchanged in the database, the events and the answers, whatever they
// mean to SQL, JSON or CSV.
func TestNamesArriveAsTheyWereTyped(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		run := strings.ReplaceAll(uuid.NewString(), "-", "")
		long := strings.Repeat("a", 255-len(run)) + run
		for _, name := range []string{
			run[:3], long, // both ends of the length
			"O'Neill+" + run + "@Example.com", "!#$%&'*+-/=?^_`{|}~" + run + "@example.com",
			"?0?" + run + "{1}@x.example",
			"=1+1" + run + "@x.example", "-x" + run, "--yes" + run, "'--" + run + "@x.example",
		} {
			tokens, err := env.Register(t.Context(), Credentials{name, goodPassword}, phone())
			if err != nil {
				t.Errorf("registering as %s: %v", name, err)
				continue
			}
			user := env.caller(t, tokens).User
			if user.Username != name {
				t.Errorf("%s became %s", name, user.Username)
			}
			env.signIn(t, strings.ToUpper(name))
			if found, err := env.FindUser(t.Context(), name); err != nil || found.ID != user.ID {
				t.Errorf("%s is found as %+v, %v", name, found, err)
			}
			if list := env.events(t, user.ID); len(list) == 0 || list[0].Data["username"] != name {
				t.Errorf("%s was announced as %v", name, list)
			}
		}
		for name, code := range map[string]string{run[:2]: "too_short", long + "a": "too_long"} {
			if _, err := env.Register(t.Context(), Credentials{name, goodPassword}, phone()); usernameProblem(
				err,
			) != code {
				t.Errorf("registering as %s: %v", name, err)
			}
		}
		var names []string
		testenv.Must(t, env.Users(t.Context(),
			func(u User) error { names = append(names, u.Username); return nil }))
		if !slices.Contains(names, "O'Neill+"+run+"@Example.com") {
			t.Errorf("the list has %q", names)
		}
	})
}

// Names that differ in width or case are one name, in every profile.
func TestOneNameIsOneAccountInEveryProfile(t *testing.T) {
	t.Parallel()
	for _, profile := range []username.Profile{"ascii", "unicode"} {
		t.Run(string(profile), func(t *testing.T) {
			eachWith(t, func(cfg *Config) { cfg.UsernameProfile = profile }, func(t *testing.T, env *testEnv) {
				env.signInAs(t, "wide", "ｗｉｄｅ", "ＷＩＤＥ", "Wide ")
				_, err := env.Register(t.Context(), Credentials{"ＷＩＤＥ", goodPassword}, phone())
				want := map[username.Profile]string{"ascii": "invalid_characters",
					"unicode": fmt.Sprint(error(ErrUsernameTaken))}[profile]
				if usernameProblem(err) != want {
					t.Errorf("registering the wide form: %v", err)
				}
			})
		})
	}
	// After a profile was narrowed, existing accounts can still sign in.
	eachWith(t, func(cfg *Config) { cfg.UsernameProfile = "unicode" }, func(t *testing.T, env *testEnv) {
		if _, err := env.Register(t.Context(), Credentials{"josé@example.com", goodPassword}, phone()); err != nil {
			t.Fatal(err)
		}
		env.cfg.UsernameProfile = "ascii"
		env.another(t).signIn(t, "JOSE\u0301@example.com")
	})
}

// signInAs registers the first name and signs in by the others.
func (env *testEnv) signInAs(t testing.TB, name string, others ...string) {
	t.Helper()
	if _, err := env.Register(t.Context(), Credentials{name, goodPassword}, phone()); err != nil {
		t.Fatal(err)
	}
	for _, other := range others {
		env.signIn(t, other)
	}
}

// Where registration is closed, no answer reveals whether a name has an account, and all cost the
// same.
func TestClosedRegistrationTellsNothingOfNames(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		v := s.newVictim(t)
		s.cfg.Registration = "closed"
		closed := newSiege(t, s.cfg, s.db, s.redis)
		before := closed.hashed(t)
		for range 100 { // more than an address may register
			for _, cred := range []Credentials{
				{v.name, goodPassword}, {v.name, "short"}, {"nobody-" + uuid.NewString(), goodPassword}, {"no name!",
					goodPassword}, {"", ""},
			} {
				if _, err := closed.Register(t.Context(), cred,
					Device{IP: bot(1), Name: strings.Repeat("x", 200)}); err != error(
					ErrRegistrationClosed,
				) {
					t.Fatalf("registering as %q: %v", cred.Username, err)
				}
			}
		}
		if n := closed.hashed(t); n != before {
			t.Errorf("%d hashes were computed", n-before)
		}

		// Operators create accounts, and existing users sign in.
		name := "made-" + uuid.NewString()
		if _, err := closed.CreateUser(t.Context(), Credentials{name, goodPassword}); err != nil {
			t.Error(err)
		}
		line := fmt.Sprintf(
			`{"username":%q,"password_hash":"$2a$04$abcdefghijklmnopqrstuu5Lo0g67CiD3M4RpN1BmBb4Crp5w7dbK"}`,
			"imported-"+uuid.NewString(),
		)
		closed.importText(t, line, "native").expect(t, 1, 0, 0)
		v.signsIn(t, closed)
		closed.signIn(t, name)
	})
}
