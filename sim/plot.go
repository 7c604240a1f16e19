package sim

import (
	"fmt"
	"html"
	"slices"
	"strings"
	"time"
)

// plot draws an episode as an SVG: time from left to right, a row for each
// record, a mark for each call about it, coloured by what came of it, and the
// faults in red. Hovering tells what a mark is.
func plot(r *Result) string {
	const (
		left, width, high, top = 90.0, 1100.0, 14.0, 60.0
		ok, bad, fault, done   = "#4c78a8", "#f58518", "#d62728", "#54a24b"
	)
	rows := []string{"process"}
	row := func(name string) float64 {
		i := slices.Index(rows, name)
		if i < 0 {
			i = len(rows)
			rows = append(rows, name)
		}
		return top + high*float64(i)
	}
	last := time.Duration(1)
	for _, e := range r.log {
		last = max(last, e.at)
	}
	x := func(at time.Duration) float64 { return left + width*float64(at)/float64(last) }
	var b strings.Builder
	for _, e := range r.log {
		switch {
		case e.problem:
			fmt.Fprintf(&b, "<line x1='%.1f' x2='%.1f' y1='%.0f' y2='100%%' stroke='%s'><title>%s</title></line>\n", x(e.at), x(e.at), top-high, fault, html.EscapeString(e.text))
		case !e.isCall:
			colour := ok
			if e.fault != None {
				colour = fault
			}
			fmt.Fprintf(&b, "<circle cx='%.1f' cy='%.1f' r='5' fill='%s'><title>%v %s</title></circle>\n", x(e.at), row("process")+high/2, colour, e.at, html.EscapeString(e.text))
		case len(timeline([]entry{e})) > 0:
			colour := ok
			switch {
			case e.fault != None:
				colour = fault
			case e.err != nil:
				colour = bad
			case e.call.kind == Mark:
				colour = done
			}
			title := html.EscapeString(strings.TrimSpace(timeline([]entry{e})[0].text))
			for _, name := range subjects(e) {
				fmt.Fprintf(&b, "<rect x='%.1f' y='%.1f' width='4' height='%.0f' fill='%s'><title>%s</title></rect>\n", x(e.at)-2, row(name)+2, high-4, colour, title)
			}
		}
	}
	var head strings.Builder
	fmt.Fprintf(&head, "<svg xmlns='http://www.w3.org/2000/svg' width='%.0f' height='%.0f' font-family='sans-serif' font-size='11'>\n", left+width+20, top+high*float64(len(rows))+20)
	fmt.Fprintf(&head, "<rect width='100%%' height='100%%' fill='white'/>\n<text x='8' y='16'>seed %d: %s</text>\n", r.Seed, html.EscapeString(strings.Join(r.Problems, "; ")))
	fmt.Fprintf(&head, "<text x='8' y='34'>%v; blue is a call, green a mark, orange an error, red a fault; the shaded part has faults</text>\n", last)
	fmt.Fprintf(&head, "<rect x='%.1f' y='%.0f' width='%.1f' height='100%%' fill='#fdf0f0'/>\n", left, top-high, x(min(last, r.lengths))-left)
	for _, domain := range r.outages {
		for _, o := range domain {
			if from, to := min(time.Duration(o.from), last), min(time.Duration(o.to), last); from < to {
				fmt.Fprintf(&head, "<rect x='%.1f' y='%.0f' width='%.1f' height='100%%' fill='#f8dada'><title>an outage</title></rect>\n", x(from), top-high, x(to)-x(from))
			}
		}
	}
	for i, name := range rows {
		fmt.Fprintf(&head, "<text x='8' y='%.1f'>%s</text>\n", top+high*float64(i)+high-3, html.EscapeString(name))
	}
	return head.String() + b.String() + "</svg>\n"
}

// subjects are the rows that a call belongs to.
func subjects(e entry) []string {
	if open, end := strings.IndexByte(e.detail, '['), strings.IndexByte(e.detail, ']'); open >= 0 && open < end {
		return strings.Fields(e.detail[open+1 : end])
	}
	return []string{strings.Trim(e.name, "[]")}
}
