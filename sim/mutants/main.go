// Command mutants measures the simulation: it plants bugs in the core, one at a
// time and in a copy of the module, and prints how many seeds it takes until a
// sweep finds each.
//
//	go run ./sim/mutants [-hunts 20] [-limit 2000] [-only text]
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func main() {
	hunts := flag.Int("hunts", 20, "how many sweeps look for each bug, by seeds of their own")
	limit := flag.Int("limit", 2000, "after how many seeds a sweep gives up")
	only := flag.String("only", "", "the mutants whose name has this in it")
	flag.Parse()
	if err := run(*hunts, *limit, *only); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(hunts, limit int, only string) error {
	dir, err := os.MkdirTemp("", "courier-mutants")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := copyModule(dir); err != nil {
		return err
	}
	fmt.Printf("%-58s %9s %7s %6s %6s  %s\n", "planted bug", "found", "median", "p90", "most", "seen as")
	all, always, broken := 0, 0, 0
	for _, m := range mutants {
		if !strings.Contains(m.name, only) {
			continue
		}
		r, err := m.hunt(dir, hunts, limit)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", m.name, err)
			broken++
			continue
		}
		all++
		if r.missed == 0 {
			always++
		}
		fmt.Printf("%-58s %5d/%-3d %7s %6s %6s  %s\n", m.name, hunts-r.missed, hunts, r.at(0.5), r.at(0.9), r.at(1), strings.Join(r.ways, " "))
	}
	fmt.Printf("%d of %d are found within %d seeds in each of %d hunts\n", always, all, limit, hunts)
	if broken > 0 {
		return fmt.Errorf("%d could not be planted", broken)
	}
	return nil
}

// copyModule copies what the tests of sim are built from.
func copyModule(to string) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/erfanmomeniii/courier").Output()
	if err != nil {
		return err
	}
	from := strings.TrimSpace(string(root))
	for _, pattern := range []string{"go.mod", "go.sum", "*.go", "internal/*/*.go", "sim/*.go"} {
		files, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil {
			return err
		}
		for _, file := range files {
			name, err := filepath.Rel(from, file)
			if err != nil {
				return err
			}
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o750); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(to, name), text, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// result is how many seeds each hunt took that found the bug.
type result struct {
	found  []int
	missed int
	ways   []string
}

// at is a quantile over all hunts: one that gave up took more than all others.
func (r *result) at(q float64) string {
	i := int(q*float64(len(r.found)+r.missed)+0.5) - 1
	if i >= len(r.found) {
		return "more"
	}
	return strconv.Itoa(r.found[max(0, i)])
}

// hunt plants the bug, builds the test of the simulation, and looks for it.
func (m *mutant) hunt(dir string, hunts, limit int) (r result, err error) {
	path := filepath.Join(dir, m.file)
	text, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if n := strings.Count(string(text), m.from); n != 1 {
		return r, fmt.Errorf("%s has the text %d times, want once: the code has changed, mend the table", m.file, n)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), m.from, m.to, 1)), 0o600); err != nil {
		return r, err
	}
	defer func() {
		if e := os.WriteFile(path, text, 0o600); err == nil {
			err = e
		}
	}()
	binary := filepath.Join(dir, "hunt.test")
	build := exec.Command("go", "test", "-vet=off", "-c", "-o", binary, "./sim")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	if out, err := build.CombinedOutput(); err != nil {
		return r, fmt.Errorf("%w\n%s", err, out)
	}
	for first := 0; first < hunts; {
		c := exec.Command(binary, "-test.run=^TestHunt$", "-test.timeout=0", fmt.Sprintf("-sim.first=%d", first),
			fmt.Sprintf("-sim.hunts=%d", hunts), fmt.Sprintf("-sim.limit=%d", limit))
		c.Dir = filepath.Join(dir, "sim")
		c.Env = append(os.Environ(), "GOMAXPROCS=1")
		out, failed := c.CombinedOutput()
		began := 0
		for line := range strings.Lines(string(out)) {
			var n int
			var way string
			switch {
			case strings.HasPrefix(line, "hunt"):
				began++
			case strings.HasPrefix(line, "missed"):
				r.missed++
			default:
				if k, _ := fmt.Sscanf(line, "found %d %s", &n, &way); k == 2 {
					r.note(n, way)
				}
			}
		}
		first += began
		if done := len(r.found) + r.missed; done < first { // the process died of it
			r.note(limit/2, "crash-or-hang")
		}
		if began == 0 {
			return r, fmt.Errorf("%w\n%s", failed, out)
		}
	}
	slices.Sort(r.found)
	return r, nil
}

func (r *result) note(n int, way string) {
	r.found = append(r.found, n)
	if !slices.Contains(r.ways, way) {
		r.ways = append(r.ways, way)
	}
}
