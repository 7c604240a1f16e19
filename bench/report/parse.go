package main

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// results is what some rounds of benchmarks measured.
type results struct {
	values map[string]map[string][]float64 // by benchmark and unit, one a round
	order  []string                        // benchmarks as they came
	config map[string]string               // such as cpu
}

var (
	configLine = regexp.MustCompile(`^([a-z]+): *(.*)$`)
	procs      = regexp.MustCompile(`-\d+$`) // GOMAXPROCS, which ends a name
)

// parse reads the output of `go test -bench`, of any number of runs after each
// other. Lines of another kind are none of its business.
func parse(r io.Reader) (*results, error) {
	found := &results{values: map[string]map[string][]float64{}, config: map[string]string{}}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if m := configLine.FindStringSubmatch(line); m != nil {
			found.config[m[1]] = m[2]
			continue
		}
		fields := strings.Fields(line)
		// A name, a number of operations, and pairs of a value and its unit.
		if len(fields) < 4 || len(fields)%2 != 0 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := procs.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "")
		if found.values[name] == nil {
			found.values[name] = map[string][]float64{}
			found.order = append(found.order, name)
		}
		for i := 2; i < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%s: the value %q is no number", fields[0], fields[i])
			}
			unit := fields[i+1]
			found.values[name][unit] = append(found.values[name][unit], value)
		}
	}
	return found, lines.Err()
}

// rounds is how often the benchmark that was measured most often was.
func (r *results) rounds() int {
	most := 0
	for _, units := range r.values {
		for _, values := range units {
			most = max(most, len(values))
		}
	}
	return most
}
