package sim

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var (
	huntsFlag = flag.Int("sim.hunts", 0, "TestHunt: how many sweeps look for a planted bug")
	firstFlag = flag.Int("sim.first", 0, "TestHunt: the first of them")
	limitFlag = flag.Int("sim.limit", 2000, "TestHunt: how many seeds each may take")
)

// TestHunt counts the seeds until a sweep fails, for sim/mutants.
func TestHunt(t *testing.T) {
	patience = 10 * time.Second
	o := swept.withDefaults()
	defer watch(t.Name())()
	for hunt := *firstFlag; hunt < *huntsFlag; hunt++ {
		fmt.Println("hunt", hunt)
		missed := true
		for n := 1; n <= *limitFlag && missed; n++ {
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
