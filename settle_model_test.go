package courier

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The line of marks against a list: whatever is settled, taken, put back and
// given back, each record is marked once, in the order in which they were
// settled, or fetched where that was asked for; and memory that is taken again
// shows through nowhere (D1).
func TestD1_TheLineOfMarksAgainstAModel(t *testing.T) {
	for _, ordered := range []bool{false, true} {
		t.Run(fmt.Sprint("ordered ", ordered), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				batch := rapid.IntRange(1, 5).Draw(t, "batch")
				l := line[int]{ordered: ordered, batch: batch}
				var (
					next   int
					state  []slotState // by record
					upto   int         // records before it were let through, if ordered
					want   []int       // may be marked, in this order
					marked []int
					call   []int // the records of a mark that is under way
					copied []int // what these were
				)
				// An unordered line is told of what is applied only, in runs.
				settleRun := func(records []int) {
					l.add(records...)
					want = append(want, records...)
				}
				open := func() (open []int) {
					for r, s := range state {
						if s == unsettled {
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
				leave := func(r int, s slotState) {
					state[r] = s
					it := item[int]{record: r, number: uint64(r)}
					l.leave(&it, s)
					if !ordered {
						return
					}
					for ; upto < next && state[upto] != unsettled; upto++ {
						if state[upto] == markable {
							want = append(want, upto)
						}
					}
				}
				t.Repeat(map[string]func(*rapid.T){
					"fetch": func(t *rapid.T) {
						for range rapid.IntRange(1, 6).Draw(t, "n") {
							l.enter(next)
							state = append(state, unsettled)
							next++
						}
					},
					"apply": func(t *rapid.T) {
						r := pick(t)
						if ordered {
							leave(r, markable)
							return
						}
						run := []int{r}
						for r++; r < next && state[r] == unsettled && rapid.Bool().Draw(t, "more"); r++ {
							run = append(run, r)
						}
						for _, r := range run {
							state[r] = markable
						}
						settleRun(run)
					},
					"give back": func(t *rapid.T) { leave(pick(t), gone) },
					"take": func(t *rapid.T) {
						if call != nil || l.ready() == 0 {
							t.Skip("no call can be made")
						}
						call = l.take()
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
						l.reuse(call)
						call, copied = nil, nil
					},
					"fail to mark": func(t *rapid.T) {
						if call == nil {
							t.Skip("no call was made")
						}
						l.putBack(call)
						want = append(slices.Clone(call), want...)
						call, copied = nil, nil
					},
					"": func(t *rapid.T) {
						if l.ready() != len(want) {
							t.Fatalf("%d records may be marked, want %v", l.ready(), want)
						}
						if !slices.Equal(l.settled, want) {
							t.Fatalf("%v may be marked, want %v", l.settled, want)
						}
						if !slices.Equal(call, copied) {
							t.Fatalf("the records of the call under way are %v, and were %v", call, copied)
						}
						if ordered && !slices.IsSorted(slices.Concat(marked, call, want)) {
							t.Fatalf("marks out of order: %v, %v, %v", marked, call, want)
						}
						if n := next - upto; ordered && (len(l.slots) != n || l.first != uint64(upto)) {
							t.Fatalf("%d slots from %d on are kept, want %d from %d on", len(l.slots), l.first, n, upto)
						}
					},
				})
			})
		})
	}
}

// Memory of marked records is taken again, and only where it has room for a
// batch; the records in it are let go of.
func TestTheLineOfMarksReusesMemory(t *testing.T) {
	l := line[*int]{batch: 2}
	l.add(new(int), new(int), new(int))
	first := l.take()
	l.reuse(first[:1:1]) // too small
	if l.spare != nil {
		t.Error("memory for less than a batch is kept")
	}
	l.reuse(first)
	if l.spare == nil || first[0] != nil || first[1] != nil {
		t.Errorf("the memory of a batch is kept: %v, and holds %v", l.spare != nil, first)
	}
	kept := &l.spare[:1][0]
	l.reuse(make([]*int, 2))
	if &l.spare[:1][0] != kept {
		t.Error("the spare memory was replaced")
	}
	_ = l.take() // the third
	l.add(new(int))
	if &l.settled[0] != kept || l.spare != nil {
		t.Error("the spare memory is not in use")
	}
}

// The gate of keys against a map, for a poller's passes (D4).
func TestD4_TheGateOfKeysAgainstAModel(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		var g keyGate
		now := start
		model := map[string]time.Time{}
		keys := rapid.SampledFrom([]string{"", "a", "b", "c"})
		until := func(t *rapid.T) time.Time {
			return now.Add(time.Duration(rapid.IntRange(-2, 5).Draw(t, "until")) * time.Second)
		}
		t.Repeat(map[string]func(*rapid.T){
			"block": func(t *rapid.T) {
				key := keys.Draw(t, "key")
				g.block(key)
				if _, held := model[key]; !held {
					model[key] = time.Time{}
				}
			},
			"hold": func(t *rapid.T) {
				key, at := keys.Draw(t, "key"), until(t)
				g.hold(key, at)
				if at.After(model[key]) {
					model[key] = at
				}
			},
			"lift": func(t *rapid.T) {
				at := until(t)
				g.lift(now, at)
				for key, held := range model {
					switch {
					case held.IsZero() && at.After(now):
						model[key] = at
					case !held.After(now):
						delete(model, key)
					}
				}
			},
			"clear":     func(*rapid.T) { g.clear(); deleteUntimed(model) },
			"time goes": func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "by")) * time.Second) },
			"": func(t *rapid.T) {
				for _, key := range []string{"", "a", "b", "c"} {
					at, held := model[key]
					if g.blocks(key) != held || !g.until(key).Equal(at) {
						t.Fatalf("key %q: blocked %v until %v, want %v until %v", key, g.blocks(key), g.until(key), held, at)
					}
				}
				if g.some.Load() != (len(model) > 0) {
					t.Fatalf("some is %v with %v", g.some.Load(), model)
				}
			},
		})
	})
}

// deleteUntimed is what clear does: a share's gate, which is the only one to be
// cleared, holds no key until a time.
func deleteUntimed(model map[string]time.Time) {
	for key, until := range model {
		if until.IsZero() {
			delete(model, key)
		}
	}
}

// Chains have every record once, those of a key in order, and one of each key at
// a time (D4).
func TestD4_ChainsHaveTheRecordsOfEachKeyInOrder(t *testing.T) {
	var c chains // is reused from batch to batch
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOf(rapid.SampledFrom([]string{"", "a", "b", "c", "d"})).Draw(t, "keys")
		c.heads = c.heads[:0]
		c.link(keys)
		if !slices.IsSorted(c.heads) {
			t.Fatalf("the heads are out of order: %v", c.heads)
		}
		last := map[string]int{}
		met := 0
		for list := slices.Clone(c.heads); len(list) > 0; list = c.follow(list) {
			here := map[string]bool{}
			for _, i := range list {
				if before, ok := last[keys[i]]; here[keys[i]] || ok && before >= i {
					t.Fatalf("record %d of %v is out of order in %v", i, keys, list)
				}
				here[keys[i]] = true
				last[keys[i]] = i
				met++
			}
		}
		if met != len(keys) {
			t.Fatalf("%d records of %d are in chains", met, len(keys))
		}
	})
}
