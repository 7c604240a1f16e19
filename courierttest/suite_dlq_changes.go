package courierttest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/erfanmomeniii/courier"
)

// What a dead letter queue does when letters are deleted and updated, and what
// the queues do that know records, keys, themselves, or a bound.

func (s *dlqRun[T]) deletes() {
	s.tb.Helper()
	letters := s.park(4)
	s.delete()
	s.expectNames(s.receive(10), "after a delete of none", 0, 1, 2, 3)
	s.delete(letters[2].ID, letters[0].ID)
	s.expectNames(s.receive(10), "after the third and the first were deleted", 1, 3)
}

func (s *dlqRun[T]) deletesUnknown() {
	s.tb.Helper()
	letters := s.park(3)
	s.delete(letters[0].ID)
	s.delete(letters[0].ID, letters[1].ID)
	s.expectNames(s.receive(10), "after the first was deleted twice, the second time with the second,", 2)
}

func (s *dlqRun[T]) deletesOutOfDate() {
	s.tb.Helper()
	old := s.park(2)[0]
	newer := old
	newer.Error = textError("newer")
	s.update(newer)
	s.delete(old.ID)
	letters := s.receive(10)
	s.expectNames(letters, "after a delete by an ID that is out of date", 0, 1)
	if text := errorText(letters[0].Error); text != "newer" {
		s.tb.Errorf("after a delete by an ID that is out of date the error is %q, want %q", text, "newer")
	}
}

func (s *dlqRun[T]) givesNoIDTwice() {
	s.tb.Helper()
	seen := make(map[string]bool)
	for range 3 {
		letter := s.park(1)[0]
		for range 2 {
			if seen[letter.ID] {
				s.tb.Fatalf("the queue gave the ID %q twice: who holds it would delete a newer failure", letter.ID)
			}
			seen[letter.ID] = true
			s.update(letter)
			letter = s.receive(1)[0]
		}
		seen[letter.ID] = true
		s.delete(letter.ID)
	}
}

func (s *dlqRun[T]) updates() {
	s.tb.Helper()
	letters := s.park(3)
	changed := letters[1]
	changed.Record, changed.Branch = s.Record(7), "audit" // by which the letter is known
	changed.Key, changed.Error, changed.Reason, changed.Attempts = "customer 8", textError("again"), courier.ReasonPermanent, 9
	changed.FirstFailedAt, changed.FailedAt = changed.FirstFailedAt.Add(-time.Hour), changed.FailedAt.Add(time.Hour)
	changed.FailedRedrives = 4
	s.update(changed)
	now := s.receive(10)
	s.expectNames(now, "after the second was updated", 0, 1, 2)
	changed.Record, changed.Branch = letters[1].Record, letters[1].Branch
	s.expectSame(now[1], changed, "after an update")
	if now[1].ID == letters[1].ID {
		s.tb.Errorf("after an update the letter has its old ID %q: who holds that would delete a failure it does not know", now[1].ID)
	}
	s.expectSame(now[0], letters[0], "after an update of another")
}

func (s *dlqRun[T]) updatesOutOfDate() {
	s.tb.Helper()
	letters := s.park(2)
	newer := letters[0]
	newer.Error = textError("newer")
	s.update(newer)
	old := letters[0]
	old.Error = textError("out of date")
	s.update(old)
	s.delete(letters[1].ID)
	s.update(letters[1])
	now := s.receive(10)
	s.expectNames(now, "after updates of letters that have changed and are gone", 0)
	s.expectSame(now[0], newer, "after an update that was out of date")
}

func (s *dlqRun[T]) keepsOne() {
	s.tb.Helper()
	first := s.letter(0, "first")
	first.FailedRedrives = 3
	s.send(first, s.letter(1, "boom"))
	old := s.receive(1)[0]
	again := s.letter(0, "second")
	again.FirstFailedAt, again.FailedAt = first.FailedAt.Add(time.Hour), first.FailedAt.Add(2*time.Hour)
	again.Attempts, again.FailedRedrives, again.Reason = 9, 1, courier.ReasonPermanent
	s.send(again)
	letters := s.receive(10)
	s.expectNames(letters, "after the first record was sent again", 0, 1)
	again.FirstFailedAt, again.FailedRedrives = first.FirstFailedAt, first.FailedRedrives
	s.expectSame(letters[0], again, "of a record that was sent again")
	if letters[0].ID == old.ID {
		s.tb.Errorf("the letter of a record that was sent again has its old ID %q: a redrive that began before would delete the new failure", old.ID)
	}
}

func (s *dlqRun[T]) keepsFailure() {
	s.tb.Helper()
	s.send(s.letter(0, "its own"))
	behind := s.letter(0, "behind another")
	behind.Reason, behind.Attempts = courier.ReasonKeyParked, 0
	s.send(behind)
	letters := s.receive(10)
	s.expectNames(letters, "after a record was parked behind its key, that is there with a failure of its own,", 0)
	s.expectSame(letters[0], s.letter(0, "its own"), "after its record was parked behind its key")
}

// branches of which two put together are a third.
var branches = []string{"", "a", "aa"}

// expectBranches checks the letters, all of one record, that are left of those
// that each branch has sent.
func (s *dlqRun[T]) expectBranches(when string, want ...courier.DeadLetter[T]) {
	s.tb.Helper()
	letters := s.receive(10)
	if len(letters) != len(want) {
		s.tb.Fatalf("%s there are %d letters, want %d", when, len(letters), len(want))
	}
	for i, l := range letters {
		s.expectSame(l, want[i], when)
	}
}

// keepsApart is about one record that several branches gave up.
func (s *dlqRun[T]) keepsApart() {
	s.tb.Helper()
	var sent []courier.DeadLetter[T]
	for _, branch := range branches {
		sent = append(sent, of(branch, s.letter(0, "of "+branch)))
	}
	s.send(sent...)
	s.expectBranches("after three branches sent one record", sent...)
	changed := s.receive(10)[1]
	changed.Error, changed.FailedRedrives = textError("again"), 3
	s.update(changed)
	s.expectBranches("after the letter of one of three branches was updated", sent[0], changed, sent[2])
	s.delete(s.receive(10)[2].ID)
	s.expectBranches("after the letter of one of three branches was deleted", sent[0], changed)
	s.send(sent[2])
	s.expectBranches("after a branch whose letter was deleted sent the record again", sent[0], changed, sent[2])
}

func (s *dlqRun[T]) keepsOneEach() {
	s.tb.Helper()
	first := of("a", s.letter(0, "of a"))
	behind := of("aa", s.letter(0, "behind another"))
	behind.Reason, behind.Attempts = courier.ReasonKeyParked, 0
	s.send(first, behind)
	s.expectBranches("after a record of one branch was parked behind its key, which is there for another,", first, behind)
	again := of("a", s.letter(0, "again"))
	again.Attempts, again.FailedAt = 9, first.FailedAt.Add(time.Hour)
	s.send(again)
	s.expectBranches("after one of two branches sent the record again", again, behind)
	own := of("aa", s.letter(0, "its own"))
	s.send(own)
	s.expectBranches("after the other of two branches sent the record again", again, own)
}

func (s *dlqRun[T]) parkedKeys(branch string, keys ...string) (parked []string) {
	s.tb.Helper()
	s.must("ParkedKeys", func(ctx context.Context) (err error) {
		parked, err = s.DLQ.(courier.KeyedDLQ).ParkedKeys(ctx, branch, keys)
		return err
	})
	slices.Sort(parked)
	return slices.Compact(parked)
}

func (s *dlqRun[T]) tellsKeysOfABranch() {
	s.tb.Helper()
	for i, branch := range branches {
		letter := of(branch, s.letter(i, "boom"))
		letter.Key = []string{"b", "ab", "c"}[i]
		s.send(letter)
	}
	expect := func(branch string, want ...string) {
		s.tb.Helper()
		if got := s.parkedKeys(branch, "b", "ab", "c"); !slices.Equal(got, want) {
			s.tb.Errorf("the parked ones of the keys b, ab and c are %q for the branch %q, want %q", got, branch, want)
		}
	}
	expect("", "b")
	expect("a", "ab")
	expect("aa", "c")
	expect("aaa")
	s.delete(s.receive(10)[1].ID)
	expect("a")
	expect("aa", "c")
}

func (s *dlqRun[T]) tellsKeys() {
	s.tb.Helper()
	expect := func(when string, want ...string) {
		s.tb.Helper()
		if got := s.parkedKeys("", "a", "b", "c"); !slices.Equal(got, want) {
			s.tb.Fatalf("%s the parked ones of the keys a, b and c are %q, want %q", when, got, want)
		}
	}
	for i, key := range []string{"a", "a", "b", ""} {
		letter := s.letter(i, "boom")
		letter.Key = key
		s.send(letter)
	}
	letters := s.receive(10)
	expect("with letters of a, a and b", "a", "b")
	s.delete(letters[0].ID)
	expect("with letters of a and b", "a", "b")
	changed := letters[1]
	changed.Key = "c"
	s.update(changed)
	expect("with letters of c and b", "b", "c")
	s.delete(letters[2].ID)
	expect("with a letter of c", "c")
}

func (s *dlqRun[T]) knowsItself() {
	s.tb.Helper()
	shared := s.DLQ.(courier.SharedDLQ[T])
	if !shared.SameQueue(s.DLQ) {
		s.tb.Errorf("SameQueue says that a queue is another than itself")
	}
	if s.Reopen != nil && !shared.SameQueue(s.Reopen()) {
		s.tb.Errorf("SameQueue says that a queue over the same store is another: a redrive could go round in a loop")
	}
	if s.Other != nil && shared.SameQueue(s.Other()) {
		s.tb.Errorf("SameQueue says that a queue over another store is the same: a redrive into it would be refused")
	}
}

// fill sends as many letters as the queue takes.
func (s *dlqRun[T]) fill() []courier.DeadLetter[T] {
	s.tb.Helper()
	return s.park(s.f.Capacity)
}

func (s *dlqRun[T]) refusesWhenFull() {
	s.tb.Helper()
	letters := s.fill()
	more := s.letter(s.f.Capacity, "boom")
	err, _ := s.do(context.Background(), "Send", func(ctx context.Context) error { return s.DLQ.Send(ctx, more) })
	if !errors.Is(err, courier.ErrDLQFull) {
		s.tb.Errorf("Send to a full queue returned %v, want courier.ErrDLQFull", err)
	}
	if n := s.count(); n != s.f.Capacity {
		s.tb.Errorf("a queue for %d letters has %d after it refused one", s.f.Capacity, n)
	}
	if s.f.Identity {
		s.send(s.letter(0, "again")) // takes no room
	}
	s.delete(letters[len(letters)-1].ID)
	s.send(more)
}

func (s *dlqRun[T]) updatesWhenFull() {
	s.tb.Helper()
	letter := s.fill()[0]
	letter.FailedRedrives++
	s.update(letter)
	if n := s.receive(1)[0].FailedRedrives; n != letter.FailedRedrives {
		s.tb.Errorf("after an update in a full queue FailedRedrives is %d, want %d", n, letter.FailedRedrives)
	}
}
