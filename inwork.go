package courier

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// This file is about which records are in work, when the drain timeout of a stop passes
// or they have been for long, see stall.go. The workers write down where they are as
// rarely as they can: a record that is quickly applied must not pay for this.

// maxClaim is how many records a hand takes at a time at the most: when one of them
// hangs, that is how many it may be.
const maxClaim = 16

// doing is what a hand is at: the index of a record, how many it is from there on,
// and whether they go together in one call or are one of them.
type doing uint64

func doingOf(i, n int, together bool) doing {
	d := doing(i)<<32 | doing(n)<<1
	if together {
		d |= 1
	}
	return d
}

func (d doing) parts() (i, n int, together bool) {
	return int(d >> 32), int(d >> 1 & (1<<31 - 1)), d&1 != 0
}

// show writes down what the hand is at. Of one that claims its records one by one the
// claim tells.
func (h *hand[T]) show(i, n int, together bool) {
	if !h.stepwise || h.together != nil {
		h.doing.Store(uint64(doingOf(i, n, together)))
	}
}

// showTogether does so for the records that go in one call.
func (h *hand[T]) showTogether() {
	first := h.at
	if h.index != nil {
		first = h.index[0]
	}
	h.show(first, len(h.group), true)
}

// inWork is records of which a hand is at one, or at all in one call, with what they
// are called where they have no name.
type inWork[T any] struct {
	first, last        T
	place, placeOfLast string
	n                  int
	together           bool
}

// seen returns what a hand of the batch was at, if anything.
func (b *batch[T]) seen(d doing) (w inWork[T], some bool) {
	i, n, together := d.parts()
	if n == 0 {
		return w, false
	}
	w = inWork[T]{first: b.ledger.Records[i], place: b.place(i), n: n, together: together}
	if n > 1 && !together {
		w.last, w.placeOfLast = b.ledger.Records[i+n-1], b.place(i+n-1)
	}
	return w, true
}

func (w *inWork[T]) text(name func(any) string) string {
	called := func(record T, place string) string {
		if name := name(record); name != "" {
			return name
		}
		return place
	}
	first := called(w.first, w.place)
	switch {
	case w.n == 1:
		return first
	case w.together:
		return fmt.Sprintf("%d in one call, the first of them %s", w.n, first)
	}
	return fmt.Sprintf("one of the %d from %s to %s", w.n, first, called(w.last, w.placeOfLast))
}

// maxNamed is how many records in work are named.
const maxNamed = 10

// tellDrainOver tells, at the moment that the drain timeout passes, for which records and
// which fetch the stop still waits.
func tellDrainOver[T any](ctx context.Context, w *watch, at []working[T], fetch bool) {
	if len(at) > 0 {
		var names []string
		for i := range min(len(at), maxNamed) {
			names = append(names, cutText(at[i].text(w.name)))
		}
		attrs := []any{"workers", len(at), "records", strings.Join(names, ", ")}
		if more := len(at) - len(names); more > 0 {
			attrs = append(attrs, "more", more)
		}
		w.log.say(ctx, slog.LevelWarn, "courier: the drain timeout has passed, and records are still in work; their contexts are cancelled, and Start returns once their calls have", attrs...)
	}
	if fetch {
		w.log.say(ctx, slog.LevelWarn, "courier: the drain timeout has passed, and the source has not answered a fetch whose context was cancelled; Start returns once it has")
	}
}

// drainOver looks at what the workers are at, and returns what tells of it. It is
// called by the lifecycle's goroutine, as the poller's own may be a worker.
func (p *poller[T]) drainOver() (tell func()) {
	at, _ := p.working()
	fetch := p.watch.fetches()
	return func() { tellDrainOver(p.life.settle, p.watch, at, fetch) }
}

func (s *stream[T]) drainOver() (tell func()) {
	at, _ := s.working()
	fetch := s.fetching.Load()
	return func() { tellDrainOver(s.life.settle, s.watch, at, fetch) }
}
