package sim

import (
	"context"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier"
)

// watcher compares what a coordinator tells of itself with the calls that it made.
type watcher struct {
	l        *life
	returned [kinds][]outcome // the calls that it has not told of yet, oldest first
	pauses   int              // since the last resume
	held     bool             // by hand, as far as it has told
	stops    int
	stopErr  error
	told     courier.Stats
	refused  int64
	failures int64 // by FailEvent
	started  int64
	ended    int64
	parked   int64 // by OnPark
	retried  int64 // by OnRetry
	lost     int64
	long     []string // the records that have been in work for long, as far as it has told
	applied  int64    // when the last apply had its reply
	before   int64    // likewise, the one before the last that has begun
	again    int64    // records fetched that were in hand already
}

// outcome is a call that has returned.
type outcome struct {
	records int
	failed  bool
	cut     bool // its context had ended
	took    time.Duration
	after   time.Duration // of a release
}

// returns notes a call that returns.
func (w *watcher) returns(c *call, records int, after time.Duration) {
	if w == nil {
		return
	}
	w.returned[c.kind] = append(w.returned[c.kind], outcome{
		records, c.err != nil, c.gone || c.ctx.Err() != nil, time.Duration(w.l.m.now.Load() - c.came), after,
	})
}

// applies notes an apply that begins, and hasApplied one that returns, which must have
// been told if it took long.
func (w *watcher) applies(c *call) {
	if w != nil && (c.kind == Apply || c.kind == Batch) {
		w.before = w.applied
	}
}

func (w *watcher) hasApplied(c *call) {
	if w == nil || c.kind != Apply && c.kind != Batch {
		return
	}
	m := w.l.m
	w.applied = m.now.Load()
	took := time.Duration(w.applied - c.came)
	branches := m.FanOut > 0 && m.Batches // where the records of another branch count for all
	if took > m.Stall*5/4+10*time.Millisecond && !branches && m.stepped == 0 && w.l.p.still == 0 && len(w.long) == 0 {
		w.fail("watch: process %d does not tell that %s was in work for %v, with %v as the limit", w.l.p.number, c.name, took, m.Stall)
	}
}

// stalled looks at what is told of records that have been in work for long.
func (w *watcher) stalled(e courier.StallEvent) {
	l, m := w.l, w.l.m
	i := slices.Index(w.long, e.Record)
	if e.Over {
		if i < 0 {
			w.fail("watch: process %d tells that %q is not in work for long any more, which it has not told of", l.p.number, e.Record)
			return
		}
		w.long = slices.Delete(w.long, i, i+1)
		return
	}
	w.long = append(w.long, e.Record)
	m.Sometimes("in work for long")
	began := l.p.began
	if m.Workers == 1 && m.FanOut == 0 && !m.Twins {
		began = max(began, w.before)
	}
	switch least := time.Duration(m.now.Load() - began); {
	case e.Record == "" || e.Records < 1 || e.Attempt < 1:
		w.fail("watch: process %d tells that %d records (%q) are in work for long, in attempt %d", l.p.number, e.Records, e.Record, e.Attempt)
	case m.stepped == 0 && (e.InWork < m.Stall || e.InWork > least):
		w.fail("watch: process %d tells that %q has been in work for %v, which is %v at the most, with %v as the limit", l.p.number, e.Record, e.InWork, least, m.Stall)
	case !slices.ContainsFunc(l.running, func(c coordinator) bool { return c.Ready() != nil }):
		w.fail("watch: process %d is ready, and %q has been in work for %v", l.p.number, e.Record, e.InWork)
	case !slices.ContainsFunc(l.running, func(c coordinator) bool { return c.Stats().OldestInWork >= e.InWork }) && m.stepped == 0:
		w.fail("watch: process %d: Stats does not tell that %q has been in work for %v", l.p.number, e.Record, e.InWork)
	}
}

// next returns the call that an event is about, which took so long. A fetch that was cut
// short and brought nothing may go untold, and so may a renewal.
func (w *watcher) next(k Kind, records int, took time.Duration) (o outcome, found bool) {
	list := &w.returned[k]
	for len(*list) > 0 {
		o = (*list)[0]
		*list = (*list)[1:]
		told := records == 0 && (took == o.took || w.l.m.stepped > 0) // else it is of a later one that brought nothing
		switch {
		case !o.cut, k != Fetch && k != Renew, k == Fetch && (o.records > 0 || !o.failed && told), k == Renew && (!o.failed && w.l.m.Cron == 0 || len(*list) == 0): // at the end of a pass nobody waits for one
			return o, true
		}
	}
	w.fail("watch: process %d tells of a %s that it did not make", w.l.p.number, k)
	return o, false
}

// compare looks at what an event tells of its call.
func (w *watcher) compare(k Kind, o outcome, records int, took time.Duration, err error) {
	m := w.l.m
	switch {
	case records != o.records:
		w.fail("watch: process %d tells of %d records in a %s of %d", w.l.p.number, records, k, o.records)
	case took >= 0 && took != o.took && m.stepped == 0 && (k != Fetch || m.Pauses == 0 && m.Prefetch <= 0): // else it is not sure which fetch an event is of
		w.fail("watch: process %d tells that a %s took %v, which took %v", w.l.p.number, k, took, o.took)
	case o.failed && err == nil && !o.cut, !o.failed && err != nil:
		w.fail("watch: process %d tells of a %s with %v, which failed: %v", w.l.p.number, k, err, o.failed)
	}
}

// fail is for a process that is alive: what happens to another is told to nobody.
func (w *watcher) fail(format string, args ...any) {
	if !w.l.p.dead {
		w.l.m.Fail(format, args...)
	}
}

// waits looks at when something that failed is to be tried again.
func (w *watcher) waits(k Kind, err error, in time.Duration) {
	dropped := w.l.m.Prefetch > 0 && k == Fetch // it was made ahead, and is not tried again
	last := w.l.m.Cron > 0 && k == Fetch        // a run fetches once
	if (err == nil || last) && in != 0 || err != nil && in == 0 && !dropped && !last || in < 0 || in > time.Minute {
		w.fail("watch: process %d tells that a %s (%v) is tried again in %v", w.l.p.number, k, err, in)
	}
}

// observer is what tells the watcher.
func (w *watcher) observer() courier.Observer {
	l, m := w.l, w.l.m
	o := courier.Observer{
		Fetched: func(_ context.Context, e courier.FetchEvent) {
			w.told.Fetched += int64(e.Records)
			if e.Err != nil {
				w.told.FetchFailures++
			}
			if m.shape == channel {
				return
			}
			if o, found := w.next(Fetch, e.Records, e.Elapsed); found {
				w.compare(Fetch, o, e.Records, e.Elapsed, e.Err)
				w.waits(Fetch, e.Err, e.RetryIn)
			}
		},
		Applied: func(_ context.Context, e courier.ApplyEvent) {
			w.told.Applied += int64(e.Applied)
			w.told.Failed += int64(e.Failed)
			w.refused += int64(e.NotAttempted)
			switch {
			case e.Applied+e.Failed+e.NotAttempted > e.Records:
				w.fail("watch: process %d tells of %d records applied, %d failed and %d refused, of %d", l.p.number, e.Applied, e.Failed, e.NotAttempted, e.Records)
			case (e.Err != nil) != (e.Failed+e.NotAttempted > 0) && (e.Err == nil || !e.DrainTimedOut): // that names one it cut short
				w.fail("watch: process %d tells of %d records failed and %d refused, with %v", l.p.number, e.Failed, e.NotAttempted, e.Err)
			case e.Applied > 0 && e.Elapsed <= 0 && m.stepped == 0 && !m.KeyedQueue && !m.Remembers: // a copy that was in hand as well may leave no branch to call (F-2)
				w.fail("watch: process %d tells that an apply of %d records took %v", l.p.number, e.Records, e.Elapsed)
			}
		},
		Failed: func(_ context.Context, e courier.FailEvent) {
			w.failures++
			if e.Err == nil || e.Class == courier.ClassSkipped || e.Record == "" {
				w.fail("watch: process %d tells that %q failed, as %v, with %v", l.p.number, e.Record, e.Class, e.Err)
			}
		},
		Retried: func(context.Context, courier.RetryEvent) { w.told.Retried++ },
		Parked:  func(context.Context, courier.ParkEvent) { w.told.Parked++ },
		Marked: func(_ context.Context, e courier.MarkEvent) {
			if e.Err == nil {
				w.told.Marked += int64(e.Records)
			} else {
				w.told.MarkFailures++
			}
			o, found := w.next(Mark, e.Records, e.Elapsed)
			switch {
			case !found:
			case e.Err != nil && e.RetryIn == 0: // of all that will not be marked
				w.compare(Mark, o, min(e.Records, o.records), e.Elapsed, e.Err)
			default:
				w.compare(Mark, o, e.Records, e.Elapsed, e.Err)
				w.waits(Mark, e.Err, e.RetryIn)
			}
		},
		Released: func(_ context.Context, e courier.ReleaseEvent) {
			w.told.Released += int64(e.Records)
			k := Release
			if e.Failed {
				k = Fail
			}
			if o, found := w.next(k, e.Records, 0); found {
				if w.compare(k, o, e.Records, -1, e.Err); e.After != o.after {
					w.fail("watch: process %d tells of a release for %v, which was for %v", l.p.number, e.After, o.after)
				}
			}
		},
		Renewed: func(_ context.Context, e courier.RenewEvent) {
			w.lost += int64(e.Lost)
			if o, found := w.next(Renew, e.Records, 0); found && (e.Records > o.records || e.Lost > e.Records) {
				w.fail("watch: process %d tells of %d leases renewed and %d lost, of %d", l.p.number, e.Records, e.Lost, o.records)
			}
		},
		Paused: func(_ context.Context, e courier.PauseEvent) {
			w.pauses++
			w.held = w.held || e.Err == nil
			if e.Err == nil && !e.Until.IsZero() {
				w.fail("watch: process %d tells of a pause by hand until %v", l.p.number, e.Until)
			}
		},
		Resumed: func(_ context.Context, e courier.ResumeEvent) {
			if e.Pauses != w.pauses || w.pauses == 0 || w.held && l.paused {
				w.fail("watch: process %d tells that %d pauses are over, of %d, and paused by hand is %v", l.p.number, e.Pauses, w.pauses, l.paused)
			}
			w.pauses, w.held = 0, false
			m.Sometimes("resumed")
		},
		Stalled: func(_ context.Context, e courier.StallEvent) { w.stalled(e) },
		Stopped: func(_ context.Context, e courier.StopEvent) {
			w.stops, w.stopErr = w.stops+1, e.Err
			w.pauses, w.held = 0, false // the next run, of the same coordinator, counts anew
		},
	}
	if m.Yield { // where somebody wants to know of each record
		o.RecordStarted = func(context.Context, courier.RecordEvent) { w.started++ }
		o.RecordEnded = func(context.Context, courier.RecordEvent) { w.ended++ }
	}
	return o
}

// end compares the sums, once the process has ended well.
func (w *watcher) end(s courier.Stats) {
	l, m := w.l, w.l.m
	clean := l.p.err == nil
	same := func(what string, a, b int64) {
		if a != b {
			w.fail("watch: process %d: %s: %d and %d", l.p.number, what, a, b)
		}
	}
	if w.stops != l.runs || m.Cron == 0 && (w.stopErr == nil) != clean {
		w.fail("watch: process %d tells of its end %d times, with %v; Start returned %v", l.p.number, w.stops, w.stopErr, l.p.err)
	}
	same("records fetched, by Stats and by events", s.Fetched, w.told.Fetched)
	same("records applied, by Stats and by events", s.Applied, w.told.Applied)
	same("records failed, by Stats and by events", s.Failed, w.told.Failed)
	same("records marked, by Stats and by events", s.Marked, w.told.Marked)
	same("records released, by Stats and by events", s.Released, w.told.Released)
	same("records parked, by Stats and by events", s.Parked, w.told.Parked)
	same("retries, by Stats and by events", s.Retried, w.told.Retried)
	same("fetches failed, by Stats and by events", s.FetchFailures, w.told.FetchFailures)
	same("marks failed, by Stats and by events", s.MarkFailures, w.told.MarkFailures)
	same("records failed or refused, by event", w.failures, w.told.Failed+w.refused)
	same("records started and ended", w.started, w.ended)
	same("records parked, by Stats and by OnPark", s.Parked, w.parked)
	same("retries, by Stats and by OnRetry", s.Retried, w.retried)
	same("records in hand at the end", s.InHand, 0)
	same("records in work for long at the end", int64(len(w.long)), 0)
	if clean && !m.Ordered && m.Cron == 0 {
		same("records applied and marked", s.Applied, s.Marked)
	}
	if clean && (m.shape == leasing || m.shape == broker) && w.lost == 0 && !m.Renewing && m.Cron == 0 {
		// What is fetched a second time while it waits in hand is let go.
		if again := s.Fetched - s.Marked - s.Released; again < 0 || again > w.again {
			w.fail("watch: process %d: %d records fetched, of which %d again, and %d marked or released", l.p.number, s.Fetched, w.again, s.Marked+s.Released)
		}
	}
}
