package sim

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// entry is one line of a timeline.
type entry struct {
	at      time.Duration
	p       *Process
	call    callID
	isCall  bool
	closes  bool
	first   bool // of a call that has another half
	problem bool
	fault   FaultKind
	name    string
	detail  string
	text    string
	err     error
}

// note enters a line, where that is asked for.
func (w *World) note(e entry) {
	if w.tracing && !w.aborting {
		e.at = time.Duration(w.now.Load())
		w.log = append(w.log, e)
	}
}

// Note enters a line of the model's or user's own into the timeline. It must not
// be called by two goroutines at once.
func (w *World) Note(format string, args ...any) {
	if w.tracing {
		w.note(entry{text: fmt.Sprintf(format, args...)})
	}
}

// lastLines is how much of a timeline is printed unless all of it is asked for.
const lastLines = 60

// Describe tells of the episode that failed: what broke, the faults, the
// timeline, and the command that replays it, for which it needs the test's name.
func (r *Report) Describe(test string) string {
	f := r.Failed
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, hash %016x\n", f.Seed, f.Hash)
	for _, e := range f.log {
		if !e.isCall && e.p == nil && !e.problem && e.at == 0 {
			fmt.Fprintf(&b, "  %s\n", e.text)
		}
	}
	for _, p := range f.Problems {
		fmt.Fprintf(&b, "  broken at %s\n", p)
	}
	fmt.Fprintf(&b, "%d faults (of %d, by %d episodes):\n", len(f.Faults), r.Before, r.Tried)
	for _, fault := range f.Faults {
		fmt.Fprintf(&b, "  %s\n", fault)
	}
	lines := timeline(f.log)
	if skipped := len(lines) - lastLines; skipped > 0 && !*traceFlag {
		fmt.Fprintf(&b, "timeline, without the first %d lines (-sim.trace shows them):\n", skipped)
		lines = lines[skipped:]
	} else {
		b.WriteString("timeline:\n")
	}
	for _, line := range lines {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	if *plotFlag != "" {
		if err := os.WriteFile(*plotFlag, []byte(plot(f)), 0o644); err != nil {
			fmt.Fprintf(&b, "no plot: %v\n", err)
		} else {
			fmt.Fprintf(&b, "plot: %s\n", *plotFlag)
		}
	}
	b.WriteString(command(test, f.Seed))
	return b.String()
}

// command replays a seed. A seed is of one version of the code.
func command(test string, seed uint64) string {
	top, _, _ := strings.Cut(test, "/")
	return fmt.Sprintf("replay: go test . -run '^%s$' -count=1 -args -sim.seed=%d -sim.episodes=1", top, seed)
}

// timeline prints entries, one a line.
func timeline(log []entry) (lines []string) {
	for _, e := range log {
		if e.isCall && (e.call.kind == Begin || e.call.kind == Hook || !e.closes && e.first) {
			continue
		}
		mark := "  "
		switch {
		case e.problem:
			mark = "!!"
		case e.fault != None:
			mark = " *"
		}
		who := "    "
		if e.p != nil {
			who = fmt.Sprintf("p%-3d", e.p.number)
		}
		text := e.text
		if e.isCall {
			result := "ok"
			if e.err != nil {
				result = strings.ReplaceAll(e.err.Error(), "\n", "; ")
			}
			text = fmt.Sprintf("%s %s #%d", e.call.kind, e.name, e.call.n)
			if e.detail != "" {
				text += " " + e.detail
			}
			text += " -> " + result
			if e.fault != None {
				text += "   <= FAULT " + e.fault.String()
			}
		}
		lines = append(lines, fmt.Sprintf("%s %14.6fs %s %s", mark, e.at.Seconds(), who, text))
	}
	return lines
}
