package dlqtest

import (
	"iter"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

// Check runs random calls against queues that open makes.
func Check[T any](t *testing.T, open func(t *rapid.T) Queue[T]) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine[T]{model: model[T]{Queue: open(t), t: t, places: map[string]int{}, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}}
		m.breaker = newBreaker(&m.now)
		defer m.endWalk()
		t.Repeat(map[string]func(*rapid.T){
			"park":    m.park,
			"fill":    m.fill,
			"list":    m.list,
			"update":  m.update,
			"delete":  m.delete,
			"walk":    m.walk,
			"redrive": m.redrive,
			"":        func(t *rapid.T) { m.check(t.Context()) },
		})
	})
}

// machine is a model and what is done with it.
type machine[T any] struct {
	model[T]
	next func() (courier.DeadLetter[T], error, bool) // of the walk; nil without one
	stop func()
	met  int // the place of the last letter met in the walk

	breaker *courier.Breaker // of the redrives that have one
}

func anyName(t *rapid.T) int      { return rapid.IntRange(0, 9).Draw(t, "name") }
func anyKey(t *rapid.T) string    { return rapid.SampledFrom(keys).Draw(t, "key") }
func anyBranch(t *rapid.T) string { return rapid.SampledFrom(branches).Draw(t, "branch") }

func anyReason(t *rapid.T) courier.Reason {
	return rapid.SampledFrom([]courier.Reason{courier.ReasonExhausted, courier.ReasonPermanent, courier.ReasonKeyParked}).Draw(t, "reason")
}

func (m *machine[T]) park(t *rapid.T) {
	_ = m.Send(t.Context(), m.newLetter(anyName(t), anyBranch(t), anyKey(t), anyReason(t)))
}

// fill is for redrives of several pages, and for walks of more than one.
func (m *machine[T]) fill(t *rapid.T) {
	if len(m.letters) > 20 {
		t.Skip("there is enough")
	}
	for i := range rapid.SampledFrom([]int{3, 10, 120}).Draw(t, "n") {
		_ = m.Send(t.Context(), m.newLetter(10+len(m.names), branches[i%len(branches)], keys[i%len(keys)], courier.ReasonExhausted))
	}
}

// anyID is that of a letter, one out of date, or none.
func (m *machine[T]) anyID(t *rapid.T) string {
	if len(m.letters) > 0 && rapid.IntRange(0, 2).Draw(t, "current") > 0 {
		return rapid.SampledFrom(m.letters).Draw(t, "of").ID
	}
	if place := rapid.IntRange(0, m.last).Draw(t, "place"); place > 0 {
		var given []string
		for id, p := range m.places {
			if p == place {
				given = append(given, id)
			}
		}
		if len(given) > 0 {
			return rapid.SampledFrom(slices.Sorted(slices.Values(given))).Draw(t, "ID")
		}
	}
	return rapid.SampledFrom([]string{"x", "1", "1.", ".1", "0.0", "1.0", "-1.1", "1.1 "}).Draw(t, "no ID")
}

func (m *machine[T]) list(t *rapid.T) {
	after := m.anyID(t)
	if _, given := m.places[after]; !given {
		after = ""
	}
	_, _ = m.List(t.Context(), after, rapid.IntRange(-1, 5).Draw(t, "max"))
}

func (m *machine[T]) update(t *rapid.T) {
	changed := m.newLetter(anyName(t), anyBranch(t), anyKey(t), anyReason(t))
	changed.ID = m.anyID(t)
	_ = m.Update(t.Context(), changed)
}

func (m *machine[T]) delete(t *rapid.T) {
	var ids []string
	for range rapid.IntRange(0, 3).Draw(t, "n") {
		ids = append(ids, m.anyID(t))
	}
	if rapid.IntRange(0, 4).Draw(t, "most") == 0 {
		for i, l := range m.letters {
			if i%5 > 0 {
				ids = append(ids, l.ID)
			}
		}
	}
	_ = m.Delete(t.Context(), ids...)
}

// walk goes on in a walk through the letters, or begins one.
func (m *machine[T]) walk(t *rapid.T) {
	if m.next == nil {
		m.next, m.stop = iter.Pull2(courier.Letters[T](t.Context(), &m.model))
		m.met = 0
	}
	for range rapid.IntRange(1, 150).Draw(t, "n") {
		l, err, more := m.next()
		if !more {
			m.endWalk()
			if n := len(m.letters); n > 0 && m.letters[n-1].place > m.met {
				t.Errorf("a walk ended at place %d, and there are letters up to place %d", m.met, m.letters[n-1].place)
			}
			return
		}
		place := m.places[l.ID]
		if err != nil || place <= m.met {
			t.Errorf("a walk met the letter %s at place %d behind place %d, error %v", l.ID, place, m.met, err)
		}
		m.passed(t, place)
		m.met = place
	}
}

// passed checks that no letter was left out before a place: one that is there
// now, and comes in behind, was there when the page was read.
func (m *machine[T]) passed(t *rapid.T, place int) {
	for _, l := range m.letters {
		if l.place > m.met && l.place < place {
			t.Errorf("a walk left out the letter %s at place %d", l.ID, l.place)
		}
	}
}

func (m *machine[T]) endWalk() {
	if m.stop != nil {
		m.stop()
	}
	m.next, m.stop = nil, nil
}
