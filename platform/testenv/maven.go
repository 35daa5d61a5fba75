package testenv

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
)

// MavenJars fetches the artifacts that the pom.xml of a folder pins, with their runtime
// dependencies, once for each content of it. It returns the folder whose subfolder jars holds them,
// and skips or fails like [NodeModules].
func MavenJars(t testing.TB, dir string) string {
	t.Helper()
	mvn := Program(t, "install Maven", "mvn")
	return installed(t, "java", dir, []string{"pom.xml"}, func(ctx context.Context, into string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, mvn, "-q", "-B", "-Dstyle.color=never", //nolint:gosec // for tests
			"dependency:copy-dependencies",
			"-DoutputDirectory="+filepath.Join(into, "jars"), "-DincludeScope=runtime")
		cmd.Dir = into
		return cmd
	})
}
