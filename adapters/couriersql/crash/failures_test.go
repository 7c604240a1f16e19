package crash

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tests that docs/failures.md names are there.
func TestTheTestsOfTheFailures(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	var tests []byte
	for _, folder := range []string{"", "adapters/courierkafka", "adapters/couriernats", "adapters/couriersql", "adapters/couriersql/crash", "examples/kafka"} {
		files, err := filepath.Glob(filepath.Join(root, folder, "*_test.go"))
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			tests = append(tests, text...)
		}
	}
	there := map[string]bool{}
	for _, found := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(tests, -1) {
		there[string(found[1])] = true
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "failures.md"))
	require.NoError(t, err)
	text, _, _ = bytes.Cut(text, []byte("## All at once")) // of which each row is TestChaos
	rows := regexp.MustCompile(`(?m)^\|.*$`).FindAllString(string(text), -1)
	require.Greater(t, len(rows), 50)
	for _, row := range rows {
		names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(row, -1)
		head := regexp.MustCompile(`^\| what |^\|---`).MatchString(row)
		require.True(t, head || len(names) > 0, "no test: %s", row)
		for _, name := range names {
			require.True(t, there[name[1]], "%s is no test", name[1])
		}
	}
}
