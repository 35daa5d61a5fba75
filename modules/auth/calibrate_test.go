package auth

import (
	"testing"

	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/platform/testenv"
)

func TestWhatAHashCostsIsKnownWithoutComputingIt(t *testing.T) {
	t.Parallel()
	least, err := HashTime(t.Context(), Config{Password: password.Config{Algorithm: "bcrypt", BcryptCost: 10}})
	testenv.Must(t, err)
	// A thousand times as much work: computing it would take a minute.
	most, err := HashTime(t.Context(), Config{Password: password.Config{Algorithm: "bcrypt", BcryptCost: 20}})
	if err != nil || most < 100*least {
		t.Errorf("%s and %s, %v", least, most, err)
	}
	one, err := HashTime(t.Context(), Config{Password: password.Config{Algorithm: "argon2id", Argon2Memory: 46}})
	testenv.Must(t, err)
	// As above, so that a machine that is busy during one of the two measurements changes nothing.
	many, err := HashTime(t.Context(), Config{Password: password.Config{Algorithm: "argon2id", Argon2Memory: 46_000}})
	if err != nil || many < 100*one {
		t.Errorf("%s and %s, %v", one, many, err)
	}
}
