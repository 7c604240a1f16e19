package courier

import (
	"context"
	"fmt"
	"time"
)

// fullHand is whether the records that wait are all that may be in hand, until half of them
// are settled, or there was room for a while: not to tell of every single one.
type fullHand struct {
	is        bool
	again     time.Time // when the log tells of it again
	roomSince time.Time // zero: there is none
}

// easesAfter is how long there is room in a hand that was full before that is over.
const easesAfter = time.Minute

// tell tells that the hand is full, with a record that waits and its last error.
func (f *fullHand) tell(ctx context.Context, w *watch, event PauseEvent, record any, last error) {
	now := w.clock.Now()
	f.roomSince = time.Time{}
	event.Err = ErrFullHand
	if last != nil {
		event.Err = fmt.Errorf("%w; the last error of one of them: %w", ErrFullHand, last)
	}
	if !f.is || !now.Before(f.again) {
		event.Record = w.name(record)
		if f.is {
			w.log.pausedStill(ctx, event)
		} else {
			w.paused(ctx, byFullHand, event, false)
		}
		f.is, f.again = true, now.Add(sayAgain)
	}
	w.stands(byFullHand, event.Err, time.Time{})
}

// ease tells that there is room.
func (f *fullHand) ease(ctx context.Context, w *watch, over bool) {
	if !f.is {
		return
	}
	now := w.clock.Now()
	if w.moves(byFullHand); f.roomSince.IsZero() {
		f.roomSince = now
	}
	if over || now.Sub(f.roomSince) >= easesAfter {
		*f = fullHand{}
		w.resumed(ctx, byFullHand)
	}
}
