package courier_test

// The figures of Stats and of every event.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestStats_CountWhatWasDone(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(10)...)
		source.markErr = func(n int) error {
			if n == 1 {
				return errTest
			}
			return nil
		}
		retried := atomic.Bool{}
		applier, _ := courier.ResilientApplier[int](&sink[int]{fail: func(_ context.Context, r, _ int) error {
			switch {
			case r == 3:
				return courier.Permanent(errTest)
			case r == 4:
				return courier.Skip(errTest)
			case r == 5 && retried.CompareAndSwap(false, true):
				return errTest
			}
			return nil
		}}, nil)
		c := make(applier)
		require.Equal(t, courier.Stats{Breakers: []courier.BreakerStats{{BreakerMetrics: courier.BreakerMetrics{State: courier.BreakerClosed}}}}, c.Stats())
		stop := start(t, c)
		time.Sleep(time.Minute)
		s := c.Stats()
		require.NoError(t, stop())
		require.ErrorIs(t, s.LastError, errTest)
		require.False(t, s.LastErrorAt.IsZero())
		s.LastError, s.LastErrorAt = nil, time.Time{}
		require.Equal(t, courier.Stats{
			Fetched: 10, Applied: 10, Skipped: 1, Parked: 1, Retried: 1, Marked: 10,
			MarkFailures: 1,
			Breakers:     []courier.BreakerStats{{BreakerMetrics: courier.BreakerMetrics{State: courier.BreakerClosed}}},
		}, s)
	})
}

func TestStats_FailuresAndReleases(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(4)...)
		c := make(&sink[int]{fail: func(_ context.Context, r, call int) error {
			if r == 2 && call < 10 {
				return errTest
			}
			return nil
		}})
		stop := start(t, c)
		time.Sleep(time.Second)
		s := c.Stats()
		require.Positive(t, s.Failed)
		require.Equal(t, s.Failed, s.Released)
		require.Equal(t, s.Applied, s.Marked)
		require.Equal(t, s.Fetched, s.Marked+s.Released+s.InHand)
		require.NoError(t, stop())
		require.Zero(t, c.Stats().InHand)
	})
}

// noted is a source and a destination that write down every call, and what is told
// meanwhile: from the calls each figure of the events and of Stats is worked out anew.
type noted struct {
	source *leasing[int]
	fetch  func(context.Context, int) ([]int, error)
	fails  bool                                        // records do, and calls of the source
	takes  time.Duration                               // a mark, a release and a note of failures, if it is not zero
	work   func(ctx context.Context, record int) error // in the place of that, where it is set
	stats  func() courier.Stats

	mu     sync.Mutex
	nth    map[string]int
	tries  map[int]int
	state  map[int]string // of the records of a source that leases
	wrong  []string       // that were applied, and not in hand
	busy   int            // applies under way
	calls  []notedCall
	events []notedEvent
}

type notedCall struct {
	what         string
	records      []int
	after        time.Duration
	err          error
	ctx          context.Context
	over, late   error // the context's end, at the beginning and at the end of the call
	began, ended time.Time
}

type notedEvent struct {
	event  any
	ctx    context.Context
	over   error // the context's end
	at     time.Time
	busy   bool // an apply is under way
	inHand int64
}

type callerKey struct{}

// errRefused is of a record that was not attempted, for its own sake.
var errRefused = &courier.ConfigError{Field: "a pipeline of the user's", Problem: "is not set"}

// call makes a call of the source, of which some fail: two, one after the other, of five.
func (n *noted) call(ctx context.Context, what string, records []int, after time.Duration, do func(nth int) ([]int, error)) ([]int, error) {
	c := notedCall{what: what, records: slices.Clone(records), after: after, ctx: ctx, over: ctx.Err(), began: time.Now()}
	n.mu.Lock()
	n.nth[what]++
	nth := n.nth[what]
	n.mu.Unlock()
	time.Sleep(time.Millisecond + time.Duration(nth)*time.Microsecond) // no two calls take as long
	if what == "mark" || what == "release" || what == "fail" {
		time.Sleep(n.takes)
	}
	got, err := do(nth)
	if what == "fetch" {
		c.records = got
	}
	c.err, c.ended, c.late = err, time.Now(), ctx.Err()
	n.mu.Lock()
	n.calls = append(n.calls, c)
	n.mu.Unlock()
	return got, err
}

func (n *noted) failing(nth int) bool { return n.fails && (nth%5 == 2 || nth%5 == 3) }

func (n *noted) Fetch(ctx context.Context, limit int) ([]int, error) {
	return n.call(ctx, "fetch", nil, 0, func(nth int) ([]int, error) {
		if n.failing(nth) {
			return nil, errTest
		}
		records, err := n.fetch(ctx, limit)
		for _, r := range records {
			n.enter(r, "fetched")
		}
		return records, err
	})
}

func (n *noted) Mark(ctx context.Context, records []int) error {
	_, err := n.call(ctx, "mark", records, 0, func(nth int) ([]int, error) {
		if n.failing(nth) {
			return nil, errTest
		}
		for _, r := range records {
			n.enter(r, "left")
		}
		return nil, n.source.Mark(ctx, records)
	})
	return err
}

func (n *noted) Apply(ctx context.Context, r int) error {
	n.enter(r, "begun")
	n.mu.Lock()
	n.busy++
	n.mu.Unlock()
	_, err := n.call(ctx, "apply", []int{r}, 0, func(int) ([]int, error) {
		n.mu.Lock()
		n.tries[r]++
		tries := n.tries[r]
		n.mu.Unlock()
		switch {
		case n.work != nil:
			return nil, n.work(ctx, r)
		case !n.fails:
			return nil, nil
		case r%10 == 3 && tries <= 2, r%10 == 9 && tries == 1:
			return nil, errTest
		case r%10 == 5 && tries == 1:
			return nil, courier.Permanent(errTest)
		case r%10 == 6:
			return nil, courier.Skip(errTest)
		case r%10 == 7 && tries == 1:
			return nil, courier.Later(errTest, 50*time.Millisecond)
		case r%10 == 8 && tries == 1:
			return nil, errRefused
		}
		return nil, nil
	})
	if err != nil && err.Error() == errTest.Error() && courier.Classify(ctx, err) == courier.ClassNotAttempted {
		n.enter(r, "waits")
	}
	n.mu.Lock()
	n.busy--
	n.mu.Unlock()
	return err
}

// The capabilities, each with those before it.
type (
	notedLease struct{ *noted }
	notedFail  struct{ notedLease }
	notedRenew struct{ notedLease }
)

func (n notedLease) Release(ctx context.Context, records []int, after time.Duration) error {
	_, err := n.call(ctx, "release", records, after, func(nth int) ([]int, error) {
		for _, r := range records {
			n.enter(r, "left")
		}
		_ = n.source.Release(ctx, records, after)
		if n.failing(nth) {
			return nil, errTest
		}
		return nil, nil
	})
	return err
}

func (n notedFail) Fail(ctx context.Context, failed []courier.FailedRecord[int]) error {
	var records []int
	for _, f := range failed {
		records = append(records, f.Record)
	}
	_, err := n.call(ctx, "fail", records, 0, func(nth int) ([]int, error) {
		_ = n.source.Release(ctx, records, 0)
		if n.failing(nth) {
			return nil, errTest
		}
		return nil, nil
	})
	return err
}

func (notedRenew) RenewEvery() time.Duration { return 7 * time.Millisecond }

// Renew loses the last record now and then that was not begun, or that waits.
func (n notedRenew) Renew(ctx context.Context, records []int) error {
	_, err := n.call(ctx, "renew", records, 0, func(nth int) ([]int, error) {
		last := records[len(records)-1]
		n.mu.Lock()
		state := n.state[last]
		n.mu.Unlock()
		switch {
		case !n.failing(nth):
			return nil, nil
		case state != "fetched" && state != "waits":
			return nil, errTest
		}
		n.enter(last, "lost")
		_ = n.source.Release(ctx, []int{last}, 0)
		lost := lostLease{waits: state == "waits"}
		lost.list.Add(len(records)-1, errTest)
		return nil, &lost
	})
	return err
}

// lostLease is a loss of one record.
type lostLease struct {
	list  courier.BatchError
	waits bool
}

func (l *lostLease) Error() string { return l.list.Error() }
func (l *lostLease) Unwrap() error { return &l.list }

// enter notes what becomes of a record. One that is begun has to be in hand.
func (n *noted) enter(r int, state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if was := n.state[r]; state == "begun" && (was == "lost" || was == "left") {
		n.wrong = append(n.wrong, fmt.Sprintf("%d was applied, and is %s", r, was))
	}
	n.state[r] = state
}

func noting[E any](n *noted) func(context.Context, E) {
	return func(ctx context.Context, event E) {
		inHand := n.stats().InHand
		n.mu.Lock()
		defer n.mu.Unlock()
		n.events = append(n.events, notedEvent{event, ctx, ctx.Err(), time.Now(), n.busy > 0, inHand})
	}
}

func (n *noted) observer() courier.Option {
	return courier.WithObserver(courier.Observer{
		Fetched: noting[courier.FetchEvent](n), Applied: noting[courier.ApplyEvent](n), Failed: noting[courier.FailEvent](n),
		Marked: noting[courier.MarkEvent](n), Released: noting[courier.ReleaseEvent](n), Renewed: noting[courier.RenewEvent](n),
		Stopped: noting[courier.StopEvent](n), Stalled: noting[courier.StallEvent](n),
		Retried: noting[courier.RetryEvent](n), Parked: noting[courier.ParkEvent](n), Paused: noting[courier.PauseEvent](n), Resumed: noting[courier.ResumeEvent](n),
		RecordEnded: noting[courier.RecordEvent](n),
	})
}

func (n *noted) of(what ...string) (calls []notedCall) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.calls {
		if slices.Contains(what, c.what) {
			calls = append(calls, c)
		}
	}
	return calls
}

func eventsIn[E any](n *noted) (events []E) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.events {
		if one, ok := e.event.(E); ok {
			events = append(events, one)
		}
	}
	return events
}

// inNotedShapes runs a test with a coordinator of each shape over a source and a
// destination that write down their calls. run starts it with a context that has a value.
func inNotedShapes(t *testing.T, test func(t *testing.T, shape string, n *noted, with func(opts ...courier.Option) (c running, run func() (stop func() error)))) {
	for _, shape := range []string{
		"polling plain", "polling lease", "polling fail", "polling renew", "polling ahead", "polling ahead renew", "polling greedy renew", "polling keyed renew", "polling batch",
		"streaming lease", "streaming fail", "streaming renew", "streaming keyed renew", "streaming ordered renew", "streaming workers", "streaming batch",
	} {
		t.Run(shape, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &noted{source: newLeasing[int](), fails: true, nth: map[string]int{}, tries: map[int]int{}, state: map[int]string{}}
				n.fetch = n.source.Fetch
				is := func(what string) bool { return strings.Contains(shape, what) }
				streaming := is("streaming")
				n.source.wait = streaming
				shapeOpts := []courier.Option{quiet, unspread, n.observer(), courier.WithBatchSize(10), courier.WithDrainTimeout(time.Second)}
				var source courier.Source[int] = notedLease{n}
				switch {
				case is("plain"):
					source, n.fetch = n, n.source.shelf.Fetch
				case is("fail"):
					source = notedFail{notedLease{n}}
				case is("renew"):
					source = notedRenew{notedLease{n}}
				}
				switch {
				case is("ahead"):
					shapeOpts = append(shapeOpts, courier.WithPrefetch(2))
				case is("greedy"): // it returns more than was asked for
					n.fetch = func(ctx context.Context, limit int) ([]int, error) { return n.source.Fetch(ctx, 5*limit/2) }
				case is("keyed"):
					shapeOpts = append(shapeOpts, courier.WithOrderKey(byRest(4)))
				case is("ordered"):
					shapeOpts = append(shapeOpts, courier.WithOrderedMarks())
				case is("workers"):
					shapeOpts = append(shapeOpts, courier.WithStreamWorkers(3))
				}
				var applier courier.Applier[int] = n
				if is("batch") {
					applier = eachOfBatch[int]{n}
				}
				test(t, shape, n, func(opts ...courier.Option) (running, func() func() error) {
					var c running
					opts = append(shapeOpts, opts...)
					if streaming {
						c = courier.NewStreamingCoordinator(source, applier, opts...)
					} else {
						c = courier.NewPollingCoordinator(source, applier, opts...)
					}
					n.stats = c.Stats
					return c, func() func() error {
						ctx, cancel := context.WithCancel(context.WithValue(t.Context(), callerKey{}, shape))
						ended := make(chan error, 1)
						go func() { ended <- c.Start(ctx) }()
						return func() error { cancel(); return <-ended }
					}
				})
			})
		})
	}
}

// Every figure of every event, and of Stats, follows from the calls that were made.
func TestObserver_EveryFigureFollowsFromTheCalls(t *testing.T) {
	inNotedShapes(t, func(t *testing.T, shape string, n *noted, with func(...courier.Option) (running, func() func() error)) {
		c, run := with()
		n.source.add(numbers(75)...)
		stop := run()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		stats := c.Stats()
		require.NoError(t, stop())
		require.Empty(t, n.source.left())

		want := courier.Stats{LastError: stats.LastError, LastErrorAt: stats.LastErrorAt}
		require.False(t, stats.LastErrorAt.IsZero())

		var fetched []courier.FetchEvent
		streak := 0
		fetches := n.of("fetch")
		for i, f := range fetches {
			e := courier.FetchEvent{Records: len(f.records), Err: f.err, Elapsed: f.ended.Sub(f.began)}
			if f.ctx.Err() != nil && f.err == f.ctx.Err() { // called back by the stop
				continue
			}
			want.Fetched += int64(e.Records)
			if streak++; f.err == nil {
				streak = 0
			} else {
				want.FetchFailures++
				e.RetryIn = paceOf(streak)
				require.GreaterOrEqual(t, fetches[i+1].began.Sub(f.ended), e.RetryIn)
				require.Less(t, fetches[i+1].began.Sub(f.ended), e.RetryIn+5*time.Second)
			}
			fetched = append(fetched, e)
		}
		requireAll(t, fetched, eventsIn[courier.FetchEvent](n))

		var marked []courier.MarkEvent
		streak = 0
		marks := n.of("mark")
		for i, m := range marks {
			e := courier.MarkEvent{Records: len(m.records), Err: m.err, Elapsed: m.ended.Sub(m.began)}
			if m.err == nil {
				want.Marked += int64(e.Records)
				streak = 0
			} else {
				streak++
				want.MarkFailures++
				e.RetryIn = paceOf(streak)
				next := marks[i+1].began.Sub(m.ended)
				require.GreaterOrEqual(t, next, e.RetryIn)
				require.Less(t, next, e.RetryIn+100*time.Millisecond)
			}
			marked = append(marked, e)
		}
		requireAll(t, marked, eventsIn[courier.MarkEvent](n))

		var released []courier.ReleaseEvent
		for _, r := range n.of("release", "fail") {
			want.Released += int64(len(r.records))
			released = append(released, courier.ReleaseEvent{Records: len(r.records), Failed: r.what == "fail", After: r.after, Err: r.err})
		}
		requireAll(t, released, eventsIn[courier.ReleaseEvent](n))

		require.Empty(t, n.wrong)
		var renewed []courier.RenewEvent
		losses := map[bool]int{}
		events := eventsIn[courier.RenewEvent](n)
		for _, r := range n.of("renew") {
			e := courier.RenewEvent{Records: len(r.records), Err: r.err}
			if lost := (*lostLease)(nil); errors.As(r.err, &lost) {
				e.Lost = 1
				losses[lost.waits]++
				if told := events[len(renewed)]; (lost.waits || shape == "polling keyed renew") && told.Lost == 0 { // of a batch that is being marked it is not counted
					e = told
				}
			}
			if strings.HasPrefix(shape, "streaming") { // of those that wait to be marked it does not tell
				require.LessOrEqual(t, events[len(renewed)].Records, e.Records)
				e.Records = events[len(renewed)].Records
			}
			renewed = append(renewed, e)
		}
		if shape == "polling renew" || shape == "streaming renew" {
			require.Positive(t, losses[false], "of records not begun")
			require.Positive(t, losses[true], "of records that wait")
		}
		requireAll(t, renewed, events)

		inHand := int64(0)
		for _, e := range n.events {
			switch event := e.event.(type) {
			case courier.FetchEvent:
				inHand += int64(event.Records)
			case courier.MarkEvent:
				if event.Err == nil {
					inHand -= int64(event.Records)
				}
			case courier.ReleaseEvent:
				inHand -= int64(event.Records)
			case courier.StopEvent:
				inHand = 0
			default:
				continue
			}
			if shape != "polling plain" && shape != "polling ahead" && !strings.HasSuffix(shape, "renew") { // which drop records, or fetch beside that
				require.Equal(t, inHand, e.inHand, "in hand at %#v", e.event)
			}
		}

		var sum courier.ApplyEvent
		var classes []courier.ErrorClass
		var ended []courier.RecordEvent
		var took time.Duration
		for _, a := range n.of("apply") {
			took += a.ended.Sub(a.began)
			ended = append(ended, courier.RecordEvent{Record: fmt.Sprint(a.records[0]), Elapsed: a.ended.Sub(a.began), Err: a.err})
			later := courier.Later(errTest, 50*time.Millisecond)
			switch {
			case a.err == nil:
				sum.Applied++
				continue
			case courier.Classify(t.Context(), a.err) == courier.ClassSkipped:
				sum.Applied++
				want.Skipped++
				continue
			case a.err.Error() == later.Error() && courier.Classify(t.Context(), a.err) == courier.ClassNotAttempted:
				sum.Waiting++
				continue
			case courier.Classify(t.Context(), a.err) == courier.ClassNotAttempted:
				sum.NotAttempted++
			default:
				sum.Failed++
			}
			classes = append(classes, courier.Classify(t.Context(), a.err))
		}
		sum.Elapsed = took
		want.Applied, want.Failed = int64(sum.Applied), int64(sum.Failed)
		told := eventsIn[courier.RecordEvent](n)
		delivered := make(map[uint64]string)
		for i, e := range told {
			require.Positive(t, e.Number)
			if of, again := delivered[e.Number]; again {
				require.Equal(t, of, e.Record)
			}
			delivered[e.Number] = e.Record
			told[i].Number = 0
		}
		switch {
		case strings.HasSuffix(shape, "batch"): // their time is that of the call
			require.Len(t, told, len(ended))
			for i := range told {
				require.GreaterOrEqual(t, told[i].Elapsed, ended[i].Elapsed)
				ended[i].Elapsed = told[i].Elapsed
			}
			requireAll(t, ended, told)
		case shape != "streaming workers": // where they end in any order
			requireAll(t, ended, told)
		}
		var all courier.ApplyEvent
		for _, e := range eventsIn[courier.ApplyEvent](n) {
			all.Applied, all.Failed, all.Waiting, all.NotAttempted = all.Applied+e.Applied, all.Failed+e.Failed, all.Waiting+e.Waiting, all.NotAttempted+e.NotAttempted
			all.Elapsed += e.Elapsed
			records := e.Applied + e.Failed + e.Waiting + e.NotAttempted
			if strings.HasSuffix(shape, "renew") { // some are lost, or held back
				require.LessOrEqual(t, records, e.Records)
			} else {
				require.Equal(t, records, e.Records)
			}
			require.Equal(t, e.Failed+e.NotAttempted > 0, e.Err != nil)
			if e.Failed > 0 { // one that failed comes before one that was refused
				require.NotEqual(t, courier.ClassNotAttempted, courier.Classify(t.Context(), e.Err))
			}
		}
		require.Equal(t, sum, all)
		var toldOf []courier.ErrorClass
		for _, e := range eventsIn[courier.FailEvent](n) {
			toldOf = append(toldOf, e.Class)
			require.Equal(t, courier.Classify(t.Context(), e.Err), e.Class)
		}
		require.ElementsMatch(t, classes, toldOf)
		require.Equal(t, want, stats)
	})
}

// paceOf is the delay after the nth failure in a row.
func paceOf(nth int) time.Duration { return 75 * time.Millisecond << (nth - 1) }

// requireAll compares events one by one: there are too many to print.
func requireAll[E any](t *testing.T, want, got []E) {
	t.Helper()
	for i := range min(len(want), len(got)) {
		require.Equal(t, want[i], got[i], "event %d of %d", i, len(want))
	}
	require.Equal(t, len(want), len(got))
}

// An outage in which no call succeeds shows in Stats.
func TestStats_LastErrorOfAnOutage(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error { return errTest }), nil)
		c, run := with(applier, numbers(5))
		run(time.Minute)
		require.ErrorIs(t, c.Stats().LastError, errTest)
		require.WithinDuration(t, time.Now(), c.Stats().LastErrorAt, time.Minute)
	})
}

// A breaker that an operator opens is no failure.
func TestStats_ForcedOpenIsNoError(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		b := courier.NewBreaker(courier.BreakerPolicy{})
		b.ForceOpen()
		c, run := with(courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error { return nil }), b), numbers(5))
		run(time.Minute)
		require.NoError(t, c.Stats().LastError)
	})
}
