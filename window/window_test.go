package window_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/window"
)

// model is a window by the definition: the whole log, and what of it is settled.
type model struct {
	from    int // the position that the window began with
	log     []read
	skipped map[int]int // by how many records were read: the position after a gap
}

// read is a record that was read, and the position after it.
type read struct {
	next    int
	settled bool
}

func (m *model) unsettled() int {
	return slices.IndexFunc(m.log, func(r read) bool { return !r.settled })
}

// position is that after the last record of those at the front that are settled, and the
// gap after it.
func (m *model) position() int {
	done := m.unsettled()
	if done < 0 {
		done = len(m.log)
	}
	if gap, ok := m.skipped[done]; ok {
		return gap
	}
	if done == 0 {
		return m.from
	}
	return m.log[done-1].next
}

func (m *model) len() int {
	if first := m.unsettled(); first >= 0 {
		return len(m.log) - first
	}
	return 0
}

func (m *model) pending() (n int) {
	for _, r := range m.log {
		if !r.settled {
			n++
		}
	}
	return n
}

// The window agrees with the definition after any records, gaps and settlements in any
// order, repeated and unknown ones among them.
func TestWindow_AgreesWithItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		end := rapid.IntRange(0, 50).Draw(t, "from")
		m := &model{from: end, skipped: make(map[int]int)}
		w := window.New(end)
		var tickets []window.Ticket
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				for range rapid.IntRange(1, 40).Draw(t, "records") {
					end += rapid.IntRange(1, 3).Draw(t, "offsets") // some are missing
					m.log = append(m.log, read{next: end})
					tickets = append(tickets, w.Add(end))
				}
			},
			"skip": func(t *rapid.T) {
				end += rapid.IntRange(1, 5).Draw(t, "offsets")
				m.skipped[len(m.log)] = end
				w.Skip(end)
			},
			"settle": func(t *rapid.T) {
				if len(tickets) == 0 {
					t.Skip("nothing was read")
				}
				for range rapid.IntRange(1, 40).Draw(t, "records") {
					i := rapid.IntRange(0, len(tickets)-1).Draw(t, "record")
					m.log[i].settled = true
					w.Settle(tickets[i])
				}
			},
			"settle the oldest": func(t *rapid.T) {
				for range rapid.IntRange(1, 200).Draw(t, "records") {
					i := m.unsettled()
					if i < 0 {
						return
					}
					m.log[i].settled = true
					w.Settle(tickets[i])
				}
			},
			"settle what was never read": func(t *rapid.T) {
				w.Settle(window.Ticket(len(tickets) + rapid.IntRange(0, 100).Draw(t, "beyond")))
			},
			"": func(t *rapid.T) {
				require.Equal(t, m.position(), w.Position())
				require.Equal(t, m.len(), w.Len())
				require.Equal(t, m.pending(), w.Pending())
				var beyond []int
				for i, r := range m.log {
					if first := m.unsettled(); first >= 0 && i > first && r.settled {
						next := r.next
						if gap, after := m.skipped[i+1]; after {
							next = gap
						}
						beyond = append(beyond, next)
					}
				}
				require.Equal(t, beyond, slices.Collect(w.Beyond()))
				oldest, ok := w.Oldest()
				require.Equal(t, m.unsettled() >= 0, ok)
				if ok {
					next := m.log[m.unsettled()].next
					if gap, after := m.skipped[m.unsettled()+1]; after {
						next = gap
					}
					require.Equal(t, next, oldest)
				}
			},
		})
	})
}

// A record that stays unsettled for long holds the position, and costs memory for what
// is after it alone; once it is settled, a long run costs none per record.
func TestWindow_ARunCostsNoMemoryPerRecord(t *testing.T) {
	w := window.New(0)
	held := w.Add(1)
	for n := 2; n <= 10_000; n++ {
		w.Settle(w.Add(n))
	}
	require.Zero(t, w.Position())
	require.Equal(t, 10_000, w.Len())
	require.Equal(t, 1, w.Pending())
	w.Settle(held)
	require.Equal(t, 10_000, w.Position())
	require.Zero(t, w.Len())

	n := 10_000
	var batch [100]window.Ticket
	run := func() {
		for i := range batch {
			n++
			batch[i] = w.Add(n)
		}
		rand.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		for _, t := range batch {
			w.Settle(t)
		}
	}
	for range 20 { // the memory of the long wait goes
		run()
	}
	require.Zero(t, testing.AllocsPerRun(100, run))
	require.Equal(t, n, w.Position())
}

// A window that shrinks keeps its records.
func TestWindow_KeepsWhatItHoldsAsItShrinks(t *testing.T) {
	for held := 1; held <= 2048; held *= 2 {
		w := window.New(0)
		tickets := make([]window.Ticket, 4000)
		for i := range tickets {
			tickets[i] = w.Add(i + 1)
		}
		done := len(tickets) - held
		for _, ticket := range tickets[:done] {
			w.Settle(ticket)
		}
		tickets = append(tickets, w.Add(len(tickets)+1))
		for i, ticket := range tickets[done:] {
			w.Settle(ticket)
			require.Equal(t, done+i+1, w.Position(), held)
		}
	}
}
