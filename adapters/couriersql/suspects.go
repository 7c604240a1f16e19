package couriersql

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier"
)

// This file is what becomes of rows that were in hand when a relay died. A record that kills
// its process (out of memory, os.Exit, a fatal error of cgo) would be handed out again after
// its lease, kill the next process, and so on. A lease that has run out, and was neither
// renewed nor given back, is the trace of a crash, and is counted in each of its rows: they
// are suspects from then on. Suspects are handed out in ever smaller groups, and nothing else
// beside them, until the one that kills is alone: the others are marked, which clears them.

// DefaultMaxCrashes is after how many crashes with a record alone in hand the record is
// parked, unless [WithMaxCrashes] or [TableConfig].MaxCrashes says otherwise.
const DefaultMaxCrashes = 3

// ErrCrashed is the error of a letter whose record was in hand alone when the process died,
// as often as [WithMaxCrashes] or [TableConfig].MaxCrashes allows.
var ErrCrashed = errors.New("couriersql: each process that had this record in hand, alone, died or lost its lease without a sign")

// crashedLetter is the letter of a record that was parked for its crashes.
func crashedLetter[T any](record T, crashes int, now time.Time) courier.DeadLetter[T] {
	return courier.DeadLetter[T]{
		Record: record, Error: fmt.Errorf("%w (%d times)", ErrCrashed, crashes), Reason: courier.ReasonCrashed,
		Attempts: crashes, FirstFailedAt: now, FailedAt: now,
	}
}

// aloneFrom is what the column crashes has of a row that was handed out alone; each crash
// since is one more. Below it are crashes with others in hand.
const aloneFrom = 100

// mostCrashes is the number of the column at which a row is parked.
func mostCrashes(limit int) int {
	switch {
	case limit == 0:
		return aloneFrom + DefaultMaxCrashes
	case limit < 0:
		return math.MaxInt32
	}
	return aloneFrom + min(limit, math.MaxInt32-aloneFrom)
}

// groupSize is how many rows with so many crashes are handed out together where limit are
// asked for.
func groupSize(limit, crashes int) int {
	for range min(crashes, 10) {
		limit /= 10
	}
	return max(1, limit)
}

const (
	suspectsEvery = time.Second // how often a source looks for suspects that others have counted
	apartFor      = time.Second // for how long suspects and other rows wait for each other
	always        = 100 * 365 * 24 * time.Hour
)

// suspects decides when a source hands out suspects, and when other rows. Neither waits for
// the other for long: they take turns. With strict, other rows wait until no suspects are left. A group is handed out once nothing else is in hand,
// and nothing else beside it, but for records that stay in hand for longer than apartFor.
type suspects struct {
	freed  chan struct{} // has a value when nothing is in hand any more
	strict bool          // no others are handed out while there are suspects

	mu      sync.Mutex
	known   bool      // there are some
	looked  time.Time // when it last looked
	others  bool      // it is the turn of other rows
	group   bool      // suspects are in hand
	waits   time.Time // since when a group waits for the hand to be empty, or other rows for a group; zero is neither
	pending bool      // the last fetch left some, or other rows

	away    bool      // the database did not answer
	reached time.Time // when it did again; zero if it always has
}

// apart is what a source can do.
type apart[R any] struct {
	busy   func() bool                                // something is in hand
	find   func() (crashes int, err error)            // of the next suspects, 0 if there are none
	take   func(crashes int, alone bool) ([]R, error) // hands them out
	others func() (rows []R, died int, err error)     // hands out others, and counts crashes
}

// fetchApart hands out suspects or other rows.
func fetchApart[R any](s *suspects, a apart[R]) (rows []R, err error) {
	now, busy := time.Now(), a.busy()
	if s.begin(now, busy) {
		return nil, nil
	}
	if s.due(now) {
		if rows, err = takeGroup(s, a, now, busy, false); err != nil || len(rows) > 0 || s.drains() {
			return rows, err
		}
	}
	for {
		var died int
		if rows, died, err = a.others(); err != nil {
			return nil, err
		}
		if died > 0 {
			s.found(true, now)
		}
		if len(rows) > 0 || died == 0 || s.strict {
			break
		}
	}
	if len(rows) == 0 { // others may have counted crashes
		return takeGroup(s, a, now, busy, true)
	}
	s.hands(false, now)
	return rows, nil
}

// takeGroup hands out suspects, if it is their turn or at any rate.
func takeGroup[R any](s *suspects, a apart[R], now time.Time, busy, anyhow bool) (rows []R, err error) {
	crashes, err := a.find()
	if err != nil {
		return nil, err
	}
	s.found(crashes > 0, now)
	if crashes == 0 || !anyhow && s.othersTurn() || busy && s.wait(now) {
		return nil, nil
	}
	if rows, err = a.take(crashes, !busy); err == nil && len(rows) > 0 {
		s.hands(true, now)
	}
	return rows, err
}

// begin is a fetch. It reports whether a group in hand is to be left alone.
func (s *suspects) begin(now time.Time, busy bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = false
	if s.group = s.group && busy; s.group {
		return now.Sub(s.waits) < apartFor
	}
	return false
}

// due reports whether to look for suspects.
func (s *suspects) due(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known && (s.strict || !s.others) || now.Sub(s.looked) >= suspectsEvery
}

func (s *suspects) found(some bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known, s.looked = some, now
	if some {
		return
	}
	if s.others = false; !s.group {
		s.waits = time.Time{}
	}
}

func (s *suspects) othersTurn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.others && !s.strict
}

// wait reports whether suspects go on waiting for what is in hand.
func (s *suspects) wait(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits.IsZero() || s.group {
		s.group, s.waits = false, now
	}
	return now.Sub(s.waits) < apartFor
}

// drains reports whether suspects wait for what is in hand.
func (s *suspects) drains() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.waits.IsZero() && !s.group
}

// waiting reports whether a fetch has left rows where they are for now.
func (s *suspects) waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.waits.IsZero()
}

// hands notes what a fetch hands out.
func (s *suspects) hands(group bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = s.known
	s.others, s.group, s.waits = group, group, time.Time{}
	if group {
		s.waits = now
	}
}

// emptied is when nothing is in hand any more.
func (s *suspects) emptied() {
	select {
	case s.freed <- struct{}{}:
	default:
	}
}

// await waits, after a fetch that returned nothing, for what suspects or other rows wait for.
// It reports whether to fetch again, and is not called with the database's time running.
func (s *suspects) await(ctx context.Context, rows int) bool {
	s.mu.Lock()
	waits := s.waits
	s.mu.Unlock()
	if rows > 0 || waits.IsZero() {
		return false
	}
	select {
	case <-s.freed:
	case <-time.After(time.Until(waits.Add(apartFor))):
	case <-ctx.Done():
		return false
	}
	return true
}

// more reports whether the last fetch left something, which is due now.
func (s *suspects) more() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pending
}

// heard notes how a call to the database has ended.
func (s *suspects) heard(ctx context.Context, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && ctx.Err() == nil:
		s.away = true
	case err == nil && s.away:
		s.away, s.reached = false, time.Now()
	}
}

func newSuspects(strict bool) suspects {
	return suspects{freed: make(chan struct{}, 1), strict: strict}
}

// contact is for how long the database has answered, as far as is known. A lease that began
// before may have run out because its relay could not renew it either: that is no crash.
func (s *suspects) contact() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.away:
		return 0
	case s.reached.IsZero():
		return always
	}
	return time.Since(s.reached)
}
