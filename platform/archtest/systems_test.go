package archtest

import (
	"errors"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// A name that only a file for Linux declares breaks the release for macOS, which no other test builds: that takes a
// minute. Names of other packages are not looked up here.
func TestEverySystemOfTheReleaseHasEveryName(t *testing.T) {
	t.Parallel()
	for _, root := range []string{"cmd/authctl", "migrations", "modules", "platform", "verify"} {
		err := filepath.WalkDir(filepath.Join("../..", root), func(dir string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			for _, problem := range missingNames(t, dir, "darwin") {
				t.Error(problem)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// missingNames lists the names that the package in a folder uses and nothing declares on a system.
func missingNames(t *testing.T, dir, system string) (problems []string) {
	t.Helper()
	context := build.Default
	context.GOOS, context.CgoEnabled = system, false
	pkg, err := context.ImportDir(dir, 0)
	if _, none := errors.AsType[*build.NoGoError](err); none {
		return nil
	} else if err != nil {
		t.Fatal(err)
	}
	fset, files, qualifiers := token.NewFileSet(), []*ast.File{}, map[token.Pos]bool{}
	for _, name := range pkg.GoFiles {
		file, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		ast.Inspect(file, func(n ast.Node) bool {
			if selector, ok := n.(*ast.SelectorExpr); ok {
				qualifiers[selector.X.Pos()] = true
			}
			return true
		})
	}
	checker := types.Config{Importer: nothing{}, Error: func(err error) {
		fault := err.(types.Error)
		if strings.HasPrefix(fault.Msg, "undefined: ") && !qualifiers[fault.Pos] {
			problems = append(problems, system+": "+err.Error())
		}
	}}
	_, _ = checker.Check(dir, fset, files, nil) // every error was seen
	return problems
}

// nothing imports no package: what is used of one is not checked, nor what its name is.
type nothing struct{}

func (nothing) Import(string) (*types.Package, error) { return nil, errors.New("not imported") }
