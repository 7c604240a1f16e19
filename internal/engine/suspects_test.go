package engine

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// suspectKey is how a record is known, in one of three ways.
type suspectKey struct {
	name   string
	value  any
	number uint64
}

// inOrder returns the suspects, oldest first.
func inOrder[K comparable, U any](s *Suspects[K, U]) []K {
	return slices.SortedFunc(maps.Keys(s.known), func(a, b K) int { return cmp.Compare(s.known[a].age, s.known[b].age) })
}

// The suspects against a model: the latest ones, each once, oldest first. Of records with
// an odd number something was used.
func TestSuspects(t *testing.T) {
	for name, key := range map[string]func(int) suspectKey{
		"by value":  func(r int) suspectKey { return suspectKey{value: r} },
		"by name":   func(r int) suspectKey { return suspectKey{name: strconv.Itoa(r)} },
		"by number": func(r int) suspectKey { return suspectKey{number: uint64(r) + 1} },
	} {
		keys := func(records []int) (keys []suspectKey) {
			for _, r := range records {
				keys = append(keys, key(r))
			}
			return keys
		}
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				limits := Limits{All: rapid.IntRange(1, 5).Draw(t, "limit"), Bare: rapid.IntRange(1, 5).Draw(t, "limit of the bare")}
				s := NewSuspects[suspectKey, int](limits)
				used := func(r int) []int {
					if r%2 == 0 {
						return nil
					}
					return []int{r}
				}
				var model []int
				now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
				without := func(r int) {
					for i, m := range model {
						if m == r {
							model = append(model[:i:i], model[i+1:]...)
							return
						}
					}
				}
				for range rapid.IntRange(0, 40).Draw(t, "operations") {
					r := rapid.IntRange(0, 7).Draw(t, "record")
					switch rapid.IntRange(0, 2).Draw(t, "operation") {
					case 0:
						without(r)
						bare := slices.DeleteFunc(slices.Clone(model), func(m int) bool { return m%2 != 0 })
						switch {
						case len(bare) > 0 && (len(model) == limits.All || r%2 == 0 && len(bare) == limits.Bare):
							without(bare[0])
						case len(model) == limits.All:
							model = model[1:]
						}
						model = append(model, r)
						s.Note(key(r), used(r), now)
					case 1:
						without(r)
						s.Drop(key(r))
					case 2:
						records := rapid.SliceOfN(rapid.IntRange(0, 9), 1, 8).Draw(t, "records")
						for _, record := range records {
							var want []int
							if slices.Contains(model, record) {
								want = used(record)
							}
							require.Equal(t, want, s.Past(key(record), now), record)
						}
						pick := s.Probe(keys(records), nil, func(int) int { return 0 }, now)
						wantPick, rank := 0, len(model)
						for i, record := range records {
							at := -1
							for j, m := range model {
								if m == record {
									at = j
								}
							}
							if at < 0 {
								wantPick = i
								break
							}
							if at < rank {
								wantPick, rank = i, at
							}
						}
						if pick != wantPick {
							t.Fatalf("probe %d of %v with suspects %v, want %d", pick, records, model, wantPick)
						}
					}
					require.Equal(t, keys(model), inOrder(&s))
					require.Equal(t, limits.All-len(model), s.Room())
				}
			})
		})
	}
}

// Bad records that stand together, at the head, say, are not chosen one after the other, and
// each is chosen at some time.
func TestSpread(t *testing.T) {
	for n := 1; n <= 100; n++ {
		half := (n + 1) / 2
		chosen := make(map[int]bool)
		for i := range 500 {
			var head, tail bool
			for j := range 3 {
				pick := Spread(i+j, n)
				head, tail = head || pick < half, tail || pick >= n-half
			}
			require.True(t, head && tail, "%d to %d of %d", i, i+2, n)
			chosen[Spread(i, n)] = true
		}
		require.Len(t, chosen, n)
	}
}

// A suspect has its turn again and again, and never twice in a row.
func TestSuspects_EachHasItsTurns(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := NewSuspects[int, int](Limits{10, 10})
	s.Note(1, nil, now)
	var picked []int
	for fresh := 11; fresh <= 16; fresh++ {
		now = now.Add(2 * turnAfter)
		records := []int{1, fresh}
		one := records[s.Probe(records, nil, func(int) int { return 0 }, now)]
		s.Picked(one, now)
		picked = append(picked, one)
	}
	require.Equal(t, []int{1, 12, 1, 14, 1, 16}, picked)
}

func TestSuspects_OneThatIsNotSeenForLongIsForgotten(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := NewSuspects[suspectKey, int](Limits{10, 10})
	one, two := suspectKey{number: 1}, suspectKey{number: 2}
	s.Note(one, nil, now)
	s.Note(two, nil, now)
	for range 3 {
		now = now.Add(SuspectFor / 2)
		s.Past(two, now)
		s.ForgetUnseen(now)
	}
	require.Equal(t, []suspectKey{two}, inOrder(&s))
}

func TestSuspects_OneThatIsToBeSeenLaterIsNotForgottenBefore(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := NewSuspects[suspectKey, int](Limits{10, 10})
	one := suspectKey{number: 1}
	s.Note(one, []int{3}, now)
	s.Await(one, now.Add(24*time.Hour))
	s.ForgetUnseen(now.Add(24 * time.Hour))
	require.Equal(t, []int{3}, s.Past(one, now.Add(24*time.Hour)))
	s.ForgetUnseen(now.Add(26 * time.Hour))
	require.Zero(t, s.Len())
}

func TestSuspects_Rename(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, sure := range []bool{false, true} {
		s := NewSuspects[suspectKey, int](Limits{10, 1})
		one, two := suspectKey{number: 1}, suspectKey{number: 2}
		s.Note(one, []int{3}, now)
		s.Rename(one, two, sure, now)
		require.Equal(t, []suspectKey{two}, inOrder(&s))
		require.Equal(t, sure, s.Past(two, now) != nil)
		s.Note(one, nil, now)
		require.Equal(t, sure, s.Has(two, now), "one with nothing used takes its place")
		s.Rename(one, suspectKey{}, sure, now)
		require.False(t, s.Has(suspectKey{}, now), "the key of no record")
	}
}
