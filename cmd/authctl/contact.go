package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/contact"
)

func newUserContact(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "contact",
		Short: "List, add, verify and remove the contacts of an account",
		Long: `List, add, verify and remove the contacts of an account: the addresses to which a code is sent when
its owner has forgotten the password. Verify an address only if you know that it is the owner's:
anybody who reads mail there can set a new password.`,
		Example: "  authctl user contact list alice",
	}, newUserContactList(g), newUserContactAdd(g), newUserContactVerify(g), newUserContactRemove(g))
}

func newUserContactList(g *global) *cobra.Command {
	return g.showUser(&cobra.Command{
		Use: "list USER", Short: "List the contacts of an account",
		Example: "  authctl user contact list alice -o json",
	}, func(ctx context.Context, a *app, u auth.User) error {
		list, err := a.contact.Contacts(ctx, u.ID)
		if err != nil {
			return err
		}
		rows := make([][]string, len(list))
		for i, c := range list {
			verified := "no"
			if c.Verified() {
				verified = c.VerifiedAt.Format(time.RFC3339)
			}
			rows[i] = []string{c.ID.String(), c.Kind, c.Address, verified, c.CreatedAt.Format(time.RFC3339)}
		}
		return g.table(a.cmd.OutOrStdout(), list, []string{"ID", "KIND", "ADDRESS", "VERIFIED", "ADDED"}, rows)
	})
}

// emailFlag is the address that a command is about.
type emailFlag struct{ address string }

func (e *emailFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&e.address, "email", "", "the address")
	cobra.CheckErr(cmd.MarkFlagRequired("email"))
}

// find returns the contact of the account with the address, for a change that others get a notice of.
func (e *emailFlag) find(ctx context.Context, a *app, u auth.User) (contact.Contact, error) {
	if err := a.checkSecret(ctx); err != nil { // the notice is sealed
		return contact.Contact{}, err
	}
	c, err := a.contact.ContactByEmail(ctx, u.ID, e.address)
	if errors.Is(err, contact.ErrContactNotFound) {
		err = fmt.Errorf("%s has no contact %q", u.Username, e.address)
	}
	return c, err
}

func newUserContactAdd(g *global) *cobra.Command {
	email, verified := &emailFlag{}, false
	cmd := g.onUser(&cobra.Command{
		Use:   "add USER --email ADDRESS",
		Short: "Add an address to an account",
		Long: `Add an address to an account. Nothing is sent there: the owner asks for a code in the application, or
--verified says that the address is known to be the owner's.`,
		Example: `  authctl user contact add alice --email alice@example.com
  authctl user contact add alice --email alice@example.com --verified`,
	}, func(ctx context.Context, a *app, u auth.User) error {
		if verified { // others get a notice, which is sealed
			if err := a.checkSecret(ctx); err != nil {
				return err
			}
		}
		c, err := a.contact.AddByOperator(ctx, u.ID, email.address)
		if err != nil {
			return fmt.Errorf("the address %q: %w", email.address, err)
		}
		if !verified {
			return g.printDone(a, u, "has the contact "+c.Address+", which is not verified")
		}
		if _, err := a.contact.VerifyByOperator(ctx, u.ID, c.ID, false); err != nil {
			return advised{fmt.Errorf("the contact was added, and then: %w; verify it with: authctl user "+
				"contact verify --id %s --email %s", err, u.ID, email.address)}
		}
		return g.printDone(a, u, "has the contact "+c.Address+", which is verified")
	})
	email.add(cmd)
	cmd.Flags().BoolVar(&verified, "verified", false, "the address is known to be the owner's")
	return cmd
}

func newUserContactVerify(g *global) *cobra.Command {
	email, final := &emailFlag{}, false
	cmd := g.onUser(&cobra.Command{
		Use:   "verify USER --email ADDRESS",
		Short: "Say that an address is the owner's",
		Long: `Say that an address is the owner's, without a code. Anybody who reads mail there can set a new
password from then on. The contacts that were verified before get a notice with a link that undoes it.

--final is for an account that a stranger had: the notice has no link, and the links of all earlier notices
of the account end. With one of them the stranger would get the account back.`,
		Example: "  authctl user contact verify alice --email alice@example.com",
	}, func(ctx context.Context, a *app, u auth.User) error {
		c, err := email.find(ctx, a, u)
		if err != nil {
			return err
		}
		if c.Verified() && !final {
			return g.printOutcome(a, u, false,
				"has the contact "+c.Address+", which is verified already; nothing changed")
		}
		if _, err := a.contact.VerifyByOperator(ctx, u.ID, c.ID, final); err != nil {
			return err
		}
		return g.printDone(a, u, "has the contact "+c.Address+", which is verified")
	})
	email.add(cmd)
	cmd.Flags().BoolVar(&final, "final", false, "nobody can undo this, nor an earlier change")
	return cmd
}

func newUserContactRemove(g *global) *cobra.Command {
	email, sure, final := &emailFlag{}, &consent{}, false
	cmd := g.onUser(&cobra.Command{
		Use:   "remove USER --email ADDRESS",
		Short: "Remove an address from an account",
		Long: `Remove an address from an account. The verified contacts, including this one if it is verified, get a
notice with a link that undoes the removal. It asks on a terminal; elsewhere it needs --yes.

--final is for the address of a stranger: the notice has no link, and the links of all earlier notices of
the account end. With one of them the stranger would get the account back.`,
		Example: `  authctl user contact remove alice --email alice@example.com --yes
  authctl user contact remove alice --email thief@example.com --final --yes`,
	}, func(ctx context.Context, a *app, u auth.User) error {
		c, err := email.find(ctx, a, u)
		if err != nil {
			return err
		}
		loss := fmt.Sprintf("%s (%s) will lose the contact %s, and what is sent there", u.Username, u.ID, c.Address)
		if final {
			loss += "; nobody can undo this, nor any earlier change"
		}
		if err := sure.ask(a.cmd, loss); err != nil {
			return err
		}
		if err := a.contact.RemoveByOperator(ctx, u.ID, c.ID, final); err != nil {
			return err
		}
		return g.printDone(a, u, "has no contact "+c.Address+" any more")
	})
	email.add(cmd)
	cmd.Flags().BoolVar(&final, "final", false, "nobody can undo this, nor an earlier change")
	sure.add(cmd)
	return cmd
}
