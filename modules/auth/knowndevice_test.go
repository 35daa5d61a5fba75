package auth

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// collect signs in n times and returns the tokens that the devices got.
func (s *siege) collect(t *testing.T, name, password string, n int) (hoard []string) {
	t.Helper()
	for i := range n {
		tokens, err := s.Login(t.Context(), Credentials{name, password}, Device{IP: bot(i)})
		testenv.Must(t, err)
		hoard = append(hoard, tokens.DeviceToken)
	}
	return hoard
}

// spend guesses five times with each token, from the address where it was collected, and returns
// how many guesses were compared.
func (s *siege) spend(t *testing.T, name string, hoard []string) (compared int) {
	t.Helper()
	for i, token := range hoard {
		for range 5 {
			_, err := s.Login(t.Context(), Credentials{name, "not the password"}, Device{IP: bot(i), Token: token})
			switch {
			case errors.Is(err, ErrInvalidCredentials):
				compared++
			case !errors.Is(err, ErrTooManyAttempts):
				t.Fatal(err)
			}
		}
	}
	return compared
}

func TestAHoardOfDeviceTokensHasTheGuessesOfOneAccount(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		v := s.newVictim(t)
		hoard := s.collect(t, v.name, goodPassword, 60)
		// Twenty from known devices and addresses, and twenty from strangers before a delay of an
		// hour.
		s.between(t, "guesses with 60 tokens", s.spend(t, v.name, hoard), 30, 40)
	})
}

func TestAChangedPasswordMakesKnownDevicesStrangers(t *testing.T) {
	t.Parallel()
	const changed = "another quite good password"
	underSiege(t, func(t *testing.T, s *siege) {
		v := s.newVictim(t)
		hoard := s.collect(t, v.name, goodPassword, 30)
		tokens, err := s.Login(t.Context(), Credentials{v.name, goodPassword}, Device{IP: v.home})
		testenv.Must(t, err)
		tokens, err = s.ChangePassword(t.Context(), s.caller(t, tokens), goodPassword, changed, Device{IP: v.home})
		if err != nil || tokens.DeviceToken == "" {
			t.Fatalf("the device that changed the password has the mark %q, %v", tokens.DeviceToken, err)
		}
		s.between(t, "guesses with what was known under the former password", s.spend(t, v.name, hoard), 15, 20)
		// Strangers are locked out now, but the device that changed the password is not a stranger.
		for _, dev := range []Device{{IP: bot(1 << 20), Token: tokens.DeviceToken}, {IP: v.home}} {
			if _, err := s.Login(t.Context(), Credentials{v.name, changed}, dev); err != nil {
				t.Errorf("the owner: %v", err)
			}
		}
		testenv.Must(t, s.SetPassword(t.Context(), v.id, goodPassword))
		if _, err := s.Login(t.Context(), Credentials{v.name, goodPassword},
			Device{IP: v.home}); !errors.Is(err, ErrTooManyAttempts) {
			t.Errorf("an address known under the former password: %v", err)
		}
	})
}

func TestANameThatWasGivenUpTakesNothingAlong(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		former := s.newVictim(t)
		hoard := s.collect(t, former.name, goodPassword, 30)
		testenv.Must(t, s.DeleteUser(t.Context(), former.id))
		tokens, err := s.Register(t.Context(), Credentials{former.name, goodPassword}, Device{IP: bot(1 << 20)})
		testenv.Must(t, err)
		s.between(t, "guesses with what was known to the former owner", s.spend(t, former.name, hoard), 15, 20)
		if _, err := s.Login(t.Context(), Credentials{former.name, goodPassword},
			Device{IP: bot(1 << 21), Token: tokens.DeviceToken}); err != nil {
			t.Errorf("the present owner's device: %v", err)
		}
	})
}

// An attacker with many sessions of an account gets no more guesses at its password than anybody.
func TestManySessionsHaveTheGuessesOfOneAccount(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		v := s.newVictim(t)
		var callers []Caller
		for i := range 30 {
			tokens, err := s.Login(t.Context(), Credentials{v.name, goodPassword}, Device{IP: bot(i)})
			testenv.Must(t, err)
			callers = append(callers, s.caller(t, tokens))
		}
		compared := 0
		for i, caller := range callers {
			for range 10 {
				_, err := s.ChangePassword(t.Context(), caller, "not the password", "another quite good password",
					Device{IP: bot(1000 + i)})
				switch {
				case errors.Is(err, ErrWrongPassword):
					compared++
				case !errors.Is(err, ErrTooManyAttempts):
					t.Fatal(err)
				}
			}
		}
		s.between(t, "guesses in 30 sessions", compared, 30, 40)
	})
}

// knownDevices returns known_device of each UserLoggedIn event of an account, in order.
func knownDevices(t *testing.T, env *testEnv, user string) (known []bool) {
	t.Helper()
	rows, err := env.db.QueryContext(t.Context(),
		"SELECT data FROM outbox_event WHERE type = ? AND key = ? ORDER BY id", EventUserLoggedIn, user)
	testenv.Must(t, err)
	defer rows.Close()
	for rows.Next() {
		var text string
		testenv.Must(t, rows.Scan(&text))
		var data struct {
			Known *bool `json:"known_device"`
		}
		if err := json.Unmarshal([]byte(text), &data); err != nil || data.Known == nil {
			t.Fatalf("%s: %v", text, err)
		}
		known = append(known, *data.Known)
	}
	testenv.Must(t, rows.Err())
	return known
}

// Only the token of an earlier sign-in makes a device known: an address does not, nor a session,
// nor a token of another account, of a former password, or of a former owner of the name.
func TestUserLoggedInSaysWhetherTheDeviceIsKnown(t *testing.T) {
	t.Parallel()
	const changed = "another quite good password"
	throttled := func(enabled bool) func(*Config) {
		return func(c *Config) { c.Throttle.Enabled = enabled }
	}
	for name, configure := range map[string]func(*Config){"throttled": throttled(true),
		"not throttled": throttled(false)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachWith(t, configure, func(t *testing.T, env *testEnv) {
				name, registered := env.newUser(t)
				_, other := env.newUser(t)
				user := env.caller(t, registered).User.ID
				var want []bool
				signIn := func(password, token string, known bool) Tokens {
					t.Helper()
					dev := phone()
					dev.Token = token
					tokens, err := env.Login(t.Context(), Credentials{name, password}, dev)
					testenv.Must(t, err)
					want = append(want, known)
					return tokens
				}
				first := signIn(goodPassword, "", false)
				signIn(goodPassword, "", false) // the same address as before
				signIn(goodPassword, registered.DeviceToken, true)
				signIn(goodPassword, first.DeviceToken, true)
				signIn(goodPassword, other.DeviceToken, false)
				signIn(goodPassword, first.DeviceToken[:len(first.DeviceToken)-1]+"!", false)
				if _, err := env.Refresh(t.Context(), first.RefreshToken, phone()); err != nil { // no sign-in
					t.Fatal(err)
				}

				here := signIn(goodPassword, first.DeviceToken, true)
				here, err := env.ChangePassword(t.Context(), env.caller(t, here), goodPassword, changed, phone())
				testenv.Must(t, err)
				signIn(changed, first.DeviceToken, false)
				signIn(changed, here.DeviceToken, true)
				testenv.Must(t, env.SetPassword(t.Context(), user, goodPassword))
				last := signIn(goodPassword, here.DeviceToken, false)
				signIn(goodPassword, last.DeviceToken, true)
				if got := knownDevices(t, env, user.String()); !slices.Equal(got, want) {
					t.Errorf("known_device is\n%v, want\n%v", got, want)
				}

				testenv.Must(t, env.DeleteUser(t.Context(), user))
				again, err := env.Register(t.Context(), Credentials{name, goodPassword}, phone())
				testenv.Must(t, err)
				want = nil
				signIn(goodPassword, last.DeviceToken, false)
				if got := knownDevices(t, env, env.caller(t, again).User.ID.String()); !slices.Equal(got, want) {
					t.Errorf("the present owner of the name: %v, want %v", got, want)
				}
			})
		})
	}
}
