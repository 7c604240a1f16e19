package sim_test

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/erfanmomeniii/courier"
)

// TestEarlierSeeds runs seeds that found a bug before, in the world of this file, which
// leaves the order of events to the bubble.
func TestEarlierSeeds(t *testing.T) {
	file, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(file)) {
		number, _, _ := strings.Cut(line, " ")
		if seed, err := strconv.ParseUint(number, 10, 64); err == nil {
			episode(t, seed)
		}
	}
}

// episode runs one seed and ends the test if the contract was broken.
func episode(t *testing.T, seed uint64) {
	w := newWorld(seed)
	synctest.Test(t, func(t *testing.T) { w.run(t) })
	if len(w.problems) > 0 {
		t.Fatalf("seed %d: %+v\n%s", seed, w.plan, strings.Join(w.problems, "\n"))
	}
}

func newWorld(seed uint64) *world {
	return &world{
		seed: seed, plan: newPlan(seed), counts: map[string]int{}, leased: map[int]time.Time{}, applied: map[int]int{},
		parked: map[int]int{}, marked: map[int]bool{}, inHand: map[int]bool{}, excused: map[int]bool{},
		second: map[int]int{}, busy: map[int]bool{}, lessee: map[int]int{}, held: map[int]bool{},
	}
}

// newPlan draws the configuration and which kinds of fault are on: episodes
// with few kinds find what episodes with all of them drown.
func newPlan(seed uint64) plan {
	u := func(kind string) float64 { return draw(seed, kind, 0, 0) }
	pick := func(kind string, n int) int { return int(u(kind) * float64(n)) }
	maybe := func(kind string, most float64) float64 {
		if u("on "+kind) < 0.6 {
			return 0
		}
		return u("p "+kind) * most
	}
	p := plan{
		records: 1 + pick("records", 60), batch: 1 + pick("batch", 20), leasing: u("leasing") < 0.5, limitless: u("limitless") < 0.2,
		batches: u("batches") < 0.4, stack: pick("stack", 3), attempts: 2 + pick("attempts", 5), queue: 1 + pick("queue", 10),
		pError: maybe("error", 0.4), pPermanent: maybe("permanent", 0.1), pPanic: maybe("panic", 0.2), pGoexit: maybe("goexit", 0.1),
		pHang: maybe("hang", 0.1), pLostAck: maybe("lost ack", 0.1), pWhole: maybe("whole", 0.5),
		pFetch: maybe("fetch", 0.5), pMark: maybe("mark", 0.5), pMarkLost: maybe("mark lost", 0.2), pQueue: maybe("queue", 0.5),
		poison: map[int]bool{}, faulty: time.Duration(1+u("faulty")*9) * time.Minute,
	}
	p.successes = 1
	if !p.batches { // of which each is one success, however many records come
		p.successes += pick("successes", 3)
	}
	p.fanOut = u("fan-out") < 0.3
	p.threshold = 2 + pick("threshold", p.attempts-1)
	if u("streaming") < 0.4 {
		p.workers = 1 + pick("workers", 8)
		p.leasing, p.limitless = true, false
	}
	if p.stack == 2 {
		for n := range p.records {
			if draw(seed, "poison", n, 0) < 0.05 {
				p.poison[n] = true
			}
		}
	}
	p.threads, p.prefetch = 1, -1
	if u("threads") < 0.5 {
		p.threads = 1 + pick("how many threads", 16)
	}
	if u("keyed") < 0.4 {
		p.keys = 1 + pick("keys", 12)
	}
	if u("portioned") < 0.5 {
		p.portion = 1 + pick("portion", p.batch)
	}
	if p.leasing && u("prefetched") < 0.4 && (p.keys == 0 || p.workers > 0) {
		p.prefetch = pick("prefetch", 4)
	}
	// Where every key begins with a poison record none is left to tell them from
	// an outage (C-1): that blocks, and must.
	keys := map[int]bool{}
	for n := range p.poison {
		keys[n%max(1, p.keys)] = true
	}
	if p.keys > 0 && len(keys) == p.keys {
		clear(p.poison)
	}
	p.ordered = p.workers > 0 && u("ordered") < 0.3
	p.failing = p.leasing && u("failing") < 0.3
	p.renewing = p.leasing && p.workers == 0 && !p.failing && u("renewing") < 0.4
	if p.renewing {
		p.pLease = maybe("lease", 0.1)
	}
	for i := range pick("outages", 4) {
		from := time.Duration(draw(seed, "outage", i, 0) * float64(p.faulty))
		p.outages = append(p.outages, window{from, min(p.faulty, from+time.Duration(draw(seed, "outage", i, 1)*float64(5*time.Minute)))})
	}
	for i := range pick("stops", 5) {
		p.stops = append(p.stops, stop{time.Duration(draw(seed, "stop", i, 0) * float64(p.faulty)), draw(seed, "stop", i, 1) < 0.5})
	}
	return p
}

const drain = 5 * time.Second

// run lives through the faults, then gives the pipeline time to settle, and
// looks at what is left.
func (w *world) run(t *testing.T) {
	w.began = time.Now()
	stopFeed := make(chan struct{})
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		w.feed(stopFeed)
	}()
	ends := append([]stop(nil), w.plan.stops...)
	for len(ends) > 0 {
		first := 0
		for i := range ends {
			if ends[i].at < ends[first].at {
				first = i
			}
		}
		w.live(t, ends[first].at-time.Since(w.began), ends[first].crash)
		ends = append(ends[:first], ends[first+1:]...)
	}
	// D10: every record is settled within a bound after the last fault.
	w.live(t, w.plan.faulty-time.Since(w.began)+30*time.Minute, false)
	close(stopFeed)
	<-fed
	for n := range w.plan.records {
		if !w.marked[n] {
			w.problem("D10: record %d is not marked: applied %d, parked %d", n, w.applied[n], w.parked[n])
		} else if w.plan.poison[n] && w.parked[n] == 0 {
			w.problem("D6: poison record %d was not parked", n)
		}
	}
}

// feed lets records arrive: the episode's own during the faults, and further
// ones after them, since a poison record is parked only when others come.
func (w *world) feed(stop <-chan struct{}) {
	for n := 0; ; n++ {
		every := time.Duration(float64(w.plan.faulty) / float64(w.plan.records) * draw(w.seed, "arrival", 0, 0))
		if n >= w.plan.records {
			every = 10 * time.Second
		}
		select {
		case <-stop:
			return
		case <-time.After(every):
		}
		w.mu.Lock()
		w.pending = append(w.pending, record{n})
		w.mu.Unlock()
	}
}

// live runs one process of the pipeline for a while and ends it.
func (w *world) live(t *testing.T, d time.Duration, crash bool) {
	process := w.newProcess()
	src := &source{w, process}
	dst := &destination{w, process}
	var applier courier.Applier[record] = dst
	if w.plan.batches {
		applier = batches{dst}
	}
	random := func() float64 { return 0.5 }
	retry := courier.RetryPolicy{MaxAttempts: w.plan.attempts, Random: random}
	switch w.plan.stack {
	case 1:
		applier = courier.NewRetryableApplier(applier, retry)
	case 2:
		applier, _ = courier.ResilientApplier(applier, &courier.ResilientConfig[record]{
			Retry: retry, Breaker: courier.BreakerPolicy{FailureThreshold: w.plan.threshold, Successes: w.plan.successes, Random: random}, DLQ: &queue{w, process},
		})
	}
	if w.plan.fanOut {
		applier = courier.NewFanOutApplier(applier, branch{w})
	}
	var from courier.Source[record] = src
	switch {
	case w.plan.failing:
		from = failing{releasing{src}}
	case w.plan.renewing:
		from = renewing{releasing{src}}
	case w.plan.leasing:
		from = releasing{src}
	}
	opts := []courier.Option{
		courier.WithBatchSize(w.plan.batch), courier.WithDrainTimeout(drain), courier.WithRandom(random),
		courier.WithLogger(slog.New(slog.DiscardHandler)),
	}
	if w.plan.keys > 0 {
		opts = append(opts, courier.WithOrderKey(func(r record) string { return strconv.Itoa(w.key(r)) }))
	}
	if w.plan.portion > 0 && w.plan.batches {
		opts = append(opts, courier.WithApplyBatchSize(w.plan.portion))
	}
	if w.plan.prefetch >= 0 {
		opts = append(opts, courier.WithPrefetch(w.plan.prefetch))
	}
	if w.plan.ordered {
		opts = append(opts, courier.WithOrderedMarks())
	}
	var c interface{ Start(context.Context) error }
	if w.plan.workers > 0 {
		c = courier.NewStreamingCoordinator(from, applier, append(opts, courier.WithStreamWorkers(w.plan.workers))...)
	} else {
		c = courier.NewPollingCoordinator(from, applier, append(opts, courier.WithWorkers(w.plan.threads))...)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Start(ctx) }()
	time.Sleep(d)
	if crash {
		w.kill() // whatever it does from here on has no effect
	}
	cancel()
	asked := time.Now()
	err := <-ended
	w.mu.Lock()
	defer w.mu.Unlock()
	if took := time.Since(asked); took > 2*drain+4*time.Second { // a hang heeds its context; a last apply may take its 3 s
		w.problem("D8: the stop took %v", took)
	}
	if err != nil && !crash && w.plan.pMark+w.plan.pMarkLost == 0 {
		w.problem("Start returned %v", err)
	}
	if crash || err != nil || w.plan.ordered { // applied and not marked: it comes again
		for n := range w.applied {
			if !w.marked[n] {
				w.excused[n] = true
			}
		}
	}
	if w.plan.workers > 0 {
		if !crash && err == nil && len(w.inHand) > 0 {
			w.problem("D8: not given back: %v", w.inHand)
		}
		clear(w.leased) // a broker sees the connection go
	}
}
