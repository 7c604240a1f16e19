package courier_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// A coordinator against a model: whatever its source, its destination and its
// owner do, at whatever moment, no call breaks the contract, and once nothing has
// happened for a while, nothing is left that could be done (D1, D2, D4, D7, D10).
func TestD10_CoordinatorsAgainstAModel(t *testing.T) {
	for name, streaming := range map[string]bool{"polling": false, "streaming": true} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				rapid.SyncTest(t, func(t *rapid.T) { newModelled(t, streaming).run(t) })
			})
		})
	}
}

// modelled is a coordinator and what happens to it.
type modelled struct {
	streaming bool
	keys      int // 0 asks for no order
	batch     int

	records courierttest.Recorder[int]
	shop    *courierttest.Applier[int]
	fetches *courierttest.Injector
	marks   *courierttest.Injector
	add     func(...int)
	pending func() []int

	disconnect func() // has the source take back what was not marked at the end
	running
	stop func() error // nil while it does not run

	added                         int
	bad                           map[int]courierttest.Effect
	paused, fetchFails, markFails bool

	read            int // events of the record so far
	fetched, marked int
	applied, failed int
	markFailed      bool         // the last one
	held            map[int]bool // applied in this run and not marked
	done            map[int]bool // applied, skipped or marked ever
}

func newModelled(t *rapid.T, streaming bool) *modelled {
	m := &modelled{streaming: streaming, bad: map[int]courierttest.Effect{}, held: map[int]bool{}, done: map[int]bool{}}
	m.batch = rapid.IntRange(1, 5).Draw(t, "batch")
	m.keys = rapid.IntRange(0, 3).Draw(t, "keys")
	workers := rapid.IntRange(1, 3).Draw(t, "workers")
	m.shop = m.records.Applier(nil)
	opts := []courier.Option{quiet, unspread, courier.WithBatchSize(m.batch)}
	if m.keys > 0 {
		opts = append(opts, courier.WithOrderKey(byRest(m.keys)))
	}
	if streaming {
		source := m.records.StreamSource()
		m.fetches, m.marks, m.add, m.pending = &source.FetchFaults, &source.MarkFaults, source.Add, source.Pending
		m.disconnect = func() { _ = source.Release(context.Background(), source.InHand(), 0) }
		m.running = courier.NewStreamingCoordinator(source, m.shop, append(opts, courier.WithStreamWorkers(workers))...)
	} else {
		source := m.records.Source()
		m.fetches, m.marks, m.add, m.pending = &source.FetchFaults, &source.MarkFaults, source.Add, source.Pending
		m.disconnect = func() {} // it hands out again what is not marked
		m.running = courier.NewPollingCoordinator(source, m.shop, append(opts, courier.WithWorkers(workers), courier.WithInterval(time.Minute))...)
	}
	m.setFaults()
	return m
}

// setFaults has the world behave as the model says. Every apply takes a second.
func (m *modelled) setFaults() {
	faults := courierttest.Faults{{Effect: courierttest.Delay(time.Second)}}
	for r, effect := range m.bad {
		faults = append(faults, courierttest.Fault{Effect: effect, When: courierttest.OnRecord(strconv.Itoa(r))})
	}
	m.shop.Faults.Set(faults...)
	failing := func(i *courierttest.Injector, on bool) {
		i.Set()
		if on {
			i.Set(courierttest.Fault{Effect: courierttest.Error})
		}
	}
	failing(m.fetches, m.fetchFails)
	failing(m.marks, m.markFails)
}

func (m *modelled) run(t *rapid.T) {
	defer func() {
		if m.stop != nil {
			_ = m.stop()
		}
	}()
	t.Repeat(map[string]func(*rapid.T){
		"add": func(t *rapid.T) {
			for range rapid.IntRange(1, 8).Draw(t, "records") {
				m.add(m.added)
				m.added++
			}
		},
		"a record turns bad": func(t *rapid.T) {
			if m.added == 0 {
				t.Skip("there is none")
			}
			r := rapid.IntRange(0, m.added-1).Draw(t, "record")
			m.bad[r] = rapid.SampledFrom([]courierttest.Effect{courierttest.Error, courierttest.Permanent, courierttest.Panic, courierttest.Goexit, courierttest.RetryAfter(time.Minute)}).Draw(t, "effect")
			m.setFaults()
		},
		"all are good": func(*rapid.T) {
			clear(m.bad)
			m.setFaults()
		},
		"fetches fail or work": func(*rapid.T) {
			m.fetchFails = !m.fetchFails
			m.setFaults()
		},
		"marks fail or work": func(*rapid.T) {
			m.markFails = !m.markFails
			m.setFaults()
		},
		"pause or resume": func(*rapid.T) {
			if m.paused = !m.paused; m.paused {
				m.Pause()
			} else {
				m.Resume()
			}
		},
		"start or stop": func(t *rapid.T) {
			if m.stop == nil {
				m.stop = start(t, m.running)
				return
			}
			err := m.stop()
			m.stop = nil
			m.readEvents(t)
			if unmarked := errors.Is(err, courier.ErrMark); unmarked != (len(m.held) > 0) || !unmarked && err != nil {
				t.Fatalf("Start returned %v, and %v are applied and not marked", err, m.held)
			}
			clear(m.held) // another run may apply them again
			m.disconnect()
		},
		"wake":      func(*rapid.T) { m.Wake() },
		"time goes": func(t *rapid.T) { time.Sleep(time.Duration(rapid.IntRange(1, 5000).Draw(t, "ms")) * time.Millisecond) },
		"quiet":     m.quiet,
		"":          m.readEvents,
	})
}

// readEvents looks at what has happened since.
func (m *modelled) readEvents(t *rapid.T) {
	events := m.records.Events()
	for _, e := range events[m.read:] {
		r := e.Record
		switch e.Kind {
		case courierttest.Fetched:
			m.fetched++
			if len(m.held) > 0 && !m.streaming { // D7
				t.Fatalf("record %d was fetched, and %v are applied and not marked", r, m.held)
			}
		case courierttest.Applied:
			m.applied++
			if m.held[r] { // D7
				t.Fatalf("record %d was applied again in the same run", r)
			}
			for before := r - m.keys; m.keys > 0 && before >= 0; before -= m.keys { // D4
				if !m.done[before] {
					t.Fatalf("record %d was applied, and record %d of its key is not done", r, before)
				}
			}
			m.held[r], m.done[r] = true, true
		case courierttest.Failed:
			m.failed++
		case courierttest.Marked, courierttest.MarkFailed:
			if !m.held[r] { // D2
				t.Fatalf("record %d is to be marked, and was not applied", r)
			}
			m.markFailed = e.Kind == courierttest.MarkFailed
			if !m.markFailed {
				m.marked++
				delete(m.held, r)
			}
		}
	}
	m.read = len(events)
}

// quiet waits until all that can be done is done.
func (m *modelled) quiet(t *rapid.T) {
	time.Sleep(2 * time.Hour)
	m.readEvents(t)
	before := m.fetches.Calls()
	time.Sleep(time.Hour)
	m.readEvents(t)
	running := m.stop != nil
	if n := m.fetches.Calls() - before; n > 0 && (m.paused || !running || len(m.held) > 0 && !m.streaming) { // D6, D7
		t.Fatalf("%d fetches, while paused is %v, running is %v and %v are applied and not marked", n, m.paused, running, m.held)
	}
	if len(m.held) > 0 && !m.markFails {
		t.Fatalf("%v are applied and not marked, and marks work", m.held)
	}
	if todo := m.todo(); len(todo) > 0 && running && !m.paused && !m.fetchFails && !m.markFails { // D10
		t.Fatalf("nothing keeps %v of %v from being applied", todo, m.pending())
	}
	m.checkState(t, running)
}

// todo returns the pending records that could be applied now.
func (m *modelled) todo() (todo []int) {
	pending := m.pending()
	switch {
	case !m.streaming: // it gets the oldest, over and over
		pending = pending[:min(m.batch, len(pending))]
	case m.keys > 0: // it keeps what failed, and what is behind it
		pending = pending[:min(2*m.batch, len(pending))]
	}
	behind := map[int]bool{}
	for _, r := range pending {
		key := -1 - r
		if m.keys > 0 {
			key = r % m.keys
		}
		if m.bad[r] != "" {
			behind[key] = true
		}
		if !behind[key] {
			todo = append(todo, r)
		}
	}
	return todo
}

// checkState compares what the coordinator says of itself.
func (m *modelled) checkState(t *rapid.T, running bool) {
	err := m.Ready()
	switch {
	case !running:
		if !errors.Is(err, courier.ErrNotRunning) {
			t.Fatalf("it does not run, and Ready returns %v", err)
		}
	case m.paused:
		if !errors.Is(err, courier.ErrPaused) {
			t.Fatalf("it is paused, and Ready returns %v", err)
		}
	case !m.markFailed && m.streaming: // the last fetch to return may be one of long ago
	case m.markFailed || m.fetchFails:
		if err == nil {
			t.Fatalf("the last mark failed is %v, fetches fail is %v, and Ready returns nil", m.markFailed, m.fetchFails)
		}
	case err != nil:
		t.Fatalf("nothing stands in its way, and Ready returns %v", err)
	}
	if !m.paused { // to count nothing in the middle of a batch
		m.Pause()
		defer m.Resume()
		time.Sleep(time.Minute)
		m.readEvents(t)
	}
	s := m.Stats()
	if m.streaming { // it goes on with what is in hand, and counts by the share
		s.Failed = int64(m.failed)
	}
	said := fmt.Sprintf("%d fetched, %d applied, %d failed, %d marked", s.Fetched, s.Applied, s.Failed, s.Marked)
	if want := fmt.Sprintf("%d fetched, %d applied, %d failed, %d marked", m.fetched, m.applied, m.failed, m.marked); said != want && len(m.held) == 0 {
		t.Fatalf("the stats say %s, want %s", said, want)
	}
	if idle := !running || !m.streaming && len(m.held) == 0; idle && s.InHand != 0 {
		t.Fatalf("%d records are in hand by the stats, and running is %v", s.InHand, running)
	}
}
