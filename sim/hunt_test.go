package sim

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var (
	huntsFlag = flag.Int("sim.hunts", 0, "TestHunt: how many hunts look for a planted bug")
	firstFlag = flag.Int("sim.first", 0, "TestHunt: the first of them")
	limitFlag = flag.Int("sim.limit", 20000, "TestHunt: after how many seeds each gives up")
)

// TestHunt counts the seeds until an episode fails, for sim/mutants. A bug may end
// the process, so it says before each episode where it is.
func TestHunt(t *testing.T) {
	o := swept.withDefaults()
	defer watch(t.Name(), 5*time.Second)()
	for hunt := *firstFlag; hunt < *huntsFlag; hunt++ {
		fmt.Println("hunt", hunt)
		missed := true
		for n := 1; n <= *limitFlag && missed; n++ {
			fmt.Println("at", n)
			if r := episode(t, mix(uint64(hunt))+uint64(n), &o, modelled(nil), nil, false); len(r.Problems) > 0 {
				fmt.Println("found", n, wayOf(r.Problems[0]))
				missed = false
			}
		}
		if missed {
			fmt.Println("missed")
		}
	}
}
