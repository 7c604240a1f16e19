package fuzz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// FuzzCoordinator: a whole coordinator under any plan of faults. The faults come
// and the coordinator is stopped among them; then another takes over, for which
// one record is still poison; then all is well. In the end everything is
// delivered or parked (D1, D10), nothing was marked before (D2), the poison held
// up no other but behind its own key (D3), the order was kept (D4), and there
// never was more in hand than room for it (D11).
func FuzzCoordinator(f *testing.F) {
	for source := range sources {
		for stack := range stacks {
			shape := []byte{byte(source), byte(stack), byte(int(source) + int(stack)), byte(stack % 3), byte(stack), 9, 20, 7, byte(source * 3), 30}
			f.Add(append(shape, "\x00\x01\x03\x02\x10\x05\x04\x01\x22\x06\x02\x31\x08\x00\x40\x01\x01\x07"...))
			f.Add(append(shape, "\x00\x05\x00\x03\x21\x06\x01\x02\x12\x02\x02\x05\x07\x01\x14\x00\x03\x01\x03\x33\x02\x04"...))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 120 {
			t.Skip("long enough")
		}
		run(t, readPlan(text))
	})
}

// source is a kind of source.
type source int

const (
	rereading source = iota
	leasing
	scheduling
	streaming
	channel
	sources
)

func (s source) String() string {
	return [...]string{"re-reading", "leasing", "scheduling", "streaming", "channel"}[s]
}

// stack is what decorators there are.
type stack int

const (
	plain stack = iota
	retrying
	resilient
	breaking
	parking
	stacks
)

func (s stack) String() string {
	return [...]string{"plain", "retrying", "resilient", "breaking", "parking"}[s]
}

// plan is a pipeline, and what happens to it.
type plan struct {
	source   source
	stack    stack
	workers  int
	keys     int // 0 asks for no order
	batches  bool
	ordered  bool // marks
	portion  int  // 0 is the default
	batch    int
	prefetch int // -1 is the default
	records  int
	capacity int // of the dead letter queue
	poison   int // the record that is, -1 for none
	final    bool
	stop     time.Duration

	apply, fetch, mark, park courierttest.Faults
}

func (p plan) String() string {
	return fmt.Sprintf("%v source, %v applier, %d workers, %d keys, batches %v, ordered %v, portions of %d, %d in a batch, prefetch %d, %d records, room for %d letters, poison %d, final %v, stopped after %v\napply: %v\nfetch: %v\nmark: %v\npark: %v",
		p.source, p.stack, p.workers, p.keys, p.batches, p.ordered, p.portion, p.batch, p.prefetch, p.records, p.capacity, p.poison, p.final, p.stop, p.apply, p.fetch, p.mark, p.park)
}

// reader takes numbers from bytes; behind their end there are zeros.
type reader []byte

func (r *reader) below(n int) int {
	if len(*r) == 0 {
		return 0
	}
	b := (*r)[0]
	*r = (*r)[1:]
	return int(b) % n
}

func readPlan(text []byte) (p plan) {
	r := reader(text)
	p.source, p.stack = source(r.below(int(sources))), stack(r.below(int(stacks)))
	p.workers = r.below(5) + 1
	p.keys = r.below(4)
	flags := r.below(256)
	p.batches, p.ordered, p.final = flags&1 != 0, flags&2 != 0, flags&4 != 0
	if flags&8 != 0 {
		p.portion = 3
	}
	p.batch = r.below(12) + 1
	p.records = r.below(40) + 1
	p.prefetch = r.below(4) - 1
	if p.source == rereading || p.source == scheduling && p.keys > 0 { // it has no use for it; or it would have to hold back a key
		p.prefetch = -1
	}
	if p.source == leasing && p.keys > 0 { // which is refused
		p.prefetch = -1
	}
	if p.source == scheduling {
		p.keys = 0
	}
	p.poison = r.below(p.records+1) - 1
	p.stop = time.Duration(r.below(60)+1) * time.Second
	p.capacity = r.below(6) + 1
	for len(r) > 0 && len(p.apply)+len(p.fetch)+len(p.mark)+len(p.park) < 20 {
		where := r.below(8)
		fault := courierttest.Fault{Effect: r.effect(), When: r.condition(p.records)}
		switch where {
		case 0:
			if p.source != rereading && fault.Effect == courierttest.Lost {
				continue // the records would be nobody's until their lease ends
			}
			p.fetch = append(p.fetch, fault)
		case 1:
			p.mark = append(p.mark, fault)
		case 2:
			p.park = append(p.park, fault)
		default:
			p.apply = append(p.apply, fault)
		}
	}
	return p
}

func (r *reader) effect() courierttest.Effect {
	switch n := r.below(12); n {
	case 9:
		return courierttest.Delay(time.Duration(r.below(20)) * 700 * time.Millisecond)
	case 10:
		return courierttest.RetryAfter(time.Duration(r.below(20)) * 700 * time.Millisecond)
	case 11:
		return courierttest.OK
	default:
		return [...]courierttest.Effect{
			courierttest.Error, courierttest.Permanent, courierttest.Skip, courierttest.Lost, courierttest.Panic,
			courierttest.Goexit, courierttest.Hang, courierttest.Whole, courierttest.Error,
		}[n]
	}
}

// condition reads one, nil among them.
func (r *reader) condition(records int) courierttest.Condition {
	first := func() int { return r.below(20) + 1 }
	switch r.below(8) {
	case 0, 1:
		return courierttest.OnRecord(strconv.Itoa(r.below(records)))
	case 2:
		n := first()
		return courierttest.Calls(n, n+r.below(10))
	case 3:
		n := r.below(4) + 1
		return courierttest.Attempts(n, n+r.below(3))
	case 4:
		return courierttest.Every(r.below(6) + 2)
	case 5:
		from := time.Duration(r.below(40)) * time.Second
		return courierttest.During(from, from+time.Duration(r.below(40)+1)*time.Second)
	case 6:
		return courierttest.Chance(float64(r.below(9)+1)/10, uint64(r.below(256)))
	default:
		return courierttest.And(courierttest.OnRecord(strconv.Itoa(r.below(records))), courierttest.Attempts(1, first()))
	}
}

// pipeline is a plan in work.
type pipeline struct {
	*testing.T
	plan
	records courierttest.Recorder[int]

	draws   atomic.Int64
	pending func() []int // at the source
	unread  func() int   // in the channel

	mu    sync.Mutex
	busy  map[string]int // keys that a record is being applied of
	first []int          // the records in the order of their first attempts
}

func run(t *testing.T, plan plan) {
	courierttest.Bubble(t, func(t *testing.T) {
		p := &pipeline{T: t, plan: plan, busy: map[string]int{}}
		defer func() {
			if t.Failed() {
				t.Logf("%v\n%s", plan, p.records.Timeline())
			}
		}()
		left := make([]int, plan.records)
		for i := range left {
			left[i] = i
		}
		left = p.episode(left, true, plan.stop, nil)
		left = p.episode(left, false, 30*time.Minute, p.stuck)
		p.poison = -1
		left = p.episode(left, false, time.Hour, func([]int) int { return 0 })
		if len(left) > 0 { // D10
			t.Errorf("all is well, and an hour later %v are still pending", left)
		}
		p.checkSettled()
		courierttest.AssertMarkedAfterApplied(t, &p.records)
		if plan.keys > 0 {
			p.checkOrder()
		}
	})
}

// checkSettled reports records that are not done (D1). A mark of which the answer
// was lost is one.
func (p *pipeline) checkSettled() {
	settled, marked := map[int]bool{}, map[int]bool{}
	for _, e := range p.records.Events() {
		var injected *courierttest.InjectedError
		switch e.Kind {
		case courierttest.Applied, courierttest.Skipped, courierttest.Parked:
			settled[e.Record] = true
		case courierttest.Marked:
			marked[e.Record] = true
		case courierttest.MarkFailed:
			if errors.As(e.Err, &injected) && injected.Effect == courierttest.Lost {
				marked[e.Record] = true
			}
		}
	}
	for r := range p.plan.records {
		if !settled[r] || !marked[r] {
			p.Errorf("record %d: settled is %v, marked is %v", r, settled[r], marked[r])
		}
	}
}

// checkOrder reports records that were attempted before an earlier one of their
// key was done for the first time (D4).
func (p *pipeline) checkOrder() {
	done := map[int]bool{}
	for _, e := range p.records.Events() {
		switch e.Kind {
		case courierttest.Applied, courierttest.Skipped, courierttest.Parked, courierttest.Unacked, courierttest.Failed:
			for r := e.Record - p.keys; r >= 0; r -= p.keys {
				if !done[r] {
					p.Errorf("record %d was attempted before record %d of its key was done", e.Record, r)
					return
				}
			}
			done[e.Record] = done[e.Record] || e.Kind != courierttest.Unacked && e.Kind != courierttest.Failed
		}
	}
}

func (p *pipeline) key(record int) string { return strconv.Itoa(record % max(1, p.keys)) }

// stuck returns how many of the pending records may stay for as long as the
// poison is one: the poison, unless it is parked for good, and what is behind it
// where an order was asked for. Where these fill the window, all may.
func (p *pipeline) stuck(pending []int) (n int) {
	poison := p.poison
	if poison < 0 || p.final && (p.stack == resilient || p.stack == parking) {
		return 0
	}
	inOrder := p.ordered && (p.source == streaming || p.source == channel)
	for _, r := range pending {
		if r == poison || r > poison && (inOrder || p.keys > 0 && p.key(r) == p.key(poison)) {
			n++
		} else if n < p.window() {
			return n
		}
	}
	return len(pending)
}

// window is how many records a coordinator sees at once that are not settled.
func (p *pipeline) window() int {
	switch {
	case p.source == channel || p.source == streaming && (p.keys > 0 || p.ordered): // a stream keeps those
		return p.room()
	case p.source == streaming:
		return p.plan.records + 1
	}
	return p.batch // the oldest are handed out, over and over
}

// room is how many records there may be in hand.
func (p *pipeline) room() int {
	prefetch := p.prefetch
	if prefetch < 0 && (p.source == streaming || p.source == channel) {
		prefetch = 1
	}
	return p.batch * (1 + max(0, prefetch))
}

// episode runs a coordinator for so long, or until only records are pending that
// may stay stuck, and returns what is.
func (p *pipeline) episode(left []int, faulty bool, limit time.Duration, stuck func(pending []int) int) []int {
	p.first = nil
	ctx, cancel := context.WithCancel(p.Context())
	defer cancel()
	coordinator := p.build(left, faulty)
	ended := make(chan error, 1)
	go func() { ended <- coordinator.Start(ctx) }()
	var err error
	over := time.After(limit)
	for running := true; running; {
		if pending := p.pending(); stuck != nil && stuck(pending) == len(pending) {
			cancel()
		}
		select {
		case err = <-ended:
			running = false
		case <-over:
			cancel()
		case <-time.After(time.Second):
		}
	}
	var handed *courier.UnsettledError[int]
	unmarked := errors.Is(err, courier.ErrMark)
	if errors.As(err, &handed) {
		for _, r := range handed.Records {
			if !slices.Contains(p.pending(), r) {
				p.Errorf("record %d was handed back, and is marked", r)
			}
		}
	}
	if err != nil && handed == nil && !faulty {
		p.Errorf("Start returned an error: %v", err)
	}
	left = p.pending()
	if stuck != nil && stuck(left) < len(left) { // D3
		p.Errorf("after %v without another fault than the poison, these are pending: %v", limit, left)
	}
	if handed == nil {
		handed = new(courier.UnsettledError[int])
	}
	if n := len(handed.Records) + p.unread(); p.source == channel && !unmarked && n != len(left) && !p.ordered { // D1; marks in order are held up by what is handed back
		p.Errorf("the stream ended, %v are not marked, and %v were handed back with %d not fetched", left, handed.Records, p.unread())
	}
	if !slices.IsSorted(p.first) && p.inOrder() { // D4
		p.Errorf("with one worker, the records were attempted in the order %v", p.first)
	}
	return left
}

// inOrder reports whether records are attempted for the first time in the order
// of the source: by one worker, from a source that hands them out in order, and
// with no breaker to be probed with whichever tells the most.
func (p *pipeline) inOrder() bool {
	return p.workers == 1 && p.keys == 0 && p.stack != resilient && p.stack != breaking && (p.source == rereading || p.source == channel)
}

// random is spread evenly, and the same in every run. With always the same value
// a poller would be back just when a failed record is.
func (p *pipeline) random() float64 {
	_, fraction := math.Modf(float64(p.draws.Add(1)) * math.Phi)
	return fraction
}

type starter interface{ Start(context.Context) error }

func (p *pipeline) build(left []int, faulty bool) starter {
	opts := []courier.Option{
		courier.WithLogger(slog.New(slog.DiscardHandler)), courier.WithRandom(p.random),
		courier.WithBatchSize(p.batch),
	}
	if p.keys > 0 {
		opts = append(opts, courier.WithOrderKey(p.key))
	}
	if p.portion > 0 && p.batches {
		opts = append(opts, courier.WithApplyBatchSize(p.portion))
	}
	if p.prefetch >= 0 {
		opts = append(opts, courier.WithPrefetch(p.prefetch))
	}
	apply := p.applier(faulty)
	p.unread = func() int { return 0 }
	set := func(i *courierttest.Injector, faults courierttest.Faults) {
		if faulty {
			i.Set(faults...)
		}
	}
	leased := func(s *courierttest.LeasingSource[int]) *counted {
		set(&s.FetchFaults, p.fetch)
		set(&s.MarkFaults, p.mark)
		p.pending = s.Pending
		return &counted{s, p}
	}
	switch p.source {
	case rereading:
		s := p.records.Source(left...)
		set(&s.FetchFaults, p.fetch)
		set(&s.MarkFaults, p.mark)
		p.pending = s.Pending
		return courier.NewPollingCoordinator(s, apply, append(opts, courier.WithWorkers(p.workers), courier.WithInterval(time.Second))...)
	case leasing:
		s := leased(p.records.LeasingSource(time.Minute, left...))
		return courier.NewPollingCoordinator(s, apply, append(opts, courier.WithWorkers(p.workers), courier.WithInterval(time.Second))...)
	case scheduling:
		s := p.records.SchedulingSource(time.Minute, left...)
		return courier.NewPollingCoordinator(scheduled{leased(s.LeasingSource), s}, apply, append(opts, courier.WithWorkers(p.workers), courier.WithInterval(time.Second))...)
	}
	opts = append(opts, courier.WithStreamWorkers(p.workers))
	if p.ordered {
		opts = append(opts, courier.WithOrderedMarks())
	}
	if p.source == streaming {
		return courier.NewStreamingCoordinator(leased(p.records.StreamSource(left...)), apply, opts...)
	}
	ch := make(chan int, len(left))
	for _, r := range left {
		ch <- r
	}
	close(ch)
	p.unread = func() int { return len(ch) }
	var mu sync.Mutex
	pending := slices.Clone(left)
	p.pending = func() []int {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(pending)
	}
	stream := courier.NewChannelSource(ch, func(_ context.Context, records []int) error {
		mu.Lock()
		defer mu.Unlock()
		if p.ordered && !slices.IsSorted(records) {
			p.Errorf("%v are marked in another order than that of the stream", records)
		}
		for _, r := range pending {
			if p.ordered && r < records[len(records)-1] && !slices.Contains(records, r) {
				p.Errorf("%v are marked before record %d", records, r)
			}
		}
		pending = slices.DeleteFunc(pending, func(r int) bool { return slices.Contains(records, r) })
		return nil
	})
	s := p.records.Source()
	s.Add(left...)
	s.FetchFunc, s.MarkFunc = stream.Fetch, stream.Mark
	set(&s.FetchFaults, p.fetch)
	set(&s.MarkFaults, p.mark)
	return courier.NewStreamingCoordinator(s, apply, opts...)
}

// applier is the destination in the decorators of the plan.
func (p *pipeline) applier(faulty bool) courier.Applier[int] {
	poisoned := func(_ context.Context, record int) error {
		switch {
		case record != p.poison:
			return nil
		case p.final:
			return courier.Permanent(errFailed)
		}
		return errFailed
	}
	var faults courierttest.Faults
	if faulty {
		faults = p.apply
	}
	var inner courier.Applier[int]
	if p.batches {
		a := p.records.BatchApplier(faults)
		a.ApplyFunc = poisoned
		inner = &ordered{a, p}
	} else {
		a := p.records.Applier(faults)
		a.ApplyFunc = poisoned
		inner = courier.ProcessFunc((&ordered{single{a}, p}).Apply)
	}
	const timeout = 10 * time.Second
	retry := courier.RetryPolicy{Random: p.random}
	breaker := courier.BreakerPolicy{Random: p.random}
	capacity := 0
	if faulty {
		capacity = p.capacity
	}
	queue := p.records.DLQ(capacity)
	if faulty {
		queue.SendFaults.Set(p.park...)
	}
	switch p.stack {
	case retrying:
		return courier.NewRetryableApplier(courier.NewAttemptTimeoutApplier(inner, timeout, nil), retry)
	case resilient:
		a, _ := courier.ResilientApplier(inner, &courier.ResilientConfig[int]{AttemptTimeout: timeout, Retry: retry, Breaker: breaker, DLQ: queue})
		return a
	case breaking:
		return courier.NewCircuitBreakerApplier(inner, courier.NewBreaker(breaker))
	case parking:
		return courier.NewDLQApplier(inner, queue, courier.DLQPolicy[int]{})
	}
	return inner
}

// counted is a leasing source that counts what is in hand (D11).
type counted struct {
	*courierttest.LeasingSource[int]
	*pipeline
}

func (c *counted) Fetch(ctx context.Context, limit int) ([]int, error) {
	records, err := c.LeasingSource.Fetch(ctx, limit)
	room := c.room()
	if c.stack == resilient || c.stack == breaking {
		room = max(room, 100) // to probe the breaker with
	}
	if n := len(c.InHand()); n > room {
		c.Errorf("%d records are in hand, of at most %d", n, room)
	}
	return records, err
}

func (c *counted) Pending() []int { return c.LeasingSource.Pending() }

type scheduled struct {
	*counted
	schedule *courierttest.SchedulingSource[int]
}

func (s scheduled) Fail(ctx context.Context, failed []courier.FailedRecord[int]) error {
	return s.schedule.Fail(ctx, failed)
}

// ordered is a destination that looks after the order (D4).
type ordered struct {
	courier.BatchApplier[int]
	*pipeline
}

func (o *ordered) Apply(ctx context.Context, record int) error {
	defer o.begin(record)()
	return o.BatchApplier.Apply(ctx, record)
}

func (o *ordered) ApplyBatch(ctx context.Context, records []int) error {
	defer o.begin(records...)()
	return o.BatchApplier.ApplyBatch(ctx, records)
}

// begin notes that records are with the destination until the returned function
// is called.
func (p *pipeline) begin(records ...int) (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range records {
		if !slices.Contains(p.first, r) {
			p.first = append(p.first, r)
		}
		if p.keys > 0 {
			if other, ok := p.busy[p.key(r)]; ok {
				p.Errorf("record %d is applied together with record %d of its key", r, other)
			}
			p.busy[p.key(r)] = r
		}
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, r := range records {
			delete(p.busy, p.key(r))
		}
	}
}

// single is an applier that is not asked for batches.
type single struct{ courier.Applier[int] }

func (single) ApplyBatch(context.Context, []int) error { panic("was not asked for batches") }

// A plan that was found to show something is run by its bytes, under a name.
func TestCoordinator_PlansWorthKeeping(t *testing.T) {
	for name, text := range map[string]string{
		"nothing at all": "",
		"the poison and what is behind it fill every batch of a leasing source": "\x01\x05\xffF\x01\f\a\x14\x1e\x00\x05\x00\xff\x01\x01\t\x02\x12\x02\x02\x00\a\x01\x14\x1e\x00\x05\x00\x03!",
		"they fill the batches fetched ahead, too":                              "\x01\x01\x03B\x01\x00\xfe\x03\x02",
		"a goexit that opens the breaker has it probed with an innocent record": "\xff\x7f\x00\x00\x04c\xf6\xfb\x02\x17?xxxxxxxx\x00\x01\x03\x020/R͋m\x17\x05\xf5\x90'\xae\x87\xfc\x16\x97\xf5\xf5\xf5\xf5\xf5",
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) { run(t, readPlan([]byte(text))) })
	}
}
