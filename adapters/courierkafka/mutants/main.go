// Command mutants measures the tests of the source: it plants bugs in the code that keeps
// offsets, one at a time, and prints which test finds each. The first of them are the losses
// that other consumers have published.
//
//	go run ./adapters/courierkafka/mutants [-only text] [-run tests]
//
// It fails unless every bug is found by a test that fails: that the tests do not end is no
// find.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/erfanmomeniii/courier/internal/plant"
)

func main() {
	only := flag.String("only", "", "the bugs whose name has this in it")
	tests := flag.String("run", "^(TestSource|TestSettled|TestGroup|TestSimulation|TestConformance_Source)", "the tests that look for them")
	flag.Parse()
	if err := run(*only, *tests); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(only, tests string) error {
	root, err := plant.Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "courierkafka-mutants")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var missed error
	fmt.Printf("%-60s %s\n", "planted bug", "found by")
	for i := range mutants {
		m := &mutants[i]
		if !strings.Contains(m.name, only) {
			continue
		}
		found, err := m.hunt(root, dir, tests)
		switch {
		case err != nil:
			missed = errors.Join(missed, fmt.Errorf("%s: %w", m.name, err))
		case len(found) == 0:
			missed = errors.Join(missed, fmt.Errorf("%s: no test finds it", m.name))
		}
		fmt.Printf("%-60s %s\n", m.name, strings.Join(found, " "))
	}
	return missed
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (Test\w+)`)

// hunt runs tests with the bug planted, and returns those that fail.
func (m *mutant) hunt(root, dir, tests string) (found []string, err error) {
	binary, err := m.bug().Compile(root, dir, "./adapters/courierkafka", "-tags", "synctests")
	if err != nil {
		return nil, err
	}
	test := exec.Command(binary, "-test.run", tests, "-test.timeout", "3m", "-test.failfast", "-sim.episodes", "60")
	test.Dir = filepath.Join(root, "adapters", "courierkafka")
	out, err := test.CombinedOutput()
	for _, f := range failed.FindAllStringSubmatch(string(out), -1) {
		if !slices.Contains(found, f[1]) {
			found = append(found, f[1])
		}
	}
	switch {
	case strings.Contains(string(out), "panic: test timed out"):
		return nil, fmt.Errorf("the tests do not end: %w", err)
	case err != nil && len(found) == 0:
		found = append(found, "crash")
	}
	return found, nil
}
