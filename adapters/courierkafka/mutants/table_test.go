package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Each text to be replaced is there, once: a bug that cannot be planted would
// otherwise be noticed only by the next run.
func TestEveryMutantCanBePlanted(t *testing.T) {
	for _, m := range mutants {
		_, err := m.bug().In("../../..")
		assert.NoError(t, err, m.name)
	}
}
