package database_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

func TestCollectReadsEveryRowAndSaysWhatFailed(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		const query = "SELECT 'one' UNION ALL SELECT 'two' UNION ALL SELECT 'three'"
		list, err := database.Collect(t.Context(), db, "list words", database.Value[string], query)
		if fmt.Sprint(list) != "[one two three]" || err != nil {
			t.Errorf("%v, %v", list, err)
		}
		list, err = database.Collect(t.Context(), db, "list words", database.Value[string], query+" LIMIT ?", 0)
		if list == nil || len(list) != 0 || err != nil {
			t.Errorf("of no rows: %#v, %v", list, err)
		}
		for what, query := range map[string]string{"no query": "SELEC 1", "no number": "SELECT 'one'"} {
			if list, err := database.Collect(t.Context(), db, "list numbers", database.Value[int], query); err == nil ||
				!strings.HasPrefix(err.Error(), "list numbers: ") {
				t.Errorf("%s: %v, %v", what, list, err)
			}
		}
	})
}
