package courier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// rows is a table of which every fetch reads the rows anew, as a database does.
type rows[T any] struct {
	mu      sync.Mutex
	pending []int
	read    func(id int) T
	id      func(T) int
}

func (s *rows[T]) Fetch(_ context.Context, limit int) (records []T, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.pending[:min(limit, len(s.pending))] {
		records = append(records, s.read(id))
	}
	return records, nil
}

func (s *rows[T]) Mark(_ context.Context, done []T) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range done {
		s.pending = slices.DeleteFunc(s.pending, func(id int) bool { return id == s.id(r) })
	}
	return nil
}

func (s *rows[T]) add(ids ...int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, ids...)
}

func (s *rows[T]) left() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pending)
}

// claimed is rows that are handed out once, until they are given back.
type claimed[T any] struct {
	*rows[T]
	out map[int]time.Time // until when
}

func (c *claimed[T]) Fetch(_ context.Context, limit int) (records []T, _ error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range c.pending {
		if len(records) < limit && time.Now().After(c.out[id]) {
			c.out[id] = time.Now().Add(48 * time.Hour)
			records = append(records, c.read(id))
		}
	}
	return records, nil
}

func (c *claimed[T]) Release(_ context.Context, records []T, after time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range records {
		c.out[c.id(r)] = time.Now().Add(after - 1)
	}
	return nil
}

type row struct {
	ID      int
	Status  string
	Lines   []string
	Fetched int
	Ack     func()
}

// Poison records never stop the healthy ones for good, and are parked in the end,
// however little a coordinator can tell of records: their handler changes them, no
// two fetches return them alike, the batch is small, others come two at a time (D10,
// P-2, P-3).
func TestD10_PoisonIsParkedHoweverRecordsAreKnown(t *testing.T) {
	fetches := 0
	kinds := map[string]struct {
		read  func(id int) *row
		touch func(*row)
	}{
		"untouched":            {func(id int) *row { return &row{ID: id} }, func(*row) {}},
		"a field that is set":  {func(id int) *row { return &row{ID: id} }, func(r *row) { r.Status = "processing" }},
		"a slice that is kept": {func(id int) *row { return &row{ID: id, Lines: []string{"b", "a"}} }, func(r *row) { slices.Sort(r.Lines) }},
		"never alike":          {func(id int) *row { fetches++; return &row{ID: id, Fetched: fetches} }, func(*row) {}},
		"a function":           {func(id int) *row { return &row{ID: id, Ack: func() {}} }, func(*row) {}},
	}
	for kind, k := range kinds {
		t.Run(kind, func(t *testing.T) {
			poisonIsParked(t, k.read, func(r *row) int { return r.ID }, k.touch)
		})
	}
	t.Run("a value that is never alike", func(t *testing.T) {
		type counted struct{ ID, Fetched int }
		poisonIsParked(t, func(id int) counted { fetches++; return counted{id, fetches} }, func(c counted) int { return c.ID }, func(counted) {})
	})
	t.Run("a map", func(t *testing.T) {
		poisonIsParked(t, func(id int) map[string]int { return map[string]int{"id": id} }, func(m map[string]int) int { return m["id"] }, func(m map[string]int) { m["seen"] = 1 })
	})
	t.Run("a number", func(t *testing.T) {
		poisonIsParked(t, func(id int) int { return id }, func(id int) int { return id }, func(int) {})
	})
}

func poisonIsParked[T any](t *testing.T, read func(int) T, id func(T) int, touch func(T)) {
	t.Helper()
	for _, shape := range few("plain", "limitless", "leasing") {
		for _, batch := range few(3, 100, 1) {
			for _, named := range []bool{false, true} {
				for _, keyed := range []bool{false, true} {
					name := fmt.Sprintf("%s, batch %d, named %v, keyed %v", shape, batch, named, keyed)
					courierttest.Bubble(t, func(t *testing.T) {
						table := &rows[T]{read: read, id: id}
						var source courier.Source[T] = table
						switch shape {
						case "limitless":
							source = courier.BatchSourceFunc[T]{FetchFunc: func(ctx context.Context) ([]T, error) { return table.Fetch(ctx, 1000) }, MarkFunc: table.Mark}
						case "leasing":
							source = &claimed[T]{table, map[int]time.Time{}}
						}
						applied := map[int]int{}
						stack, queue := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r T) error {
							touch(r)
							if n := id(r); n < 2 {
								return errors.New("poison that does not say so")
							}
							applied[id(r)]++
							return nil
						}), nil)
						opts := []courier.Option{quiet, courier.WithBatchSize(batch), courier.WithInterval(5 * time.Second)}
						if named {
							opts = append(opts, courier.WithIdentity(func(r T) string { return strconv.Itoa(id(r)) }))
						}
						if keyed {
							opts = append(opts, courier.WithOrderKey(func(r T) string { return strconv.Itoa(id(r) % 5) }))
						}
						for n := range 20 {
							table.add(n)
						}
						run := courierttest.Start(t, courier.NewPollingCoordinator(source, stack, opts...))
						for n := range 12 {
							time.Sleep(10 * time.Minute)
							table.add(100+2*n, 101+2*n)
						}
						time.Sleep(time.Hour)
						require.NoError(t, run.Stop())
						parked, _ := queue.Count(t.Context())
						if _, number := any(read(0)).(int); shape == "leasing" && !named && !number {
							// A lease that is not renewed cannot be held over a pause, and
							// the record not be known again: the others go on all the same.
							for _, n := range table.left() {
								require.True(t, n < 2 || keyed && n%5 < 2, "%s: record %d is left", name, n)
							}
						} else {
							require.Equal(t, 2, parked, name)
							require.Empty(t, table.left(), name)
							require.Len(t, applied, 42, name)
						}
						for n, times := range applied {
							require.Equal(t, 1, times, "%s: record %d", name, n)
						}
					})
				}
			}
		}
	}
}

func TestWithIdentity_IsForTheCoordinatorsRecords(t *testing.T) {
	nothing := courier.ProcessFunc(func(context.Context, int) error { return nil })
	err := courier.NewPollingCoordinator(newShelf(1), nothing, courier.WithIdentity(func(string) string { return "" })).Start(t.Context())
	require.ErrorIs(t, err, courier.ErrConfig)
	require.ErrorContains(t, err, "WithIdentity")
	err = courier.NewPollingCoordinator(newShelf(1), nothing, courier.WithIdentity[int](nil)).Start(t.Context())
	require.ErrorContains(t, err, "WithIdentity")
}

// A record that the function of WithIdentity cannot name stops no other one, and the
// log says that it has no name.
func TestIdentity_OfABadRecordWithoutAName(t *testing.T) {
	for how, name := range map[string]func(r *row) string{
		"none": func(r *row) string { return strings.Trim(strconv.Itoa(r.ID), "0") },
		"panics": func(r *row) string {
			if r.ID == 0 {
				panic("a row without an ID")
			}
			return strconv.Itoa(r.ID)
		},
	} {
		for _, bad := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d bad", how, bad), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var logged bytes.Buffer
					var mu sync.Mutex
					var rows []*row
					for n := range bad {
						rows = append(rows, &row{Fetched: n})
					}
					for id := 1; id <= 5; id++ {
						rows = append(rows, &row{ID: id})
					}
					a, _ := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r *row) error {
						if r.ID == 0 {
							return errTest
						}
						return nil
					}), nil)
					fetch := func(context.Context) ([]*row, error) {
						mu.Lock()
						defer mu.Unlock()
						return slices.Clone(rows), nil
					}
					mark := func(_ context.Context, done []*row) error {
						mu.Lock()
						defer mu.Unlock()
						rows = slices.DeleteFunc(rows, func(r *row) bool { return slices.Contains(done, r) })
						return nil
					}
					c := courier.NewPollingCoordinator[*row](courier.BatchSourceFunc[*row]{FetchFunc: fetch, MarkFunc: mark}, a, courier.WithLogger(textLogger(&logged)), courier.WithIdentity(name))
					run := courierttest.Start(t, c)
					time.Sleep(30 * time.Minute)
					require.NoError(t, run.Stop())
					require.Len(t, rows, bad)
					require.Contains(t, logged.String(), "has no name")
				})
			})
		}
	}
}

// fetchedPointers is a source of records that cannot be known again.
type fetchedPointers[T any] struct {
	fetch func(limit int) []*T
	mark  func([]*T)
}

func (f fetchedPointers[T]) Fetch(_ context.Context, limit int) ([]*T, error) {
	return f.fetch(limit), nil
}

func (f fetchedPointers[T]) Mark(_ context.Context, records []*T) error { f.mark(records); return nil }

// Where records cannot be known again, the one that comes in a suspect's place does not
// inherit its attempts.
func TestIdentity_AnotherRecordInASuspectsPlaceBeginsAnew(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		type rec struct{ name string }
		poison, late, well := &rec{"poison"}, &rec{"late"}, &rec{"well"}
		var mu sync.Mutex
		pending := []*rec{poison}
		calls := make(map[*rec]int)
		source := fetchedPointers[rec]{func(limit int) []*rec {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(pending[:min(limit, len(pending))])
		}, func(done []*rec) {
			mu.Lock()
			defer mu.Unlock()
			pending = slices.DeleteFunc(pending, func(r *rec) bool { return slices.Contains(done, r) })
		}}
		b := exactBreaker(nil, func(p *courier.BreakerPolicy) { p.FailureThreshold, p.OpenFor = 3, time.Second })
		inner := courier.ProcessFunc(func(_ context.Context, r *rec) error {
			mu.Lock()
			defer mu.Unlock()
			calls[r]++
			if r == poison || r == late && calls[r] <= 2 {
				return errTest
			}
			return nil
		})
		queue := &courier.MemoryDLQ[*rec]{}
		stack := courier.NewDLQApplier(courier.NewRetryableApplier(courier.NewCircuitBreakerApplier(inner, b), courier.RetryPolicy{MaxAttempts: 5, InitialDelay: 1}), courier.DLQ[*rec](queue), courier.DLQPolicy[*rec]{})
		stop := start(t, courier.NewPollingCoordinator[*rec](source, stack, quiet, courier.WithInterval(time.Second)))
		time.Sleep(500 * time.Millisecond)
		mu.Lock()
		pending = []*rec{late, poison, well}
		mu.Unlock()
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		letters, _ := queue.Receive(t.Context(), 10)
		for _, l := range letters {
			require.NotEqual(t, late, l.Record, "parked after %d calls: %v", calls[late], l.Error)
		}
		t.Log(calls[late], calls[poison], len(letters), len(pending))
	})
}

// A fetch that looks past the records in hand counts none of them twice.
func TestIdentity_ALookPastCountsNoRecordTwice(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		type rec struct{ name string }
		poison := &rec{"poison"}
		source := fetchedPointers[rec]{func(int) []*rec { return []*rec{poison} }, func([]*rec) {}}
		b := exactBreaker(nil, func(p *courier.BreakerPolicy) { p.OpenFor = time.Second })
		c := courier.NewPollingCoordinator[*rec](source, courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, *rec) error { return errTest }), b), quiet, courier.WithInterval(time.Second))
		courierttest.Start(t, c)
		time.Sleep(time.Second / 2) // between the passes
		for range 100 {
			time.Sleep(time.Second)
			require.LessOrEqual(t, c.Stats().InHand, int64(1))
		}
	})
}

// inTurn is a batch applier that keeps the order inside a call.
type inTurn struct{ *batchSink[int] }

func (inTurn) OrderedBatches() bool { return true }

// What was used on a record that waits in hand counts when it comes again, though the record
// left the hand with an earlier one of its key that failed beside it.
func TestIdentity_AttemptsOutliveTheFailureOfAnEarlierRecordOfTheKey(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		attempts := make(map[int][]int)
		s := &batchSink[int]{failBatch: func(_ context.Context, _ []int, call int) error {
			if call == 1 {
				return errTest
			}
			return nil
		}}
		s.fail = func(ctx context.Context, r, _ int) error {
			attempts[r] = append(attempts[r], courier.AttemptFromContext(ctx))
			if r == 0 {
				return errTest
			}
			return nil
		}
		applier := courier.NewRetryableApplier(courier.Applier[int](inTurn{s}), courier.RetryPolicy{MaxAttempts: 2, Jitter: courier.NoJitter})
		source := newShelf(0, 1)
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, courier.WithOrderKey(byRest(1))))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Equal(t, [][]int{{0, 1}, {0}}, s.batches)
		require.Equal(t, map[int][]int{0: {2, 3}, 1: {2}}, attempts) // those of a call that fails as one count against no record
		require.Empty(t, source.left())
	})
}

// Likewise where a breaker opens before it was begun, in the same batch or an earlier one
// of the pass.
func TestIdentity_AttemptsOutliveAPauseBeforeTheNextOne(t *testing.T) {
	for batch, source := range map[int]func(table *shelf[int]) courier.Source[int]{
		100: func(table *shelf[int]) courier.Source[int] { return table },
		1: func(table *shelf[int]) courier.Source[int] {
			return courier.BatchSourceFunc[int]{FetchFunc: func(ctx context.Context) ([]int, error) { return table.Fetch(ctx, 100) }, MarkFunc: table.Mark}
		},
	} {
		t.Run(fmt.Sprint("batch ", batch), func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var attempts []int
				s := &sink[int]{fail: func(ctx context.Context, r, call int) error {
					if r == 1 {
						attempts = append(attempts, courier.AttemptFromContext(ctx))
					}
					if call <= 3 {
						return errTest
					}
					return nil
				}}
				breaker := exactBreaker(nil, func(p *courier.BreakerPolicy) { p.FailureThreshold = 3 })
				applier := courier.NewRetryableApplier(courier.NewCircuitBreakerApplier(s, breaker), courier.RetryPolicy{Jitter: courier.NoJitter})
				table := newShelf(0, 1)
				stop := start(t, courier.NewPollingCoordinator(source(table), applier, quiet, courier.WithBatchSize(batch), courier.WithOrderKey(byRest(2))))
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.Equal(t, []int{1, 2}, attempts)
				require.Empty(t, table.left())
			})
		})
	}
}
