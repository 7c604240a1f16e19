package courier_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// A failed record is tried again after about the interval, and no sooner than its
// error asks for, however much else there is to fetch meanwhile.
func TestPace_OfAFailedRecord(t *testing.T) {
	type shape struct {
		backlog, keyed, leasing, limitless bool
	}
	for _, after := range []time.Duration{0, time.Second, time.Minute} {
		for _, s := range []shape{{}, {backlog: true}, {keyed: true}, {backlog: true, keyed: true}, {leasing: true}, {backlog: true, limitless: true}, {leasing: true, keyed: true}} {
			t.Run(fmt.Sprintf("after %v, %+v", after, s), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var r courierttest.Recorder[int]
					table := newShelf(0)
					var source courier.Source[int] = table
					if s.leasing {
						source = r.LeasingSource(time.Hour, 0)
					}
					busy := &backlog{}
					if s.backlog {
						source = busy
					}
					if s.limitless && s.backlog {
						source = courier.BatchSourceFunc[int]{FetchFunc: func(ctx context.Context) ([]int, error) { return busy.Fetch(ctx, 100) }, MarkFunc: busy.Mark}
					}
					began := time.Now()
					var at []time.Duration
					a := courier.ProcessFunc(func(_ context.Context, n int) error {
						if n == 0 {
							at = append(at, time.Since(began))
							return courier.RetryAfter(errTest, after)
						}
						time.Sleep(time.Millisecond)
						return nil
					})
					opts := []courier.Option{quiet, courier.WithWorkers(1)}
					if s.keyed {
						opts = append(opts, courier.WithOrderKey(strconv.Itoa))
					}
					run := courierttest.Start(t, courier.NewPollingCoordinator(source, a, opts...))
					time.Sleep(95 * time.Second)
					require.NoError(t, run.Stop())
					least, most := max(after, 4500*time.Millisecond), max(after, 5*time.Second)+5600*time.Millisecond
					require.Greater(t, len(at), 1)
					for i := 1; i < len(at); i++ {
						gap := at[i] - at[i-1]
						require.True(t, least <= gap && gap <= most, "%v after the last attempt, want from %v to %v", gap, least, most)
					}
					if s.backlog {
						require.Greater(t, busy.done, 80_000, "the others are not held up")
					}
				})
			})
		}
	}
}

// Wake ends the wait of a record, unless its error asked for that.
func TestPace_Wake(t *testing.T) {
	for _, after := range []time.Duration{0, time.Hour} {
		courierttest.Bubble(t, func(t *testing.T) {
			calls := 0
			c := courier.NewPollingCoordinator(newShelf(1), courier.ProcessFunc(func(context.Context, int) error {
				calls++
				return courier.RetryAfter(errTest, after)
			}), quiet)
			run := courierttest.Start(t, c)
			for range 3 {
				time.Sleep(time.Second)
				c.Wake()
			}
			time.Sleep(time.Millisecond)
			require.NoError(t, run.Stop())
			require.Equal(t, map[bool]int{true: 4, false: 1}[after == 0], calls)
		})
	}
}

// Of a record that cannot be known again the whole next fetch waits for what its
// error asks for, a minute at the most.
func TestPace_OfARecordThatCannotBeKnownAgain(t *testing.T) {
	for after, want := range map[time.Duration]time.Duration{30 * time.Second: 30 * time.Second, time.Hour: time.Minute} {
		courierttest.Bubble(t, func(t *testing.T) {
			table := &rows[*row]{read: func(id int) *row { return &row{ID: id} }, id: func(r *row) int { return r.ID }}
			table.add(0, 1, 2)
			began := time.Now()
			var at []time.Duration
			c := courier.NewPollingCoordinator[*row](table, courier.ProcessFunc(func(_ context.Context, r *row) error {
				r.Status = "tried"
				if r.ID == 0 {
					at = append(at, time.Since(began))
					return courier.RetryAfter(errTest, after)
				}
				return nil
			}), quiet)
			run := courierttest.Start(t, c)
			time.Sleep(100 * time.Second)
			require.NoError(t, run.Stop())
			require.Equal(t, []int{0}, table.left())
			require.Equal(t, []time.Duration{0, want}, at[:2])
		})
	}
}

// backlog is a table whose first row stays, and that has no end.
type backlog struct{ done int }

func (b *backlog) Fetch(_ context.Context, limit int) ([]int, error) {
	records := []int{0}
	for n := 1; n < limit; n++ {
		records = append(records, b.done+n)
	}
	return records, nil
}

func (b *backlog) Mark(_ context.Context, done []int) error {
	b.done += len(done)
	return nil
}
