package courierttest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/benbjohnson/clock"

	"github.com/erfanmomeniii/courier"
)

// Kind is what happened to a record.
type Kind string

// The kinds of events. A record that is in one call of a batch has an event of
// its own.
const (
	Added      Kind = "added"       // to a source
	Fetched    Kind = "fetched"     // handed out by a source
	Applied    Kind = "applied"     // the destination has it, and said so
	Unacked    Kind = "unacked"     // the destination has it, and returned an error
	Failed     Kind = "failed"      // the destination does not have it
	Skipped    Kind = "skipped"     // there was nothing to do for it
	Parked     Kind = "parked"      // the dead letter queue has it
	ParkFailed Kind = "park failed" // the dead letter queue refused it
	Marked     Kind = "marked"      // done at its source
	MarkFailed Kind = "mark failed" // Mark returned an error
	Released   Kind = "released"    // given back to its source
	Stale      Kind = "stale"       // marked, released or renewed after its lease was lost: without effect
)

// Event is one thing that happened to one record.
type Event[T any] struct {
	Kind   Kind
	Name   string // of the record
	Record T
	Err    error
	At     time.Time
}

// String is a line of a timeline.
func (e Event[T]) String() string {
	line := fmt.Sprintf("%s %-11s %s", e.At.Format("15:04:05.000"), e.Kind, e.Name)
	if e.Err != nil {
		line += ": " + e.Err.Error()
	}
	return line
}

// Recorder makes fakes and keeps the events of their records, in order. The zero value is
// ready. Its methods are safe for concurrent use; set the fields before calling them. It
// must not be copied.
type Recorder[T any] struct {
	// Name names a record: the same record always by the same name, and no two records by
	// one name. nil is fmt.Sprint.
	Name func(record T) string

	// Clock is the clock of the fakes. nil is the system's clock, which in a bubble is
	// the bubble's.
	Clock courier.Clock

	mu     sync.Mutex
	events []Event[T]
}

// Events returns all events so far.
func (r *Recorder[T]) Events() []Event[T] {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// Records returns the records of the events of the given kinds, in the order of the
// events. A record that was applied twice is listed twice.
func (r *Recorder[T]) Records(kinds ...Kind) []T {
	var records []T
	for _, e := range r.Events() {
		if slices.Contains(kinds, e.Kind) {
			records = append(records, e.Record)
		}
	}
	return records
}

// Names is [Recorder.Records] by name.
func (r *Recorder[T]) Names(kinds ...Kind) []string {
	var names []string
	for _, e := range r.Events() {
		if slices.Contains(kinds, e.Kind) {
			names = append(names, e.Name)
		}
	}
	return names
}

// Timeline returns the events as text, one per line; with names, only the events of those
// records.
func (r *Recorder[T]) Timeline(names ...string) string {
	var b strings.Builder
	for _, e := range r.Events() {
		if len(names) == 0 || slices.Contains(names, e.Name) {
			fmt.Fprintln(&b, e)
		}
	}
	return b.String()
}

func (r *Recorder[T]) name(record T) string {
	if r.Name == nil {
		return fmt.Sprint(record)
	}
	return r.Name(record)
}

func (r *Recorder[T]) names(records []T) []string {
	names := make([]string, len(records))
	for i, record := range records {
		names[i] = r.name(record)
	}
	return names
}

func (r *Recorder[T]) clock() courier.Clock {
	if r.Clock == nil {
		return clock.New()
	}
	return r.Clock
}

// note adds an event for each record.
func (r *Recorder[T]) note(kind Kind, err error, records ...T) {
	if len(records) == 0 {
		return
	}
	now := r.clock().Now()
	names := r.names(records)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, record := range records {
		r.events = append(r.events, Event[T]{kind, names[i], record, err, now})
	}
}
