package sim

import (
	"fmt"
	"time"
)

// FaultKind is what goes wrong.
type FaultKind uint8

// The kinds of faults.
const (
	None      FaultKind = iota
	Error               // the call has no effect, and an error
	Lost                // the call has its effect, and an error
	Permanent           // the call has no effect, and an error that says no retry helps
	Panic               // the call has no effect, and panics
	Goexit              // the call has no effect, and ends its goroutine
	Hang                // the call has no effect, and returns when its context ends
	Slow                // the call takes long
	Down                // as Error, by an outage
	LeaseLost           // a renewal finds that somebody else has the record
	Twice               // a fetch returns one of its records a second time
	Partly              // a fetch returns its records, and an error besides
	Refused             // the call has no effect, and an error that says it was no attempt
	Later               // likewise, and the error asks for another time

	Crash // the process is dead from then on
	Stop  // the process is asked to stop
	Pause // the process stands still for a while
	Step  // the process's clock is set forward or back
	faults
)

var faultNames = [faults]string{"none", "error", "lost", "permanent", "panic", "goexit", "hang", "slow", "down", "lease lost", "twice", "partly", "refused", "later", "crash", "stop", "pause", "step"}

func (k FaultKind) String() string { return faultNames[k] }

// MarshalText returns the fault's name.
func (k FaultKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText takes a fault's name.
func (k *FaultKind) UnmarshalText(text []byte) error {
	for i, name := range faultNames {
		if name == string(text) {
			*k = FaultKind(i)
			return nil
		}
	}
	return fmt.Errorf("sim: there is no kind of fault %q", text)
}

// faultTexts name the faults of calls.
var faultTexts = func() (texts [kinds][faults]string) {
	for k := range texts {
		for f := range texts[k] {
			texts[k][f] = Kind(k).String() + ": " + FaultKind(f).String()
		}
	}
	return texts
}()

// ofProcess reports whether a fault happens to a process, after a call.
func (k FaultKind) ofProcess() bool { return k >= Crash }

// Fault is one thing that goes wrong. It belongs to a call, and not to a time, so
// that it keeps its meaning when others are left out.
type Fault struct {
	What  FaultKind     `json:"what"`
	Call  Kind          `json:"call"`
	ID    uint64        `json:"id"` // of what the call is about
	N     uint32        `json:"n"`  // how many such calls came before
	Name  string        `json:"name,omitempty"`
	After time.Duration `json:"after,omitempty"` // of a process: after the call began
	For   time.Duration `json:"for,omitempty"`   // how long it is down, stands still, or how far its clock is set
}

func (f Fault) String() string {
	at := fmt.Sprintf("%s of %s #%d", f.Call, f.Name, f.N)
	if !f.What.ofProcess() {
		return fmt.Sprintf("%s: %s", at, f.What)
	}
	return fmt.Sprintf("%s for %v, %v after %s", f.What, f.For, f.After, at)
}

// rates are how likely each fault is for each kind of call.
type rates [kinds][faults]float64

// most is how likely a fault is at most, where it is on.
var most = rates{
	Fetch:   {Error: 0.5, Slow: 0.1, Hang: 0.05, Panic: 0.1, Goexit: 0.05, Twice: 0.2, Partly: 0.2},
	Apply:   {Error: 0.4, Lost: 0.1, Permanent: 0.1, Panic: 0.2, Goexit: 0.1, Hang: 0.1, Slow: 0.2, Refused: 0.2, Later: 0.2},
	Batch:   {Error: 0.5, Lost: 0.1, Panic: 0.1, Hang: 0.1, Slow: 0.2, Refused: 0.2, Later: 0.2},
	Mark:    {Error: 0.5, Lost: 0.2, Slow: 0.1, Hang: 0.05, Panic: 0.05, Goexit: 0.05},
	Release: {Error: 0.2, Lost: 0.2, Slow: 0.1, Hang: 0.05, Panic: 0.05, Goexit: 0.05},
	Fail:    {Error: 0.2, Lost: 0.2, Slow: 0.1, Hang: 0.2, Panic: 0.1, Goexit: 0.1},
	Renew:   {Error: 0.2, LeaseLost: 0.3, Slow: 0.1, Hang: 0.05, Panic: 0.05, Goexit: 0.05},
	Send:    {Error: 0.5, Lost: 0.2, Slow: 0.1, Hang: 0.3, Panic: 0.05, Goexit: 0.05},
	Keys:    {Error: 0.2, Slow: 0.1, Hang: 0.05, Panic: 0.05, Goexit: 0.05},
	Read:    {Error: 0.2, Slow: 0.1, Panic: 0.05, Goexit: 0.05},
	Edit:    {Error: 0.2, Lost: 0.2, Slow: 0.1, Panic: 0.05, Goexit: 0.05},
	Call:    {Error: 0.5, Lost: 0.2, Slow: 0.1, Hang: 0.05},
}

// swarm draws which faults are on in an episode, and how likely each is: episodes
// with few of them find what episodes with all of them drown.
func (w *World) swarm() {
	w.rates = rates{}
	share := 0.15 + 0.5*w.Draw("share of the faults")
	for k := range most {
		for f, p := range most[k] {
			if p == 0 {
				continue
			}
			what := Kind(k).String() + " " + FaultKind(f).String()
			if w.Draw("on "+what) < share {
				w.rates[k][f] = p * w.Draw("rate of "+what)
			}
		}
	}
	w.lengths = time.Duration(5+115*w.Draw("faulty")) * time.Second
	for i := range w.Pick("ends", 5) {
		w.drawEnd(i)
	}
	for i := range w.outages {
		what := []string{"source", "destination", "queue"}[i]
		for range w.Pick("outages of the "+what, 3) {
			n := uint64(len(w.outages[i]))
			from := int64(uniform(hash(w.seed, forSwarm, digest(what), 2*n+1)) * float64(w.lengths))
			long := int64(uniform(hash(w.seed, forSwarm, digest(what), 2*n+2)) * float64(w.lengths) / 2)
			w.outages[i] = append(w.outages[i], window{from, from + long})
		}
	}
}

// window is a part of an episode.
type window struct{ from, to int64 }

// domain is whose outage a kind of call suffers from: 0 the source's, 1 the
// destination's, 2 the queue's, -1 nobody's.
func (k Kind) domain() int {
	switch k {
	case Fetch, Mark, Release, Fail, Call:
		return 0
	case Apply, Batch:
		return 1
	case Send, Keys, Read, Edit:
		return 2
	}
	return -1
}

// ending is a fault of a process that waits for its call: one of many of a kind.
type ending struct {
	what         FaultKind
	call         Kind
	count        int // of calls of the kind, over all
	after, lasts time.Duration
}

// comesAfter reports whether the ending waits for calls of this kind.
func (e *ending) comesAfter(k Kind) bool {
	return e.call == k || k == Call && (e.call == Send || e.call == Release) // which such worlds seldom make
}

func (w *World) drawEnd(i int) {
	u := func(what string) float64 { return uniform(hash(w.seed, forSwarm, digest(what), uint64(i))) }
	e := ending{what: []FaultKind{Crash, Crash, Stop, Stop, Stop, Pause, Step}[int(u("what ends")*7)]}
	e.call = []Kind{Fetch, Apply, Apply, Mark, Mark, Send, Release, Batch, Hook, Begin}[int(u("after what")*10)]
	e.count = 1 + int(u("after how many")*u("after how many, at most")*60)
	e.after = time.Duration(u("how long after") * float64(15*time.Millisecond))
	if u("much later") < 0.2 {
		e.after *= 100
	}
	e.lasts = time.Duration(u("for how long") * float64(10*time.Second))
	switch e.what {
	case Pause:
		e.lasts *= 10
	case Step:
		e.lasts = time.Duration((u("which way") - 0.5) * float64(2*time.Minute))
	}
	w.endings = append(w.endings, e)
}

// decide draws what goes wrong with a call that has begun, or looks it up where
// the faults are given.
func (w *World) decide(c *call) {
	if w.aborting || c.p.dead {
		return
	}
	if w.script != nil {
		for _, f := range w.script[c.callID] {
			f.Name = c.name
			w.strike(c, f)
		}
		return
	}
	now := w.now.Load()
	if now >= int64(w.lengths) {
		return
	}
	f := Fault{Call: c.kind, ID: c.id, N: c.n, Name: c.name}
	if d := c.kind.domain(); d >= 0 {
		for _, o := range w.outages[d] {
			if now >= o.from && now < o.to {
				f.What = Down
			}
		}
	}
	if w.suffers != nil && w.suffers(c) {
		f.What = Down
	}
	if f.What == None {
		u := uniform(hash(w.seed, forFault, uint64(c.kind)<<32|uint64(c.n), c.id))
		for what, p := range w.rates[c.kind] {
			if u < p {
				f.What = FaultKind(what)
				break
			}
			u -= p
		}
	}
	if f.What != None {
		w.strike(c, f)
	}
	for i := range w.endings {
		if e := &w.endings[i]; e.comesAfter(c.kind) && e.count == w.made[c.kind] {
			w.strike(c, Fault{What: e.what, Call: c.kind, ID: c.id, N: c.n, Name: c.name, After: e.after, For: e.lasts})
		}
	}
}

// strike has a fault happen, and notes it.
func (w *World) strike(c *call, f Fault) {
	w.faults = append(w.faults, f)
	if !f.What.ofProcess() {
		c.fault = f.What
		return
	}
	p := c.p
	w.at(int64(f.After), p, func() bool { return p.suffer(f) })
}
