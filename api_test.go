package courier_test

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var updateAPI = flag.Bool("update-api", false, "write docs/api.txt anew")

// docs/api.txt has all that users of the root package, courierttest, sim and window can name.
// A change of it is a change of the API, and go test -run TestAPI_ . -update-api notes it.
func TestAPI_IsAsWrittenDown(t *testing.T) {
	var now []string
	for _, dir := range []string{".", "courierttest", "sim", "window"} {
		now = append(now, exportedIn(t, dir)...)
	}
	if *updateAPI {
		require.NoError(t, os.WriteFile("docs/api.txt", []byte(strings.Join(now, "\n")+"\n"), 0o644))
	}
	text, err := os.ReadFile("docs/api.txt")
	require.NoError(t, err)
	known := strings.Split(strings.TrimSpace(string(text)), "\n")
	without := func(list, other []string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(line string) bool { return slices.Contains(other, line) })
	}
	require.Empty(t, without(now, known), "is exported, and not in docs/api.txt")
	require.Empty(t, without(known, now), "is in docs/api.txt, and not exported")
}

// exportedIn returns the exported declarations of a package, sorted, without comments
// and bodies.
func exportedIn(t *testing.T, dir string) (lines []string) {
	fset := token.NewFileSet()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, path, nil, 0)
		require.NoError(t, err)
		for _, d := range file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if ast.IsExported(d.Name.Name) && (d.Recv == nil || ast.IsExported(receiverOf(d)) || receiverOf(d) == "control") { // which both coordinators embed
					d.Body = nil
					lines = append(lines, file.Name.Name+": "+onOneLine(fset, d))
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if exportOnly(spec) {
						lines = append(lines, file.Name.Name+": "+d.Tok.String()+" "+onOneLine(fset, spec))
					}
				}
			}
		}
	}
	require.NotEmpty(t, lines, filepath.Join(dir, "has no API"))
	slices.Sort(lines)
	return lines
}

// exportOnly takes out of a declaration what users cannot name, and reports whether
// anything is left.
func exportOnly(spec ast.Spec) bool {
	unexported := func(id *ast.Ident) bool { return !id.IsExported() }
	switch spec := spec.(type) {
	case *ast.ValueSpec:
		spec.Values = nil
		spec.Names = slices.DeleteFunc(spec.Names, unexported)
		return len(spec.Names) > 0
	case *ast.TypeSpec:
		if s, ok := spec.Type.(*ast.StructType); ok {
			s.Fields.List = slices.DeleteFunc(s.Fields.List, func(f *ast.Field) bool {
				if len(f.Names) == 0 { // embedded
					return !ast.IsExported(nameOf(f.Type))
				}
				f.Names = slices.DeleteFunc(f.Names, unexported)
				return len(f.Names) == 0
			})
		}
		return spec.Name.IsExported()
	}
	return false
}

func receiverOf(d *ast.FuncDecl) string { return nameOf(d.Recv.List[0].Type) }

// nameOf returns the name of a type, without its package, pointer and type arguments.
func nameOf(t ast.Expr) (name string) {
	if s, ok := t.(*ast.SelectorExpr); ok {
		return s.Sel.Name
	}
	ast.Inspect(t, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && name == "" {
			name = id.Name
		}
		return name == ""
	})
	return name
}

func onOneLine(fset *token.FileSet, node ast.Node) string {
	var b bytes.Buffer
	_ = printer.Fprint(&b, fset, node)
	return strings.Join(strings.Fields(b.String()), " ")
}

// The root package is in everyone's build: outside its tests it imports the
// standard library and itself.
func TestAPI_ImportsNothingButTheStandardLibrary(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").CombinedOutput()
	require.NoError(t, err, string(out))
	for _, path := range strings.Fields(string(out)) {
		require.True(t, strings.HasPrefix(path, "github.com/erfanmomeniii/courier"), "the root package imports %s", path)
	}
}
