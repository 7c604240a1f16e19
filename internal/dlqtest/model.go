// Package dlqtest runs random calls against a dead letter queue and a list of
// letters, which do what courier.DLQ and courier.Redrive promise.
package dlqtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

// Queue is a queue under test, which is empty and a courier.KeyedDLQ.
type Queue[T any] struct {
	DLQ courier.DLQ[T]

	// Capacity is how many letters it takes; 0 is no bound.
	Capacity int

	// Identity is that it keeps one letter of each branch and name.
	Identity bool

	// Record returns a record by its name and a number of its own, Number that
	// number again.
	Record func(name, number int) T
	Number func(record T) int
}

// model is a queue that compares each answer with that of a list. It is a
// courier.DLQ itself, so that what walks through a queue can be given it.
type model[T any] struct {
	Queue[T]
	t       *rapid.T
	letters []*letter[T]
	places  map[string]int // of every ID that was ever given
	last    int            // place that was given
	names   []int          // by the number of a record
	now     time.Time
}

// letter is as it should be. Its ID is "" until it is read.
type letter[T any] struct {
	courier.DeadLetter[T]
	place, name int
}

// The branches that share the queue, and the keys of their records: put together
// without a mark between them, some are the same.
var (
	branches = []string{"", "a", "ab"}
	keys     = []string{"", "a", "b", "ba"}
)

// line is what a letter waits in: those of a key wait for each other, and not for
// those of another branch.
type line struct{ branch, key string }

func lineOf[T any](l courier.DeadLetter[T]) line { return line{l.Branch, l.Key} }

// newLetter returns one that differs from all before it.
func (m *model[T]) newLetter(name int, branch, key string, reason courier.Reason) courier.DeadLetter[T] {
	m.names = append(m.names, name)
	n := len(m.names)
	m.now = m.now.Add(time.Second)
	return courier.DeadLetter[T]{
		ID: "of the caller", Record: m.Record(name, n-1), Key: key, Error: fmt.Errorf("error %d", n), Reason: reason, Attempts: n,
		FirstFailedAt: m.now.Add(-time.Minute), FailedAt: m.now, Branch: branch, FailedRedrives: n % 5,
	}
}

func (m *model[T]) byID(id string) int {
	return slices.IndexFunc(m.letters, func(l *letter[T]) bool { return l.ID != "" && l.ID == id })
}

func (m *model[T]) Send(ctx context.Context, sent courier.DeadLetter[T]) error {
	err := m.DLQ.Send(ctx, sent)
	name := m.names[m.Number(sent.Record)]
	i := slices.IndexFunc(m.letters, func(l *letter[T]) bool { return m.Identity && l.name == name && l.Branch == sent.Branch })
	sent.ID = ""
	var want error
	switch {
	case i >= 0 && sent.Reason == courier.ReasonKeyParked:
	case i >= 0:
		old := m.letters[i]
		sent.FirstFailedAt, sent.FailedRedrives = old.FirstFailedAt, max(old.FailedRedrives, sent.FailedRedrives)
		old.DeadLetter = sent
	case m.Capacity > 0 && len(m.letters) >= m.Capacity:
		want = courier.ErrDLQFull
	default:
		m.last++
		m.letters = append(m.letters, &letter[T]{DeadLetter: sent, place: m.last, name: name})
	}
	if !errors.Is(err, want) {
		m.t.Errorf("Send to a queue of %d, with a capacity of %d, returned %v, want %v", len(m.letters), m.Capacity, err, want)
	}
	return err
}

func (m *model[T]) Receive(ctx context.Context, most int) ([]courier.DeadLetter[T], error) {
	got, err := m.DLQ.Receive(ctx, most)
	return m.compare(got, err, 0, most)
}

func (m *model[T]) List(ctx context.Context, after string, most int) ([]courier.DeadLetter[T], error) {
	got, err := m.DLQ.List(ctx, after, most)
	return m.compare(got, err, m.places[after], most)
}

// compare checks a page.
func (m *model[T]) compare(got []courier.DeadLetter[T], err error, after, most int) ([]courier.DeadLetter[T], error) {
	var want []*letter[T]
	for _, l := range m.letters {
		if l.place > after && len(want) < most {
			want = append(want, l)
		}
	}
	if err != nil || len(got) != len(want) {
		m.t.Errorf("up to %d letters behind place %d are %d, error %v; want %d", most, after, len(got), err, len(want))
		return got, err
	}
	for i, g := range got {
		w := want[i]
		_, known := m.places[g.ID]
		switch {
		case w.ID == "" && known:
			m.t.Errorf("the letter at place %d has the ID %s, which was given before", w.place, g.ID)
		case w.ID != "" && w.ID != g.ID:
			m.t.Errorf("the letter at place %d has the ID %s, want %s", w.place, g.ID, w.ID)
		}
		w.ID = g.ID
		m.places[g.ID] = w.place
		if g, w := m.text(g), m.text(w.DeadLetter); g != w {
			m.t.Errorf("a letter is\n%s, want\n%s", g, w)
		}
	}
	return got, err
}

// text is all that is to be kept of a letter.
func (m *model[T]) text(l courier.DeadLetter[T]) string {
	return fmt.Sprintf("%s: record %d, key %q, error %v, %s, %d attempts, failed %v to %v, %s, redriven %d",
		l.ID, m.Number(l.Record), l.Key, l.Error, l.Reason, l.Attempts, l.FirstFailedAt.UTC(), l.FailedAt.UTC(), l.Branch, l.FailedRedrives)
}

func (m *model[T]) Update(ctx context.Context, changed courier.DeadLetter[T]) error {
	if err := m.DLQ.Update(ctx, changed); err != nil {
		m.t.Errorf("Update returned %v", err)
	}
	if i := m.byID(changed.ID); i >= 0 {
		changed.ID, changed.Record, changed.Branch = "", m.letters[i].Record, m.letters[i].Branch
		m.letters[i].DeadLetter = changed
	}
	return nil
}

func (m *model[T]) Delete(ctx context.Context, ids ...string) error {
	if err := m.DLQ.Delete(ctx, ids...); err != nil {
		m.t.Errorf("Delete returned %v", err)
	}
	for _, id := range ids {
		if i := m.byID(id); i >= 0 {
			m.letters = slices.Delete(m.letters, i, i+1)
		}
	}
	return nil
}

func (m *model[T]) Count(ctx context.Context) (int, error) {
	n, err := m.DLQ.Count(ctx)
	if err != nil || n != len(m.letters) {
		m.t.Errorf("Count returned %d, %v, want %d", n, err, len(m.letters))
	}
	return n, err
}

// check compares all that there is.
func (m *model[T]) check(ctx context.Context) {
	_, _ = m.Receive(ctx, len(m.letters)+1)
	_, _ = m.Count(ctx)
	for _, branch := range branches {
		parked, err := m.DLQ.(courier.KeyedDLQ).ParkedKeys(ctx, branch, keys[1:])
		for _, key := range keys[1:] {
			want := slices.ContainsFunc(m.letters, func(l *letter[T]) bool { return lineOf(l.DeadLetter) == line{branch, key} })
			if err != nil || slices.Contains(parked, key) != want {
				m.t.Errorf("the parked keys of the branch %q are %q, error %v; %q is one: %v", branch, parked, err, key, want)
			}
		}
	}
}
