package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// printTable prints the table in Markdown, with its columns aligned so that it
// is one in a terminal, too.
func printTable(w io.Writer, t *table) error {
	rows := [][]string{{"case", "cost", "±", "allocs", "records/s", "ratio", "to", "goal", "met"}}
	rows = append(rows, make([]string, len(rows[0]))) // the rule, see below
	var missed []string
	for _, p := range t.parts {
		rows = append(rows, []string{"**" + p.title + "**"})
		for _, l := range p.lines {
			rows = append(rows, cells(l, p.unit))
			if l.goal.set() && !math.IsNaN(l.base) && !l.met() {
				missed = append(missed, fmt.Sprintf("%s: %s is %s, goal %s", p.title, l.title, l.goal.show(l.ratio()), l.goal.text))
			}
		}
	}
	if len(t.unknown) > 0 {
		rows = append(rows, []string{"**Not in the plan**"})
		for _, l := range t.unknown {
			rows = append(rows, cells(l, perRecord))
		}
	}
	var out strings.Builder
	align(&out, rows)
	fmt.Fprintf(&out, "\n%s\nCost and allocations are of one record; ± is half the distance of the quartiles.\n", machine(t))
	if t.set > 0 {
		fmt.Fprintf(&out, "%d of %d goals met.\n", t.met, t.set)
	}
	for _, m := range missed {
		fmt.Fprintln(&out, "- missed:", m)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// machine says what the numbers are of.
func machine(t *table) string {
	rounds := "one round"
	if t.rounds != 1 {
		rounds = fmt.Sprintf("medians of %d rounds", t.rounds)
	}
	c := t.config
	return fmt.Sprintf("%s · %s · %s/%s · %s", rounds, or(c["go"], "Go"), c["goos"], c["goarch"], or(c["cpu"], "unknown processor"))
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

const ratioColumn = 5

// cells is a row of the table.
func cells(l line, unit string) []string {
	c := []string{l.title, amount(l.value, unit), fmt.Sprintf("%.0f %%", l.spread*100), "", "", "", "", "", ""}
	if !math.IsNaN(l.allocs) {
		c[3] = allocations(l.allocs)
	}
	if unit == perRecord {
		c[4] = rate(1e9 / l.value)
	}
	if math.IsNaN(l.base) {
		return c
	}
	c[ratioColumn], c[6] = showTimes(l.ratio()), l.toName
	if l.goal.set() {
		c[ratioColumn], c[7], c[8] = l.goal.show(l.ratio()), l.goal.text, "no"
		if l.met() {
			c[8] = "yes"
		}
	}
	return c
}

// amount is a value with its unit.
func amount(v float64, unit string) string {
	switch {
	case strings.HasSuffix(unit, "-B") && v >= 1e6:
		return significant(v/1e6) + " MB"
	case strings.HasSuffix(unit, "-B"):
		return significant(v/1e3) + " kB"
	case strings.HasSuffix(unit, "-ms"):
		return significant(v) + " ms"
	case strings.HasSuffix(unit, perRecord):
		return significant(v) + " ns"
	}
	return significant(v)
}

// significant is a number with the digits that mean something: at least two,
// and all before the point, in groups of three.
func significant(v float64) string {
	switch {
	case v >= 9.95:
		digits := strconv.FormatFloat(v, 'f', 0, 64)
		for i := len(digits) - 3; i > 0; i -= 3 {
			digits = digits[:i] + "," + digits[i:]
		}
		return digits
	case v >= 0.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v >= 0.0995:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
}

func allocations(n float64) string {
	switch {
	case n < 0.005:
		return "0"
	case n < 9.95:
		return strings.TrimSuffix(strconv.FormatFloat(n, 'f', 2, 64), ".00")
	default:
		return strconv.FormatFloat(n, 'f', 0, 64)
	}
}

func rate(perSecond float64) string {
	switch {
	case perSecond >= 1e6:
		return significant(perSecond/1e6) + " M"
	default:
		return significant(perSecond/1e3) + " k"
	}
}

// align writes rows with all columns as wide as their widest cell. The first
// row is the header, the second its rule; a row of one cell is a heading, and
// does not widen the column that it is in. Columns of numbers are flush right.
func align(out *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		if len(row) == 1 {
			continue
		}
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	number := func(column int) bool { return column >= 1 && column <= ratioColumn }
	for n, row := range rows {
		for i, width := range widths {
			cell := ""
			if i < len(row) {
				cell = row[i]
			}
			padding := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(cell)))
			switch {
			case n == 1 && number(i):
				cell, padding = strings.Repeat("-", width-1)+":", ""
			case n == 1:
				cell, padding = strings.Repeat("-", width), ""
			}
			if number(i) {
				cell, padding = padding, cell
			}
			fmt.Fprintf(out, "| %s%s ", cell, padding)
			if len(row) == 1 {
				out.WriteString(strings.Repeat("|", len(widths)-1))
				break
			}
		}
		out.WriteString("|\n")
	}
}
