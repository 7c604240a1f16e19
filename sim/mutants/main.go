// Command mutants measures the simulation: it plants bugs in the core, one at a
// time, and prints how many seeds it takes until the simulation finds each. Every
// bug is hunted several times, from other seeds.
//
//	go run ./sim/mutants [-hunts 20] [-within 2000] [-limit 20000] [-only text]
//
// It fails unless nine in ten of the bugs are found within 2,000 seeds by every
// hunt, and the others within 20,000.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/erfanmomeniii/courier/internal/plant"
)

func main() {
	o := options{}
	flag.IntVar(&o.hunts, "hunts", 20, "how many hunts look for each bug, from seeds of their own")
	flag.IntVar(&o.within, "within", 2000, "within how many seeds nine in ten of the bugs are to be found")
	flag.IntVar(&o.limit, "limit", 20000, "after how many seeds a hunt gives up")
	flag.StringVar(&o.only, "only", "", "the bugs whose name has this in it")
	flag.Parse()
	if err := o.run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type options struct {
	hunts, within, limit int
	only                 string
}

// together is how many bugs are hunted at a time. A simulation keeps one processor
// busy.
const together = 2

func (o *options) run() error {
	root, err := plant.Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "courier-mutants")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()

	var chosen []*mutant
	results := make([]chan result, 0, len(mutants))
	for i := range mutants {
		if m := &mutants[i]; strings.Contains(m.name, o.only) {
			chosen, results = append(chosen, m), append(results, make(chan result, 1))
		}
	}
	turn := make(chan struct{}, together)
	go func() {
		for i, m := range chosen {
			turn <- struct{}{}
			go func() {
				results[i] <- o.hunt(m, root, filepath.Join(dir, strconv.Itoa(i)))
				<-turn
			}()
		}
	}()
	return o.print(chosen, results)
}

// print prints the table, a line as soon as it is known, and compares with the goal.
func (o *options) print(chosen []*mutant, results []chan result) error {
	fmt.Printf("%-58s %7s %7s %6s  %s\n", "planted bug", "median", "worst", "found", "seen as")
	soon, late := 0, 0
	var broken error
	for i, m := range chosen {
		r := <-results[i]
		if r.err != nil {
			broken = errors.Join(broken, fmt.Errorf("%s: %w", m.name, r.err))
			continue
		}
		switch {
		case len(r.found) < o.hunts:
		case r.found[o.hunts-1] <= o.within:
			soon++
		default:
			late++
		}
		fmt.Printf("%-58s %7s %7s %3d/%-2d  %s\n", m.name, r.at(o.hunts/2, o.hunts), r.at(o.hunts-1, o.hunts), len(r.found), o.hunts, strings.Join(r.ways, " "))
	}
	n := len(chosen)
	fmt.Printf("%d of %d (%.0f %%) are found within %d seeds by each of %d hunts, and %d more within %d\n",
		soon, n, 100*float64(soon)/float64(max(1, n)), o.within, o.hunts, late, o.limit)
	switch {
	case broken != nil:
		return broken
	case 10*soon < 9*n:
		return fmt.Errorf("nine in ten are to be found within %d seeds by every hunt", o.within)
	case soon+late < n:
		return fmt.Errorf("all are to be found within %d seeds by every hunt", o.limit)
	}
	return nil
}

// result is how many seeds each hunt took that found the bug, the least first.
type result struct {
	found []int
	ways  []string
	err   error
}

// at is the i-th of all hunts: one that gave up took more than all others.
func (r *result) at(i, hunts int) string {
	if i = min(i, hunts-1); i >= len(r.found) {
		return "more"
	}
	return strconv.Itoa(r.found[i])
}

// hunt builds the test of the simulation with the bug in it, and has it look.
func (o *options) hunt(m *mutant, root, dir string) (r result) {
	binary, err := m.bug().Compile(root, dir, "./sim")
	if err != nil {
		return result{err: err}
	}
	defer func() { _ = os.Remove(binary) }()
	for first := 0; first < o.hunts; {
		c := exec.Command(binary, "-test.run=^TestHunt$", "-test.timeout=0", fmt.Sprintf("-sim.first=%d", first),
			fmt.Sprintf("-sim.hunts=%d", o.hunts), fmt.Sprintf("-sim.limit=%d", o.limit))
		c.Dir = filepath.Join(root, "sim")
		c.Env = append(os.Environ(), "GOMAXPROCS=1")
		out, failed := c.CombinedOutput()
		began, at, over := 0, 0, true
		for line := range strings.Lines(string(out)) {
			var way string
			word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch word {
			case "hunt":
				began, over = began+1, false
			case "at":
				at, _ = strconv.Atoi(rest)
			case "missed":
				over = true
			case "found":
				if k, _ := fmt.Sscanf(rest, "%d %s", &at, &way); k == 2 {
					r.note(at, way)
					over = true
				}
			}
		}
		if !over { // the process died of it
			r.note(at, "crash-or-hang")
		}
		if first += began; began == 0 {
			return result{err: fmt.Errorf("%w\n%s", failed, out)}
		}
	}
	slices.Sort(r.found)
	return r
}

func (r *result) note(n int, way string) {
	r.found = append(r.found, n)
	if !slices.Contains(r.ways, way) {
		r.ways = append(r.ways, way)
	}
}
