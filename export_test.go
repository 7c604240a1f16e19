package courier

import (
	"context"
	"log/slog"
	"time"
)

// TeeObservers is what WithObserver does when it is given several times.
var TeeObservers = teeObservers

// Counted reports whether the call after which a breaker opened counts as an attempt.
func Counted(e *OpenError) bool { return e.counted }

// RetryAt returns when a fan-out takes records again, the zero time where it does now.
func RetryAt(e *FanOutError) time.Time {
	until, _ := e.pause()
	return until
}

// LogObserver returns the log of a coordinator as an observer.
func LogObserver(logger *slog.Logger) Observer {
	l := newSlogObserver(logger, newSteady(systemClock{}), 0)
	return Observer{
		Fetched: l.fetched, Applied: l.applied, Marked: l.marked, Released: l.released, Renewed: l.renewed,
		Parked: l.parked, Paused: l.paused, Resumed: l.resumed, Stopped: l.stopped,
		Stalled: func(ctx context.Context, e StallEvent) {
			if e.Over {
				l.unstalled(ctx, e, 0, true)
			} else {
				l.stalled(ctx, e, 1, false)
			}
		},
	}
}
