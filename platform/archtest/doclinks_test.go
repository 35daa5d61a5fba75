package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docLink is a link of a comment to a name, as go doc and editors follow it. That of another package begins with the
// package's.
var docLink = regexp.MustCompile(`(?:^|[\s(])\[\*?([a-z]\w*\.)?([A-Z]\w*(?:\.\w+)?)\](?:[\s.,:;)']|$)`)

func TestLinksInCommentsNameWhatIsThere(t *testing.T) {
	t.Parallel()
	packages := map[string][]*ast.File{}
	fset := token.NewFileSet()
	const root = "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" ||
			d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		packages[filepath.Dir(path)] = append(packages[filepath.Dir(path)], file)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]map[string]bool{} // by the name of the package and a dot
	for _, files := range packages {
		name := files[0].Name.Name + "."
		if named[name] == nil {
			named[name] = map[string]bool{}
		}
		maps.Copy(named[name], namesOf(files))
	}
	delete(named, "redis.") // in comments it is the library
	for _, files := range packages {
		for _, problem := range deadLinks(fset, files, named) {
			t.Error(strings.TrimPrefix(filepath.ToSlash(problem), "../../"))
		}
	}
}

// namesOf are what the files of a package declare, and members of its types.
func namesOf(files []*ast.File) map[string]bool {
	names := map[string]bool{}
	for _, file := range files {
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					name = baseName(d.Recv.List[0].Type) + "." + name
				}
				names[name] = true
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.ValueSpec:
						for _, name := range s.Names {
							names[name.Name] = true
						}
					case *ast.TypeSpec:
						names[s.Name.Name] = true
						for _, member := range membersOf(s.Type) {
							names[s.Name.Name+"."+member] = true
						}
					}
				}
			}
		}
	}
	return names
}

// deadLinks lists the links in comments of a package to names that neither it has nor the other package of ours.
func deadLinks(fset *token.FileSet, files []*ast.File, named map[string]map[string]bool) (problems []string) {
	own := namesOf(files)
	for _, file := range files {
		for _, group := range file.Comments {
			for _, line := range group.List {
				for _, link := range docLink.FindAllStringSubmatch(line.Text, -1) {
					names := own
					if link[1] != "" {
						names = named[link[1]]
					}
					if names != nil && !names[link[2]] {
						problems = append(problems, fmt.Sprintf("%s: [%s%s] is nothing of its package: correct the name, "+
							"or write [package.Name]", fset.Position(line.Pos()), link[1], link[2]))
					}
				}
			}
		}
	}
	return problems
}

// baseName is the name of the type of a receiver or an embedded field.
func baseName(of ast.Expr) string {
	switch e := of.(type) {
	case *ast.StarExpr:
		return baseName(e.X)
	case *ast.IndexExpr:
		return baseName(e.X)
	case *ast.IndexListExpr:
		return baseName(e.X)
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// membersOf are the fields or methods that a type is declared with.
func membersOf(of ast.Expr) (members []string) {
	var list *ast.FieldList
	switch e := of.(type) {
	case *ast.StructType:
		list = e.Fields
	case *ast.InterfaceType:
		list = e.Methods
	default:
		return nil
	}
	for _, field := range list.List {
		for _, name := range field.Names {
			members = append(members, name.Name)
		}
		if len(field.Names) == 0 {
			members = append(members, baseName(field.Type))
		}
	}
	return members
}

func TestADeadLinkIsFound(t *testing.T) {
	t.Parallel()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "a.go", `// Package a has [There], [There.Do], ([There.Field]) and [gone.Away].
// It uses [b.This], [*b.This] and [b.That].
package a

// There is not [Here], and [There.None] neither.
type There struct{ Field, other int } // see [Gone]

// Do is a[There] and []There.
func (t *There) Do() {}
`, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	other := map[string]map[string]bool{"b.": {"This": true}}
	found := strings.Join(deadLinks(fset, []*ast.File{file}, other), "\n")
	if strings.Count(found, "\n") != 3 || !strings.Contains(found, "[b.That]") || !strings.Contains(found, "[Here]") ||
		!strings.Contains(found, "[There.None]") || !strings.Contains(found, "a.go:6") {
		t.Errorf("found:\n%s", found)
	}
}
