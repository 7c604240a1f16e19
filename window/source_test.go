package window_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
	"github.com/erfanmomeniii/courier/sim"
	"github.com/erfanmomeniii/courier/window"
)

// api returns items in pages of three. The token of a page is how many items come before
// it, as a text; "" is the first page.
type api struct{ items int }

const pageSize = 3

func (a *api) page(token string) (items []int, next string) {
	from, _ := strconv.Atoi(token)
	to := min(from+pageSize, a.items)
	for item := from; item < to; item++ {
		items = append(items, item)
	}
	return items, strconv.Itoa(to)
}

// store keeps the token of a page.
type store struct {
	token string
	full  bool
}

func (s *store) save(token string) error {
	if s.full {
		return errors.New("the disk is full")
	}
	s.token = token
	return nil
}

// feed is a source for a polling coordinator. It reads the pages of an API, and saves the
// token of the page from which to read on after a restart.
type feed struct {
	api     *api
	save    func(ctx context.Context, token string) error
	saved   string // the last token that was saved
	next    string // of the page to read next
	window  *window.Window[string]
	tickets map[int]window.Ticket // of the items that are pending
	pending []int                 // read and not marked
}

func openFeed(api *api, token string, save func(ctx context.Context, token string) error) *feed {
	return &feed{api: api, save: save, saved: token, next: token, window: window.New(token), tickets: map[int]window.Ticket{}}
}

// Fetch returns the items that are pending, and reads more pages if these are too few.
func (f *feed) Fetch(_ context.Context, limit int) ([]int, error) {
	const mostAhead = 1000 // what is settled of these comes again after a crash
	for len(f.pending) < limit && f.window.Len() < mostAhead {
		items, next := f.api.page(f.next)
		if len(items) == 0 {
			break
		}
		for i, item := range items {
			at := f.next // until the last item of the page is settled
			if i == len(items)-1 {
				at = next
			}
			f.tickets[item] = f.window.Add(at)
		}
		f.pending, f.next = append(f.pending, items...), next
	}
	return slices.Clone(f.pending[:min(limit, len(f.pending))]), nil
}

// Mark saves the position if it is another than the one saved last. Whether this call has
// moved it does not matter: Mark is called again if the save fails.
func (f *feed) Mark(ctx context.Context, items []int) error {
	for _, item := range items {
		if ticket, pending := f.tickets[item]; pending {
			f.window.Settle(ticket)
		}
	}
	if at := f.window.Position(); at != f.saved {
		if err := f.save(ctx, at); err != nil {
			return err
		}
		f.saved = at
	}
	for _, item := range items {
		delete(f.tickets, item)
	}
	f.pending = slices.DeleteFunc(f.pending, func(item int) bool { return slices.Contains(items, item) })
	return nil
}

// openFixture makes a feed for each check. FailMarks makes the store fail, inside Mark.
func openFixture(*testing.T) courierttest.SourceFixture[int] {
	api, store := new(api), new(store)
	open := func() courier.Source[int] {
		return openFeed(api, store.token, func(_ context.Context, token string) error { return store.save(token) })
	}
	return courierttest.SourceFixture[int]{
		Source: open(),
		Reopen: open,
		Add: func(n int) (names []string) {
			for range n {
				names = append(names, strconv.Itoa(api.items))
				api.items++
			}
			return names
		},
		FailMarks: func(int) (heal func()) {
			store.full = true
			return func() { store.full = false }
		},
	}
}

func TestFeed(t *testing.T) {
	courierttest.TestSource(t, openFixture, courierttest.SourceFeatures{Ordered: true, Position: true, Page: pageSize})
}

// The simulation has faults inside the source, around its store, and around the source.
func TestFeed_Simulated(t *testing.T) {
	sim.Check(t, sim.Options{Sometimes: []string{"call: error", "call: lost", "crash"}}, func(w *sim.World) {
		api, store := &api{items: 20}, new(store) // live through crashes of the process
		shipped := map[int]bool{}
		w.Run(func(ctx context.Context) error {
			feed := openFeed(api, store.token, func(ctx context.Context, token string) error {
				return w.Call(ctx, "save", func() error { return store.save(token) })
			})
			ship := courier.ProcessFunc(sim.WrapProcess(w, func(_ context.Context, item int) error {
				shipped[item] = true
				return nil
			}))
			return courier.NewPollingCoordinator(sim.WrapSource(w, feed), ship, w.Options(ctx)...).Start(ctx)
		})
		w.Always(func() error {
			saved, _ := strconv.Atoi(store.token)
			for item := range saved {
				if !shipped[item] {
					return fmt.Errorf("item %d comes before the token that is saved, and was not shipped", item)
				}
			}
			return nil
		})
		w.Eventually("the position is stored", func() bool { return store.token == "20" })
	})
}
