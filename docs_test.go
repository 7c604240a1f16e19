//go:build !race

package courier_test

// What the documents say is there: rules, their tests, and the places that links lead to.

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// eachFile calls a function with every Go file and every document of the repository.
func eachFile(t *testing.T, do func(path, text string)) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != "." && strings.HasPrefix(entry.Name(), "."):
			return fs.SkipDir
		case entry.IsDir() || filepath.Ext(path) != ".go" && filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		do(path, string(text))
		return err
	}))
}

var (
	// A rule is D4 in the text, or R-11, and begins the name of a test as D4_ or R11_.
	citation = regexp.MustCompile(`\bD\d+\b|\b[A-Z]-\d+\b`)
	numbered = regexp.MustCompile(`^Test([A-Z])(\d+)_`)
	numberIn = regexp.MustCompile(`_D\d+_`)
	ruleRow  = regexp.MustCompile(`(?m)^\| (D\d+|[A-Z]-\d+) \| .* \| (.*) \|$`)
	testName = regexp.MustCompile("`(Test\\w+)`")
	testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
)

// faultsOf compares the rules of a contract with what cites them: texts by their paths.
func faultsOf(contract string, texts map[string]string) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	rules := map[string]bool{}
	letters := map[string]bool{}
	tests := map[string]bool{}
	for _, row := range ruleRow.FindAllStringSubmatch(contract, -1) {
		if rules[row[1]] {
			fault("%s is there twice", row[1])
		}
		rules[row[1]], letters[row[1][:1]] = true, true
	}
	for path, text := range texts {
		for _, number := range citation.FindAllString(text, -1) {
			if letters[number[:1]] && !rules[number] {
				fault("%s cites %s, which is no rule", path, number)
			}
		}
		if !strings.HasSuffix(path, "_test.go") {
			continue
		}
		for _, f := range testFunc.FindAllStringSubmatch(text, -1) {
			tests[f[1]] = true
			if n := numbered.FindStringSubmatch(f[1]); n != nil && !rules[n[1]+n[2]] && !rules[n[1]+"-"+n[2]] {
				fault("%s is of no rule", f[1])
			}
			if numberIn.MatchString(f[1]) {
				fault("%s has its number in the middle", f[1])
			}
		}
	}
	for _, row := range ruleRow.FindAllStringSubmatch(contract, -1) {
		names := testName.FindAllStringSubmatch(row[2], -1)
		if len(names) == 0 {
			fault("%s has no test", row[1])
		}
		for _, name := range names {
			if !tests[name[1]] {
				fault("%s names %s, which is not there", row[1], name[1])
			}
		}
	}
	return faults
}

func TestDocs_TheContract(t *testing.T) {
	contract, err := os.ReadFile("docs/contract.md")
	require.NoError(t, err)
	texts := map[string]string{}
	eachFile(t, func(path, text string) { texts[path] = text })
	require.Empty(t, faultsOf(string(contract), texts))

	// The command of the README runs a test of each line of the delivery contract.
	_, rest, found := strings.Cut(texts["README.md"], "go test -run '")
	require.True(t, found)
	pattern, _, _ := strings.Cut(rest, "'")
	runs := regexp.MustCompile(pattern)
	ran := map[string]bool{}
	for path, text := range texts {
		if filepath.Dir(path) != "." || !strings.HasSuffix(path, "_test.go") {
			continue
		}
		for _, f := range testFunc.FindAllStringSubmatch(text, -1) {
			if number := numbered.FindStringSubmatch(f[1]); runs.MatchString(f[1]) {
				require.NotNil(t, number, "%s runs %s", pattern, f[1])
				require.Equal(t, "D", number[1])
				ran["D"+number[2]] = true
			}
		}
	}
	for _, row := range ruleRow.FindAllStringSubmatch(string(contract), -1) {
		require.Equal(t, row[1][1] != '-', ran[row[1]], "%s runs tests of %s", pattern, row[1])
	}
}

// Each fault is found.
func TestDocs_FaultsOfAContractAreFound(t *testing.T) {
	const contract = "| D1 | It is. | `TestD1_It` |\n| R-2 | It waits. | `TestWaits`, `TestD1_It` |\n"
	const good = "// D1, R-2: it is X-9.\nfunc TestD1_It(t *testing.T) {}\nfunc TestWaits(t *testing.T) {}\n"
	require.Empty(t, faultsOf(contract, map[string]string{"a_test.go": good}))
	for fault, broken := range map[string][3]string{
		"b.md cites D3, which is no rule":               {contract, good, "by D3"},
		"b.md cites R-1, which is no rule":              {contract, good, "by R-1"},
		"b.md cites D-" + "1, which is no rule":         {contract, good, "by D-" + "1"},
		"TestQ4_Full is of no rule":                     {contract, good + "func TestQ4_Full(t *testing.T) {}\n", ""},
		"TestEngine_D1_It has its number in the middle": {contract, good + "func TestEngine_D1_It(t *testing.T) {}\n", ""},
		"D1 names TestD1_Gone, which is not there":      {strings.Replace(contract, "TestD1_It", "TestD1_Gone", 1), good, ""},
		"R-2 has no test":                               {strings.Replace(contract, "`TestWaits`, `TestD1_It`", "", 1), good, ""},
		"D1 is there twice":                             {contract + contract[:strings.Index(contract, "\n")+1], good, ""},
	} {
		require.Equal(t, []string{fault}, faultsOf(broken[0], map[string]string{"a_test.go": broken[1], "b.md": broken[2]}))
	}
}

var (
	fence   = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	linkTo  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns what links to the headings of a document end with, as GitHub makes them.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		anchor := strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")
		for i, name := 1, anchor; ; i++ {
			if !found[name] {
				found[name] = true
				break
			}
			name = fmt.Sprintf("%s-%d", anchor, i)
		}
	}
	return found
}

// deadLinks returns the relative links of documents, by their paths, that lead nowhere.
func deadLinks(texts map[string]string, exists func(path string) bool) (dead []string) {
	for path, text := range texts {
		for _, l := range linkTo.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			target, anchor, _ := strings.Cut(l[1], "#")
			if strings.Contains(l[1], "://") {
				continue
			}
			to := path
			if target != "" {
				to = filepath.Join(filepath.Dir(path), target)
			}
			if !exists(to) || anchor != "" && !anchors(texts[to])[anchor] {
				dead = append(dead, path+": "+l[1])
			}
		}
	}
	return dead
}

func TestDocs_LinksLeadSomewhere(t *testing.T) {
	texts := map[string]string{}
	eachFile(t, func(path, text string) {
		if filepath.Ext(path) == ".md" {
			texts[path] = text
		}
	})
	require.Contains(t, texts, filepath.Join("docs", "contract.md"))
	require.Empty(t, deadLinks(texts, func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	}))
}

// Each kind of dead link is found.
func TestDocs_DeadLinksAreFound(t *testing.T) {
	texts := map[string]string{
		"a.md":   "# One: `two`\n# One two\n[b](d/b.md) [b](d/b.md#b) [one](#one-two) [again](#one-two-1) [x](https://x.y/z#q)\n```\n# none\n[c](c.md)\n```\n",
		"d/b.md": "# B\n[a](../a.md#one-two)\n",
	}
	exists := func(path string) bool { _, ok := texts[path]; return ok }
	require.Empty(t, deadLinks(texts, exists))
	for _, dead := range []string{"c.md", "b.md", "d/b.md#c", "#one-two-2", "#none", "../a.md"} {
		texts["e.md"] = "# E\n[dead](" + dead + ")"
		require.Equal(t, []string{"e.md: " + dead}, deadLinks(texts, exists))
	}
}

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
	for _, m := range regexp.MustCompile("`(courier(?:sql)?: [^`]*)`").FindAllStringSubmatch(string(text), -1) {
		said, _, _ := strings.Cut(m[1], "…")
		said, _, _ = strings.Cut(strings.Replace(said, "a fetch for", "a %s for", 1), "`")
		assert.Containsf(t, code, strings.TrimSpace(said), "docs/troubleshooting.md explains a text that no Go file has")
	}
}
