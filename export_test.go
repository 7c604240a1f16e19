package courier

import "log/slog"

// TeeObservers is what WithObserver does when it is given several times.
var TeeObservers = teeObservers

// LogObserver returns the log of a coordinator as an observer.
func LogObserver(logger *slog.Logger) Observer {
	l := newSlogObserver(logger, newSteady(systemClock{}), 0)
	return Observer{
		Fetched: l.fetched, Applied: l.applied, Marked: l.marked, Released: l.released, Renewed: l.renewed,
		Parked: l.parked, Paused: l.paused, Resumed: l.resumed, Stopped: l.stopped,
		Stalled: l.stalled,
	}
}
