package courierttest

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/window"
)

// positionLog is a log whose readers commit a position.
type positionLog struct {
	mu                sync.Mutex
	length, committed int
	grown             chan struct{} // closed when it has
}

// positionSource reads a log from the committed position on.
type positionSource struct {
	log     *positionLog
	next    int
	window  *window.Window[int]
	tickets map[int]window.Ticket // of records in hand
	commit  func(log *positionLog, w *window.Window[int], marked []int)
}

func (l *positionLog) open() *positionSource {
	return &positionSource{log: l, next: l.committed, window: window.New(l.committed), tickets: make(map[int]window.Ticket),
		commit: func(l *positionLog, w *window.Window[int], _ []int) { l.committed = w.Position() }}
}

func (s *positionSource) Fetch(ctx context.Context, limit int) (records []int, err error) {
	for ctx.Err() == nil {
		s.log.mu.Lock()
		for len(records) < limit && s.next < s.log.length {
			s.tickets[s.next] = s.window.Add(s.next + 1)
			records = append(records, s.next)
			s.next++
		}
		grown := s.log.grown
		s.log.mu.Unlock()
		if len(records) > 0 {
			return records, nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
		}
	}
	return nil, context.Cause(ctx)
}

func (s *positionSource) Mark(ctx context.Context, records []int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	for _, r := range records {
		if ticket, inHand := s.tickets[r]; inHand {
			s.window.Settle(ticket)
			delete(s.tickets, r)
		}
	}
	s.commit(s.log, s.window, records)
	return nil
}

// openPosition opens a source, the commits of which may be others.
func openPosition(commit func(*positionLog, *window.Window[int], []int)) SourceFixture[int] {
	log := &positionLog{grown: make(chan struct{})}
	open := func() courier.Source[int] {
		log.mu.Lock()
		defer log.mu.Unlock()
		s := log.open()
		if commit != nil {
			s.commit = commit
		}
		return s
	}
	return SourceFixture[int]{Source: open(), Reopen: open, Name: numberName, Add: func(n int) (names []string) {
		log.mu.Lock()
		defer log.mu.Unlock()
		for range n {
			names = append(names, numberName(log.length))
			log.length++
		}
		close(log.grown)
		log.grown = make(chan struct{})
		return names
	}}
}

var positionFeatures = SourceFeatures{Bubble: true, Ordered: true, Position: true}

func TestStreamSource_OfAPosition(t *testing.T) {
	TestStreamSource(t, func(*testing.T) SourceFixture[int] { return openPosition(nil) }, positionFeatures)
}

func TestBrokenPositions(t *testing.T) {
	var table []broken[sourceRun[int]]
	for name, commit := range map[string]func(*positionLog, *window.Window[int], []int){
		"beyond what is not settled": func(l *positionLog, _ *window.Window[int], marked []int) {
			for _, r := range marked {
				l.committed = max(l.committed, r+1)
			}
		},
		"not at all": func(*positionLog, *window.Window[int], []int) {},
		"one too few": func(l *positionLog, w *window.Window[int], _ []int) {
			l.committed = max(0, w.Position()-1)
		},
	} {
		table = append(table, broken[sourceRun[int]]{name, "is durable", func(t *testing.T, tb TB) *sourceRun[int] {
			return newSourceRun(tb, openPosition(commit), positionFeatures, true)
		}})
	}
	durable := slices.DeleteFunc(sourceChecks[int](positionFeatures, true), func(c check[sourceRun[int]]) bool { return c.name != "is durable" })
	testBroken(t, durable, table)
}
