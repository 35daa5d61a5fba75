package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// Bun writes arguments into the text of a statement, where a server with other settings may read
// them as part of it. So Bun only runs migrations, which have no arguments.
func TestNothingButTheMigratorRunsStatementsThroughBun(t *testing.T) {
	t.Parallel()
	handed := 0
	walkFiles(t, func(path string, file *ast.File) {
		for _, problem := range statementsThroughBun(path, file, &handed) {
			t.Error(problem)
		}
	})
	if handed != 1 {
		t.Errorf("Bun is used %d times, want once, for the migrator", handed)
	}
}

func TestStatementsThroughBunAreFound(t *testing.T) {
	t.Parallel()
	for text, found := range map[string]bool{
		`database.Bun(db).ExecContext(ctx, q, name)`:           true,
		`b := database.Bun(db); b.NewRaw(q, name)`:             true,
		`use(database.Bun(db))`:                                true,
		`db.ExecContext(ctx, q, name)`:                         false,
		`m := migrate.NewMigrator(database.Bun(db), all); _=m`: false,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\nfunc f() {"+text+"}", 0)
		if err != nil {
			t.Fatal(err)
		}
		handed := 0
		if problems := statementsThroughBun("migrations/x.go", file, &handed); (len(problems) > 0) != found {
			t.Errorf("%s: %q", text, problems)
		}
	}
}

func statementsThroughBun(path string, file *ast.File, handed *int) (problems []string) {
	migrator := map[ast.Expr]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if n, ok := n.(*ast.CallExpr); ok {
			called, ok := n.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if called.Sel.Name == "NewMigrator" && len(n.Args) > 0 && strings.HasPrefix(path, "migrations/") {
				migrator[n.Args[0]] = true
			}
			if called.Sel.Name == "Bun" {
				if !migrator[n] {
					problems = append(problems, path+
						": Bun is for the migrator alone: use the methods of platform/database, which bind arguments")
				} else {
					*handed++
				}
			}
		}
		return true
	})
	return problems
}

// walkFiles parses every Go file of the module.
func walkFiles(t *testing.T, visit func(path string, file *ast.File)) {
	t.Helper()
	root := filepath.Join("..", "..")
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		visit(filepath.ToSlash(relative), file)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 100 {
		t.Fatalf("only %d files were checked", files)
	}
}
