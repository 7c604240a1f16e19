package sim

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

var scanFlag = flag.Int("sim.scan", 0, "TestScan: run so many seeds, and count in which ways they fail")

// swept are the options of a sweep over the model.
var swept = Options{Episodes: 2000, Within: time.Hour, StopWithin: 40 * time.Second, Sometimes: append(everyFault(),
	"crash", "stop", "pause", "step", "stop in mid-work", "cancelled behind its effect", "drain timeout",
	"breaker open", "half-open", "breaker closed again", "a probe failed", "the queue is full", "the queue refused",
	"parked", "parked behind its key", "a mark failed", "renewed", "stale lease", "a lease ran out", "two at once",
	"an attempt timed out", "skipped", "permanent", "a panic", "a batch failed as one", "a batch failed in part",
	"a record comes again after a crash", "given back", "reported as failed", "paused by an operator", "redriven",
	"redriven in vain", "the same record twice", "records and an error", "beyond the limit", "a run returned an error",
	"the breaker is forced open by an operator", "the breaker is forced closed by an operator", "the breaker is closed by an operator",
	"a call through a breaker that is forced closed", "resumed", "in work for long", "a foreign configuration",
	"asked for another time", "several of a key in one call", "behind a failed record",
)}

// TestChaos runs episodes of faults against the delivery contract: the real
// coordinators and decorators between a source, a destination and a dead letter
// queue that fail as the seed says.
func TestChaos(t *testing.T) {
	o := swept
	if testing.Short() || raceEnabled || *episodesFlag > 0 {
		o.Episodes, o.Sometimes = 100, nil
	}
	Check(t, o, modelled(nil))
}

// TestSeeds runs the seeds that have found a bug before, see testdata.
func TestSeeds(t *testing.T) {
	text, err := os.ReadFile("testdata/found.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		number, _, _ := strings.Cut(line, " ")
		seed, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			continue
		}
		o := swept
		o.Seed, o.Episodes, o.Sometimes = seed, 1, nil
		Check(t, o, modelled(nil))
		Check(t, o, modelled(earlier))
	}
}

// earlier takes back what the seeds have drawn only since some of them were kept.
func earlier(s *settings) { s.Busy, s.InOrder, s.Hosts, s.Optional = false, false, 0, 0 }

// TestScan does not stop at the first seed that fails.
func TestScan(t *testing.T) {
	if *scanFlag == 0 {
		t.Skip("only with -sim.scan")
	}
	o := swept.withDefaults()
	seeds, example := map[string][]uint64{}, map[string]string{}
	for seed := o.Seed; seed < o.Seed+uint64(*scanFlag); seed++ {
		if r := episode(t, seed, &o, modelled(nil), nil, false); len(r.Problems) > 0 {
			way := wayOf(r.Problems[0])
			seeds[way], example[way] = append(seeds[way], seed), r.Problems[0]
		}
	}
	for way, list := range seeds {
		fmt.Printf("%4d %s, such as %v\n     %s\n", len(list), way, list[:min(8, len(list))], example[way])
	}
}
