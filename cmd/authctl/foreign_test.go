package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/testenv"
)

func TestWhoeverNamesAnotherProgramsDatabaseIsToldSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other.db")
	db, err := database.Open(t.Context(), database.Config{URL: config.Secret("sqlite:" + path)}, database.Options{})
	testenv.Must(t, err)
	_, err = db.Write(t.Context(), "CREATE TABLE other (id integer)")
	testenv.Must(t, err)
	testenv.Must(t, db.Close())
	t.Setenv("DATABASE_URL", "sqlite:"+path)
	for _, line := range []string{"restore fence --yes", "user list"} {
		var out, said bytes.Buffer
		code := run(t.Context(), strings.Fields(line), strings.NewReader(""), &out, &said)
		if code != 1 || !strings.Contains(said.String(), unlessForeign) {
			t.Errorf("%s: exit %d, %s", line, code, said.String())
		}
	}
}
