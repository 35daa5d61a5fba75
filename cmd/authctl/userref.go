package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/auth"
)

// userRef names the account of a command: by a word, which is a username or an id, or by a flag
// that says which of the two it is.
type userRef struct {
	word     string
	id, name string // the values of the flags
	idFlag   string
	nameFlag string
	changed  func(flag string) bool
}

// addArgument makes the command take USER, --id or --name, exactly one of them.
func (r *userRef) addArgument(cmd *cobra.Command) {
	r.addFlags(cmd, "id", "name")
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args)+r.flagsGiven() != 1 {
			return errors.New("say which account, in one way: USER, --id ID or --name NAME")
		}
		if len(args) == 1 {
			r.word = args[0]
		}
		return r.check()
	}
}

// addFlags adds only the two flags.
func (r *userRef) addFlags(cmd *cobra.Command, idFlag, nameFlag string) {
	r.idFlag, r.nameFlag = idFlag, nameFlag
	cmd.Flags().StringVar(&r.id, idFlag, "", "the account with this id")
	cmd.Flags().StringVar(&r.name, nameFlag, "", "the account with this username")
	r.changed = cmd.Flags().Changed
}

func (r *userRef) flagsGiven() int {
	n := 0
	for _, flag := range []string{r.idFlag, r.nameFlag} {
		if r.changed(flag) {
			n++
		}
	}
	return n
}

func (r *userRef) check() error {
	if !r.changed(r.idFlag) {
		return nil
	}
	if _, ok := auth.ParseID(r.id); !ok {
		return fmt.Errorf("--%s is %q, which is not an id", r.idFlag, r.id)
	}
	return nil
}

// find returns the one account that is meant.
func (r *userRef) find(ctx context.Context, svc *auth.Service) (auth.User, error) {
	var u auth.User
	var err error
	said := fmt.Sprintf("%q", r.word)
	switch {
	case r.changed(r.idFlag):
		id, _ := auth.ParseID(r.id) // check has parsed it
		said = "with the id " + r.id
		u, err = svc.FindUserByID(ctx, id)
	case r.changed(r.nameFlag):
		said = fmt.Sprintf("with the name %q", r.name)
		u, err = svc.FindUserByName(ctx, r.name)
	default:
		u, err = svc.FindUser(ctx, r.word)
	}
	if two, ok := errors.AsType[*auth.AmbiguousUser](err); ok {
		return auth.User{}, misuse{fmt.Errorf("%q fits two accounts and nothing was done: it is the id of %q, and the "+
			"username of %s; use --%s or --%s", two.Word, two.ByID.Username, two.ByName.ID, r.idFlag, r.nameFlag)}
	}
	if errors.Is(err, auth.ErrUserNotFound) {
		return auth.User{}, fmt.Errorf("there is no user %s", said)
	}
	return u, err
}
