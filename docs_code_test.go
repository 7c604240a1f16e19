package courier_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// goFiles returns the lines of every Go file of the repository, without their
// indentation and without empty ones, each file as one text.
func goFiles(t *testing.T) (files []string) {
	eachFile(t, func(path, text string) {
		if filepath.Ext(path) == ".go" {
			files = append(files, unindented(text))
		}
	})
	return files
}

func unindented(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	return strings.Join(slices.DeleteFunc(lines, func(line string) bool { return line == "" }), "\n")
}

func documents(t *testing.T) []string {
	files := []string{"README.md"}
	for _, pattern := range []string{"docs/*.md", "adapters/*/README.md"} {
		some, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, some)
		files = append(files, some...)
	}
	return files
}

// The code that the documents show is part of a program or a test, which compiles.
func TestDocs_EverySnippetCompiles(t *testing.T) {
	snippet := regexp.MustCompile("(?s)```go\n(.*?)```")
	code := goFiles(t)
	for _, file := range documents(t) {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range snippet.FindAllStringSubmatch(string(text), -1) {
			shown := unindented(m[1])
			found := slices.ContainsFunc(code, func(file string) bool { return strings.Contains(file, shown) })
			assert.Truef(t, found, "%s shows code that no Go file has:\n%s", file, shown)
		}
	}
}

// The log lines and errors that are explained exist.
func TestDocs_EveryTextThatIsExplainedExists(t *testing.T) {
	text, err := os.ReadFile("docs/troubleshooting.md")
	require.NoError(t, err)
	code := strings.Join(goFiles(t), "\n")
	for _, m := range regexp.MustCompile("`(courier: [^`]*)`").FindAllStringSubmatch(string(text), -1) {
		said, _, _ := strings.Cut(m[1], "…")
		said, _, _ = strings.Cut(strings.Replace(said, "a fetch for", "a %s for", 1), "`")
		assert.Containsf(t, code, strings.TrimSpace(said), "docs/troubleshooting.md explains a text that no Go file has")
	}
}
