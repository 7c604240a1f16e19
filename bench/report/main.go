// Report makes one table of the output of `go test -bench`: the median of every
// case, its ratio to the floor that it has in plan.go, and whether that meets
// the goal. It reads the named file, or its standard input.
//
//	go run ./bench/report bench.out
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	flag.Parse()
	if err := run(flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(input string) error {
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
	return printTable(os.Stdout, tabulate(plan, measured))
}
