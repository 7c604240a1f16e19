package sim

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// payTwice is a bug of a user's: a payment that is made again is paid twice.
func payTwice(t *testing.T) Report {
	t.Helper()
	r := Run(t, Options{}, simulateBank(func(b *bank) func(context.Context, int) error { return b.payAgain }))
	if r.Failed == nil {
		t.Fatal("the bug was not found")
	}
	return r
}

// A failure comes with its cause, shrunk, and with what replays it.
func TestAFailureIsExplained(t *testing.T) {
	r := payTwice(t)
	text := r.Describe(t.Name())
	for _, want := range []string{
		"seed ", "the balance is", "lost, after it had its effect", "<= FAULT lost", "!! ", "1 fault of ",
		"replay: go test . -run '^TestAFailureIsExplained$' -count=1 -args -sim.seed=", "-sim.episodes=1",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
}

// The faults that were found do it again, from their text.
func TestFaultsReplayFromTheirText(t *testing.T) {
	r := payTwice(t)
	text, err := json.Marshal(r.Failed.Faults)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "faults.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	again := Run(t, Options{Seed: r.Failed.Seed, Episodes: 1, Faults: readFaults(t, path)}, simulateBank(func(b *bank) func(context.Context, int) error { return b.payAgain }))
	if again.Failed == nil || again.Failed.Hash != r.Failed.Hash {
		t.Errorf("%s came out as %+v, not as %016x", text, again.Failed, r.Failed.Hash)
	}
}

func TestAPlotIsDrawn(t *testing.T) {
	r := payTwice(t)
	text := plot(r.Failed)
	decoder := xml.NewDecoder(strings.NewReader(text))
	for {
		if _, err := decoder.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
	}
	for _, want := range []string{"<svg", "the balance is", "FAULT lost"} {
		if !strings.Contains(text, want) {
			t.Errorf("the plot lacks %q", want)
		}
	}
}

// What a sweep never reached is told.
func TestAStateThatIsNeverReachedIsMissed(t *testing.T) {
	setup := simulateBank(func(b *bank) func(context.Context, int) error { return b.pay })
	r := Run(t, Options{Episodes: 20, Sometimes: []string{"crash", "an eclipse"}}, setup)
	if len(r.Missed) != 1 || r.Missed[0] != "an eclipse" {
		t.Errorf("missed %v", r.Missed)
	}
}

// A pipeline that leaves a goroutine behind has broken its promise.
func TestAGoroutineThatIsLeftIsFound(t *testing.T) {
	if os.Getenv("SIM_LEAK") == "" {
		// In a process of its own: a goroutine of a bubble can never end.
		c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), "SIM_LEAK=1")
		out, _ := c.CombinedOutput()
		if !strings.Contains(string(out), "found it") {
			t.Errorf("%s", out)
		}
		return
	}
	r := Run(t, Options{Episodes: 1}, func(w *World) {
		w.Run(func(ctx context.Context) error {
			go func() { select {} }()
			<-ctx.Done()
			return nil
		})
		w.Eventually("it is true", func() bool { return true })
	})
	if r.Failed != nil && strings.Contains(r.Failed.Problems[0], "goroutines are left") {
		t.Log("found it")
	}
}

// The watchdog tells the seed of an episode that hangs.
func TestAHangTellsItsSeed(t *testing.T) {
	if os.Getenv("SIM_HANG") == "" {
		c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-sim.seed=77")
		c.Env = append(os.Environ(), "SIM_HANG=1")
		out, err := c.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "seed 77 hangs") || !strings.Contains(string(out), "-sim.seed=77") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	patience = 1
	Run(t, Options{}, func(w *World) {
		w.Run(func(ctx context.Context) error {
			for ctx.Err() == nil { // never, for nobody comes to end it
			}
			return nil
		})
	})
}
