package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A benchmark that was renamed, or added and forgotten here, would be missing
// from the table without a word.
func TestPlan_HasEveryBenchmarkAndNoOther(t *testing.T) {
	t.Parallel()
	written := benchmarksIn(t, "../*_test.go", "../rivals/kafka/*_test.go", "../rivals/outbox/*_test.go", "../rivals/pools/*_test.go", "../rivals/postgres/*_test.go", "../rivals/resilience/*_test.go", "../rivals/router/*_test.go")
	planned := map[string]bool{}
	for _, s := range plan {
		for _, c := range s.cases {
			name, _, _ := strings.Cut(c.name, "/")
			planned[name] = true
			require.Contains(t, written, name)
		}
	}
	for name := range written {
		require.Contains(t, planned, name)
	}
}

func TestPlan_ComparesToBenchmarksThatAreThere(t *testing.T) {
	t.Parallel()
	names := map[string]bool{"": true, cheapest: true, bestFloor: true, bestRival: true, limit: true}
	for _, s := range plan {
		for _, c := range s.cases {
			names[c.name] = true
		}
	}
	for _, s := range plan {
		for _, c := range s.cases {
			require.Contains(t, names, c.to, c.name)
			require.False(t, c.goal.set() && c.to == "", "%s has a goal and nothing to compare it to", c.name)
		}
	}
}

// benchmarksIn lists the benchmark functions by name, and that each name is
// there once: the packages share one table.
func benchmarksIn(t *testing.T, patterns ...string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, files, pattern)
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			for _, d := range parsed.Decls {
				f, ok := d.(*ast.FuncDecl)
				if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Benchmark") {
					continue
				}
				name := strings.TrimPrefix(f.Name.Name, "Benchmark")
				require.NotContains(t, found, name)
				found[name] = true
			}
		}
	}
	return found
}
