package courier

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The memory against a model: a list of names, the one not met for the longest
// first.
func TestF2_TheMemoryAgainstAModel(t *testing.T) {
	type entry struct {
		name string
		has  [3]bool
		met  int
	}
	rapid.Check(t, func(t *rapid.T) {
		m := doneMemory{limit: rapid.IntRange(1, 4).Draw(t, "limit"), among: rapid.IntRange(3, 30).Draw(t, "among")}
		var model []entry
		met := 0
		find := func(name string) int {
			return slices.IndexFunc(model, func(e entry) bool { return e.name == name })
		}
		meet := func(i int) *entry {
			e := model[i]
			e.met = met
			model = append(slices.Delete(model, i, i+1), e)
			return &model[len(model)-1]
		}
		for range rapid.IntRange(0, 40).Draw(t, "operations") {
			names := rapid.SliceOfN(rapid.SampledFrom([]string{"", "a", "b", "c", "d", "e", "f"}), 1, 4).Draw(t, "names")
			switch rapid.IntRange(0, 2).Draw(t, "operation") {
			case 0:
				got := m.recall(names)
				met += len(names)
				for i, name := range names {
					var want []bool
					if j := find(name); j >= 0 {
						has := meet(j).has
						want = has[:]
					}
					if got != nil && !slices.Equal(got[i], want) || got == nil && want != nil {
						t.Fatalf("%q: got %v, want %v", name, got, want)
					}
				}
				for len(model) > 0 && met-model[0].met > m.among {
					model = model[1:]
				}
			case 1:
				has := make([][]bool, len(names))
				for i, name := range names {
					if b := rapid.IntRange(-1, 2).Draw(t, "branch"); b >= 0 {
						has[i] = make([]bool, 3)
						has[i][b] = true
					}
					switch j := find(name); {
					case name == "":
					case has[i] == nil && j >= 0:
						model = slices.Delete(model, j, j+1)
					case has[i] == nil:
					default:
						if j < 0 {
							if len(model) == m.limit {
								model = model[1:]
							}
							model = append(model, entry{name: name})
							j = len(model) - 1
						}
						e := meet(j)
						for b := range e.has {
							e.has[b] = e.has[b] || has[i][b]
						}
					}
				}
				m.note(names, has)
			case 2:
				m.forget(names)
				model = slices.DeleteFunc(model, func(e entry) bool { return slices.Contains(names, e.name) })
			}
			if int(m.size.Load()) != len(model) || m.order.Len() != len(model) || len(m.byName) != len(model) || len(model) > m.limit {
				t.Fatalf("holds %d, %d, %d records, want %d of at most %d", m.size.Load(), m.order.Len(), len(m.byName), len(model), m.limit)
			}
		}
	})
}

// A branch that gets some records of a batch gets their attempts, not those of
// the records at the same places.
func TestF2_AttemptsGoWithTheRecordsOfAShare(t *testing.T) {
	owner := new(int)
	var seen []int
	watch := &watching{seen: func(ctx context.Context, records []int) {
		past := historiesIn(ctx, len(records))
		for i := range records {
			used := 0
			if past != nil {
				used = past[i].by(owner).used
			}
			seen = append(seen, used)
		}
	}}
	failing := ProcessFunc(func(_ context.Context, r int) error {
		if r%2 == 1 {
			return errors.New("busy")
		}
		return nil
	})
	f := NewFanOutFromConfig(FanOutConfig[int]{
		Branches: []Branch[int]{{Name: "watch", Applier: watch}, {Name: "failing", Applier: failing}},
		Identity: strconv.Itoa,
	}).(BatchApplier[int])
	records := []int{0, 1, 2, 3, 4}
	past := make([]history, len(records))
	for i := range past {
		past[i] = history{{owner: owner, used: 10 + i}}
	}
	require.Error(t, f.ApplyBatch(withHistories(t.Context(), past), records))
	require.Equal(t, []int{10, 11, 12, 13, 14}, seen)

	// watch has 1 and 3, and gets the others, which are new by other names.
	seen = nil
	records = []int{100, 1, 102, 3, 104}
	require.Error(t, f.ApplyBatch(withHistories(t.Context(), past), records))
	require.Equal(t, []int{10, 12, 14}, seen)

	// The attempts of an outer delivery of as many records as the share has are
	// not the share's.
	seen = nil
	require.Error(t, f.ApplyBatch(withHistories(t.Context(), past[:3]), []int{200, 1, 202, 3, 204}))
	require.Equal(t, []int{0, 0, 0}, seen)
}

type watching struct{ seen func(context.Context, []int) }

func (w *watching) Apply(ctx context.Context, r int) error {
	return w.ApplyBatch(ctx, []int{r})
}

func (w *watching) ApplyBatch(ctx context.Context, records []int) error {
	w.seen(ctx, records)
	return nil
}

// Records that are settled elsewhere leave no cost behind for ever.
func TestF2_ARecordThatDoesNotComeAgainIsForgotten(t *testing.T) {
	f := NewFanOutFromConfig(FanOutConfig[int]{
		Branches: []Branch[int]{
			{Name: "a", Applier: ProcessFunc(func(context.Context, int) error { return nil })},
			{Name: "b", Applier: ProcessFunc(func(_ context.Context, r int) error {
				if r == 7 {
					return errors.New("busy")
				}
				return nil
			})},
		},
		Identity: strconv.Itoa,
	}).(*fanOutApplier[int])
	f.memory.among = 5
	require.Error(t, f.Apply(t.Context(), 7))
	for i := range 6 {
		require.True(t, f.remembers(), "after %d others", i)
		require.NoError(t, f.Apply(t.Context(), 100+i))
	}
	require.False(t, f.remembers())
}
