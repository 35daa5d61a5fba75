package outbox

import "testing"

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
