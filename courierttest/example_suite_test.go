package courierttest_test

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// table is a source of one's own.
type table struct {
	mu   sync.Mutex
	rows []int
}

func (s *table) Fetch(_ context.Context, limit int) ([]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.rows[:min(limit, len(s.rows))]), nil
}

func (s *table) Mark(ctx context.Context, rows []int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = slices.DeleteFunc(s.rows, func(row int) bool { return slices.Contains(rows, row) })
	return nil
}

// openTable makes a fresh one for each check, and says how to get at it.
func openTable(*testing.T) courierttest.SourceFixture[int] {
	source, next := new(table), 0
	return courierttest.SourceFixture[int]{
		Source: source,
		Add: func(n int) (names []string) {
			for range n {
				source.rows = append(source.rows, next)
				names = append(names, strconv.Itoa(next))
				next++
			}
			return names
		},
		Reopen: func() courier.Source[int] { return source },
	}
}

// The test of a source of one's own has one line.
func ExampleTestSource() {
	_ = func(t *testing.T) { // func TestTable
		courierttest.TestSource(t, openTable, courierttest.SourceFeatures{Ordered: true})
	}
}
