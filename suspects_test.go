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
	for name, identity := range map[string]func(int) string{"by content": nil, "by name": strconv.Itoa} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				limit := rapid.IntRange(1, 5).Draw(t, "limit")
				s := suspects[int]{identity: identity, clock: systemClock{}, limit: limit}
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
						s.note(r, history{{owner: t, used: r + 1}})
					case 1:
						without(r)
						s.drop(r)
					case 2:
						records := rapid.SliceOfN(rapid.IntRange(0, 9), 1, 8).Draw(t, "records")
						past := s.histories(records)
						for i, record := range records {
							want := 0
							for _, m := range model {
								if m == record {
									want = record + 1
								}
							}
							got := 0
							if past != nil {
								got = past[i].by(t)
							}
							if got != want {
								t.Fatalf("record %d has used %d, want %d", record, got, want)
							}
						}
						pick := s.probe(records, nil)
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
					var got []int
					for _, sus := range s.list {
						got = append(got, sus.record)
					}
					if len(got) != len(model) {
						t.Fatalf("suspects %v, want %v", got, model)
					}
					for i := range got {
						if got[i] != model[i] {
							t.Fatalf("suspects %v, want %v", got, model)
						}
					}
				}
			})
		})
	}
}

func TestSuspects_OneThatIsNotSeenForLongIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := suspects[int]{clock: systemClock{}, limit: 10}
		s.note(1, nil)
		s.note(2, nil)
		for range 3 {
			time.Sleep(suspectFor / 2)
			s.histories([]int{2})
			s.forgetUnseen()
		}
		require.Len(t, s.list, 1)
		require.Equal(t, 2, s.list[0].record)
	})
}
