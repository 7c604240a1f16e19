package crash

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
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

	mu         sync.Mutex
	hands      map[string]*hand
	deliveries map[string]int // of an ID
	excused    map[string]int // how often an ID was in a hand that was disturbed
	total      int
	repeated   int
	last       string         // the relay that delivered last
	keys       map[string]int // the highest number of a key that was delivered
	faults     []string       // what must not be
	ordered    bool
	struck     int                 // rows that were in a hand when it was disturbed
	strike     chan string         // is sent who parks next, if that is asked for
	history    map[string][]string // of an ID
	blows      []string            // that fell, and on whom
}

// hand is what a relay has fetched and not settled.
type hand struct {
	rows      map[string]bool
	disturbed time.Time // what it fetches until then is excused too
	gone      chan struct{}
}

func newStream(t *testing.T, ordered bool) *stream {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "stream"))
	require.NoError(t, err)
	s := &stream{listener: listener, ordered: ordered, hands: map[string]*hand{},
		deliveries: map[string]int{}, excused: map[string]int{}, keys: map[string]int{}, history: map[string][]string{}}
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
			s.hands[name] = &hand{rows: map[string]bool{}, gone: make(chan struct{})}
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
		close(s.hand(name).gone)
	}
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
	for _, id := range ids {
		s.history[id] = append(s.history[id], fmt.Sprint(stamp(), " ", name, " ", what))
		switch what {
		case "fetched":
			h.rows[id] = true
			if time.Now().Before(h.disturbed) {
				s.excused[id]++
			}
		case "deliver":
			s.deliver(id)
			s.last = name
		case "parked":
		default:
			delete(h.rows, id)
		}
	}
}

func (s *stream) deliver(id string) {
	s.total++
	s.deliveries[id]++
	if n := s.deliveries[id]; n > 1 {
		s.repeated++
		if n-1 > s.excused[id] {
			s.faults = append(s.faults, fmt.Sprintf("%s was delivered %d times and was in a disturbed hand %d times: %v; the blows before: %v", id, n, s.excused[id], s.history[id], s.blows[max(0, len(s.blows)-5):]))
		}
		return
	}
	key, text, _ := strings.Cut(id, "/")
	var number int
	_, _ = fmt.Sscan(text, &number)
	if s.ordered && number < s.keys[key] {
		s.faults = append(s.faults, fmt.Sprintf("%s was delivered after %s/%d", id, key, s.keys[key]))
	}
	s.keys[key] = max(s.keys[key], number)
}

// disturb excuses what a relay has in hand from being delivered once only, and
// what it fetches in the next moment, or has fetched and not told of yet.
func (s *stream) disturb(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blows = append(s.blows, fmt.Sprint(stamp(), " ", name))
	h := s.hands[name]
	if h == nil {
		return
	}
	for id := range h.rows {
		s.excused[id]++
	}
	s.struck += len(h.rows)
	h.disturbed = time.Now().Add(2 * time.Second)
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
