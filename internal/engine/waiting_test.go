package engine_test

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/internal/engine"
)

// waitingModel is Waiting as a plain list.
type waitingModel struct {
	list   []engine.Waiter[int] // the value is the turn of one that is held, 0 of one behind
	inWork map[string]int
	turn   int
}

func (m *waitingModel) firstHeld(key string) *engine.Waiter[int] {
	var first *engine.Waiter[int]
	for i := range m.list {
		if one := &m.list[i]; one.Key == key && one.Value > 0 && (first == nil || one.Number < first.Number) {
			first = one
		}
	}
	return first
}

func (m *waitingModel) busy(key string) bool {
	return key != "" && (m.inWork[key] > 0 || m.firstHeld(key) != nil)
}

func (m *waitingModel) take(number uint64) {
	m.list = slices.DeleteFunc(m.list, func(one engine.Waiter[int]) bool { return one.Number == number })
}

// open returns the numbers of the records of a key that nothing holds up.
func (m *waitingModel) open(key string) (free []uint64) {
	if m.inWork[key] > 0 {
		return nil
	}
	first := m.firstHeld(key)
	for _, one := range m.list {
		if one.Key == key && one.Value == 0 && (first == nil || one.Number < first.Number) {
			free = append(free, one.Number)
		}
	}
	slices.Sort(free)
	for _, number := range free {
		m.take(number)
	}
	return free
}

func (m *waitingModel) due(now time.Time) *engine.Waiter[int] {
	var first *engine.Waiter[int]
	for i := range m.list {
		one := &m.list[i]
		if one.Value > 0 && !now.Before(one.Due) && (first == nil || one.Due.Before(first.Due) || one.Due.Equal(first.Due) && one.Value < first.Value) {
			first = one
		}
	}
	return first
}

func numbersOf(some []engine.Waiter[int]) (numbers []uint64) {
	for _, one := range some {
		numbers = append(numbers, one.Number)
	}
	return numbers
}

// D3, D4: a record is taken out once, when it is due, and never before an earlier one of
// its key that waits or while one is in work.
func TestD4_WaitingAgainstAModel(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	keys := rapid.SampledFrom([]string{"", "a", "b"})
	rapid.Check(t, func(t *rapid.T) {
		var w engine.Waiting[int]
		m := waitingModel{inWork: map[string]int{}}
		now := start
		next := uint64(0)
		keyOf := map[uint64]string{}
		var out []uint64 // taken out, and may come again
		fresh := func(key string) uint64 {
			next++
			keyOf[next] = key
			return next
		}
		hold := func(number uint64, due time.Time) {
			one := engine.Waiter[int]{Key: keyOf[number], Number: number, Due: due}
			w.Hold(one)
			m.turn++
			one.Value = m.turn
			m.list = append(m.list, one)
		}
		t.Repeat(map[string]func(*rapid.T){
			"hold": func(t *rapid.T) {
				var number uint64
				if len(out) > 0 && rapid.Bool().Draw(t, "again") {
					i := rapid.IntRange(0, len(out)-1).Draw(t, "which")
					number = out[i]
					out = slices.Delete(out, i, i+1)
				} else {
					number = fresh(keys.Draw(t, "key"))
				}
				var due time.Time
				if rapid.Bool().Draw(t, "later") {
					due = now.Add(time.Duration(rapid.IntRange(0, 5).Draw(t, "due")) * time.Second)
				}
				hold(number, due)
			},
			"behind": func(t *rapid.T) {
				key := keys.Draw(t, "key")
				if !m.busy(key) {
					t.Skip("nothing is in the way")
				}
				one := engine.Waiter[int]{Key: key, Number: fresh(key)}
				w.Behind(one)
				m.list = append(m.list, one)
			},
			"begin": func(t *rapid.T) {
				key := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key")
				w.Begin(key)
				m.inWork[key]++
			},
			"end": func(t *rapid.T) {
				key := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key")
				if m.inWork[key] == 0 {
					t.Skip("none is in work")
				}
				m.inWork[key]--
				free := numbersOf(w.End(key))
				require.Equal(t, m.open(key), free)
				out = append(out, free...)
			},
			"take": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "after")) * time.Second)
				due, free := w.TakeDue(now)
				var wantDue, wantFree []uint64
				turns := map[uint64]int{}
				for one := m.due(now); one != nil; one = m.due(now) {
					if first := m.firstHeld(one.Key); one.Key != "" && first.Number < one.Number {
						m.turn++
						one.Due, one.Value = first.Due, m.turn
						continue
					}
					key := one.Key
					turns[one.Number] = one.Value
					wantDue = append(wantDue, one.Number)
					m.take(one.Number)
					if key != "" {
						wantFree = append(wantFree, m.open(key)...)
					}
				}
				slices.SortFunc(wantDue, func(a, b uint64) int { return cmp.Compare(turns[a], turns[b]) })
				require.Equal(t, wantDue, numbersOf(due))
				require.Equal(t, wantFree, numbersOf(free))
				out = append(out, append(wantDue, wantFree...)...)
			},
			"remove": func(t *rapid.T) {
				if next == 0 {
					t.Skip("there were none")
				}
				gone := rapid.Uint64Range(1, next).Draw(t, "number")
				had := slices.ContainsFunc(m.list, func(one engine.Waiter[int]) bool { return one.Number == gone })
				m.take(gone)
				var want []uint64
				for _, key := range []string{"a", "b"} {
					want = append(want, m.open(key)...)
				}
				slices.Sort(want)
				removed, free := w.Remove(func(one *engine.Waiter[int]) bool { return one.Number == gone })
				require.Len(t, removed, map[bool]int{true: 1}[had])
				require.Equal(t, want, numbersOf(free))
				out = append(out, want...)
			},
			"": func(t *rapid.T) {
				held := slices.DeleteFunc(slices.Clone(m.list), func(one engine.Waiter[int]) bool { return one.Value == 0 })
				require.Equal(t, len(m.list), w.Len())
				require.Equal(t, len(held), w.Held())
				due, some := w.Next()
				require.Equal(t, len(held) > 0, some)
				if some {
					first := slices.MinFunc(held, func(a, b engine.Waiter[int]) int { return a.Due.Compare(b.Due) })
					require.True(t, first.Due.Equal(due))
				}
				for _, key := range []string{"", "a", "b"} {
					require.Equal(t, m.busy(key), w.Busy(key))
				}
				all := numbersOf(m.list)
				slices.Sort(all)
				require.Equal(t, all, numbersOf(w.All()))
			},
		})
	})
}

// Records of a key that are due before an earlier one wait for that, in their order.
func TestD4_WaitingForAnEarlierRecordOfTheKey(t *testing.T) {
	var w engine.Waiting[int]
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	after := func(d time.Duration) time.Time { return start.Add(d * time.Second) }
	w.Hold(engine.Waiter[int]{Key: "a", Number: 1, Due: after(20)})
	w.Hold(engine.Waiter[int]{Key: "a", Number: 2, Due: after(7)})
	w.Hold(engine.Waiter[int]{Key: "a", Number: 3, Due: after(6)})
	for _, at := range []time.Duration{6, 7, 19} {
		due, free := w.TakeDue(after(at))
		require.Empty(t, due)
		require.Empty(t, free)
	}
	due, _ := w.TakeDue(after(20))
	require.ElementsMatch(t, []uint64{1, 2, 3}, numbersOf(due))
}

// At the end of a run what is held is taken out, and then what is behind it; until then the
// keys stay shut.
func TestD8_WaitingAtTheEndOfARun(t *testing.T) {
	var w engine.Waiting[string]
	later := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w.Hold(engine.Waiter[string]{Value: "second", Key: "a", Number: 2, Due: later})
	w.Hold(engine.Waiter[string]{Value: "first", Number: 1, Due: later.Add(-time.Hour)})
	w.Behind(engine.Waiter[string]{Value: "fourth", Key: "a", Number: 4})
	w.Behind(engine.Waiter[string]{Value: "third", Key: "a", Number: 3})
	values := func(some []engine.Waiter[string]) (values []string) {
		for _, one := range some {
			values = append(values, one.Value)
		}
		return values
	}
	require.Equal(t, []string{"second", "first"}, values(w.TakeHeld()))
	require.Zero(t, w.Held())
	require.True(t, w.Busy("a"))
	require.Equal(t, []string{"third", "fourth"}, values(w.TakeBehind()))
	require.Zero(t, w.Len())
}
