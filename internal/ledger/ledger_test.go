package ledger_test

import (
	"errors"
	"fmt"
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

// The ledger against a map, over batches of changing size that use its memory
// again (D1).
func TestD1_TheLedgerAgainstAModel(t *testing.T) {
	type entry struct {
		state ledger.State
		err   error
	}
	rapid.Check(t, func(t *rapid.T) {
		var l ledger.Ledger[int]
		var model []entry
		noted := false
		next, errs := 0, 0
		index := func(t *rapid.T) int {
			if len(model) == 0 {
				t.Skip("the batch is empty")
			}
			return rapid.IntRange(0, len(model)-1).Draw(t, "record")
		}
		t.Repeat(map[string]func(*rapid.T){
			"reset": func(t *rapid.T) {
				records := make([]int, rapid.IntRange(0, 12).Draw(t, "records"))
				for i := range records {
					records[i] = next
					next++
				}
				l.Reset(records)
				model, noted = make([]entry, len(records)), false
			},
			"settle": func(t *rapid.T) {
				i := index(t)
				l.Settle(i)
				model[i].state = ledger.Settled
			},
			"settle a run": func(t *rapid.T) {
				from := index(t)
				to := rapid.IntRange(from, len(model)).Draw(t, "to")
				l.SettleRun(from, to)
				for i := from; i < to; i++ {
					model[i].state = ledger.Settled
				}
			},
			"fail": func(t *rapid.T) {
				i := index(t)
				errs++
				model[i], noted = entry{ledger.Failed, fmt.Errorf("error %d", errs)}, true
				l.Fail(i, model[i].err)
			},
			"leave": func(t *rapid.T) {
				i := index(t)
				errs++
				model[i].err, noted = fmt.Errorf("reason %d", errs), true
				l.Leave(i, model[i].err)
			},
			"": func(t *rapid.T) {
				if l.Noted() != noted {
					t.Fatalf("noted is %v, want %v", l.Noted(), noted)
				}
				in := map[ledger.State][]int{}
				for i, want := range model {
					if l.State(i) != want.state || l.Err(i) != want.err {
						t.Fatalf("record %d: state %d, error %v, want %+v", i, l.State(i), l.Err(i), want)
					}
					in[want.state] = append(in[want.state], l.Records[i])
				}
				for _, s := range []ledger.State{ledger.Pending, ledger.Settled, ledger.Failed} {
					if got := l.In(s); !slices.Equal(got, in[s]) {
						t.Fatalf("state %d: got %v, want %v", s, got, in[s])
					}
				}
				for from := range len(model) + 1 {
					for to := from; to <= len(model); to++ {
						run := slices.IndexFunc(model[from:to], func(e entry) bool { return e.state != ledger.Settled })
						if run < 0 {
							run = to - from
						}
						if got := l.Run(from, to); got != run {
							t.Fatalf("from %d to %d, %d may be marked, want %d", from, to, got, run)
						}
					}
				}
			},
		})
	})
}

// Memory is used again where it has room, and what was in it is let go of.
func TestMemoryIsUsedAgain(t *testing.T) {
	var l ledger.Ledger[int]
	records := make([]int, 8)
	failed := errors.New("failed")
	if n := testing.AllocsPerRun(10, func() {
		l.Reset(records)
		l.Fail(7, failed)
	}); n > 0 {
		t.Errorf("%v allocations for a batch of the same size", n)
	}
	if n := testing.AllocsPerRun(10, func() {
		l.Reset(records[:3])
		l.Settle(2)
		l.Reset(records)
	}); n > 0 {
		t.Errorf("%v allocations for a smaller batch", n)
	}
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
