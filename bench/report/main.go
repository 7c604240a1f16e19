// Report makes one table of the output of `go test -bench`: the median of every
// case, its ratio to the floor that it has in plan.go, and whether that meets
// the goal. It reads the named file, or its standard input.
//
//	go run ./bench/report bench.out
//	go run ./bench/report -svg docs/bench.svg bench.out
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	svg := flag.String("svg", "", "draw the table into this `file` instead of printing it")
	flag.Parse()
	if err := run(flag.Arg(0), *svg); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(input, svg string) error {
	in := io.Reader(os.Stdin)
	if input != "" {
		f, err := os.Open(input)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // it was only read
		in = f
	}
	measured, err := parse(in)
	if err != nil {
		return err
	}
	t := tabulate(plan, measured)
	if svg == "" {
		return printTable(os.Stdout, t)
	}
	drawn, err := draw(t)
	if err != nil {
		return err
	}
	return os.WriteFile(svg, drawn, 0o644)
}
