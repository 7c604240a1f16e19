package ledger_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/internal/ledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// D1: whatever happens to the records of a batch, each is in one state, in
// order, and nothing of the batch before shows through.
func TestD1_EveryRecordIsInOneState(t *testing.T) {
	var l ledger.Ledger[int]
	rapid.Check(t, func(t *rapid.T) {
		states := rapid.SliceOfN(rapid.SampledFrom([]ledger.State{ledger.Pending, ledger.Settled, ledger.Failed}), 0, 50).Draw(t, "states")
		records := make([]int, len(states))
		want := map[ledger.State][]int{}
		for i, s := range states {
			records[i] = i
			want[s] = append(want[s], i)
		}
		l.Reset(records)
		for i, s := range states {
			switch s {
			case ledger.Settled:
				l.Settle(i)
			case ledger.Failed:
				l.Fail(i, errors.New("failed"))
			}
		}
		for _, s := range []ledger.State{ledger.Pending, ledger.Settled, ledger.Failed} {
			if got := l.In(s); !slices.Equal(got, want[s]) {
				t.Fatalf("state %d: got %v, want %v", s, got, want[s])
			}
		}
		for i, s := range states {
			if l.State(i) != s || (l.Err(i) != nil) != (s == ledger.Failed) {
				t.Fatalf("record %d: state %d, error %v", i, l.State(i), l.Err(i))
			}
		}
	})
}

// A mark may keep what it was given from an earlier batch in sight: the lists
// are never written again.
func TestListsAreNotReused(t *testing.T) {
	var l ledger.Ledger[int]
	l.Reset([]int{1, 2, 3})
	l.Settle(0)
	l.Settle(2)
	first := l.In(ledger.Settled)
	l.Reset([]int{7, 8, 9})
	l.Settle(1)
	l.Settle(2)
	l.In(ledger.Settled)
	require.Equal(t, []int{1, 3}, first)
}

func TestAFullListIsTheBatchItself(t *testing.T) {
	var l ledger.Ledger[int]
	records := []int{1, 2}
	l.Reset(records)
	l.Settle(0)
	l.Settle(1)
	require.Same(t, &records[0], &l.In(ledger.Settled)[0])
	require.Nil(t, l.In(ledger.Failed))
}

func TestLeaveKeepsTheReason(t *testing.T) {
	var l ledger.Ledger[int]
	l.Reset([]int{1})
	err := errors.New("not attempted")
	l.Leave(0, err)
	require.Equal(t, ledger.Pending, l.State(0))
	require.Equal(t, err, l.Err(0))
}
