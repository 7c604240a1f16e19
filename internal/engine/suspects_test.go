package engine

import (
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

// The list against a model: the latest suspects, each once, oldest first.
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
				limit := rapid.IntRange(1, 5).Draw(t, "limit")
				s := NewSuspects[suspectKey, int](limit)
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
						if len(model) == limit {
							model = model[1:]
						}
						model = append(model, r)
						s.Note(key(r), r+1, now)
					case 1:
						without(r)
						s.Drop(key(r), now)
					case 2:
						records := rapid.SliceOfN(rapid.IntRange(0, 9), 1, 8).Draw(t, "records")
						for _, record := range records {
							want := 0
							for _, m := range model {
								if m == record {
									want = record + 1
								}
							}
							if got := s.Past(key(record), now); got != want {
								t.Fatalf("record %d has used %d, want %d", record, got, want)
							}
						}
						pick := s.Probe(keys(records), nil, 0, now)
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
					var got []suspectKey
					for _, sus := range s.list {
						got = append(got, sus.key)
					}
					require.Equal(t, keys(model), got)
				}
			})
		})
	}
}

func TestSuspects_OneThatIsNotSeenForLongIsForgotten(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := NewSuspects[suspectKey, int](10)
	one, two := suspectKey{number: 1}, suspectKey{number: 2}
	s.Note(one, 0, now)
	s.Note(two, 0, now)
	for range 3 {
		now = now.Add(SuspectFor / 2)
		s.Past(two, now)
		s.ForgetUnseen(now)
	}
	require.Len(t, s.list, 1)
	require.Equal(t, two, s.list[0].key)
}
