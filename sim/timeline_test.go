package sim

import (
	"flag"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The report of a pipeline that stood still has its cause, however long it stood.
func TestAReportOfStandingStillHasItsCause(t *testing.T) {
	r := Run(t, Options{}, simulateReader(true, true))
	if r.Failed == nil {
		t.Fatal("the bug was not found")
	}
	text := r.Describe(t.Name())
	for _, want := range []string{
		"broken at ", "D10 is a rule of Courier's contract: " + contract, "<= FAULT ", "times more until", "!! ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	problem := regexp.MustCompile(`(?m)^!! +[\d.]+s +(.*)$`).FindStringSubmatch(text)
	if problem == nil || regexp.MustCompile(`^[\d.]+(ns|µs|ms|s|m|h)`).MatchString(problem[1]) {
		t.Errorf("the line of the problem has its time once: %q", problem)
	}
	if n := strings.Count(text, "\n"); n > 100 {
		t.Errorf("the report has %d lines", n)
	}
	if t.Failed() {
		t.Log(text)
	}
}

// A call that met with a fault and failed is not printed as if it had succeeded.
func TestATimelineTellsWhatFailed(t *testing.T) {
	wrong := regexp.MustCompile(`-> ok +<= FAULT (\w+)`)
	for seed := range uint64(20) {
		o := Options{}.withDefaults()
		one := episode(t, seed+1, &o, simulateReader(false, true), nil, true)
		for _, l := range timeline(one.log) {
			if m := wrong.FindStringSubmatch(l.text); m != nil && m[1] != "slow" {
				t.Fatal(l.text)
			}
		}
	}
}

// Far from the faults and from the end a timeline is cut, and nowhere else.
func TestATimelineIsShortened(t *testing.T) {
	var all []printed
	for i := range 300 {
		all = append(all, printed{at: time.Duration(i), text: fmt.Sprint(i), call: fmt.Sprint(i % 2), fault: i == 10 || i == 100})
	}
	short := shortened(all)
	var texts []string
	for _, l := range short[:22] {
		texts = append(texts, strings.TrimSpace(l.text))
	}
	const want = "(6 lines left out) 6 7 8 9 10 11 12 13 14 (81 lines left out) 96 97 98 99 100 101 102 103 104 (135 lines left out) 240"
	if got := strings.Join(texts, " "); got != want || len(short) != 21+lastLines {
		t.Errorf("%d lines: %s", len(short), got)
	}
	if got := shortened(all[:lastLines]); len(got) != lastLines {
		t.Errorf("%d lines of %d", len(got), lastLines)
	}
	all = nil
	for i := range 7 {
		all = append(all, printed{at: time.Duration(i) * time.Second, call: "fetch", text: fmt.Sprint(i)})
	}
	all = append(all, printed{text: "7"}, printed{text: "8"}, printed{text: "9"})
	texts = nil
	for _, l := range shortened(all) {
		texts = append(texts, strings.TrimSpace(l.text))
	}
	if got := strings.Join(texts, ", "); got != "0, and 6 times more until 6.000000s, 7, 8, 9" {
		t.Error(got)
	}
}

// The command has the flags that the test was given, but those of go test.
func TestTheCommandHasTheFlagsOfTheTest(t *testing.T) {
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for _, name := range []string{"test.v", "sim.seed", "sim.trace", "sim.faults", "bug", "page", "unset"} {
		flags.String(name, "", "")
	}
	if err := flags.Parse([]string{"-test.v=1", "-sim.seed=7", "-sim.trace=1", "-sim.faults=f.json", "-page", "3", "-bug=it's here", "more", ""}); err != nil {
		t.Fatal(err)
	}
	const want = `replay: go test . -run '^TestX$' -count=1 -args -sim.seed=9 -sim.episodes=1 '-bug=it'\''s here' -page=3 -sim.faults=f.json more ''`
	if got := command("TestX/sub", 9, flags); got != want {
		t.Error(got)
	}
}
