package sim_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier"
)

// record is what is moved. Its number is its identity.
type record struct{ N int }

// world is everything outside of Courier in one episode: a source, a
// destination and a dead letter queue, and the faults that come over them. Every
// decision is drawn from a hash of the seed, the kind of call, the record and
// how often it was made, so that no decision depends on which goroutine came
// first.
type world struct {
	seed  uint64
	began time.Time
	plan  plan

	mu       sync.Mutex
	counts   map[string]int
	pending  []record // arrived and not marked, oldest first
	leased   map[int]time.Time
	applied  map[int]int // how often the destination has a record
	parked   map[int]int
	marked   map[int]bool
	inHand   map[int]bool // handed out by a leasing source in this process
	excused  map[int]bool // Courier was not told of an apply: it may come again
	second   map[int]int  // how often the second branch has a record
	busy     map[int]bool // keys of which a record is with the destination
	lessee   map[int]int  // which process a record is, or was last, leased to
	held     map[int]bool // reported as failed, and not due
	process  int          // generation; what an older one does has no effect
	calls    int          // of fetch, in this process
	started  time.Time
	problems []string
}

// plan is what the seed has drawn for the episode.
type plan struct {
	records   int
	batch     int
	workers   int  // of a streaming coordinator; 0 is polling
	threads   int  // of a polling coordinator
	keys      int  // how many there are; 0 asks for no order
	portion   int  // of records that go together; 0 is the default
	prefetch  int  // -1 is the default
	ordered   bool // marks in the order fetched
	failing   bool // the source keeps a retry schedule
	renewing  bool // the source wants its leases renewed
	leasing   bool // the source leases and takes back
	limitless bool // the source returns all it has
	batches   bool // the destination takes batches
	stack     int  // 0 plain, 1 retry, 2 resilient
	attempts  int
	threshold int
	successes int
	fanOut    bool // a second branch, which never fails
	queue     int  // capacity of the dead letter queue

	pError, pPermanent, pPanic, pGoexit, pHang, pLostAck, pWhole float64
	pFetch, pMark, pMarkLost, pQueue, pLease                     float64

	poison  map[int]bool
	outages []window
	stops   []stop
	faulty  time.Duration // faults end here
}

type window struct{ from, to time.Duration }

// stop is the end of a process at some time, gracefully or not.
type stop struct {
	at    time.Duration
	crash bool
}

var (
	errInjected = errors.New("injected")
	errCrashed  = errors.New("the process is dead")
)

// draw returns a uniform value in [0, 1) that belongs to its arguments.
func draw(seed uint64, kind string, n, count int) float64 {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%d/%s/%d/%d", seed, kind, n, count)
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return float64(x>>11) / (1 << 53)
}

// next is draw with the count kept here. The lock is held.
func (w *world) next(kind string, n int) float64 {
	key := fmt.Sprintf("%s/%d", kind, n)
	w.counts[key]++
	return draw(w.seed, kind, n, w.counts[key])
}

func (w *world) fault(kind string, n int, p float64) bool {
	return time.Since(w.began) < w.plan.faulty && w.next(kind, n) < p
}

func (w *world) problem(format string, args ...any) {
	w.problems = append(w.problems, fmt.Sprintf("%v: ", time.Since(w.began))+fmt.Sprintf(format, args...))
}

func (w *world) down() bool {
	at := time.Since(w.began)
	for _, o := range w.plan.outages {
		if at >= o.from && at < o.to {
			return true
		}
	}
	return false
}

// newProcess begins a process: leases of the one before run out by and by.
func (w *world) newProcess() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.process++
	w.calls, w.started = 0, time.Now()
	clear(w.inHand)
	return w.process
}

func (w *world) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.process++
}

const lease = time.Minute

// source is the world's source as one process sees it.
type source struct {
	*world
	process int
}

func (s *source) Fetch(ctx context.Context, limit int) ([]record, error) {
	for {
		records, err, wait := s.fetch(limit)
		if !wait {
			return records, err
		}
		select { // a streaming source blocks
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *source) fetch(limit int) (records []record, err error, wait bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != s.world.process {
		return nil, errCrashed, false
	}
	s.calls++
	if up := time.Since(s.started); s.calls > 100+40*int(up/time.Second+1) && s.plan.workers == 0 {
		s.problem("busy loop: %d fetches in %v", s.calls, up)
		return nil, io.EOF, false
	}
	if s.fault("fetch", 0, s.plan.pFetch) {
		return nil, errInjected, false
	}
	if s.plan.limitless {
		limit = len(s.pending)
	}
	behind := map[int]bool{} // keys of which a record is with another process, or put off
	for _, r := range s.pending {
		if len(records) == limit {
			break
		}
		if s.plan.leasing {
			if time.Now().Before(s.leased[r.N]) {
				if by, out := s.lessee[r.N]; out && by != s.process || s.held[r.N] {
					behind[s.key(r)] = true
				}
				continue
			}
			if s.plan.keys > 0 && behind[s.key(r)] {
				continue
			}
			delete(s.held, r.N)
			s.lessee[r.N] = s.process
			s.leased[r.N] = time.Now().Add(lease)
			if s.plan.workers > 0 {
				s.leased[r.N] = time.Now().Add(1000 * time.Hour) // until given back, or the process is gone
			}
			s.inHand[r.N] = true
		}
		records = append(records, r)
	}
	// D11: a leasing source knows what is out.
	room := (1 + s.plan.prefetch) * s.plan.batch
	if s.plan.prefetch < 0 {
		room = 2 * s.plan.batch
	}
	if s.plan.stack == 2 {
		room = max(room, 100) // while the breaker is probed
	}
	if s.plan.workers > 0 && len(s.inHand) > room {
		s.problem("D11: %d records in hand, more than %d", len(s.inHand), room)
	}
	return records, nil, len(records) == 0 && s.plan.workers > 0
}

func (s *source) Mark(ctx context.Context, records []record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != s.world.process {
		return errCrashed
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, r := range records {
		if s.applied[r.N] == 0 && s.parked[r.N] == 0 {
			s.problem("D2: record %d is marked, and was neither applied nor parked", r.N)
		}
		if s.plan.fanOut && s.second[r.N] == 0 {
			s.problem("F-1: record %d is marked, and one branch never had it", r.N)
		}
	}
	if s.fault("mark", records[0].N, s.plan.pMark) {
		return errInjected
	}
	done := map[int]bool{}
	for _, r := range records {
		done[r.N], s.marked[r.N] = true, true
		delete(s.inHand, r.N)
		delete(s.leased, r.N)
	}
	kept := s.pending[:0:0]
	for _, r := range s.pending {
		if !done[r.N] {
			kept = append(kept, r)
		}
	}
	s.pending = kept
	if s.fault("mark lost", records[0].N, s.plan.pMarkLost) {
		return errInjected
	}
	return nil
}

// key is what a record is ordered by.
func (w *world) key(r record) int { return r.N % max(1, w.plan.keys) }

// begin checks, before an attempt, that nothing of the record's key is at the
// destination or was left out before it (D4).
func (w *world) begin(r record) {
	if w.plan.keys == 0 {
		return
	}
	if w.busy[w.key(r)] {
		w.problem("D4: record %d is applied together with another of its key", r.N)
	}
	w.busy[w.key(r)] = true
	for n := w.key(r); n < r.N; n += w.plan.keys {
		if w.applied[n] == 0 && w.parked[n] == 0 {
			w.problem("D4: record %d is applied before record %d", r.N, n)
		}
	}
}

func (w *world) end(r record) { delete(w.busy, w.key(r)) }

// failing is a source that schedules failed records by itself, renewing one whose
// leases are short.
type failing struct{ releasing }

func (s failing) Fail(_ context.Context, failed []courier.FailedRecord[record]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != s.world.process {
		return errCrashed
	}
	for _, f := range failed {
		delete(s.inHand, f.Record.N)
		s.held[f.Record.N] = true
		s.leased[f.Record.N] = time.Now().Add(time.Duration(s.next("schedule", f.Record.N) * float64(20*time.Second)))
	}
	return nil
}

type renewing struct{ releasing }

func (s renewing) RenewEvery() time.Duration { return lease / 3 }

func (s renewing) Renew(_ context.Context, records []record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != s.world.process {
		return errCrashed
	}
	var lost courier.BatchError
	for i, r := range records {
		if s.marked[r.N] || !s.inHand[r.N] {
			continue
		}
		if s.plan.keys == 0 && s.fault("lease", r.N, s.plan.pLease) {
			lost.Add(i, errors.New("somebody else has it"))
			s.leased[r.N] = time.Now()
			s.excused[r.N] = true
			delete(s.inHand, r.N)
			continue
		}
		s.leased[r.N] = time.Now().Add(lease)
	}
	return lost.ErrorOrNil()
}

// releasing is a source that takes records back.
type releasing struct{ *source }

func (s releasing) Release(_ context.Context, records []record, after time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != s.world.process {
		return errCrashed
	}
	for _, r := range records {
		delete(s.inHand, r.N)
		if _, out := s.leased[r.N]; out {
			s.leased[r.N] = time.Now().Add(after)
		}
	}
	return nil
}

// destination is the world's destination as one process sees it.
type destination struct {
	*world
	process int
}

func (d *destination) Apply(ctx context.Context, r record) error {
	d.mu.Lock()
	if d.process == d.world.process {
		d.begin(r)
		defer func() {
			d.mu.Lock()
			d.end(r)
			d.mu.Unlock()
		}()
	}
	latency := time.Duration(d.next("latency", r.N) * float64(20*time.Millisecond))
	hang := d.fault("hang", r.N, d.plan.pHang)
	d.mu.Unlock()
	time.Sleep(latency)
	if hang {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(3 * time.Second):
		}
	}
	end, err := d.apply(r)
	if end != nil {
		end()
	}
	return err
}

// apply decides what becomes of one record; end ends the call otherwise than by
// returning.
func (d *destination) apply(r record) (end func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.process != d.world.process:
		return nil, errCrashed
	case d.down():
		return nil, fmt.Errorf("down: %w", errInjected)
	case d.plan.poison[r.N]:
		return nil, fmt.Errorf("poison: %w", errInjected)
	case d.fault("error", r.N, d.plan.pError):
		return nil, errInjected
	case d.fault("permanent", r.N, d.plan.pPermanent):
		return nil, courier.Permanent(errInjected)
	case d.fault("panic", r.N, d.plan.pPanic):
		return func() { panic(errInjected) }, nil
	case d.fault("goexit", r.N, d.plan.pGoexit):
		return runtime.Goexit, nil
	}
	d.applied[r.N]++
	if d.applied[r.N] > 1 && !d.excused[r.N] {
		d.problem("record %d was applied again without a reason", r.N)
	}
	d.excused[r.N] = false
	if d.fault("lost ack", r.N, d.plan.pLostAck) {
		d.excused[r.N] = true
		return nil, errInjected
	}
	return nil, nil
}

// branch is a second destination, which never fails.
type branch struct{ *world }

func (b branch) Apply(_ context.Context, r record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.second[r.N]++
	return nil
}

// batches is a destination that takes batches.
type batches struct{ *destination }

func (b batches) ApplyBatch(_ context.Context, records []record) error {
	b.mu.Lock()
	if b.process == b.world.process {
		for _, r := range records {
			b.begin(r)
		}
		defer func() {
			b.mu.Lock()
			for _, r := range records {
				b.end(r)
			}
			b.mu.Unlock()
		}()
	}
	b.mu.Unlock()
	time.Sleep(10 * time.Millisecond)
	b.mu.Lock()
	whole := b.fault("whole", records[0].N, b.plan.pWhole) || b.down()
	b.mu.Unlock()
	if whole {
		return errInjected
	}
	var failed courier.BatchError
	for i, r := range records {
		end, err := b.apply(r)
		if end != nil {
			err = errInjected // one that ends the call would take the others' results with it
		}
		if err != nil {
			failed.Add(i, err)
		}
	}
	return failed.ErrorOrNil()
}

// queue is the world's dead letter queue as one process sees it.
type queue struct {
	*world
	process int
}

func (q *queue) Send(_ context.Context, letter courier.DeadLetter[record]) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := letter.Record.N
	switch {
	case q.process != q.world.process:
		return errCrashed
	case q.fault("queue", n, q.plan.pQueue):
		return errInjected
	case len(q.parked) >= q.plan.queue && q.parked[n] == 0 && time.Since(q.began) < q.plan.faulty:
		return courier.ErrDLQFull
	}
	q.parked[n]++
	if errors.Is(letter.Error, courier.ErrOpen) || errors.Is(letter.Error, context.Canceled) {
		q.problem("D5: record %d was parked with %v", n, letter.Error)
	}
	if q.onlyOutages() && !q.plan.poison[n] {
		q.problem("D6: record %d is healthy and was parked with %v", n, letter.Error)
	}
	return nil
}

// onlyOutages reports whether nothing but outages can make a healthy record
// fail.
func (w *world) onlyOutages() bool {
	p := w.plan
	return p.pError+p.pPermanent+p.pPanic+p.pGoexit+p.pHang+p.pLostAck+p.pWhole == 0
}

func (q *queue) Receive(context.Context, int) ([]courier.DeadLetter[record], error) { return nil, nil }
func (q *queue) List(context.Context, string, int) ([]courier.DeadLetter[record], error) {
	return nil, nil
}
func (q *queue) Update(context.Context, courier.DeadLetter[record]) error { return nil }
func (q *queue) Delete(context.Context, ...string) error                  { return nil }
func (q *queue) Count(context.Context) (int, error)                       { return 0, nil }
