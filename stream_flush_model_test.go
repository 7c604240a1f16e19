package courier_test

import (
	"context"
	"flag"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

// When a stream marks, against a model, in exact time: whatever comes, however
// long applies and marks take and whichever marks fail, no call is too large,
// empty or out of order, no record waits longer than the flush interval while a
// call could be made, and small calls are no more frequent than that while there
// is something to wait for.
func TestStream_FlushesAgainstAModel(t *testing.T) {
	if raceEnabled { // which runs what is due at one instant in any order, and the model's log of it
		checks := flag.Lookup("rapid.checks")
		before := checks.Value.String()
		require.NoError(t, checks.Value.Set("10"))
		defer func() { require.NoError(t, checks.Value.Set(before)) }()
	}
	for _, ordered := range []bool{false, true} {
		t.Run(choose(ordered, "marks in order", "marks in any order"), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				rapid.SyncTest(t, func(t *rapid.T) { newFlushed(t, ordered).run(t) })
			})
		})
	}
}

// flushed is a stream, which it is the source and the destination of, and what
// is known of it.
type flushed struct {
	ordered         bool
	batch, limit    int
	interval        time.Duration
	source          *courier.ChannelSource[int]
	ch              chan int
	c               *courier.StreamingCoordinator[int]
	mu              sync.Mutex
	applies         []time.Duration // by record
	markFor         time.Duration
	markFails       bool
	log             []flushEvent
	read            int // events of the log so far
	fetched, marked int
	done            map[int]bool      // applied ever
	next            int               // the first that is not
	ready           map[int]time.Time // to be marked since then
	told            int               // applied, by the shares that have ended
	calling         []int             // the records of the call under way
	again           bool              // the last call failed
	stopped         bool
	at              time.Time // of the last event
	free            time.Time // from when on a call could be made
	small           time.Time // the last call that was not full, with nothing but work since
}

type flushEvent struct {
	kind    string
	at      time.Time
	records []int
	n       int
	err     error
	retryIn time.Duration
}

func newFlushed(t *rapid.T, ordered bool) *flushed {
	m := &flushed{ordered: ordered, ch: make(chan int, 1000), done: map[int]bool{}, ready: map[int]time.Time{}, at: time.Now()}
	m.batch = rapid.IntRange(1, 6).Draw(t, "batch")
	m.interval = time.Duration(rapid.IntRange(1, 4000).Draw(t, "flush interval, ms")) * time.Millisecond
	prefetch := rapid.IntRange(0, 4).Draw(t, "prefetch")
	m.limit = m.batch * (1 + prefetch)
	m.source = courier.NewChannelSource(m.ch, m.mark)
	opts := []courier.Option{
		quiet, unspread, courier.WithBatchSize(m.batch), courier.WithPrefetch(prefetch), courier.WithFlushInterval(m.interval),
		courier.WithStreamWorkers(rapid.IntRange(1, 3).Draw(t, "workers")), courier.WithDrainTimeout(time.Hour),
		courier.WithObserver(courier.Observer{
			Applied: func(_ context.Context, e courier.ApplyEvent) { m.note(flushEvent{kind: "told", n: e.Applied}) },
			Marked: func(_ context.Context, e courier.MarkEvent) {
				m.note(flushEvent{kind: "marked", n: e.Records, err: e.Err, retryIn: e.RetryIn})
			},
		}),
	}
	if ordered {
		opts = append(opts, courier.WithOrderedMarks())
	}
	if keys := rapid.IntRange(0, 3).Draw(t, "keys"); keys > 0 {
		opts = append(opts, courier.WithOrderKey(byRest(keys)))
	}
	m.c = courier.NewStreamingCoordinator(courier.Source[int](m), courier.ProcessFunc(m.apply), opts...)
	return m
}

func (m *flushed) note(e flushEvent) {
	e.at = time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, e)
}

func (m *flushed) Fetch(ctx context.Context, limit int) ([]int, error) {
	records, err := m.source.Fetch(ctx, limit)
	m.note(flushEvent{kind: "fetched", n: len(records)})
	return records, err
}

func (m *flushed) Mark(ctx context.Context, records []int) error { return m.source.Mark(ctx, records) }

func (m *flushed) mark(_ context.Context, records []int) error {
	m.note(flushEvent{kind: "marking", records: slices.Clone(records)})
	m.mu.Lock()
	takes, fails := m.markFor, m.markFails
	m.mu.Unlock()
	time.Sleep(takes)
	if fails {
		return errTest
	}
	return nil
}

func (m *flushed) apply(_ context.Context, r int) error {
	m.mu.Lock()
	takes := m.applies[r]
	m.mu.Unlock()
	time.Sleep(takes)
	m.note(flushEvent{kind: "applied", records: []int{r}})
	return nil
}

func (m *flushed) run(t *rapid.T) {
	stop := start(t, m.c)
	defer func() {
		if stop != nil {
			_ = stop()
		}
	}()
	upTo := func(t *rapid.T, ms int, what string) time.Duration {
		return time.Duration(rapid.IntRange(0, ms).Draw(t, what)) * time.Millisecond
	}
	t.Repeat(map[string]func(*rapid.T){
		"records come": func(t *rapid.T) {
			for range rapid.IntRange(1, 12).Draw(t, "n") {
				takes := upTo(t, 3000, "takes, ms")
				m.mu.Lock()
				m.applies = append(m.applies, takes)
				m.mu.Unlock()
				m.ch <- len(m.applies) - 1
			}
		},
		"marks take": func(t *rapid.T) {
			takes := upTo(t, 3000, "ms")
			m.mu.Lock()
			m.markFor = takes
			m.mu.Unlock()
		},
		"marks fail or work": func(*rapid.T) {
			m.mu.Lock()
			m.markFails = !m.markFails
			m.mu.Unlock()
		},
		"time goes": func(t *rapid.T) { time.Sleep(upTo(t, 5000, "ms")) },
		"":          m.readLog,
	})
	m.mu.Lock()
	m.markFails = false
	m.mu.Unlock()
	time.Sleep(upTo(t, 5000, "ms before the stop"))
	m.note(flushEvent{kind: "stopped"})
	err := stop()
	stop = nil
	m.readLog(t)
	if err != nil || len(m.ready) > 0 || len(m.done) != m.fetched {
		t.Fatalf("Start returned %v; %d records were fetched, %d of them applied, and %d of these not marked", err, m.fetched, len(m.done), len(m.ready))
	}
}

// readLog looks at what has happened since.
func (m *flushed) readLog(t *rapid.T) {
	m.mu.Lock()
	events := slices.Clone(m.log[m.read:])
	m.mu.Unlock()
	m.read += len(events)
	for _, e := range events {
		m.pass(t, e.at)
		m.take(t, e)
	}
	m.pass(t, time.Now())
}

// pass has the time go by, in which nothing happened: is that right?
func (m *flushed) pass(t *rapid.T, to time.Time) {
	from := m.free
	if m.at.After(from) {
		from = m.at
	}
	m.at = to
	if m.calling != nil || !from.Before(to) {
		return
	}
	idle := to.Sub(from)
	switch {
	case len(m.ready) == 0:
	case len(m.done) == m.fetched:
		t.Fatalf("%d records are applied, and were not marked for %v with nothing else to do", len(m.ready), idle)
	case !m.ordered && m.told-m.marked >= m.batch:
		t.Fatalf("%d records are applied, and no call for %d was made for %v", m.told-m.marked, m.batch, idle)
	}
	for _, r := range slices.Sorted(maps.Keys(m.ready)) {
		if since := m.ready[r]; since.Add(m.interval).Before(to) {
			t.Fatalf("record %d was not marked for %v, with an interval of %v and no call under way for %v", r, to.Sub(since), m.interval, idle)
		}
	}
}

// enter has a record be marked from now on, and with ordered marks those behind
// it that it held up.
func (m *flushed) enter(r int, at time.Time) {
	m.done[r] = true
	if !m.ordered {
		m.ready[r] = at
		return
	}
	for ; m.done[m.next]; m.next++ {
		m.ready[m.next] = at
	}
}

func (m *flushed) take(t *rapid.T, e flushEvent) {
	if len(m.done) == m.fetched || m.fetched-m.marked+m.batch > m.limit {
		m.small = time.Time{} // nothing to wait for, or no room for it
	}
	switch e.kind {
	case "fetched":
		m.fetched += e.n
	case "applied":
		m.enter(e.records[0], e.at)
	case "told":
		m.told += e.n
	case "stopped": // which ends the wait for the next try
		m.stopped = true
		if m.calling == nil {
			m.free = e.at
		}
	case "marking":
		m.takeCall(t, e)
	case "marked":
		if e.n != len(m.calling) || (e.err == nil) != (e.retryIn == 0) {
			t.Fatalf("a mark of %v was told as %+v", m.calling, e)
		}
		if m.again = e.err != nil; m.again {
			m.small = time.Time{}
		} else {
			m.marked += e.n
			for _, r := range m.calling {
				delete(m.ready, r)
			}
		}
		m.calling, m.free = nil, e.at.Add(e.retryIn)
	}
}

// takeCall looks at a mark that begins.
func (m *flushed) takeCall(t *rapid.T, e flushEvent) {
	n := len(e.records)
	if m.calling != nil || e.at.Before(m.free) {
		t.Fatalf("a mark of %v begins during that of %v, or before it is to be tried again", e.records, m.calling)
	}
	if n == 0 || n > m.batch {
		t.Fatalf("a mark of %v, with a batch size of %d", e.records, m.batch)
	}
	for i, r := range e.records {
		if _, ok := m.ready[r]; !ok || slices.Contains(e.records[:i], r) {
			t.Fatalf("record %d of a mark of %v may not be marked, or is already", r, e.records)
		}
		if m.ordered && r != m.marked+i {
			t.Fatalf("a mark of %v, want %d first", e.records, m.marked)
		}
	}
	m.calling = e.records
	if n == m.batch || m.stopped || m.again || len(m.done) == m.fetched || m.fetched-m.marked+m.batch > m.limit {
		return
	}
	if waited := e.at.Sub(m.small); !m.small.IsZero() && waited < m.interval {
		t.Fatalf("a mark of %d is made %v after another one that was not full, with an interval of %v and work under way", n, waited, m.interval)
	}
	m.small = e.at
}
