package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// World is everything outside of Courier in one episode, and its time. The calls
// into it come one at a time, in an order that the seed draws.
type World struct {
	seed    uint64
	options *Options
	now     atomic.Int64 // since the episode began

	mu       sync.Mutex // over what goroutines leave for the scheduler
	inbox    []*call
	timers   []*timer
	returned []returned
	free     []*call

	// The scheduler's own.
	incoming  []*call
	newTimers []*timer
	heap      []event
	parked    []*call // in no order
	blocked   []*call // have nothing to return yet
	processes []*Process
	outside   Process // what the world does by itself is done by this one
	runs      []func(ctx context.Context) error
	living    int
	steps     uint64
	actions   uint64
	counts    map[callID]uint32
	made      [kinds]int
	finishing bool
	aborting  bool
	trace     uint64 // the hash of all that happened
	tracing   bool
	log       []entry

	// The plan.
	rates   rates
	pace    float64
	lengths time.Duration // of the phase with faults
	outages [3][]window
	endings []ending
	script  map[callID][]Fault // the faults, where they are given
	faults  []Fault            // that happened
	skew    time.Duration
	stepped time.Duration // what clocks were set by, in all

	// What a model of the world looks at.
	begins  func(p *Process)
	dies    func(p *Process)
	ends    func(p *Process)
	comes   func(c *call)
	taken   func(c *call)
	replies func(c *call)
	suffers func(c *call) bool // from an outage of its own

	always     []func() error
	eventually []eventually
	early      bool // the episode ends once it is settled, faults to come or not

	notes    sync.Mutex // over what anybody may enter
	problems []string
	failing  func() // is told of each problem, by who found it
	reached  map[string]int
}

// Run adds a pipeline to the world. run is called with the context that its
// coordinator is to start with, and returns when that has ended. After a crash or
// a stop it is called again. What lives through a crash belongs outside of it.
func (w *World) Run(run func(ctx context.Context) error) { w.runs = append(w.runs, run) }

// Always adds a check that is made after every event. It must not block.
func (w *World) Always(check func() error) { w.always = append(w.always, check) }

// eventually is a condition that has to come true, and what it is called.
type eventually struct {
	what  string
	holds func() bool
}

// Eventually adds a condition that has to come true once the faults have stopped,
// within [Options].Within. what says it in words, such as "every order is shipped", for
// the report of an episode in which it does not. The episode ends when all conditions are
// true. A condition must not block.
func (w *World) Eventually(what string, condition func() bool) {
	w.eventually = append(w.eventually, eventually{what, condition})
}

// Fail notes that the episode has failed, and ends it. It may be called by
// anybody.
func (w *World) Fail(format string, args ...any) {
	w.notes.Lock()
	defer w.notes.Unlock()
	if w.aborting {
		return
	}
	text := fmt.Sprintf(format, args...)
	w.problems = append(w.problems, fmt.Sprintf("%v: ", time.Duration(w.now.Load()))+text)
	if w.failing != nil {
		w.failing()
	}
	w.note(entry{problem: true, text: text})
}

func (w *World) failed() bool {
	w.notes.Lock()
	defer w.notes.Unlock()
	return len(w.problems) > 0
}

// Sometimes notes that something worth testing was reached. See
// [Options].Sometimes. It may be called by anybody.
func (w *World) Sometimes(what string) {
	w.notes.Lock()
	w.reached[what]++
	w.notes.Unlock()
}

// Now is how long the episode has gone on, in virtual time.
func (w *World) Now() time.Duration { return time.Duration(w.now.Load()) }

// Calm reports whether the phase with faults is over.
func (w *World) Calm() bool { return w.Now() >= w.lengths }

// fold adds to the hash of all that happened.
func (w *World) fold(a, b uint64) {
	w.trace = mix(w.trace^uint64(w.now.Load())) ^ mix(a)*3 ^ mix(b)*5
}

// look makes the checks that hold always.
func (w *World) look() {
	for _, check := range w.always {
		if err := check(); err != nil {
			w.Fail("%v", err)
		}
	}
}

// finish has the processes stop once everything is settled, and reports whether
// it did so now.
func (w *World) finish() bool {
	if w.aborting || w.finishing || !w.early && !w.Calm() || !w.settled() {
		return false
	}
	w.finishing = true
	for _, p := range w.processes {
		if !p.ended && !p.dead && !p.stopping {
			p.stop()
		}
	}
	return true
}

// over reports whether the episode has ended.
func (w *World) over() bool { return (w.finishing || w.aborting) && w.living == 0 }

func (w *World) settled() bool {
	return !slices.ContainsFunc(w.eventually, func(e eventually) bool { return !e.holds() })
}

// unsettled returns what is still to come true.
func (w *World) unsettled() (what []string) {
	for _, e := range w.eventually {
		if !e.holds() {
			what = append(what, e.what)
		}
	}
	return what
}

// abort ends an episode that has failed.
func (w *World) abort() {
	w.notes.Lock()
	w.aborting = true
	w.notes.Unlock()
	for _, p := range w.processes {
		if !p.ended && !p.dead {
			p.die()
		}
	}
}

// live runs the episode. It is the main goroutine of a bubble.
func (w *World) live() {
	if len(w.runs) == 0 {
		w.Fail("there is nothing to run: call World.Run")
	}
	for i, run := range w.runs {
		w.later(0, func() bool { w.start(i, run); return true })
	}
	w.later(w.lengths, func() bool { return true }) // to look at what is settled
	w.loop()
}

// later has the world do something by itself after d.
func (w *World) later(d time.Duration, do func() (woke bool)) { w.at(int64(d), &w.outside, do) }
