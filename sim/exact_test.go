package sim

import (
	"flag"
	"runtime"
	"testing"
)

var timesFlag = flag.Int("sim.times", 0, "TestExact: how often each seed is run again; 0 is 4 times, raced once")

// shapes are the coordinators and surroundings that have to be exact, each with
// whatever else the seed draws.
var shapes = []struct {
	name  string
	fixed func(s *settings)
}{
	{"polling, 1 worker", func(s *settings) { s.shape, s.Workers = pruning, 1 }},
	{"polling, 4 workers", func(s *settings) { s.shape, s.Workers = rereading, 4 }},
	{"polling, limitless", func(s *settings) { s.shape = limitless }},
	{"streaming, 1 worker", func(s *settings) { s.shape, s.Workers = broker, 1 }},
	{"streaming, 8 workers", func(s *settings) { s.shape, s.Workers = broker, 8 }},
	{"ordered marks", func(s *settings) { s.shape, s.Workers, s.Ordered = broker, 4, true }},
	{"a journal", func(s *settings) { s.shape, s.Workers = journal, 4 }},
	{"a channel", func(s *settings) { s.shape, s.Workers = channel, 4 }},
	{"two coordinators", func(s *settings) {
		s.shape, s.Stack, s.Twins, s.Keys, s.Instances, s.Workers = broker, resilient, true, 0, 1, 4
	}},
	{"an operator", func(s *settings) { s.Stack, s.Pauses, s.Redriving, s.Workers = resilient, 3, true, 4 }},
	{"runs by cron", func(s *settings) { s.shape, s.Workers, s.Cron, s.Fresh = leasing, 4, 15e9, false }},
	{"runs by cron, processes of their own", func(s *settings) { s.shape, s.Workers, s.Cron, s.Fresh = rereading, 4, 15e9, true }},
	{"an operator at a breaker", func(s *settings) { s.Stack, s.ByHand, s.Hands, s.Workers, s.FanOut = resilient, true, 3, 4, 0 }},
	{"a queue without a breaker", func(s *settings) { s.Stack, s.Workers = unbroken, 4 }},
	{"order by key, polling", func(s *settings) { s.shape, s.Workers, s.Keys = leasing, 4, 5 }},
	{"order by key, streaming", func(s *settings) { s.shape, s.Workers, s.Keys = broker, 4, 5 }},
	{"order by key, streaming, leases", func(s *settings) { s.shape, s.Workers, s.Keys, s.Renewing, s.Batches = broker, 4, 3, true, false }},
	{"batches, polling", func(s *settings) { s.shape, s.Workers, s.Batches = leasing, 4, true }},
	{"batches, streaming", func(s *settings) { s.shape, s.Workers, s.Batches = broker, 4, true }},
	{"fan-out", func(s *settings) { s.FanOut, s.Workers = 3, 4 }},
	{"fan-out, both branches park", func(s *settings) { s.Stack, s.FanOut, s.Workers, s.Redriving = resilient, 4, 4, true }},
	{"leasing, two instances", func(s *settings) { s.shape, s.Instances, s.Keys, s.Renewing = leasing, 2, 0, true }},
	{"prefetch", func(s *settings) { s.shape, s.Prefetch, s.Workers = leasing, 2, 4 }},
	{"breaker, durable queue", func(s *settings) { s.Stack, s.Memory, s.Workers = resilient, false, 4 }},
	{"breaker, queue in memory", func(s *settings) { s.Stack, s.Memory, s.Workers = resilient, true, 4 }},
	{"a breaker for each host", func(s *settings) { s.Stack, s.Hosts, s.Workers, s.Busy = resilient, 3, 4, true }},
	{"a breaker for each host, batches", func(s *settings) { s.Stack, s.Hosts, s.Workers, s.Batches = resilient, 3, 4, true }},
	{"batches in the order of their keys", func(s *settings) { s.Workers, s.Keys, s.Batches, s.InOrder = 4, 3, true, true }},
	{"breaker, fast path", func(s *settings) { s.Stack, s.Workers, s.Yield, s.Batches = resilient, 8, false, false }},
	{"large batches, fast path", func(s *settings) {
		s.shape, s.Workers, s.Yield, s.Records, s.Batch, s.Batches, s.Keys = pruning, 4, false, 120, 100, false, 0
	}},
	{"attempt timeouts", func(s *settings) { s.Stack, s.Workers, s.FanOut, s.Timeout = resilient, 8, 3, s.Timeout+1e8 }},
}

// The same seed is the same run: event by event, whatever the number of
// processors, and with the race detector, which shuffles the run queue.
func TestExact(t *testing.T) {
	seeds := 6
	if *episodesFlag > 0 {
		seeds = *episodesFlag
	}
	o := swept.withDefaults()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			for seed := o.Seed; seed < o.Seed+uint64(seeds); seed++ {
				exact(t, &o, seed, shape.fixed)
			}
		})
	}
	for _, once := range inexact {
		t.Run(once.why, func(t *testing.T) {
			var fixed func(s *settings)
			for _, shape := range shapes {
				if shape.name == once.shape {
					fixed = shape.fixed
				}
			}
			exact(t, &o, once.seed, fixed)
		})
	}
}

// inexact are seeds that once were not one run.
var inexact = []struct {
	seed       uint64
	shape, why string // shape is as drawn where it is empty
}{
	{7000000161, "", "a record and its copy begin at one instant, in two batches"},
	{7000000688, "order by key, polling", "two branches park in one queue in memory at one instant"},
	{7000004554, "batches, streaming", "two copies of a record are at different branches, and go on at one instant"},
	{7000004868, "", "a fetch that was cancelled while it waited for records"},
}

// exact runs a seed again and again, on one processor and on two in turn.
func exact(t *testing.T, o *Options, seed uint64, fixed func(s *settings)) {
	t.Helper()
	setup := modelled(fixed)
	runtime.GOMAXPROCS(1)
	first := episode(t, seed, o, setup, nil, true)
	times := *timesFlag
	if times == 0 {
		times = 4
		if raceEnabled {
			times = 1
		}
	}
	for i := range times {
		runtime.GOMAXPROCS(1 + i%2)
		again := episode(t, seed, o, setup, nil, true)
		if again.Hash == first.Hash {
			continue
		}
		a, b := timeline(first.log), timeline(again.log)
		for n := range min(len(a), len(b)) {
			if a[n] != b[n] {
				t.Fatalf("seed %d: two runs part at\n%s\n%s\nand\n%s", seed, a[max(0, n-1)].text, a[n].text, b[n].text)
			}
		}
		t.Fatalf("seed %d: %016x and %016x", seed, first.Hash, again.Hash)
	}
}
