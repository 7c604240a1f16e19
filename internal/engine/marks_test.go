package engine

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The queue of marks against a list: whatever is settled, taken, put back and
// given back, each record is marked once, in the order in which they were
// settled, or fetched where that was asked for; and memory that is taken again
// shows through nowhere (D1).
func TestD1_MarkQueueAgainstAModel(t *testing.T) {
	for _, ordered := range []bool{false, true} {
		t.Run(fmt.Sprint("ordered ", ordered), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				batch := rapid.IntRange(1, 5).Draw(t, "batch")
				numbered := rapid.Bool().Draw(t, "numbered")
				q := NewMarkQueue[int](batch, ordered, numbered) // the number of record 0 is 1
				var (
					next   int
					state  []Fate // by record
					upto   int    // records before it were let through, if ordered
					want   []int  // may be marked, in this order
					marked []int
					call   []int // the records of a mark that is under way
					copied []int // what these were
					number []uint64
				)
				// An unordered queue is told of what is applied only, in runs.
				settleRun := func(records []int) {
					if len(records) == 1 {
						q.Settle(uint64(records[0])+1, records[0])
					} else {
						q.Add(uint64(records[0])+1, records...)
					}
					want = append(want, records...)
				}
				open := func() (open []int) {
					for r, s := range state {
						if s == Unsettled {
							open = append(open, r)
						}
					}
					return open
				}
				pick := func(t *rapid.T) int {
					waiting := open()
					if len(waiting) == 0 {
						t.Skip("nothing waits")
					}
					return rapid.SampledFrom(waiting).Draw(t, "record")
				}
				leave := func(r int, s Fate) {
					state[r] = s
					q.Leave(uint64(r)+1, s)
					if !ordered {
						return
					}
					for ; upto < next && state[upto] != Unsettled; upto++ {
						if state[upto] == Markable {
							want = append(want, upto)
						}
					}
				}
				t.Repeat(map[string]func(*rapid.T){
					"fetch": func(t *rapid.T) {
						for range rapid.IntRange(1, 6).Draw(t, "n") {
							q.Enter(next)
							state = append(state, Unsettled)
							next++
						}
					},
					"apply": func(t *rapid.T) {
						r := pick(t)
						if ordered {
							leave(r, Markable)
							return
						}
						run := []int{r}
						for r++; r < next && state[r] == Unsettled && rapid.Bool().Draw(t, "more"); r++ {
							run = append(run, r)
						}
						for _, r := range run {
							state[r] = Markable
						}
						settleRun(run)
					},
					"give back": func(t *rapid.T) { leave(pick(t), Gone) },
					"take": func(t *rapid.T) {
						if call != nil || len(q.Ready()) == 0 {
							t.Skip("no call can be made")
						}
						call, number = q.Take()
						for i, n := range number {
							if n != uint64(call[i])+1 {
								t.Fatalf("the numbers of %v are %v", call, number)
							}
						}
						if numbered && len(number) != len(call) || !numbered && number != nil {
							t.Fatalf("%d numbers of %d records", len(number), len(call))
						}
						copied = slices.Clone(call)
						if len(call) != min(batch, len(want)) {
							t.Fatalf("%d records for one call, of %d and a batch of %d", len(call), len(want), batch)
						}
						if !slices.Equal(call, want[:len(call)]) {
							t.Fatalf("%v are to be marked, want %v", call, want)
						}
						want = want[len(call):]
					},
					"mark": func(t *rapid.T) {
						if call == nil {
							t.Skip("no call was made")
						}
						marked = append(marked, call...)
						q.Reuse(call)
						call, copied = nil, nil
					},
					"fail to mark": func(t *rapid.T) {
						if call == nil {
							t.Skip("no call was made")
						}
						q.PutBack(call, number)
						want = append(slices.Clone(call), want...)
						call, copied = nil, nil
					},
					"": func(t *rapid.T) {
						if len(q.Ready()) != len(want) {
							t.Fatalf("%d records may be marked, want %v", len(q.Ready()), want)
						}
						if !slices.Equal(q.Ready(), want) {
							t.Fatalf("%v may be marked, want %v", q.Ready(), want)
						}
						if !slices.Equal(call, copied) {
							t.Fatalf("the records of the call under way are %v, and were %v", call, copied)
						}
						if ordered && !slices.IsSorted(slices.Concat(marked, call, want)) {
							t.Fatalf("marks out of order: %v, %v, %v", marked, call, want)
						}
						if n := next - upto; ordered && (len(q.slots) != n || q.first != uint64(upto)+1) {
							t.Fatalf("%d slots from %d on are kept, want %d from %d on", len(q.slots), q.first, n, upto)
						}
					},
				})
			})
		})
	}
}

// Memory of marked records is taken again, and only where it has room for a
// batch; the records in it are let go of.
func TestMarkQueueReusesMemory(t *testing.T) {
	q := NewMarkQueue[*int](2, false, false)
	q.Add(1, new(int), new(int), new(int))
	first, _ := q.Take()
	q.Reuse(first[:1:1]) // too small
	if q.spare != nil {
		t.Error("memory for less than a batch is kept")
	}
	q.Reuse(first)
	if q.spare == nil || first[0] != nil || first[1] != nil {
		t.Errorf("the memory of a batch is kept: %v, and holds %v", q.spare != nil, first)
	}
	kept := &q.spare[:1][0]
	q.Reuse(make([]*int, 2))
	if &q.spare[:1][0] != kept {
		t.Error("the spare memory was replaced")
	}
	q.Take() // the third
	q.Add(4, new(int))
	if &q.Ready()[0] != kept || q.spare != nil {
		t.Error("the spare memory is not in use")
	}
}
