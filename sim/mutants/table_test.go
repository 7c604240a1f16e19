package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Each text to be replaced is there, once: a bug that cannot be planted would
// otherwise be noticed only by the next long hunt.
func TestEveryMutantCanBePlanted(t *testing.T) {
	for _, m := range mutants {
		code, err := os.ReadFile("../../" + m.file)
		require.NoError(t, err)
		assert.Equal(t, 1, strings.Count(string(code), m.from), "%s: in %s", m.name, m.file)
		require.NotEqual(t, m.from, m.to, m.name)
	}
}
