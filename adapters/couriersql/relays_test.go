package couriersql

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

// ledger is a destination that notes who delivered what, in which order.
type ledger struct {
	mu         sync.Mutex
	deliveries []string         // IDs
	by         map[int]int      // relay: deliveries
	failures   map[string]int   // of an ID, yet to come
	keys       map[string][]int // numbers, in the order of their delivery
}

func newLedger() *ledger {
	return &ledger{by: map[int]int{}, failures: map[string]int{}, keys: map[string][]int{}}
}

func (l *ledger) applier(relay int) courier.Applier[Row] {
	return courier.ProcessFunc(func(_ context.Context, r Row) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.failures[r.ID] > 0 {
			l.failures[r.ID]--
			return errors.New("not yet")
		}
		l.deliveries = append(l.deliveries, r.ID)
		l.by[relay]++
		key, number, _ := strings.Cut(r.ID, "/")
		var n int
		_, _ = fmt.Sscan(number, &n)
		l.keys[key] = append(l.keys[key], n)
		return nil
	})
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.deliveries)
}

// relays runs n coordinators on an outbox until done, each with a source of its
// own, as n processes would.
func relays(t *testing.T, o *Outbox, l *ledger, n int, done func() bool) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			err := courier.NewPollingCoordinator(o.Source(), l.applier(i), courier.WithInterval(2*time.Millisecond),
				courier.WithBatchSize(20), courier.WithLogger(slog.New(slog.DiscardHandler))).Start(ctx)
			if err != nil {
				t.Error(err)
			}
		})
	}
	defer group.Wait()
	defer stop()
	require.Eventually(t, done, 60*time.Second, 5*time.Millisecond)
}

// writeAtOnce writes messages n by key, from several transactions that overlap,
// some of which are rolled back, each key by one writer.
func writeAtOnce(t *testing.T, o *Outbox, writers, n int) (ids []string) {
	t.Helper()
	var group sync.WaitGroup
	for w := range writers {
		for i := range n {
			ids = append(ids, fmt.Sprintf("k%d/%d", w, i))
		}
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 0))
			for i := 0; i < n; {
				size := min(1+random.IntN(4), n-i)
				tx, err := o.db.BeginTx(context.Background(), nil)
				if err != nil && sqliteBusy(err) { // its one write lock has no queue, and the others had it all the time
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				var messages []Message
				for j := range size {
					messages = append(messages, Message{ID: fmt.Sprintf("k%d/%d", w, i+j), Topic: "t", Key: fmt.Sprint("k", w)})
				}
				err = o.Write(context.Background(), tx, messages...)
				if random.IntN(5) == 0 { // with a hole in the numbers
					err = errors.Join(err, tx.Rollback())
				} else {
					err = errors.Join(err, tx.Commit())
					i += size
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	return ids
}

// While all live, several relays deliver everything and nothing twice.
func TestSeveralRelaysDeliverEverythingOnce(t *testing.T) {
	for name, h := range holds {
		t.Run(name, func(t *testing.T) {
			o := h.newOutbox(t, append([]Option{WithClock(nil), WithBackoff(time.Millisecond, time.Millisecond)}, h.opts...)...)
			l := newLedger()
			for i := range 5 {
				l.failures[fmt.Sprintf("k0/%d", i*7)] = 2
			}
			var want []string
			var writing sync.WaitGroup
			writing.Go(func() { want = writeAtOnce(t, o, 4, 150) })
			relays(t, o, l, 4, func() bool { return l.count() >= 600 })
			writing.Wait()
			require.ElementsMatch(t, want, l.deliveries)
			pending, err := o.Pending(t.Context())
			require.NoError(t, err)
			require.Zero(t, pending)
			if o.dialect != SQLite { // whose one write lock has no queue: whoever has it may keep it
				require.Greater(t, len(l.by), 1, "one relay did it all: %v", l.by)
			}
		})
	}
}

// Of several relays with a strict order one delivers, and the order of every key
// is that of its commits; the next one goes on when it is gone.
func TestStrictOrderAcrossRelays(t *testing.T) {
	o := newPostgres(t, WithStrictOrder(), WithClock(nil))
	l := newLedger()
	var writing sync.WaitGroup
	writing.Go(func() { writeAtOnce(t, o, 4, 150) })
	defer writing.Wait()
	for turn := range 3 { // all relays end, in the middle, and others begin
		want := 150 * (turn + 1)
		if turn == 2 {
			want = 600
		}
		relays(t, o, l, 3, func() bool { return l.count() >= want })
		require.NoError(t, o.Close())
	}
	require.Len(t, l.keys, 4)
	for key, numbers := range l.keys {
		require.True(t, slices.IsSorted(numbers), "%s: %v", key, numbers)
		require.Len(t, numbers, 150)
	}
}
