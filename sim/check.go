package sim

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seedFlag     = flag.Uint64("sim.seed", 0, "the first seed of a simulation")
	episodesFlag = flag.Int("sim.episodes", 0, "how many seeds to run")
	timeFlag     = flag.Duration("sim.time", 0, "run fresh seeds for this long instead")
	traceFlag    = flag.Bool("sim.trace", false, "print the whole timeline of a seed that fails, and not a part of it")
	plotFlag     = flag.String("sim.plot", "", "write an SVG of a seed that fails to this file")
	faultsFlag   = flag.String("sim.faults", "", "a JSON file with the faults to happen, and no others")
	jsonFlag     = flag.Bool("sim.json", false, "print a line of JSON for each episode")
)

// Options say how much to simulate. The zero value is the default. The flags -sim.seed,
// -sim.episodes, -sim.time and -sim.faults override them.
type Options struct {
	Seed     uint64        // the first; 0 is 1
	Episodes int           // one for each seed from the first on; 0 is 100
	For      time.Duration // run fresh seeds for this long instead, if it is more than 0
	Faults   []Fault       // those that happen, and no others; nil draws them

	// Within is how long after the last fault, in virtual time, everything must be
	// settled. 0 is 10 minutes.
	Within time.Duration

	// StopWithin is how long a pipeline may take to stop, in virtual time. 0 is a
	// minute.
	StopWithin time.Duration

	// Native lets the time of the bubble pass together with the virtual time, so that
	// time.Sleep, context.WithTimeout and the like work in the code under test. It is
	// slower, and the traces differ.
	Native bool

	// Sometimes lists what at least one of the episodes has to reach, see
	// [World.Sometimes]: a test of the test. It is not required of a single episode. The
	// simulation itself notes each fault, such as "crash", "apply: lost" and "mark:
	// error".
	Sometimes []string
}

func (o Options) withDefaults() Options {
	if o.Seed == 0 {
		o.Seed = 1
	}
	if *timeFlag > 0 {
		o.For = *timeFlag
		o.Seed = uint64(time.Now().UnixNano()) >> 10 //nolint:forbidigo // a fresh one, printed when it fails
	}
	if *seedFlag > 0 {
		o.Seed = *seedFlag
	}
	if *episodesFlag > 0 {
		o.Episodes = *episodesFlag
	}
	if o.Episodes == 0 {
		o.Episodes = 100
	}
	if o.Within == 0 {
		o.Within = 10 * time.Minute
	}
	if o.StopWithin == 0 {
		o.StopWithin = time.Minute
	}
	return o
}

// Result is the outcome of one episode.
type Result struct {
	Seed     uint64         `json:"seed"`
	Hash     uint64         `json:"hash"` // of all that happened, in its order
	Problems []string       `json:"problems,omitempty"`
	Faults   []Fault        `json:"faults,omitempty"`
	Reached  map[string]int `json:"reached,omitempty"`
	Calls    int            `json:"calls"`
	Records  int            `json:"records"` // applies that were made
	Took     time.Duration  `json:"took"`    // of virtual time

	log     []entry
	lengths time.Duration
	outages [3][]window
}

// Report is the outcome of several episodes.
type Report struct {
	Episodes int
	Hash     uint64 // of the hashes of all
	Reached  map[string]int
	Missed   []string // of Options.Sometimes
	Calls    int
	Records  int
	Virtual  time.Duration
	Wall     time.Duration
	Failed   *Result // nil if none has; its faults are the fewest that were found to do it
	Tried    int     // how many episodes it took to find those
	Before   int     // how many there were before
}

func (r Report) String() string {
	wall := r.Wall.Seconds()
	return fmt.Sprintf("%d episodes in %v: %.0f episodes/s, %.0f calls/s, %.0f records/s, %.1f simulated hours/s, hash %016x",
		r.Episodes, r.Wall.Round(time.Millisecond), float64(r.Episodes)/wall, float64(r.Calls)/wall, float64(r.Records)/wall,
		r.Virtual.Hours()/wall, r.Hash)
}

// Check simulates, and fails the test with the first episode that breaks a rule: the
// smallest set of faults found, the timeline, and the command that replays it. setup is
// called for each episode with a new world.
func Check(t *testing.T, options Options, setup func(w *World)) {
	t.Helper()
	r := Run(t, options, setup)
	if *jsonFlag {
		fmt.Println(r)
	}
	t.Log(r)
	if r.Failed != nil {
		t.Fatal(r.Describe(t.Name()))
	}
	for _, what := range r.Missed {
		t.Errorf("none of %d episodes reached: %s", r.Episodes, what)
	}
}

// Run is Check without failing the test, for callers that examine the report.
func Run(t *testing.T, options Options, setup func(w *World)) Report {
	o := options.withDefaults()
	if *faultsFlag != "" {
		o.Faults = readFaults(t, *faultsFlag)
	}
	began := time.Now() //nolint:forbidigo // the time of the wall
	report := Report{Reached: map[string]int{}}
	defer watch(t.Name(), patience)()
	for {
		//nolint:forbidigo // the time of the wall
		if report.Wall = time.Since(began); o.For > 0 && report.Wall >= o.For || o.For == 0 && report.Episodes >= o.Episodes {
			break
		}
		seed := o.Seed + uint64(report.Episodes)
		r := episode(t, seed, &o, setup, scripted(o.Faults), false)
		report.add(&r)
		if *jsonFlag {
			printJSON(&r)
		}
		if len(r.Problems) > 0 {
			report.Failed, report.Before = &r, len(r.Faults)
			report.shrink(t, &o, setup)
			break
		}
	}
	report.Wall = time.Since(began) //nolint:forbidigo // the time of the wall
	if report.Episodes > 1 && report.Failed == nil {
		for _, what := range o.Sometimes {
			if report.Reached[what] == 0 {
				report.Missed = append(report.Missed, what)
			}
		}
	}
	return report
}

func (r *Report) add(one *Result) {
	r.Episodes++
	r.Hash = mix(r.Hash ^ one.Hash)
	r.Calls += one.Calls
	r.Records += one.Records
	r.Virtual += one.Took
	for what, n := range one.Reached {
		r.Reached[what] += n
	}
}

// at is which seed runs, and since when, for the watchdog.
var at struct{ seed, since atomic.Int64 }

// patience is how long an episode may take, in real time.
var patience = time.Minute

// watch has the process end, with the seed, when an episode takes longer than that:
// it is outside of the bubble, where time passes.
func watch(name string, patience time.Duration) (stop func()) {
	ended := make(chan struct{})
	at.since.Store(0)
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(time.Second): //nolint:forbidigo // the time of the wall
			}
			if since := at.since.Load(); since > 0 && time.Since(time.Unix(0, since)) > patience { //nolint:forbidigo // the time of the wall
				stacks := make([]byte, 1<<20)
				fmt.Fprintf(os.Stderr, "sim: seed %d hangs: a goroutine is busy, or waits for a lock, for %v\n%s\n\n%s\n",
					uint64(at.seed.Load()), patience, command(name, uint64(at.seed.Load()), flag.CommandLine), stacks[:runtime.Stack(stacks, true)])
				os.Exit(2)
			}
		}
	}()
	return func() {
		at.since.Store(0)
		close(ended)
	}
}

// episode runs one seed in a bubble of its own.
func episode(t *testing.T, seed uint64, o *Options, setup func(*World), script map[callID][]Fault, tracing bool) (r Result) {
	at.seed.Store(int64(seed))
	at.since.Store(time.Now().UnixNano()) //nolint:forbidigo // the time of the wall
	w := &World{seed: seed, options: o, script: script, tracing: tracing, counts: map[callID]uint32{}, reached: map[string]int{}}
	w.outside.number = -1
	w.pace = []float64{0.1, 1, 1, 5}[w.Pick("pace", 4)]
	defer func() {
		if leaked := recover(); leaked != nil {
			w.aborting = false
			w.Fail("D8: goroutines are left: %v", leaked)
		}
		r = Result{
			Seed: seed, Hash: w.trace, Problems: w.problems, Faults: w.faults, Reached: w.reached, Records: w.made[Apply],
			Took: w.Now(), log: w.log, lengths: w.lengths, outages: w.outages,
		}
		for _, n := range w.made {
			r.Calls += n
		}
		for _, f := range w.faults {
			if !f.What.ofProcess() { // those are noted when they come
				w.reached[faultTexts[f.Call][f.What]]++
			}
		}
	}()
	synctest.Test(t, func(*testing.T) {
		w.swarm()
		setup(w)
		w.live()
	})
	return r
}

// scripted sorts faults by the call they belong to.
func scripted(list []Fault) map[callID][]Fault {
	if list == nil {
		return nil
	}
	script := make(map[callID][]Fault, len(list))
	for _, f := range list {
		id := callID{kind: f.Call, id: f.ID, n: f.N}
		script[id] = append(script[id], f)
	}
	return script
}

func readFaults(t *testing.T, path string) []Fault {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	list := []Fault{}
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return list
}

func printJSON(r *Result) {
	if line, err := json.Marshal(r); err == nil {
		fmt.Println(string(line))
	}
}
