package courier

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The list against a model: the latest suspects, each once, oldest first.
func TestSuspects(t *testing.T) {
	for name, key := range map[string]func(int) recordKey{
		"by value":  func(r int) recordKey { return recordKey{value: r} },
		"by name":   func(r int) recordKey { return recordKey{name: strconv.Itoa(r)} },
		"by number": func(r int) recordKey { return recordKey{number: uint64(r) + 1} },
	} {
		keys := func(records []int) (keys []recordKey) {
			for _, r := range records {
				keys = append(keys, key(r))
			}
			return keys
		}
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				limit := rapid.IntRange(1, 5).Draw(t, "limit")
				s := suspects{clock: systemClock{}, limit: limit}
				var model []int
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
						s.note(key(r), history{{owner: t, used: r + 1}})
					case 1:
						without(r)
						s.drop(key(r))
					case 2:
						records := rapid.SliceOfN(rapid.IntRange(0, 9), 1, 8).Draw(t, "records")
						past := s.histories(keys(records))
						for i, record := range records {
							want := 0
							for _, m := range model {
								if m == record {
									want = record + 1
								}
							}
							got := 0
							if past != nil {
								got = past[i].by(t).used
							}
							if got != want {
								t.Fatalf("record %d has used %d, want %d", record, got, want)
							}
						}
						pick := s.probe(keys(records), nil, 0)
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
					var got []recordKey
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
	synctest.Test(t, func(t *testing.T) {
		s := suspects{clock: systemClock{}, limit: 10}
		one, two := recordKey{number: 1}, recordKey{number: 2}
		s.note(one, nil)
		s.note(two, nil)
		for range 3 {
			time.Sleep(suspectFor / 2)
			s.histories([]recordKey{two})
			s.forgetUnseen()
		}
		require.Len(t, s.list, 1)
		require.Equal(t, two, s.list[0].key)
	})
}
