// Command mutants measures the tests of the source: it plants bugs in the code that keeps
// offsets, one at a time, and prints which test finds each. The first of them are the losses
// that other consumers have published.
//
//	go run ./adapters/courierkafka/mutants [-only text]
//
// It fails unless every bug is found.
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
	flag.Parse()
	if err := run(*only); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(only string) error {
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
		found, err := m.hunt(root, dir)
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

// hunt runs the tests with the bug planted, and returns those that fail.
func (m *mutant) hunt(root, dir string) (found []string, err error) {
	binary, err := m.bug().Compile(root, dir, "./adapters/courierkafka", "-tags", "synctests")
	if err != nil {
		return nil, err
	}
	test := exec.Command(binary, "-test.run", "^(TestSource|TestSettled|TestGroup|TestConformance_Source)", "-test.timeout", "1m", "-test.failfast")
	test.Dir = filepath.Join(root, "adapters", "courierkafka")
	out, err := test.CombinedOutput()
	for _, f := range failed.FindAllStringSubmatch(string(out), -1) {
		if !slices.Contains(found, f[1]) {
			found = append(found, f[1])
		}
	}
	if err != nil && len(found) == 0 { // it died, or hung
		found = append(found, "crash-or-hang")
	}
	return found, nil
}
