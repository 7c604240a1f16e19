package courierttest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/erfanmomeniii/courier"
)

// ObserverRecorder keeps the events that a coordinator sends to its observer, in order.
// The zero value is ready. Its methods are safe for concurrent use; set PerRecord before
// calling them. It must not be copied.
type ObserverRecorder struct {
	// PerRecord asks for [RecordStarted] and [RecordEnded] too.
	PerRecord bool

	mu     sync.Mutex
	events []any
}

// RecordStarted is an event of [courier.Observer].RecordStarted.
type RecordStarted courier.RecordEvent

// RecordEnded is an event of [courier.Observer].RecordEnded.
type RecordEnded courier.RecordEvent

// Observer returns the observer for a coordinator, see [courier.WithObserver]. Several
// coordinators may share it.
func (r *ObserverRecorder) Observer() courier.Observer {
	o := courier.Observer{
		Fetched:  noteEvent[courier.FetchEvent](r),
		Applied:  noteEvent[courier.ApplyEvent](r),
		Failed:   noteEvent[courier.FailEvent](r),
		Retried:  noteEvent[courier.RetryEvent](r),
		Parked:   noteEvent[courier.ParkEvent](r),
		Marked:   noteEvent[courier.MarkEvent](r),
		Released: noteEvent[courier.ReleaseEvent](r),
		Renewed:  noteEvent[courier.RenewEvent](r),
		Paused:   noteEvent[courier.PauseEvent](r),
		Resumed:  noteEvent[courier.ResumeEvent](r),
		Stalled:  noteEvent[courier.StallEvent](r),
		Stopped:  noteEvent[courier.StopEvent](r),
	}
	if r.PerRecord {
		o.RecordStarted = func(_ context.Context, e courier.RecordEvent) { r.note(RecordStarted(e)) }
		o.RecordEnded = func(_ context.Context, e courier.RecordEvent) { r.note(RecordEnded(e)) }
	}
	return o
}

func noteEvent[E any](r *ObserverRecorder) func(context.Context, E) {
	return func(_ context.Context, event E) { r.note(event) }
}

func (r *ObserverRecorder) note(event any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event)
}

// Events returns all events so far: a [courier.FetchEvent] and so on, by value.
func (r *ObserverRecorder) Events() []any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// String returns the events as text, a line each.
func (r *ObserverRecorder) String() string {
	var b strings.Builder
	for _, event := range r.Events() {
		_, name, _ := strings.Cut(fmt.Sprintf("%T", event), ".")
		fmt.Fprintf(&b, "%s%+v\n", name, event)
	}
	return b.String()
}

// EventsOf returns the events of one kind so far, such as those of a
// [courier.MarkEvent].
func EventsOf[E any](r *ObserverRecorder) (events []E) {
	for _, event := range r.Events() {
		if e, ok := event.(E); ok {
			events = append(events, e)
		}
	}
	return events
}
