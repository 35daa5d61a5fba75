package contact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/fault"
)

func TestAddressesHaveOneCanonicalForm(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Alice@Example.COM":       "Alice@example.com alice@example.com",
		"o'neill+x@example.com":   "o'neill+x@example.com o'neill+x@example.com",
		"straße@bücher.example":   "straße@xn--bcher-kva.example strasse@xn--bcher-kva.example",
		"me@localhost":            "me@localhost me@localhost",
		"a@BÜCHER.example":        "a@xn--bcher-kva.example a@xn--bcher-kva.example",
		"a@XN--BCHER-KVA.example": "a@xn--bcher-kva.example a@xn--bcher-kva.example",
		"a@ｅxample。com":           "a@example.com a@example.com",
		"a%b!c@example.com":       "a%b!c@example.com a%b!c@example.com",
		"a?b=c?=@example.com":     "a?b=c?=@example.com a?b=c?=@example.com",
		// a Cyrillic letter, so another mailbox
		"e\u0301@example.com": "é@example.com é@example.com",
		"аlice@example.com":   "аlice@example.com аlice@example.com",
	} {
		address, canonical, err := parseAddress(text)
		if err != nil || address+" "+canonical != want {
			t.Errorf("%s: %s %s, %v", text, address, canonical, err)
		}
		if again, same, err := parseAddress(canonical); err != nil || again != canonical || same != canonical {
			t.Errorf("%s is not its own canonical form: %s %s %v", canonical, again, same, err)
		}
	}
	for _, text := range []string{
		"", "alice", "@example.com", "alice@", `"al ice"@example.com`, "al ice@example.com", "alice@example",
		"alice@-.com", "a\nb@example.com",
		"alice@exa mple.com", "alice@[192.0.2.1]", ".alice@example.com", "al..ice@example.com", "a\x00@example.com",
		"\xff@example.com",
		strings.Repeat("a", 65) + "@example.com", "a@" + strings.Repeat("a.",
			126) + "com", "alice@example.com.", "<alice@example.com>", "a,b@example.com",
		" alice@example.com", "alice@example.com ", "alice@example.com\r\nBcc: eve@example.com",
		"alice\r\nBcc: eve@example.com", "a\\b@example.com",
		"alice(comment)@example.com", "alice@(comment)example.com", "alice@192.0.2.1", "alice@example.123",
		"alice@[IPv6:2001:db8::1]", "a@b@example.com",
		"=?utf-8?q?=61lice?=@example.com", "=?x?q?alice=40example.net=3e=00?=eve@example.com",
		"a\u200bb@example.com", "a\u202eb@example.com", "a\u034fb@example.com", "a\ufe0fb@example.com",
		"\u3164@example.com", "a\u00adb@example.com",
		"alice@exam\u200bple..com", "alice@xn--a.example", "alice@-example.com", "alice@exa_mple.com",
		"alice@example.com\x00", "alice@", "\u0301",
		strings.Repeat("ß", 33) + "@example.com", "a@" + strings.Repeat("ü", 60) + ".example",
	} {
		if _, _, err := parseAddress(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// An accepted address is its own canonical form, fits its columns, and is valid in SMTP.
func FuzzAddress(f *testing.F) {
	for _, text := range []string{"Alice@Example.COM", "straße@bücher.example", "e\u0301@example.com",
		"ᾳ\u0345@example.com", "a%b!c@x.example",
		"ǰ\u0323@example.com", "\u0345\u0301@example.com", "İ@example.com", "a@ｅxample。com", `"a b"@example.com`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		address, canonical, err := parseAddress(text)
		if err != nil {
			return
		}
		again, same, err := parseAddress(canonical)
		if err != nil || again != canonical || same != canonical {
			t.Errorf("%q: %q is not its own canonical form: %q %q %v", text, canonical, again, same, err)
		}
		if _, same, err := parseAddress(address); err != nil || same != canonical {
			t.Errorf("%q: %q has the canonical form %q, %v", text, address, same, err)
		}
		if len(address) > maxAddress || len(canonical) > maxAddress || !utf8.ValidString(address) ||
			strings.ContainsAny(address, " \"<>()[]\\,;:") || strings.ContainsFunc(address, func(r rune) bool {
			return !unicode.IsGraphic(r)
		}) {
			t.Errorf("%q: %q", text, address)
		}
	})
}

// K5: only a challenge or an operator verifies.
func TestAContactIsVerifiedByWhatWasSentToIt(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		caller := env.register(t, "")
		added, id, err := env.Add(ctx, caller.User.ID,
			NewContact{Email: "Alice@Example.com", Language: "de-AT,de;q=0.9,en;q=0.5"}, phone())
		if err != nil || added.Verified() || added.Address != "Alice@example.com" {
			t.Fatalf("%+v, %v", added, err)
		}
		m := env.message(t, PurposeVerify)
		if m.ChallengeID != id || m.Recipient != added.Address || m.Language != "de-AT,de,en" ||
			m.Username != caller.User.Username ||
			m.ExpiresAt.Sub(env.now()) > verifyTTL {
			t.Errorf("%+v", m)
		}
		if _, err := env.Verify(ctx, caller, added.ID, "ABCD-2345", phone()); !errors.Is(err, ErrInvalidCode) {
			t.Errorf("a wrong code: %v", err)
		}
		stranger := env.register(t, "")
		if _, err := env.Verify(ctx, stranger, added.ID, m.Code, phone()); !errors.Is(err, ErrContactNotFound) {
			t.Errorf("another account: %v", err)
		}
		got, err := env.Verify(ctx, caller, added.ID, strings.ToLower(strings.ReplaceAll(m.Code, "-", " ")), phone())
		if err != nil || !got.Verified() {
			t.Fatalf("%+v, %v", got, err)
		}
		if _, err := env.Verify(ctx, caller, added.ID, m.Code, phone()); !errors.Is(err, ErrInvalidCode) {
			t.Errorf("a code worked twice: %v", err)
		}
		if _, err := env.VerifyByProof(ctx, Proof{Token: m.LinkToken}, phone()); !errors.Is(err, ErrInvalidCode) {
			t.Errorf("the link works after the code: %v", err)
		}
		if _, _, err := env.Add(ctx, caller.User.ID, NewContact{Email: "alice@EXAMPLE.com"},
			phone()); !errors.Is(err, ErrContactExists) {
			t.Errorf("added again: %v", err)
		}
		if err := env.Remove(ctx, caller.User.ID, added.ID, phone()); err != nil {
			t.Fatal(err)
		}
		if err := env.Remove(ctx, caller.User.ID, added.ID, phone()); !errors.Is(err, ErrContactNotFound) {
			t.Errorf("removed twice: %v", err)
		}
		if got := env.events(t,
			caller.User.ID); got != "UserRegistered contact.Added contact.Verified contact.Removed" {
			t.Errorf("events: %s", got)
		}
	})
}

// The mail server alone knows whether two ways of writing an address are one mailbox, so a message goes to the
// address as it was written last, and what was sent to the former one no longer verifies.
func TestAnAddressCanBeWrittenAgain(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx, caller := t.Context(), env.register(t, "")
		add := func(email string) (Contact, Message) {
			t.Helper()
			added, id, err := env.Add(ctx, caller.User.ID, NewContact{Email: email}, phone())
			if err != nil {
				t.Fatal(err)
			}
			m := env.message(t, PurposeVerify)
			if added.Address != email || m.Recipient != email || m.ChallengeID != id || m.ContactID != added.ID {
				t.Errorf("%s: added %s, message to %s", email, added.Address, m.Recipient)
			}
			return added, m
		}
		_, former := add("Straße@example.com")
		add("strasse@example.com")
		if _, err := env.VerifyByProof(ctx, Proof{Token: former.LinkToken}, phone()); !errors.Is(err, ErrInvalidCode) {
			t.Errorf("the former way of writing: %v", err)
		}
		last, m := add("Strasse@example.com")
		if got := env.contacts(t, caller.User.ID); got != "Strasse@example.com" {
			t.Errorf("contacts: %s", got)
		}
		if _, err := env.Verify(ctx, caller, last.ID, m.Code, phone()); err != nil {
			t.Fatal(err)
		}
		// Once it is verified, the account has the address.
		if _, _, err := env.Add(ctx, caller.User.ID, NewContact{Email: "straße@example.com"},
			phone()); !errors.Is(err, ErrContactExists) {
			t.Errorf("added again: %v", err)
		}
		if got := env.events(t, caller.User.ID); got != "UserRegistered contact.Added contact.Removed contact.Added "+
			"contact.Removed contact.Added contact.Verified" {
			t.Errorf("events: %s", got)
		}
	})
}

// An operator who verifies or removes an address means one mailbox, and not another that is compared as the same.
func TestAnOperatorNamesOneMailbox(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		caller := env.register(t, "strasse@example.com")
		for email, want := range map[string]error{
			"strasse@example.com": nil, "Strasse@EXAMPLE.com": nil, " strasse@example.com": nil,
			"straße@example.com": ErrContactNotFound, "ſtrasse@example.com": ErrContactNotFound,
			"nobody@example.com": ErrContactNotFound, "strasse": ErrContactNotFound,
		} {
			c, err := env.ContactByEmail(t.Context(), caller.User.ID, email)
			if !errors.Is(err, want) || err == nil && c.Address != "strasse@example.com" {
				t.Errorf("%q: %+v, %v", email, c, err)
			}
		}
	})
}

// What is written in another way and verified by nobody is not in the way of the owner's address.
func TestAnOperatorAddsTheMailboxThatWasMeant(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		caller := env.register(t, "strasse@example.com")
		added, err := env.AddByOperator(ctx, caller.User.ID, "straße@example.com")
		if err != nil {
			t.Fatal(err)
		}
		if got := env.contacts(t, caller.User.ID); got != "straße@example.com" {
			t.Errorf("contacts: %s", got)
		}
		if _, err := env.VerifyByOperator(ctx, caller.User.ID, added.ID, false); err != nil {
			t.Fatal(err)
		}
		for _, email := range []string{"strasse@example.com", "STRASSE@example.com", "Straße@example.com"} {
			_, err := env.AddByOperator(ctx, caller.User.ID, email)
			if !errors.Is(err, ErrContactExists) || !strings.HasSuffix(err.Error(), "already, as straße@example.com") {
				t.Errorf("%s beside the verified one: %v", email, err)
			}
		}
	})
}

func TestLanguagesAreKeptInTheirOrder(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		"": "", "de": "de", "fr,de;q=0.5": "fr,de", "en;q=0.2, de-AT": "de-AT,en", "no such thing!": "",
		"a1,b2":                    "",
		"fr,de,en,es,it,pt,nl":     "fr,de,en,es,it",
		strings.Repeat("fr,", 100): "fr,fr,fr,fr,fr",
		"de,x-" + strings.Repeat("a-", 110) + "b":      "de", // the cut element is left out
		strings.Repeat("x", 300):                       "",
		"x-" + strings.Repeat("abcdefgh-", 5) + "i,de": "de",
	} {
		if got := languageOf(header); got != want {
			t.Errorf("%.40s: %q, want %q", header, got, want)
		}
	}
}

// K5: a verified address belongs to one account, even if two verify it at once.
func TestAVerifiedAddressBelongsToOneAccount(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		var links []string
		var callers []auth.Caller
		for range 4 {
			callers = append(callers, env.register(t, "shared@example.com"))
			links = append(links, env.message(t, PurposeVerify).LinkToken)
		}
		var wait sync.WaitGroup
		errs := make([]error, len(links))
		for i, link := range links {
			server := env.another(t)
			wait.Go(func() { _, errs[i] = server.VerifyByProof(t.Context(), Proof{Token: link}, phone()) })
		}
		wait.Wait()
		verified := 0
		for i, err := range errs {
			switch {
			case err == nil:
				verified++
			case !errors.Is(err, ErrContactTaken):
				t.Errorf("%v", err)
			case env.contacts(t, callers[i].User.ID) != "shared@example.com":
				t.Errorf("%s", env.contacts(t, callers[i].User.ID))
			}
		}
		if verified != 1 {
			t.Errorf("%d accounts have the address", verified)
		}
	})
}

// Another account verifies an address while a challenge is pending, in both orders; and an undo
// restores an address that somebody else has verified.
func TestAnAddressThatSomebodyElseHasVerifiedMeanwhile(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		first := env.register(t, "shared@example.com")
		link := env.message(t, PurposeVerify).LinkToken
		second := env.register(t, "shared@example.com")
		other := env.message(t, PurposeVerify)
		if _, err := env.VerifyByProof(ctx, Proof{ChallengeID: other.ChallengeID, Code: other.Code}, phone()); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the refusal uses nothing up
			if _, err := env.VerifyByProof(ctx, Proof{Token: link}, phone()); !errors.Is(err, ErrContactTaken) {
				t.Errorf("%v", err)
			}
		}
		list, err := env.Contacts(ctx, second.User.ID)
		if err != nil {
			t.Fatal(err)
		}
		// The owner removes the address, and gets a notice with a link.
		if err := env.Remove(ctx, second.User.ID, list[0].ID, phone()); err != nil {
			t.Fatal(err)
		}
		undo := env.message(t, PurposeNoticeContact).LinkToken
		if _, err := env.VerifyByProof(ctx, Proof{Token: link}, phone()); err != nil {
			t.Errorf("after it was removed: %v", err)
		}
		if err := env.Undo(ctx, undo, phone()); err != nil {
			t.Errorf("undo: %v", err)
		}
		if got := env.contacts(t, second.User.ID); got != "shared@example.com" {
			t.Errorf("the undo restored %s", got)
		}
		if got := env.contacts(t, first.User.ID); got != "shared@example.com verified" {
			t.Errorf("its new owner has %s", got)
		}
	})
}

// What happened to the account decides what an undo can do.
func TestWhatAnUndoMeets(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before func(env *testEnv, u auth.User, link string) error
		want   error
		after  string
	}{
		"deleted": {func(env *testEnv, u auth.User, _ string) error {
			return env.accounts.DeleteUser(t.Context(), u.ID)
		}, ErrInvalidCode, ""},
		"disabled": {func(env *testEnv, u auth.User, _ string) error {
			return env.accounts.DisableUser(t.Context(), u.ID)
		}, nil, "owner@example.com verified"},
		"enabled again": {func(env *testEnv, u auth.User, _ string) error {
			return errors.Join(env.accounts.DisableUser(t.Context(), u.ID), env.accounts.EnableUser(t.Context(), u.ID))
		}, nil, "owner@example.com verified"},
		"undone": {func(env *testEnv, _ auth.User, link string) error {
			return env.Undo(t.Context(), link, phone())
		}, ErrInvalidCode, "owner@example.com verified"},
		"contacts": {func(env *testEnv, u auth.User, _ string) error {
			return removeAll(t.Context(), env, u)
		}, nil, "owner@example.com verified"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, plain(), func(t *testing.T, env *testEnv) {
				caller := env.verified(t, "owner@example.com")
				if err := env.accounts.SetPassword(t.Context(), caller.User.ID, newPassword); err != nil {
					t.Fatal(err)
				}
				link := env.message2(t, PurposeNoticePassword).LinkToken
				if err := test.before(env, caller.User, link); err != nil {
					t.Fatal(err)
				}
				if err := env.Undo(t.Context(), link, phone()); !errors.Is(err, test.want) {
					t.Errorf("%v, want %v", err, test.want)
				}
				if got := env.contacts(t, caller.User.ID); got != test.after {
					t.Errorf("contacts: %s, want %s", got, test.after)
				}
				if env.canSignIn(t, caller.User, newPassword) {
					t.Error("the new password still works")
				}
			})
		})
	}
}

func removeAll(ctx context.Context, env *testEnv, u auth.User) error {
	list, err := env.Contacts(ctx, u.ID)
	for _, c := range list {
		err = errors.Join(err, env.RemoveByOperator(ctx, u.ID, c.ID, false))
	}
	return err
}

// K2 and the schema: an account has one live challenge per purpose, and none after a change.
func TestAChangeEndsEveryChallenge(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, env *testEnv, caller auth.Caller) error{
		"another challenge": func(t *testing.T, env *testEnv, _ auth.Caller) error {
			env.clock.advance(2 * resendAfter)
			_, err := env.Forgot(t.Context(), Forgotten{Email: "alice@example.com"}, phone())
			return err
		},
		"password": func(t *testing.T, env *testEnv, caller auth.Caller) error {
			_, err := env.accounts.ChangePassword(t.Context(), caller, goodPassword, "a third good password", phone())
			return err
		},
		"password by an operator": func(t *testing.T, env *testEnv, caller auth.Caller) error {
			return env.accounts.SetPassword(t.Context(), caller.User.ID, "a third good password")
		},
		"epoch": func(t *testing.T, env *testEnv, caller auth.Caller) error {
			return env.accounts.EndSessions(t.Context(), caller, false)
		},
		"disabled": func(t *testing.T, env *testEnv, caller auth.Caller) error {
			return env.accounts.DisableUser(t.Context(), caller.User.ID)
		},
		"deleted": func(t *testing.T, env *testEnv, caller auth.Caller) error {
			return env.accounts.DeleteUser(t.Context(), caller.User.ID)
		},
		"contact added": func(t *testing.T, env *testEnv, caller auth.Caller) error {
			_, _, err := env.Add(t.Context(), caller.User.ID, NewContact{Email: "other@example.com"}, phone())
			return err
		},
		"contact removed": func(t *testing.T, env *testEnv, caller auth.Caller) error {
			list, err := env.Contacts(t.Context(), caller.User.ID)
			if err != nil {
				return err
			}
			return env.Remove(t.Context(), caller.User.ID, list[0].ID, phone())
		},
		"a statement of the release before": func(t *testing.T, env *testEnv, caller auth.Caller) error {
			_, err := env.db.Write(t.Context(), "UPDATE users SET session_epoch = session_epoch + 1 WHERE id = ?",
				caller.User.ID)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, plain(), func(t *testing.T, env *testEnv) {
				caller := env.verified(t, "alice@example.com")
				id, err := env.Forgot(t.Context(), Forgotten{Username: caller.User.Username}, phone())
				if err != nil {
					t.Fatal(err)
				}
				m := env.message2(t, PurposeReset)
				if err := change(t, env, caller); err != nil {
					t.Fatal(err)
				}
				for _, p := range []Proof{{ChallengeID: id, Code: m.Code}, {Token: m.LinkToken}} {
					if err := env.Reset(t.Context(), p, newPassword, phone()); !errors.Is(err, ErrInvalidCode) {
						t.Errorf("%+v: %v", p, err)
					}
				}
				if wanted, err := Wanted(t.Context(), env.db, m, env.now()); err != nil || wanted {
					t.Errorf("the message still counts as current: %v %v", wanted, err)
				}
				if name != "deleted" && env.canSignIn(t, caller.User, newPassword) {
					t.Error("the password was reset")
				}
			})
		})
	}
}

// A notice that waits for the mail server is about nothing once its account is deleted.
func TestANoticeToADeletedAccountIsNotSent(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		caller := env.verified(t, "alice@example.com")
		env.messages(t)
		if err := env.accounts.SetPassword(t.Context(), caller.User.ID, newPassword); err != nil {
			t.Fatal(err)
		}
		m := env.message2(t, PurposeNoticePassword)
		wanted := func() bool {
			t.Helper()
			wanted, err := Wanted(t.Context(), env.db, m, env.now())
			if err != nil {
				t.Fatal(err)
			}
			return wanted
		}
		if !wanted() {
			t.Error("the notice is dropped")
		}
		if err := env.accounts.DeleteUser(t.Context(), caller.User.ID); err != nil {
			t.Fatal(err)
		}
		if wanted() {
			t.Error("the notice is still sent")
		}
	})
}

// message2 returns the message of a purpose among the unread ones.
func (env *testEnv) message2(t *testing.T, purpose Purpose) Message {
	t.Helper()
	for _, m := range env.messages(t) {
		if m.Purpose == purpose {
			return m
		}
	}
	t.Fatalf("there is no message %s", purpose)
	return Message{}
}

func TestAForgottenPasswordIsReset(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		caller := env.verified(t, "alice@example.com")
		env.messages(t)
		if _, err := env.Forgot(ctx, Forgotten{Email: " ALICE@example.com "}, phone()); err != nil {
			t.Fatal(err)
		}
		m := env.message(t, PurposeReset)
		if m.Recipient != "alice@example.com" || m.ExpiresAt.Sub(env.now()) > resetTTL {
			t.Errorf("%+v", m)
		}
		// Neither a bad password nor one that contains the name uses the challenge up.
		for _, bad := range []string{"short", caller.User.Username + "1"} {
			if err := env.Reset(ctx, Proof{Token: m.LinkToken}, bad, phone()); !errors.Is(err, auth.ErrValidation) {
				t.Errorf("%s: %v", bad, err)
			}
		}
		if err := env.Reset(ctx, Proof{ChallengeID: m.ChallengeID, Code: m.Code}, newPassword, phone()); err != nil {
			t.Fatal(err)
		}
		if _, err := env.accounts.Authenticate(ctx, "x"); err == nil {
			t.Error("no")
		}
		if env.canSignIn(t, caller.User, goodPassword) || !env.canSignIn(t, caller.User, newPassword) {
			t.Error("the password is not the new one")
		}
		if got := env.events(t,
			caller.User.ID); got != "UserRegistered contact.Added contact.Verified contact.PasswordResetRequested "+
			"PasswordChanged AllSessionsRevoked UserLoggedIn" {
			t.Errorf("events: %s", got)
		}
		if got := env.sent(t); got != "notice_password alice@example.com" {
			t.Errorf("messages: %s", got)
		}
	})
}

// K4: when many requests on two servers show the same code or link at once, one resets the
// password.
func TestOneOfManyUsesAChallenge(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		env.verified(t, "alice@example.com")
		env.messages(t)
		if _, err := env.Forgot(t.Context(), Forgotten{Email: "alice@example.com"}, phone()); err != nil {
			t.Fatal(err)
		}
		m := env.message(t, PurposeReset)
		servers := []*testEnv{env, env.another(t)}
		errs := make([]error, 8)
		var wait sync.WaitGroup
		for i := range errs {
			wait.Go(func() {
				p := Proof{Token: m.LinkToken}
				if i < maxTries {
					p = Proof{ChallengeID: m.ChallengeID, Code: m.Code}
				}
				errs[i] = servers[i%2].Reset(t.Context(), p, newPassword+string(rune('a'+i)), phone())
			})
		}
		wait.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, ErrInvalidCode) {
				t.Errorf("%v", err)
			}
		}
		if won != 1 {
			t.Errorf("%d resets", won)
		}
	})
}

func TestACodeMayBeTypedInManyWays(t *testing.T) {
	t.Parallel()
	for _, typed := range []string{"ABCD-2345", "abcd2345", " abcd 2345 ", "ABCD–2345", "ＡＢＣＤ－２３４５", "ａｂｃｄ　２３４５",
		"\tABCD-2345\r\n"} {
		if got := typedCode(typed); got != "ABCD2345" {
			t.Errorf("%q is taken for %q", typed, got)
		}
	}
}

// K3: five tries, each counted before the comparison, however many run at once.
func TestACodeHasFiveTries(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		caller := env.verified(t, "alice@example.com")
		env.messages(t)
		forgot := func() Message {
			t.Helper()
			env.clock.advance(2 * resendAfter)
			if _, err := env.Forgot(ctx, Forgotten{Email: "alice@example.com"}, phone()); err != nil {
				t.Fatal(err)
			}
			return env.message(t, PurposeReset)
		}
		m := forgot()
		servers := []*testEnv{env, env.another(t)}
		var wait sync.WaitGroup
		for i := range 4 * maxTries {
			wait.Go(func() {
				err := servers[i%2].Reset(ctx, Proof{ChallengeID: m.ChallengeID, Code: "2222-3333"}, newPassword,
					phone())
				if !errors.Is(err, ErrInvalidCode) && !errors.Is(err, auth.ErrTooManyAttempts) &&
					!errors.Is(err, auth.ErrOverloaded) {
					t.Errorf("%v", err)
				}
			})
		}
		wait.Wait()
		tries, err := database.Value[int](env.db.QueryRowContext(ctx,
			"SELECT tries FROM contact_challenge WHERE id = ?", m.ChallengeID))
		if err != nil || tries != maxTries {
			t.Errorf("%d tries were counted, %v", tries, err)
		}
		// The tries are used up, so even the right code is refused at a new address and on another
		// server.
		elsewhere := phone()
		elsewhere.IP = netip.MustParseAddr("198.51.100.77")
		err = env.another(t).Reset(ctx, Proof{ChallengeID: m.ChallengeID, Code: m.Code}, newPassword, elsewhere)
		if !errors.Is(err, ErrInvalidCode) {
			t.Errorf("the right code after five wrong ones: %v", err)
		}
		// The owner's link still works.
		if err := env.Reset(ctx, Proof{Token: m.LinkToken}, newPassword, phone()); err != nil {
			t.Errorf("the link: %v", err)
		}
		if !env.canSignIn(t, caller.User, newPassword) {
			t.Error("the password is not the new one")
		}
	})
}

// K3, K4: when two servers get the right code as the last try, one of them accepts it.
func TestOneOfTwoServersHasTheLastTry(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		env.verified(t, "alice@example.com")
		env.messages(t)
		if _, err := env.Forgot(ctx, Forgotten{Email: "alice@example.com"}, phone()); err != nil {
			t.Fatal(err)
		}
		m := env.message(t, PurposeReset)
		for n := range maxTries - 1 {
			if err := env.Reset(ctx, Proof{ChallengeID: m.ChallengeID, Code: "2222-3333"}, newPassword,
				stranger(n)); !errors.Is(err, ErrInvalidCode) {
				t.Fatal(err)
			}
		}
		var wait sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			server := env.another(t)
			wait.Go(func() {
				errs[i] = server.Reset(ctx, Proof{ChallengeID: m.ChallengeID, Code: m.Code}, newPassword,
					stranger(100+i))
			})
		}
		wait.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, ErrInvalidCode) {
				t.Errorf("%v", err)
			}
		}
		if won != 1 {
			t.Errorf("%d of four used the last try", won)
		}
	})
}

// K3: all challenges of an account share one counter, in the tiers of the throttle.
func TestMoreChallengesGiveNoMoreGuesses(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		env.verified(t, "alice@example.com")
		env.messages(t)
		refused := false
		for n := range 8 {
			env.clock.advance(2 * resendAfter)
			id, err := env.Forgot(t.Context(), Forgotten{Email: "alice@example.com"}, stranger(n))
			if err != nil {
				t.Fatal(err)
			}
			for range maxTries {
				err := env.Reset(t.Context(), Proof{ChallengeID: id, Code: "2222-3333"}, newPassword, phone())
				refused = refused || errors.Is(err, auth.ErrTooManyAttempts)
			}
		}
		if !refused {
			t.Error("forty guesses were not delayed")
		}
	})
}

func TestAChallengeExpires(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		env.verified(t, "alice@example.com")
		env.messages(t)
		if _, err := env.Forgot(t.Context(), Forgotten{Email: "alice@example.com"}, phone()); err != nil {
			t.Fatal(err)
		}
		m := env.message(t, PurposeReset)
		env.clock.advance(resetTTL + time.Millisecond)
		for _, p := range []Proof{{ChallengeID: m.ChallengeID, Code: m.Code}, {Token: m.LinkToken}} {
			if err := env.Reset(t.Context(), p, newPassword, phone()); !errors.Is(err, ErrInvalidCode) {
				t.Errorf("%v", err)
			}
		}
		left := func() int {
			t.Helper()
			env.Housekeep(t.Context())
			n, err := database.Value[int](env.db.QueryRowContext(t.Context(), "SELECT count(*) FROM contact_challenge"))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		env.clock.advance(2 * countedFor)
		if n := left(); env.db.IsPostgres() && n == 0 {
			t.Error("a server whose clock is ahead deletes challenges")
		}
		if _, err := env.db.Write(t.Context(), "UPDATE contact_challenge SET created_ms = created_ms - ?",
			2*countedFor.Milliseconds()+1); err != nil {
			t.Fatal(err)
		}
		if n := left(); n != 0 {
			t.Errorf("%d challenges are left", n)
		}
	})
}

// K6: a request for an unknown address does and answers the same as one for an account.
func TestForgotTellsNothing(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		known := env.verified(t, "alice@example.com")
		unverified := env.register(t, "bob@example.com")
		disabled := env.verified2(t, "carol@example.com")
		if err := env.accounts.DisableUser(ctx, disabled.User.ID); err != nil {
			t.Fatal(err)
		}
		env.messages(t)
		for name, who := range map[string]Forgotten{
			"known": {Username: known.User.Username}, "unverified": {Username: unverified.User.Username},
			"disabled": {Username: disabled.User.Username}, "unknown": {Username: "nobody-there"},
			"no name":         {Username: "\x00"},
			"unknown address": {Email: "nobody@example.com"}, "unverified address": {Email: "bob@example.com"},
			"no address": {Email: "?"},
		} {
			before, begun := env.written(t), time.Now()
			first, err := env.Forgot(ctx, who, phone())
			if took := time.Since(begun); took < answerStep {
				t.Errorf("%s: the answer took %v, which reveals the time of the work", name, took)
			}
			if err != nil || first == uuid.Nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			after := env.written(t)
			if got := after.minus(before); got != (written{challenges: 1, events: got.events,
				messages: 2 - got.events}) {
				t.Errorf("%s: wrote %+v", name, got)
			}
			again, err := env.Forgot(ctx, who, phone())
			if err != nil || again != first {
				t.Errorf("%s: another challenge a moment later: %v", name, err)
			}
			if err := env.Reset(ctx, Proof{ChallengeID: first, Code: "2222-3333"}, newPassword,
				phone()); !errors.Is(err, ErrInvalidCode) {
				t.Errorf("%s: %v", name, err)
			}
			wantMail := name == "known"
			sent := env.messages(t)
			mailed := false
			for _, m := range sent {
				mailed = mailed || m.Purpose != PurposeNone
			}
			if mailed != wantMail {
				t.Errorf("%s: messages %+v", name, sent)
			}
		}
	})
}

// verified2 returns a caller with a verified address; other messages may exist.
func (env *testEnv) verified2(t *testing.T, email string) auth.Caller {
	t.Helper()
	env.messages(t)
	return env.verified(t, email)
}

// written counts rows.
type written struct{ challenges, events, messages int }

func (w written) minus(v written) written {
	return written{w.challenges - v.challenges, w.events - v.events, w.messages - v.messages}
}

func (env *testEnv) written(t *testing.T) (w written) {
	t.Helper()
	err := env.db.QueryRowContext(t.Context(),
		`SELECT (SELECT count(*) FROM contact_challenge), (SELECT count(*) FROM outbox_event),
		(SELECT count(*) FROM outbox_message)`).Scan(&w.challenges, &w.events, &w.messages)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// K8: nobody can have more than a limited number of messages sent to a stranger.
func TestAnInboxIsNotFlooded(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		// Many accounts claim the address, from one network and from many.
		from := func(dev auth.Device, n int) int {
			for range n {
				cred := auth.Credentials{Username: "user-" + strings.ReplaceAll(uuid.NewString(), "-", ""),
					Password: goodPassword}
				if _, err := env.accounts.Register(ctx, cred, dev,
					auth.NewContact{Email: "victim@example.com"}); err != nil {
					t.Fatal(err)
				}
			}
			return len(env.messages(t))
		}
		if got := from(phone(), maxOfOneNetwork+2); got != maxOfOneNetwork {
			t.Errorf("%d messages to the address from one network", got)
		}
		got := 0
		for n := range maxByStrangers + 2 {
			got += from(stranger(n), 1)
		}
		if got != maxByStrangers-maxOfOneNetwork {
			t.Errorf("%d messages to the address from other networks", got)
		}
		caller := env.register(t, "")
		if _, _, err := env.Add(ctx, caller.User.ID, NewContact{Email: "Victim@example.com"},
			stranger(999)); !errors.Is(err, ErrTooManyMessages) {
			t.Errorf("%v", err)
		}
		if got := env.contacts(t, caller.User.ID); got != "" {
			t.Errorf("the contact was added without a message: %s", got)
		}
		// One account adds and removes addresses.
		sent := 0
		for i := range maxToVerify + 3 {
			c, _, err := env.Add(ctx, caller.User.ID, NewContact{Email: string(rune('a'+i)) + "@example.com"}, phone())
			if err != nil {
				continue
			}
			sent++
			if err := env.Remove(ctx, caller.User.ID, c.ID, phone()); err != nil {
				t.Fatal(err)
			}
		}
		if sent != maxToVerify {
			t.Errorf("%d messages of one account", sent)
		}
		// Many claim to have forgotten the password, first from one network.
		env.verified2(t, "alice@example.com")
		env.messages(t)
		forgot := func(dev auth.Device) int {
			env.clock.advance(2 * resendAfter)
			if _, err := env.Forgot(ctx, Forgotten{Email: "alice@example.com"}, dev); err != nil {
				t.Fatal(err)
			}
			return len(env.messages(t))
		}
		sent = 0
		for range maxOfOneNetwork + 2 {
			sent += forgot(phone())
		}
		if sent != maxOfOneNetwork {
			t.Errorf("%d messages to the owner from one network", sent)
		}
		for n := range maxByStrangers + 2 {
			sent += forgot(stranger(n))
		}
		if sent != maxByStrangers {
			t.Errorf("%d messages to the owner", sent)
		}
		env.clock.advance(countedFor)
		if forgot(phone()) != 1 {
			t.Error("no message a day later")
		}
	})
}

// A server whose clock was ahead for a while leaves challenges from the future. They must neither keep the
// owner from a code nor be good for longer than a code is.
func TestAClockThatWasAheadKeepsNoCodeBackAndNoneAlive(t *testing.T) {
	t.Parallel()
	const ahead = 100 * time.Hour
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		alice := env.verified(t, "alice@example.com")
		forgot := func(dev auth.Device) (uuid.UUID, []Message) {
			t.Helper()
			env.clock.advance(2 * resendAfter)
			id, err := env.Forgot(ctx, Forgotten{Email: "alice@example.com"}, dev)
			if err != nil {
				t.Fatal(err)
			}
			return id, env.messages(t)
		}
		env.messages(t)
		env.clock.advance(ahead)
		for n := range maxByStrangers {
			forgot(stranger(n))
		}
		env.clock.advance(trickle)
		id, early := forgot(phone())
		if len(early) != 1 {
			t.Fatalf("%d messages", len(early))
		}
		env.clock.advance(-ahead)
		for _, p := range []Proof{{ChallengeID: id, Code: early[0].Code}, {Token: early[0].LinkToken}} {
			if err := env.Reset(ctx, p, newPassword, phone()); !errors.Is(err, ErrInvalidCode) {
				t.Errorf("%+v, made by a clock that was ahead: %v", p, err)
			}
		}
		_, sent := forgot(phone())
		if len(sent) != 1 {
			t.Fatalf("%d messages now that the clock is right", len(sent))
		}
		if err := env.Reset(ctx, Proof{Token: sent[0].LinkToken}, newPassword, phone()); err != nil {
			t.Error(err)
		}
		if !env.canSignIn(t, alice.User, newPassword) {
			t.Error("the new password is not accepted")
		}
	})
}

// Strangers from many networks use up their messages. An owner on an unknown device still gets a
// code within the hour, no matter who requests it, and its link works.
func TestStrangersDelayAResetByAnHourAtMost(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		env.verified(t, "alice@example.com")
		env.messages(t)
		forgot := func(dev auth.Device) []Message {
			t.Helper()
			if _, err := env.Forgot(ctx, Forgotten{Email: "alice@example.com"}, dev); err != nil {
				t.Fatal(err)
			}
			return env.messages(t)
		}
		for n := range maxByStrangers {
			env.clock.advance(2 * resendAfter)
			forgot(stranger(n))
		}
		env.clock.advance(trickle - time.Second)
		if sent := forgot(phone()); len(sent) != 0 {
			t.Errorf("%d messages within the hour", len(sent))
		}
		env.clock.advance(time.Second)
		if sent := forgot(phone()); len(sent) != 1 {
			t.Fatalf("%d messages after an hour", len(sent))
		}
		env.clock.advance(2 * resendAfter)
		if sent := forgot(stranger(1)); len(sent) != 0 {
			t.Errorf("%d more messages within the next hour", len(sent))
		}
		env.clock.advance(trickle)
		sent := forgot(stranger(1)) // strangers use the turn, which does not help them
		if len(sent) != 1 {
			t.Fatalf("%d messages after another hour", len(sent))
		}
		env.clock.advance(2 * resendAfter)
		if sent := forgot(phone()); len(sent) != 0 {
			t.Errorf("%d messages to the owner after those of strangers", len(sent))
		}
		if err := env.Reset(ctx, Proof{Token: sent[0].LinkToken}, newPassword, phone()); err != nil {
			t.Errorf("the link in a mail that a stranger has requested: %v", err)
		}
		// The messages of a day are limited.
		total := 0
		for n := range 4 * int(countedFor/trickle) {
			env.clock.advance(trickle / 4)
			total += len(forgot(stranger(n)))
		}
		if most := maxByStrangers + int(countedFor/trickle); total > most {
			t.Errorf("%d messages in a day, at most %d", total, most)
		}
	})
}

// Strangers who use up their messages to an account do not use up the owner's. Notices do not
// count.
func TestStrangersDoNotUseUpTheOwnersMessages(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		caller := env.verified(t, "alice@example.com")
		tokens, err := env.accounts.Login(ctx,
			auth.Credentials{Username: caller.User.Username, Password: goodPassword}, phone())
		if err != nil {
			t.Fatal(err)
		}
		env.messages(t)
		forgot := func(who Forgotten, dev auth.Device) int {
			t.Helper()
			env.clock.advance(2 * resendAfter)
			if _, err := env.Forgot(ctx, who, dev); err != nil {
				t.Fatal(err)
			}
			return len(env.messages(t))
		}
		for n := range maxByStrangers + 1 {
			forgot(Forgotten{Email: "alice@example.com"}, stranger(n))
			forgot(Forgotten{Username: caller.User.Username}, stranger(n))
		}
		if got := forgot(Forgotten{Email: "alice@example.com"}, phone()); got != 0 {
			t.Errorf("%d messages on an unknown device", got)
		}
		other := stranger(1)
		other.Token = "adt_" + strings.Repeat("A", 110)
		if got := forgot(Forgotten{Email: "alice@example.com"}, other); got != 0 {
			t.Errorf("%d messages with an invalid token", got)
		}
		known := phone()
		known.Token = tokens.DeviceToken
		for range maxByOwner {
			if got := forgot(Forgotten{Email: "alice@example.com"}, known); got != 1 {
				t.Fatalf("%d messages on a known device", got)
			}
		}
		if got := forgot(Forgotten{Email: "alice@example.com"}, known); got != 0 {
			t.Errorf("%d messages beyond the owner's limit", got)
		}
		// The owner can still change the address, and the notice comes.
		if _, _, err := env.Add(ctx, caller.User.ID, NewContact{Email: "second@example.com"}, known); err != nil {
			t.Errorf("another address: %v", err)
		}
		env.messages(t)
		if err := env.accounts.SetPassword(ctx, caller.User.ID, newPassword); err != nil {
			t.Fatal(err)
		}
		if got := env.sent(t); got != "notice_password alice@example.com" {
			t.Errorf("the notice of the change went to: %s", got)
		}
		// The token belonged to the former password.
		if got := forgot(Forgotten{Email: "alice@example.com"}, known); got != 0 {
			t.Errorf("%d messages with the token of a former password", got)
		}
	})
}

// K6: no answer reveals that a username and an address belong to one account. Each gets a challenge
// of its own, as unknown names do.
func TestTwoWaysOfAskingDoNotShowThatTheyMeanOneAccount(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		caller := env.verified(t, "alice@example.com")
		ask := func(who Forgotten) uuid.UUID {
			t.Helper()
			id, err := env.Forgot(t.Context(), who, phone())
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		answers := func(name, email string) string {
			t.Helper()
			seen := map[uuid.UUID]string{}
			var pattern []string
			note := func(id uuid.UUID) uuid.UUID {
				if seen[id] == "" {
					seen[id] = string(rune('a' + len(seen)))
				}
				pattern = append(pattern, seen[id])
				return id
			}
			first := note(ask(Forgotten{Username: name}))
			note(ask(Forgotten{Email: email}))
			note(ask(Forgotten{Username: strings.ToUpper(name)}))
			note(ask(Forgotten{Email: strings.ToUpper(email)}))
			for range maxTries { // of the one that another one has replaced
				if err := env.Reset(t.Context(), Proof{ChallengeID: first, Code: "2222-3333"}, newPassword,
					phone()); !errors.Is(err, ErrInvalidCode) {
					t.Errorf("%v", err)
				}
			}
			note(ask(Forgotten{Username: name}))
			return strings.Join(pattern, " ")
		}
		got, want := answers(caller.User.Username, "alice@example.com"), answers("nobody-there", "nobody@example.com")
		if got != want || want != "a b a b c" {
			t.Errorf("an account: %s, nobody: %s", got, want)
		}
	})
}

// A username that looks like an address is found by that address, unless it is somebody else's
// address: then only that account is found.
func TestAUsernameThatIsAnAddressIsFoundAsOne(t *testing.T) {
	t.Parallel()
	cfg := plain()
	cfg.FromUsername = false
	each(t, cfg, func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		_, err := env.accounts.Register(ctx, auth.Credentials{Username: "name@example.com", Password: goodPassword},
			phone(),
			auth.NewContact{Email: "inbox@example.com"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := env.VerifyByProof(ctx, Proof{Token: env.message(t, PurposeVerify).LinkToken}, phone()); err != nil {
			t.Fatal(err)
		}
		if _, err := env.Forgot(ctx, Forgotten{Email: "Name@Example.com"}, phone()); err != nil {
			t.Fatal(err)
		}
		if got := env.sent(t); got != "reset inbox@example.com" {
			t.Errorf("sent: %s", got)
		}
		env.verified(t, "name@example.com") // of another account
		env.clock.advance(2 * resendAfter)
		if _, err := env.Forgot(ctx, Forgotten{Email: "Name@Example.com"}, phone()); err != nil {
			t.Fatal(err)
		}
		if got := env.sent(t); got != "reset name@example.com" {
			t.Errorf("sent: %s", got)
		}
	})
}

// A thief's address gets no link that could undo what the owner does about it.
func TestAnAddressThatWasJustAddedCannotUndo(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		caller := env.verified(t, "owner@example.com")
		env.clock.advance(time.Second)
		added, _, err := env.Add(ctx, caller.User.ID, NewContact{Email: "thief@example.com"}, phone())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := env.VerifyByProof(ctx, Proof{Token: env.message2(t, PurposeVerify).LinkToken}, phone()); err != nil {
			t.Fatal(err)
		}
		links := func() string {
			var list []string
			for _, m := range env.messages(t) {
				word := m.Recipient
				if m.LinkToken != "" {
					word += " can undo"
				}
				list = append(list, word)
			}
			return strings.Join(list, ", ")
		}
		if got := links(); got != "owner@example.com can undo" {
			t.Errorf("the notice of the addition went to: %s", got)
		}
		if err := env.accounts.SetPassword(ctx, caller.User.ID, newPassword); err != nil {
			t.Fatal(err)
		}
		if got := links(); got != "owner@example.com can undo, thief@example.com" {
			t.Errorf("the notice of the new password went to: %s", got)
		}
		// Once the addition can no longer be undone, both addresses get links.
		env.clock.advance(undoTTL)
		if err := env.RemoveByOperator(ctx, caller.User.ID, added.ID, false); err != nil {
			t.Fatal(err)
		}
		if got := links(); got != "owner@example.com can undo, thief@example.com can undo" {
			t.Errorf("the notice of the removal went to: %s", got)
		}
	})
}

// An address that accepts no messages does not hold up the person's other address.
func TestEachAddressOfAPersonHasItsOwnOrder(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		caller := env.verified(t, "one@example.com")
		added, err := env.AddByOperator(t.Context(), caller.User.ID, "two@example.com")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := env.VerifyByOperator(t.Context(), caller.User.ID, added.ID, false); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := env.accounts.SetPassword(t.Context(), caller.User.ID, newPassword); err != nil {
				t.Fatal(err)
			}
		}
		keys, err := database.Collect(t.Context(), env.db, "list keys", database.Value[string],
			"SELECT DISTINCT key FROM outbox_message")
		if err != nil || len(keys) != 2 {
			t.Errorf("the keys of two addresses are %q, %v", keys, err)
		}
	})
}

// The metrics count the outcomes of requests and answers.
func TestTheMetricsTellWhatBecameOfChallenges(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		env.verified(t, "alice@example.com")
		ask := func(email string, dev auth.Device) (id uuid.UUID) {
			id, err := env.Forgot(ctx, Forgotten{Email: email}, dev)
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		ask("nobody@example.com", phone())
		id := ask("alice@example.com", phone())
		ask("alice@example.com", phone())
		_ = env.Reset(ctx, Proof{ChallengeID: id, Code: "2222-3333"}, newPassword, phone())
		_ = env.Reset(ctx, Proof{ChallengeID: uuid.New(), Code: "2222-3333"}, newPassword, phone())
		_ = env.Reset(ctx, Proof{Token: "alt_x"}, newPassword, phone())
		m := env.message2(t, PurposeReset)
		if err := env.Reset(ctx, Proof{ChallengeID: id, Code: m.Code}, newPassword, phone()); err != nil {
			t.Fatal(err)
		}
		if err := env.Undo(ctx, env.message(t, PurposeNoticePassword).LinkToken, phone()); err != nil {
			t.Fatal(err)
		}
		_ = env.Undo(ctx, "aut_x", phone())
		env.clock.advance(2 * resendAfter)
		ask("alice@example.com", phone())
		env.clock.advance(resetTTL)
		for range 2 {
			env.Housekeep(ctx)
		}
		for n := range 2 * maxByStrangers {
			env.clock.advance(2 * resendAfter)
			ask("alice@example.com", stranger(n))
		}
		for name, want := range map[string]string{
			"authctl_contact_requests_total": "reset limited=12, reset nobody=1, reset repeated=1, reset sent=10, verify sent=1",
			"authctl_contact_answers_total": "reset code=1, reset invalid_code=1, reset invalid_link=1, reset wrong_code=1, undo invalid_link=1, " +
				"undo link=1, verify link=1",
			"authctl_contact_expired_total": "reset=1",
		} {
			if got := env.counted(t, name); got != want {
				t.Errorf("%s: %s", name, got)
			}
		}
	})
}

// It is tried every minute, and an outage may last for hours.
func TestHousekeepingThatFailsIsLoggedRarely(t *testing.T) {
	t.Parallel()
	c := &clock{now: time.Now()}
	env := newEnv(t, dbtest.SQLite(t), plain(), c)
	core, lines := observer.New(zap.WarnLevel)
	env.log = zap.New(core)
	away, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	for i, want := range []int{3, 3, 6} { // what has expired, and two tables
		env.Housekeep(away)
		if got := lines.FilterMessage("housekeeping_failed").Len(); got != want {
			t.Errorf("%d lines after attempt %d, want %d", got, i+1, want)
		}
		c.advance(6 * time.Minute)
	}
}

// A thief with a session adds an address. The owner undoes this by the notice, and the thief loses
// everything: none of the notices that the thief got restores it.
func TestUndoSurvivesTheThief(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		caller := env.verified(t, "owner@example.com")
		list, err := env.Contacts(ctx, caller.User.ID)
		if err != nil {
			t.Fatal(err)
		}
		env.messages(t)
		step := func() { env.clock.advance(time.Second) }

		if _, _, err := env.Add(ctx, caller.User.ID, NewContact{Email: "thief@example.com"}, phone()); err != nil {
			t.Fatal(err)
		}
		if _, err := env.VerifyByProof(ctx, Proof{Token: env.message(t, PurposeVerify).LinkToken}, phone()); err != nil {
			t.Fatal(err)
		}
		notice := env.message(t, PurposeNoticeContact)
		if notice.Recipient != "owner@example.com" || notice.Change != "added" ||
			notice.Changed != "thief@example.com" ||
			notice.Address != "192.0.2.7" {
			t.Errorf("%+v", notice)
		}
		step()
		if err := env.Remove(ctx, caller.User.ID, list[0].ID, phone()); err != nil {
			t.Fatal(err)
		}
		thiefs := map[string]string{}
		for _, m := range env.messages(t) {
			thiefs[m.Recipient] = m.LinkToken
		}
		if len(thiefs) != 2 {
			t.Errorf("the notice of the removal went to %v", thiefs)
		}
		step()
		if _, err := env.accounts.ChangePassword(ctx, caller, goodPassword, newPassword, phone()); err != nil {
			t.Fatal(err)
		}
		last := env.message(t, PurposeNoticePassword)
		step()

		if err := env.Undo(ctx, notice.LinkToken, phone()); err != nil {
			t.Fatal(err)
		}
		if got := env.contacts(t, caller.User.ID); got != "owner@example.com verified" {
			t.Errorf("contacts: %s", got)
		}
		if env.canSignIn(t, caller.User, newPassword) || env.canSignIn(t, caller.User, goodPassword) {
			t.Error("the thief's password still works")
		}
		if _, err := env.accounts.ChangePassword(ctx, caller, newPassword, "a third good password",
			phone()); err == nil {
			t.Error("the thief's session is still live")
		}
		for _, token := range []string{notice.LinkToken, thiefs["thief@example.com"], last.LinkToken, "aut_x", ""} {
			if err := env.Undo(ctx, token, phone()); !errors.Is(err, ErrInvalidCode) {
				t.Errorf("undone again: %v", err)
			}
		}
		if got := env.sent(t); got != "" {
			t.Errorf("the notice of the undo went to %s", got)
		}
		if _, err := env.Forgot(ctx, Forgotten{Username: caller.User.Username}, phone()); err != nil {
			t.Fatal(err)
		}
		if err := env.Reset(ctx, Proof{Token: env.message(t, PurposeReset).LinkToken}, "a third good password",
			phone()); err != nil {
			t.Fatal(err)
		}
		if !env.canSignIn(t, caller.User, "a third good password") {
			t.Error("the owner is not back in")
		}
		if got := env.events(t,
			caller.User.ID); !strings.HasSuffix(got, "PasswordChanged AllSessionsRevoked contact.Removed contact.Added "+
			"contact.Verified PasswordChanged AllSessionsRevoked contact.PasswordResetRequested PasswordChanged AllSessionsRevoked UserLoggedIn") {
			t.Errorf("events: %s", got)
		}
	})
}

// A thief can put an address that is compared like the owner's, and is another mailbox, in its place. The
// owner's comes back, and not the other one as verified.
func TestAnUndoRestoresTheMailboxAndNotOneLikeIt(t *testing.T) {
	t.Parallel()
	for _, isVerified := range []bool{false, true} {
		t.Run(fmt.Sprintf("verified %t", isVerified), func(t *testing.T) {
			t.Parallel()
			each(t, plain(), func(t *testing.T, env *testEnv) {
				ctx := t.Context()
				caller := env.verified(t, "straße@example.com")
				list, err := env.Contacts(ctx, caller.User.ID)
				if err != nil {
					t.Fatal(err)
				}
				env.messages(t)
				if err := env.Remove(ctx, caller.User.ID, list[0].ID, phone()); err != nil {
					t.Fatal(err)
				}
				link := env.message(t, PurposeNoticeContact).LinkToken
				env.clock.advance(time.Second)
				_, _, err = env.Add(ctx, caller.User.ID, NewContact{Email: "strasse@example.com"}, phone())
				if err != nil {
					t.Fatal(err)
				}
				if thiefs := env.message(t, PurposeVerify).LinkToken; isVerified {
					if _, err := env.VerifyByProof(ctx, Proof{Token: thiefs}, phone()); err != nil {
						t.Fatal(err)
					}
				}
				if err := env.Undo(ctx, link, phone()); err != nil {
					t.Fatal(err)
				}
				if got := env.contacts(t, caller.User.ID); got != "straße@example.com verified" {
					t.Errorf("contacts: %s", got)
				}
				if _, err := env.Forgot(ctx, Forgotten{Username: caller.User.Username}, phone()); err != nil {
					t.Fatal(err)
				}
				if m := env.message(t, PurposeReset); m.Recipient != "straße@example.com" {
					t.Errorf("the code that sets a new password went to %s", m.Recipient)
				}
			})
		})
	}
}

// The thief makes the later changes on a server whose clock is behind. The undo ends their links all the same.
func TestAnUndoEndsLaterLinksOfAServerWhoseClockIsBehind(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		behind := newEnv(t, env.db, env.cfg, &clock{now: env.now().Add(-time.Second)})
		caller := env.verified(t, "owner@example.com")
		list, err := env.Contacts(ctx, caller.User.ID)
		if err != nil {
			t.Fatal(err)
		}
		env.messages(t)
		if _, _, err := env.Add(ctx, caller.User.ID, NewContact{Email: "thief@example.com"}, phone()); err != nil {
			t.Fatal(err)
		}
		if _, err := env.VerifyByProof(ctx, Proof{Token: env.message(t, PurposeVerify).LinkToken}, phone()); err != nil {
			t.Fatal(err)
		}
		owners := env.message(t, PurposeNoticeContact)
		if err := behind.Remove(ctx, caller.User.ID, list[0].ID, phone()); err != nil {
			t.Fatal(err)
		}
		env.messages(t)
		_, err = behind.accounts.ChangePassword(ctx, caller, goodPassword, newPassword, phone())
		if err != nil {
			t.Fatal(err)
		}
		thiefs := env.message(t, PurposeNoticePassword)
		if thiefs.Recipient != "thief@example.com" || thiefs.LinkToken == "" {
			t.Fatalf("%+v", thiefs)
		}
		if err := env.Undo(ctx, owners.LinkToken, phone()); err != nil {
			t.Fatal(err)
		}
		for _, server := range []*testEnv{env, behind} {
			if err := server.Undo(ctx, thiefs.LinkToken, phone()); !errors.Is(err, ErrInvalidCode) {
				t.Errorf("the thief undid what the owner did: %v", err)
			}
		}
		if got := env.contacts(t, caller.User.ID); got != "owner@example.com verified" {
			t.Errorf("contacts: %s", got)
		}
	})
}

// The stranger's address was verified so long ago that links to undo go there. An operator who gives the account
// back can end them: those of before, and the one that the repair itself would send.
func TestAnOperatorsRepairCanBeFinal(t *testing.T) {
	t.Parallel()
	repairs := map[string]func(ctx context.Context, env *testEnv, user uuid.UUID, owner, thief Contact) error{
		"remove": func(ctx context.Context, env *testEnv, user uuid.UUID, _, thief Contact) error {
			return env.RemoveByOperator(ctx, user, thief.ID, true)
		},
		"verify": func(ctx context.Context, env *testEnv, user uuid.UUID, owner, _ Contact) error {
			_, err := env.VerifyByOperator(ctx, user, owner.ID, true)
			return err
		},
		"verify what is verified": func(ctx context.Context, env *testEnv, user uuid.UUID, _, thief Contact) error {
			_, err := env.VerifyByOperator(ctx, user, thief.ID, true)
			return err
		},
	}
	for name, repair := range repairs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, plain(), func(t *testing.T, env *testEnv) {
				ctx := t.Context()
				caller := env.verified(t, "thief@example.com")
				env.messages(t)
				env.clock.advance(undoTTL + time.Hour)
				_, err := env.accounts.ChangePassword(ctx, caller, goodPassword, newPassword, phone())
				if err != nil {
					t.Fatal(err)
				}
				before := env.message(t, PurposeNoticePassword).LinkToken
				owner, err := env.AddByOperator(ctx, caller.User.ID, "owner@example.com")
				if err != nil {
					t.Fatal(err)
				}
				list, err := env.Contacts(ctx, caller.User.ID)
				if err != nil {
					t.Fatal(err)
				}
				env.messages(t)
				if before == "" {
					t.Fatal("the thief got no link")
				}
				if err := repair(ctx, env, caller.User.ID, owner, list[0]); err != nil {
					t.Fatal(err)
				}
				for _, m := range env.messages(t) {
					if m.Purpose != PurposeNoticeContact || m.Recipient != "thief@example.com" || m.LinkToken != "" {
						t.Errorf("a message of %s to %s, with a link: %t", m.Purpose, m.Recipient, m.LinkToken != "")
					}
				}
				if err := env.Undo(ctx, before, phone()); !errors.Is(err, ErrInvalidCode) {
					t.Errorf("the thief undid what was before: %v", err)
				}
			})
		})
	}
}

func TestAnUndoExpires(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		caller := env.verified(t, "owner@example.com")
		env.messages(t)
		if err := env.accounts.SetPassword(t.Context(), caller.User.ID, newPassword); err != nil {
			t.Fatal(err)
		}
		m := env.message(t, PurposeNoticePassword)
		env.clock.advance(undoTTL + time.Millisecond)
		if err := env.Undo(t.Context(), m.LinkToken, phone()); !errors.Is(err, ErrInvalidCode) {
			t.Errorf("%v", err)
		}
		if !env.canSignIn(t, caller.User, newPassword) {
			t.Error("something was undone")
		}
	})
}

func TestOneOfManyUndoes(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		caller := env.verified(t, "owner@example.com")
		env.messages(t)
		if err := env.accounts.SetPassword(t.Context(), caller.User.ID, newPassword); err != nil {
			t.Fatal(err)
		}
		m := env.message(t, PurposeNoticePassword)
		servers := []*testEnv{env, env.another(t)}
		errs := make([]error, 6)
		var wait sync.WaitGroup
		for i := range errs {
			wait.Go(func() { errs[i] = servers[i%2].Undo(t.Context(), m.LinkToken, phone()) })
		}
		wait.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, ErrInvalidCode) {
				t.Errorf("%v", err)
			}
		}
		if won != 1 {
			t.Errorf("undone %d times", won)
		}
	})
}

func TestWhereAVerifiedContactIsRequired(t *testing.T) {
	t.Parallel()
	cfg := plain()
	cfg.Required = requiredVerified
	each(t, cfg, func(t *testing.T, env *testEnv) {
		ctx := t.Context()
		cred := auth.Credentials{Username: "alice", Password: goodPassword}
		if _, err := env.accounts.Register(ctx, cred, phone()); !errors.Is(err, auth.ErrValidation) {
			t.Errorf("without an address: %v", err)
		}
		challengeOf := func(err error) string {
			t.Helper()
			f, ok := errors.AsType[*fault.Fault](err)
			if !ok || !errors.Is(err, auth.ErrContactUnverified) {
				t.Fatalf("%v", err)
			}
			return f.ChallengeID
		}
		_, err := env.accounts.Register(ctx, cred, phone(), auth.NewContact{Email: "alice@example.com"})
		m := env.message(t, PurposeVerify)
		if got := challengeOf(err); got != m.ChallengeID.String() {
			t.Errorf("the challenge is %s, but %s was sent", got, m.ChallengeID)
		}
		if _, err := env.accounts.Login(ctx, auth.Credentials{Username: "alice", Password: "wrong password"},
			phone()); !errors.Is(err, auth.ErrInvalidCredentials) {
			t.Errorf("a wrong password: %v", err)
		}
		_, err = env.accounts.Login(ctx, cred, phone())
		if got := challengeOf(err); got != m.ChallengeID.String() {
			t.Errorf("a moment later the challenge is %s", got)
		}
		env.clock.advance(2 * resendAfter)
		_, err = env.accounts.Login(ctx, cred, phone())
		before := m
		if m = env.message(t, PurposeVerify); m.Recipient != "alice@example.com" ||
			challengeOf(err) != m.ChallengeID.String() {
			t.Errorf("%+v, %v", m, err)
		}
		if _, err := env.VerifyByProof(ctx, Proof{ChallengeID: before.ChallengeID, Code: before.Code}, phone()); !errors.Is(err, ErrInvalidCode) {
			t.Errorf("a code that was replaced: %v", err)
		}
		c, err := env.VerifyByProof(ctx, Proof{ChallengeID: m.ChallengeID, Code: m.Code}, phone())
		if err != nil {
			t.Fatal(err)
		}
		tokens, err := env.accounts.Login(ctx, cred, phone())
		if err != nil {
			t.Fatal(err)
		}
		caller, err := env.accounts.Authenticate(ctx, tokens.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		if err := env.Remove(ctx, caller.User.ID, c.ID, phone()); !errors.Is(err, ErrContactNeeded) {
			t.Errorf("the last contact could be removed: %v", err)
		}
		// A username that is an address is its own contact. An operator can create an account
		// without one, but it cannot sign in.
		_, err = env.accounts.Register(ctx, auth.Credentials{Username: "Bob@example.com", Password: goodPassword},
			phone())
		if m := env.message(t, PurposeVerify); !errors.Is(err, auth.ErrContactUnverified) ||
			m.Recipient != "Bob@example.com" {
			t.Errorf("%+v, %v", m, err)
		}
		u, err := env.accounts.CreateUser(ctx, auth.Credentials{Username: "carol", Password: goodPassword})
		if err != nil {
			t.Fatal(err)
		}
		if env.canSignIn(t, u, goodPassword) {
			t.Error("an account without a contact signs in")
		}
		added, err := env.AddByOperator(ctx, u.ID, "carol@example.com")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := env.VerifyByOperator(ctx, u.ID, added.ID, false); err != nil || !env.canSignIn(t, u, goodPassword) {
			t.Errorf("%v", err)
		}
		if err := env.RemoveByOperator(ctx, u.ID, added.ID, false); err != nil || env.canSignIn(t, u, goodPassword) {
			t.Errorf("%v", err)
		}
	})
}

func TestAnImportKeepsWhatTheSourceConfirmed(t *testing.T) {
	t.Parallel()
	const hash = "$2a$04$cVxuwSUXjkRhpYNgLKRwOOXkR9HLzYHp/lWtGJGdhPnY3WVjcMWK6"
	each(t, plain(), func(t *testing.T, env *testEnv) {
		var input strings.Builder
		for name, rest := range map[string]string{
			"confirmed": `,"email":"Confirmed@example.com","email_verified":true`,
			"not":       `,"email":"not@example.com","email_verified":false`,
			"silent":    `,"email":"silent@example.com"`, "none": ``, "name@example.com": ``,
			"taken":   `,"email":"taken@example.com","email_verified":true`,
			"refused": `,"email":"+49 89 123456"`, "many": `,"contacts":[{"address":"no"}` + strings.Repeat(
				`,{"address":"same@example.com"}`, maxContacts) + `]`,
		} {
			input.WriteString(`{"username":"` + name + `","password_hash":"` + hash + `"` + rest + "}\n")
		}
		env.verified(t, "taken@example.com")
		report, err := env.accounts.Import(t.Context(), strings.NewReader(input.String()),
			auth.ImportOptions{From: auth.ImportSources()[0], Format: auth.FormatNDJSON,
				Refused: func(r auth.Refusal) error { t.Errorf("%+v", r); return nil }})
		if err != nil || report.Imported != 8 {
			t.Fatalf("%+v, %v", report, err)
		}
		if want := map[string]int64{"refused_address": 2, "too_many_addresses": 1}; !maps.Equal(report.Lost, want) {
			t.Errorf("left out: %v, want %v", report.Lost, want)
		}
		for name, want := range map[string]string{
			"confirmed": "Confirmed@example.com verified", "not": "not@example.com", "silent": "silent@example.com",
			"none":             "",
			"name@example.com": "name@example.com", "taken": "taken@example.com",
			"refused": "", "many": "same@example.com",
		} {
			u, err := env.accounts.FindUserByName(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if got := env.contacts(t, u.ID); got != want {
				t.Errorf("%s has %q, want %q", name, got, want)
			}
		}
	})
}

// An export and an import elsewhere keep all contacts in their order, and which of them are
// verified. A contact that the owner has removed does not come back.
func TestContactsSurviveAnExport(t *testing.T) {
	t.Parallel()
	for _, format := range []string{auth.FormatNDJSON, auth.FormatCSV} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			each(t, plain(), func(t *testing.T, env *testEnv) {
				ctx := t.Context()
				alice := env.register(t, "old@example.com")
				for _, email := range []string{"Alice+1@Bücher.example", "o'neill%x@example.com"} {
					if _, err := env.AddByOperator(ctx, alice.User.ID, email); err != nil {
						t.Fatal(err)
					}
				}
				list, err := env.Contacts(ctx, alice.User.ID)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := env.VerifyByOperator(ctx, alice.User.ID, list[1].ID, false); err != nil {
					t.Fatal(err)
				}
				var file bytes.Buffer
				first := `{"username":"imported","password_hash":"$2a$04$cVxuwSUXjkRhpYNgLKRwOOXkR9HLzYHp/lWtGJGdhPnY3WVjcMWK6",` +
					`"email":"gone@example.com","email_verified":true}`
				options := auth.ImportOptions{From: auth.ImportSources()[0], Format: auth.FormatAuto}
				if _, err := env.accounts.Import(ctx, strings.NewReader(first), options); err != nil {
					t.Fatal(err)
				}
				imported, err := env.accounts.FindUserByName(ctx, "imported")
				if err != nil {
					t.Fatal(err)
				}
				removed, err := env.ContactByEmail(ctx, imported.ID, "gone@example.com")
				if err != nil || !removed.Verified() {
					t.Fatalf("%+v, %v", removed, err)
				}
				if err := env.Remove(ctx, imported.ID, removed.ID, phone()); err != nil {
					t.Fatal(err)
				}
				if _, err := env.accounts.Export(ctx, &file,
					auth.ExportOptions{Format: format, PasswordHashes: true}); err != nil {
					t.Fatal(err)
				}
				other := newEnv(t, dbtest.SQLite(t), plain(), env.clock)
				report, err := other.accounts.Import(ctx, &file, options)
				if err != nil || report.Imported != 2 || report.Refused != 0 {
					t.Fatalf("%+v, %v\n%s", report, err, &file)
				}
				want := "old@example.com, Alice+1@xn--bcher-kva.example verified, o'neill%x@example.com"
				if got := other.contacts(t, alice.User.ID); got != want {
					t.Errorf("%s, want %s", got, want)
				}
				if got := other.contacts(t, imported.ID); got != "" {
					t.Errorf("a removed contact is back: %s", got)
				}
			})
		})
	}
}

// An import that goes on after an interruption has its largest batches, and every account may have as many
// contacts as are allowed.
func TestAFullBatchOfAnImportMayHaveAllContacts(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		const most = 500 // accounts of a batch
		list := make([]auth.ImportedUser, most)
		for i := range list {
			list[i].ID = uuid.Must(uuid.NewV7())
			for n := range maxContacts {
				list[i].Addresses = append(list[i].Addresses,
					auth.Address{Address: fmt.Sprintf("user%d.%d@example.com", i, n), Confirmed: n == 0})
			}
		}
		err := env.db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error { return env.imported(ctx, tx, list) })
		if err != nil {
			t.Fatal(err)
		}
		last, err := env.Contacts(t.Context(), list[most-1].ID)
		if err != nil || len(last) != maxContacts || !last[0].Verified() || last[1].Verified() {
			t.Errorf("the last account has %+v, %v", last, err)
		}
	})
}

func TestANewDeviceIsToldWhereThatIsWanted(t *testing.T) {
	t.Parallel()
	cfg := plain()
	cfg.Notify = notifyNewDevice
	each(t, cfg, func(t *testing.T, env *testEnv) {
		caller := env.verified(t, "alice@example.com")
		env.messages(t)
		cred := auth.Credentials{Username: caller.User.Username, Password: goodPassword}
		tokens, err := env.accounts.Login(t.Context(), cred, phone())
		if err != nil {
			t.Fatal(err)
		}
		if m := env.message(t, PurposeNoticeNewDevice); m.Recipient != "alice@example.com" ||
			m.Device != "Firefox/140.0" || m.LinkToken != "" {
			t.Errorf("%+v", m)
		}
		known := phone()
		known.Token = tokens.DeviceToken
		if _, err := env.accounts.Login(t.Context(), cred, known); err != nil {
			t.Fatal(err)
		}
		if got := env.sent(t); got != "" {
			t.Errorf("a known device: %s", got)
		}
	})
}

func TestADeletedAccountLeavesNothing(t *testing.T) {
	t.Parallel()
	each(t, plain(), func(t *testing.T, env *testEnv) {
		caller := env.verified(t, "alice@example.com")
		if err := env.accounts.SetPassword(t.Context(), caller.User.ID, newPassword); err != nil {
			t.Fatal(err)
		}
		if err := env.accounts.DeleteUser(t.Context(), caller.User.ID); err != nil {
			t.Fatal(err)
		}
		for _, table := range []string{"contact", "contact_challenge", "contact_undo"} {
			left, err := database.Value[int](env.db.QueryRowContext(t.Context(), "SELECT count(*) FROM "+table))
			if err != nil || left != 0 {
				t.Errorf("%d rows of %s remain, %v", left, table, err)
			}
		}
	})
}

// A failed transaction leaves nothing: no message without its challenge, and no challenge without
// its message.
func TestAMessageExistsExactlyWithItsChallenge(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		env := newEnv(t, db, plain(), &clock{now: time.Now()})
		caller := env.register(t, "")
		before := env.written(t)
		broken := errors.New("broken")
		err := env.transact(t.Context(), func(ctx context.Context, tx database.Tx) error {
			c := env.newContact(caller.User.ID, "a@example.com", "a@example.com", "")
			if err := env.insert(ctx, tx, c); err != nil {
				return err
			}
			if _, _, err := env.issue(ctx, tx, toVerify(caller.User, &c, netip.Addr{})); err != nil {
				return err
			}
			return broken
		})
		if !errors.Is(err, broken) || env.written(t) != before {
			t.Errorf("%v: wrote %+v", err, env.written(t).minus(before))
		}
	})
}
