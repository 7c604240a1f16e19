package crash

import (
	"bufio"
	"cmp"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stream is the destination, in the parent, which nobody kills. It knows what
// was delivered, and what each relay has in hand.
type stream struct {
	listener net.Listener
	group    sync.WaitGroup

	mu       sync.Mutex
	hands    map[string]*hand
	dead     map[string]bool   // who was killed
	orders   map[string]*order // by ID: those of this round, and in former of the one before
	former   map[string]*order
	total    int
	repeated int
	last     string         // the relay that delivered last
	keys     map[string]int // the highest number of a key that was delivered
	faults   []string       // what must not be
	ordered  bool
	struck   int                  // rows that were in a hand when it was disturbed
	strike   chan string          // is sent who parks next, if that is asked for
	blows    []string             // that fell, and on whom
	marks    []settled            // of late
	owed     map[string]time.Time // committed when, and not delivered or parked
	still    standstill
}

// order is all that is known of a message.
type order struct {
	deliveries int
	tries      int // at a broker
	excused    int // how often it was in a hand that was disturbed
	parked     bool
	committing time.Time // zero if it was not
	acked      time.Time // as committed
	history    []string
}

type settled struct {
	id string
	at time.Time
}

// hand is what a relay has fetched and not settled.
type hand struct {
	rows      map[string]bool
	disturbed time.Time // what it fetches until then is excused too
	gone      chan struct{}
	red       time.Time // when its Ready was last not nil, or it began
	why       string    // it is not; empty if it is
}

func newStream(t *testing.T, ordered bool) *stream {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "stream"))
	require.NoError(t, err)
	s := &stream{listener: listener, ordered: ordered, hands: map[string]*hand{}, dead: map[string]bool{},
		orders: map[string]*order{}, keys: map[string]int{}, owed: map[string]time.Time{}}
	s.group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.group.Go(func() { s.serve(conn) })
		}
	})
	return s
}

func (s *stream) close() {
	_ = s.listener.Close()
	s.group.Wait()
}

func (s *stream) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	lines := bufio.NewScanner(conn)
	var name string
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if words[0] == "name" {
			name = words[1]
			s.mu.Lock()
			s.hands[name] = &hand{rows: map[string]bool{}, gone: make(chan struct{}), red: time.Now()}
			s.mu.Unlock()
			continue
		}
		s.note(name, words[0], words[1:])
		if words[0] == "parked" && s.strikes(name) {
			continue // it will not live to hear the answer
		}
		if words[0] == "deliver" || words[0] == "parked" {
			if _, err := conn.Write([]byte("ok\n")); err != nil {
				break
			}
		}
	}
	if name != "" {
		s.end(name)
	}
}

func (s *stream) end(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hands[name]
	if !s.dead[name] {
		s.faults = append(s.faults, name+" ended by itself")
	}
	close(h.gone)
}

func (s *stream) hand(name string) *hand {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hands[name]
}

func (s *stream) note(name, what string, ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hands[name]
	if what == "ready" {
		if h.why = strings.Join(ids, " "); h.why != "" {
			h.red = time.Now()
		}
		return
	}
	for _, id := range ids {
		o := s.order(id)
		o.history = append(o.history, fmt.Sprint(stamp(), " ", name, " ", what))
		switch what {
		case "fetched":
			h.rows[id] = true
			if time.Now().Before(h.disturbed) {
				o.excused++
			}
		case "trying":
			o.tries++
		case "deliver":
			s.deliver(id, o)
			s.last = name
		case "parked":
			o.parked = true
			s.settle(id)
		case "marked":
			delete(h.rows, id)
			s.marks = append(s.marks, settled{id, time.Now()})
		default:
			delete(h.rows, id)
		}
	}
}

func (s *stream) order(id string) *order {
	if o := s.former[id]; o != nil {
		return o
	}
	o := s.orders[id]
	if o == nil {
		o = new(order)
		s.orders[id] = o
	}
	return o
}

func (s *stream) deliver(id string, o *order) {
	s.total++
	o.deliveries++
	s.settle(id)
	if n := o.deliveries; n > 1 {
		s.repeated++
		if n-1 > o.excused {
			s.faults = append(s.faults, fmt.Sprintf("%s was delivered %d times and was in a disturbed hand %d times: %v; the blows before: %v", id, n, o.excused, o.history, s.blows[max(0, len(s.blows)-5):]))
		}
		return
	}
	key, text, _ := strings.Cut(id, "/")
	var number int
	_, _ = fmt.Sscan(text, &number)
	// A leader that is cut off may deliver what it has in hand beside the next one.
	if s.ordered && number < s.keys[key] && o.excused == 0 {
		s.faults = append(s.faults, fmt.Sprintf("%s was delivered after %s/%d: %v", id, key, s.keys[key], o.history))
	}
	s.keys[key] = max(s.keys[key], number)
}

// disturb excuses what a relay has in hand from being delivered once only, and
// what it fetches in the next moment, or has fetched and not told of yet.
func (s *stream) disturb(name string) { s.disturbFor(name, 2*time.Second) }

func (s *stream) disturbFor(name string, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blows = append(s.blows, fmt.Sprint(stamp(), " ", name))
	h := s.hands[name]
	if h == nil {
		return
	}
	for id := range h.rows {
		s.order(id).excused++
	}
	s.struck += len(h.rows)
	h.disturbed = time.Now().Add(d)
}

// nextToPark is sent the name of the relay that parks next, which is left without
// an answer: its letter is stored, and its mark is not.
func (s *stream) nextToPark() <-chan string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strike = make(chan string, 1)
	return s.strike
}

func (s *stream) strikes(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.strike == nil {
		return false
	}
	s.strike <- name // there is room
	s.strike = nil
	return true
}

func stamp() string { return time.Now().Format("05.000") }

func (s *stream) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

func (s *stream) lastRelay() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// expectDeath is of a relay that is killed: others do not end.
func (s *stream) expectDeath(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead[name] = true
}

// committing is called before a commit whose outcome only the database may know.
func (s *stream) committing(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order(id).committing = time.Now()
}

// committed is called once a commit was acknowledged.
func (s *stream) committed(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.order(id)
	o.acked = time.Now()
	if o.deliveries > 0 || o.parked {
		return
	}
	if len(s.owed) == 0 {
		s.still.restart()
	}
	s.owed[id] = time.Now()
}

func (s *stream) settle(id string) {
	delete(s.owed, id)
	s.still.restart()
}

// parked notes that a message which is owed is parked.
func (s *stream) parked(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.owed[id].IsZero() {
		s.order(id).parked = true
		s.settle(id)
	}
}

func (s *stream) owes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.owed)
}

// unmark excuses what was marked since then: a promoted replica may miss its marks.
func (s *stream) unmark(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.marks {
		if !m.at.Before(since) {
			s.order(m.id).excused++
		}
	}
}

// compare says what is wrong about the copies of messages that a broker has.
func (s *stream) compare(copies map[string]int) (wrong []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, o := range s.orders {
		switch n := copies[id]; {
		case o.deliveries > 0 && n == 0:
			wrong = append(wrong, fmt.Sprintf("LOST: %s was delivered, and is not stored: %v", id, o.history))
		case n > o.tries:
			wrong = append(wrong, fmt.Sprintf("%s is stored %d times, and was tried %d times: %v", id, n, o.tries, o.history))
		}
	}
	for id := range copies {
		if s.orders[id] == nil && s.former[id] == nil {
			wrong = append(wrong, fmt.Sprintf("%s is stored, and nobody wrote it", id))
		}
	}
	return wrong
}

// forget begins another round, and tells of the one before.
func (s *stream) forget() (total, repeated int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	total, repeated = s.total, s.repeated
	s.former, s.orders, s.marks, s.total, s.repeated = s.orders, map[string]*order{}, nil, 0, 0
	return total, repeated
}

func (s *stream) faulty() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.faults)
}

// states tells what the Ready of each relay says.
func (s *stream) states() (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.hands)) {
		if !s.dead[name] {
			list = append(list, name+": "+cmp.Or(s.hands[name].why, "ready"))
		}
	}
	return list
}

// standstill is a time in which messages were owed and none was delivered or parked.
type standstill struct {
	since   time.Time
	told    bool
	longest time.Duration
	silent  time.Duration // the longest of a relay whose Ready was nil
}

func (s *standstill) restart() { s.since, s.told = time.Now(), false }

// allHands is more than the other relays of a group have in hand, and their sessions
// that the server has not missed yet.
const allHands = 10 * batchSize

// watch measures the standstill, and notes a fault when a relay that has its part in
// it has been ready for longer than a bound. In strict order that is the one relay that
// leads, whichever, and where the others may have all in hand it is one of them.
func (s *stream) watch(bound time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if len(s.owed) == 0 {
		s.still.restart()
		return
	}
	s.still.longest = max(s.still.longest, now.Sub(s.still.since))
	var silent time.Duration
	var who string
	first, one := true, s.ordered || len(s.owed) < allHands
	for name, h := range s.hands {
		if s.dead[name] {
			continue
		}
		d := min(now.Sub(h.red), now.Sub(s.still.since))
		if first || one == (d < silent) {
			silent, who, first = d, name, false
		}
	}
	s.still.silent = max(s.still.silent, silent)
	if silent > bound && !s.still.told {
		s.still.told = true
		s.faults = append(s.faults, fmt.Sprintf("%s: Ready of %s was nil for %v of a standstill with %d messages pending; the blows before: %v",
			stamp(), who, silent, len(s.owed), s.blows[max(0, len(s.blows)-5):]))
	}
}
