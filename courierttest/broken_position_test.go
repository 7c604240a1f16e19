package courierttest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/window"
)

// positionLog is a log whose readers commit a position: that of a page of so many records.
type positionLog struct {
	page              int
	mu                sync.Mutex
	length, committed int
	full              bool          // commits fail
	grown             chan struct{} // closed when it has
}

var errFull = errors.New("the disk is full")

func (l *positionLog) commit(at int) error {
	if l.full {
		return errFull
	}
	l.committed = at
	return nil
}

// positionSource reads a log from the committed position on.
type positionSource struct {
	log     *positionLog
	next    int
	most    int // records of a fetch
	saved   int // the position of the last commit
	window  *window.Window[int]
	tickets map[int]window.Ticket // of records in hand
	commit  func(s *positionSource, before int, marked []int) error
	returns func(s *positionSource, records []int) []int
}

func (l *positionLog) open() *positionSource {
	return &positionSource{
		log: l, most: 1000, next: l.committed, saved: l.committed, window: window.New(l.committed), tickets: make(map[int]window.Ticket),
		commit: func(s *positionSource, _ int, _ []int) error {
			at := s.window.Position()
			if at == s.saved {
				return nil
			}
			err := l.commit(at)
			if err == nil {
				s.saved = at
			}
			return err
		},
		returns: func(_ *positionSource, records []int) []int { return records },
	}
}

func (s *positionSource) Fetch(ctx context.Context, limit int) (records []int, err error) {
	for ctx.Err() == nil {
		s.log.mu.Lock()
		for len(records) < min(limit, s.most) && s.next < s.log.length {
			from := s.next + 1
			s.tickets[s.next] = s.window.Add(from - from%s.log.page)
			records = append(records, s.next)
			s.next = from
		}
		grown := s.log.grown
		s.log.mu.Unlock()
		if len(records) > 0 {
			return s.returns(s, records), nil
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
	before := s.window.Position()
	for _, r := range records {
		if ticket, inHand := s.tickets[r]; inHand {
			s.window.Settle(ticket)
			delete(s.tickets, r)
		}
	}
	return s.commit(s, before, records)
}

// openPosition opens a source, which may be changed, with pages of so many records.
func openPosition(page int, change func(*positionSource)) SourceFixture[int] {
	log := &positionLog{page: page, grown: make(chan struct{})}
	open := func() courier.Source[int] {
		log.mu.Lock()
		defer log.mu.Unlock()
		s := log.open()
		change(s)
		return s
	}
	full := func(full bool) {
		log.mu.Lock()
		defer log.mu.Unlock()
		log.full = full
	}
	return SourceFixture[int]{
		Source: open(), Reopen: open, Name: numberName,
		FailMarks: func(int) func() {
			full(true)
			return func() { full(false) }
		},
		Add: func(n int) (names []string) {
			log.mu.Lock()
			defer log.mu.Unlock()
			for range n {
				names = append(names, numberName(log.length))
				log.length++
			}
			close(log.grown)
			log.grown = make(chan struct{})
			return names
		},
	}
}

func positionFeatures(page int) SourceFeatures {
	return SourceFeatures{Bubble: true, Ordered: true, Position: true, Page: page}
}

// A source passes whose records of a page share a position, whatever the page's size.
// It may also return them one at a time.
func TestStreamSource_OfAPosition(t *testing.T) {
	for page, said := range map[int]int{1: 0, 2: 2, 3: 3, 4: 7, 150: 150} {
		for _, change := range []func(*positionSource){
			func(*positionSource) {},
			func(s *positionSource) { s.most = 1 },
		} {
			TestStreamSource(t, func(*testing.T) SourceFixture[int] { return openPosition(page, change) }, positionFeatures(said))
		}
	}
}

func TestBrokenPositions(t *testing.T) {
	commits := func(commit func(s *positionSource, before int, marked []int) error) func(*positionSource) {
		return func(s *positionSource) { s.commit = commit }
	}
	// returns changes what the source returns when it was opened again the second time.
	returns := func(change func(records []int) []int) func(*positionSource) {
		return func(s *positionSource) {
			if s.saved > 0 {
				s.returns = func(_ *positionSource, records []int) []int { return change(records) }
			}
		}
	}
	const page = 3 // five of nine records are settled, and the sixth is not
	for _, d := range []struct {
		defect, check string
		pages         []int
		change        func(*positionSource)
	}{
		{"commits beyond what is not settled", "is durable", []int{1, page}, commits(func(s *positionSource, _ int, marked []int) error {
			return s.log.commit(max(s.log.committed, slices.Max(marked)+1))
		})},
		{"commits the page after", "is durable", []int{page}, commits(func(s *positionSource, _ int, _ []int) error {
			return s.log.commit(s.window.Position() + page)
		})},
		{"commits nothing", "is durable", []int{1, page}, commits(func(*positionSource, int, []int) error { return nil })},
		{"commits one too few", "is durable", []int{1}, commits(func(s *positionSource, _ int, _ []int) error {
			return s.log.commit(max(0, s.window.Position()-1))
		})},
		{"commits the page before", "is durable", []int{page}, commits(func(s *positionSource, _ int, _ []int) error {
			return s.log.commit(max(0, s.window.Position()-page))
		})},
		{"leaves an unsettled record out", "is durable", []int{1, page}, returns(func(records []int) []int {
			return slices.DeleteFunc(records, func(r int) bool { return r == 4 || r == 2 })
		})},
		{"leaves out the last", "is durable", []int{1, page}, returns(func(records []int) []int { return records[:len(records)-1] })},
		{"another order", "is durable", []int{1, page}, returns(func(records []int) []int {
			slices.Reverse(records)
			return records
		})},
		{"commits only if a call moved the position", "keeps a mark that failed before", []int{1, page}, commits(func(s *positionSource, before int, _ []int) error {
			if at := s.window.Position(); at != before {
				return s.log.commit(at)
			}
			return nil
		})},
	} {
		for _, page := range d.pages {
			checks := slices.DeleteFunc(sourceChecks[int](positionFeatures(page), true), func(c check[sourceRun[int]]) bool { return c.name != d.check })
			testBroken(t, checks, []broken[sourceRun[int]]{{d.defect, d.check, func(t *testing.T, tb TB) *sourceRun[int] {
				return newSourceRun(tb, openPosition(page, d.change), positionFeatures(page), true)
			}}})
		}
	}
}

// A source with pages of which the features do not tell is told of them.
func TestStreamSource_APageThatIsNotSaid(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		reports := reportsOf(t, func(tb TB) {
			newSourceRun(tb, openPosition(3, func(*positionSource) {}), positionFeatures(0), true).isDurable()
		})
		require.Len(t, reports.failures, 1)
		require.Contains(t, reports.failures[0], "set SourceFeatures.Page")
	})
}
