package sim

import (
	"context"
	"time"
)

// coordinator is what an operator can do to a pipeline.
type coordinator interface {
	Start(ctx context.Context) error
	Pause()
	Resume()
}

// start runs a coordinator that an operator can get at.
func (l *life) start(ctx context.Context, c coordinator) error {
	l.running = c
	return c.Start(ctx)
}

// planPauses draws when an operator pauses the pipeline, and for how long.
func (m *model) planPauses() {
	for i := range m.Pauses {
		u := func(what string) float64 {
			return uniform(hash(m.seed, forSwarm, digest(what), uint64(i)))
		}
		at := time.Duration(u("pause") * u("paused at most") * float64(m.lengths))
		m.later(at, func() bool { return m.pause(true) })
		m.later(at+time.Duration(u("paused for")*float64(time.Minute)), func() bool { return m.pause(false) })
	}
}

// pause pauses or resumes the processes that run now. One that begins later runs.
func (m *model) pause(paused bool) (woke bool) {
	for _, l := range m.lives {
		if l.p.ended || l.p.dead || l.running == nil {
			continue
		}
		if l.paused = paused; paused {
			l.running.Pause()
		} else {
			l.running.Resume()
		}
		m.Sometimes("paused by an operator")
		woke = true
	}
	return woke
}
