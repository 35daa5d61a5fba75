package outbox

import (
	"strings"
	"testing"
)

// A relay must not take its own file for another target while the folder is moved away and back.
func TestAFileIsBesideItsDatabaseWhileTheirFolderIsAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/none/"
	if !sameFolder(dir+"events.ndjson", dir+"authctl.db") {
		t.Error("not beside its database")
	}
	if sameFolder(dir+"events.ndjson", dir+"other/authctl.db") {
		t.Error("beside the database of another folder")
	}
}

// Where the database was moved and APP_DATA_DIR was not, both are files of the same path.
func TestAFileBesideTheDatabaseIsToldFromOneThatIsNot(t *testing.T) {
	t.Parallel()
	const file = "file:/srv/data/events.ndjson"
	for identity, want := range map[string]string{
		besideDatabase: "the file /srv/data/events.ndjson beside the database, and these settings name the file " +
			"/srv/data/events.ndjson. Nothing is published. Name no Kafka, and in APP_DATA_DIR the folder of the database;",
		"": "Name no Kafka, and APP_DATA_DIR=/srv/data;",
	} {
		err := otherTarget([]Target{{Name: file, State: active, Identity: identity}}, Target{Name: file})
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", identity, err)
		}
	}
}
