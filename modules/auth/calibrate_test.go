package auth

import (
	"testing"

	"github.com/toppira/authctl/modules/auth/internal/password"
)

func TestWhatAHashCostsIsKnownWithoutComputingIt(t *testing.T) {
	t.Parallel()
	least, err := HashTime(t.Context(), Config{Password: password.Config{Algorithm: "bcrypt", BcryptCost: 10}})
	if err != nil {
		t.Fatal(err)
	}
	// A thousand times as much work: computing it would take a minute.
	most, err := HashTime(t.Context(), Config{Password: password.Config{Algorithm: "bcrypt", BcryptCost: 20}})
	if err != nil || most < 100*least {
		t.Errorf("%s and %s, %v", least, most, err)
	}
	one, err := HashTime(t.Context(), Config{Password: password.Config{Algorithm: "argon2id", Argon2Memory: 46}})
	if err != nil {
		t.Fatal(err)
	}
	many, err := HashTime(t.Context(), Config{Password: password.Config{Algorithm: "argon2id", Argon2Memory: 256}})
	if err != nil || many < 2*one {
		t.Errorf("%s and %s, %v", one, many, err)
	}
}
