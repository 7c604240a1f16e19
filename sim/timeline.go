package sim

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"
	"unicode"
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

// How much of a timeline is printed unless all of it is asked for.
const (
	lastLines  = 60 // at the end
	linesRound = 4  // before and after each fault
	mostFaults = 20 // with such lines, the last ones
)

// ruleOf finds the rule of the contract that a problem is about.
var ruleOf = regexp.MustCompile(`^[^ ]+: ((?:D|[A-Z]-)\d+): `)

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
	rule := ""
	for _, p := range f.Problems {
		fmt.Fprintf(&b, "  broken at %s\n", p)
		if found := ruleOf.FindStringSubmatch(p); found != nil {
			rule = found[1]
		}
	}
	if rule != "" {
		fmt.Fprintf(&b, "  %s is a rule of Courier's contract: %s\n", rule, contract)
	}
	fmt.Fprintf(&b, "%s of %d, found by %s:\n", counted(len(f.Faults), "fault"), r.Before, counted(r.Tried, "episode"))
	for _, fault := range f.Faults {
		fmt.Fprintf(&b, "  %s\n", fault)
	}
	lines := timeline(f.log)
	if short := shortened(lines); len(short) < len(lines) && !*traceFlag {
		b.WriteString("timeline, shortened (-sim.trace shows all of it):\n")
		lines = short
	} else {
		b.WriteString("timeline:\n")
	}
	for _, l := range lines {
		b.WriteString(l.text)
		b.WriteByte('\n')
	}
	if *plotFlag != "" {
		if err := os.WriteFile(*plotFlag, []byte(plot(f)), 0o644); err != nil {
			fmt.Fprintf(&b, "no plot: %v\n", err)
		} else {
			fmt.Fprintf(&b, "plot: %s\n", *plotFlag)
		}
	}
	b.WriteString(command(test, f.Seed, flag.CommandLine))
	return b.String()
}

const contract = "https://github.com/erfanmomeniii/courier/blob/main/docs/contract.md"

// command replays a seed. A seed is of one version of the code. The flags that the test
// itself was given are part of the command, for they may change what it does.
func command(test string, seed uint64, given *flag.FlagSet) string {
	top, _, _ := strings.Cut(test, "/")
	c := fmt.Sprintf("replay: go test . -run '^%s$' -count=1 -args -sim.seed=%d -sim.episodes=1", top, seed)
	given.Visit(func(f *flag.Flag) {
		if f.Name == "sim.faults" || !strings.HasPrefix(f.Name, "test.") && !strings.HasPrefix(f.Name, "sim.") {
			c += " " + quoted("-"+f.Name+"="+f.Value.String())
		}
	})
	for _, arg := range given.Args() {
		c += " " + quoted(arg)
	}
	return c
}

// quoted returns an argument as a shell takes it.
func quoted(arg string) string {
	if arg != "" && !strings.ContainsFunc(arg, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-=_./:,+@%", r)
	}) {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// shortened folds calls that repeat and leaves out what is far from any fault and from
// the end.
func shortened(all []printed) (lines []printed) {
	lines = folded(all)
	if len(lines) <= lastLines {
		return lines
	}
	keep := make([]bool, len(lines))
	for i := len(lines) - lastLines; i < len(lines); i++ {
		keep[i] = true
	}
	faults := 0
	for i := len(lines) - 1; i >= 0 && faults < mostFaults; i-- {
		if !lines[i].fault {
			continue
		}
		faults++
		for near := max(0, i-linesRound); near < min(len(lines), i+linesRound+1); near++ {
			keep[near] = true
		}
	}
	var short []printed
	for i := 0; i < len(lines); {
		from := i
		for i < len(lines) && !keep[i] {
			i++
		}
		if i > from {
			short = append(short, printed{text: fmt.Sprintf("   (%d lines left out)", i-from)})
		}
		for ; i < len(lines) && keep[i]; i++ {
			short = append(short, lines[i])
		}
	}
	return short
}

// folded makes one line of calls that follow each other and differ in time and number
// alone, such as the fetches of a source with nothing pending.
func folded(all []printed) (lines []printed) {
	for i := 0; i < len(all); {
		end := i + 1
		for all[i].call != "" && end < len(all) && all[end].call == all[i].call {
			end++
		}
		if more := end - i - 1; more > 1 {
			lines = append(lines, all[i], printed{text: fmt.Sprintf("%*s and %d times more until %.6fs", 22, "", more, all[end-1].at.Seconds())})
		} else {
			lines = append(lines, all[i:end]...)
		}
		i = end
	}
	return lines
}

// printed is one line of a timeline.
type printed struct {
	at    time.Duration
	text  string
	call  string // the same for calls that differ in time and number alone
	fault bool
}

// timeline prints entries, one a line.
func timeline(log []entry) (lines []printed) {
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
		text, same := e.text, ""
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
			} else {
				same = fmt.Sprint(who, e.call.kind, e.name, e.detail, result)
			}
		}
		lines = append(lines, printed{e.at, fmt.Sprintf("%s %14.6fs %s %s", mark, e.at.Seconds(), who, text), same, e.fault != None || e.problem})
	}
	return lines
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
