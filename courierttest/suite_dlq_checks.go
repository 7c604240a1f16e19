package courierttest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/erfanmomeniii/courier"
)

func (s *dlqRun[T]) hasFeatures() {
	s.tb.Helper()
	if s.DLQ == nil || s.Record == nil {
		s.tb.Fatalf("DLQFixture.DLQ and Record are required")
	}
	_, keyed := s.DLQ.(courier.KeyedDLQ)
	_, shared := s.DLQ.(courier.SharedDLQ[T])
	if keyed != s.f.Keyed {
		s.tb.Errorf("%T is a courier.KeyedDLQ: %v, and DLQFeatures.Keyed is %v", s.DLQ, keyed, s.f.Keyed)
	}
	if shared != s.f.Shared {
		s.tb.Errorf("%T is a courier.SharedDLQ: %v, and DLQFeatures.Shared is %v", s.DLQ, shared, s.f.Shared)
	}
	if v, ok := s.DLQ.(courier.Validator); ok {
		if err := v.Validate(); err != nil {
			s.tb.Errorf("Validate reports a fault: %v", err)
		}
	}
}

func (s *dlqRun[T]) givesBack() {
	s.tb.Helper()
	sent := s.letter(0, "boom: it is 3 a.m.")
	sent.Key, sent.Reason, sent.Branch, sent.FailedRedrives = "customer 7", courier.ReasonPermanent, "search", 2
	s.send(sent)
	letters := s.receive(10)
	if len(letters) != 1 {
		s.tb.Fatalf("after one record was sent, Receive returns %d letters", len(letters))
	}
	s.expectSame(letters[0], sent, "as it was received")
	if listed := s.list("", 10); len(listed) == 1 {
		s.expectSame(listed[0], sent, "as it was listed")
	} else {
		s.tb.Errorf("after one record was sent, List returns %d letters", len(listed))
	}
}

func (s *dlqRun[T]) givesIDs() {
	s.tb.Helper()
	first, second := s.letter(0, "boom"), s.letter(1, "boom")
	first.ID, second.ID = "mine", "mine"
	s.send(first, second)
	letters := s.receive(10)
	if len(letters) != 2 {
		s.tb.Fatalf("after two letters with one ID were sent, Receive returns %d", len(letters))
	}
	if a, b := letters[0].ID, letters[1].ID; a == "" || b == "" || a == b {
		s.tb.Errorf("the queue gave two letters the IDs %q and %q", a, b)
	}
}

func (s *dlqRun[T]) isEmpty() {
	s.tb.Helper()
	err, soon := s.do(context.Background(), "Receive", func(ctx context.Context) error {
		letters, err := s.DLQ.Receive(ctx, 10)
		if len(letters) > 0 {
			return fmt.Errorf("it returned %d letters", len(letters))
		}
		return err
	})
	if err != nil || !soon {
		s.tb.Errorf("Receive of an empty queue (at once: %v): %v", soon, err)
	}
	if letters := s.list("", 10); len(letters) > 0 {
		s.tb.Errorf("List of an empty queue returned %d letters", len(letters))
	}
}

func (s *dlqRun[T]) readsOnly() {
	s.tb.Helper()
	s.park(2)
	for range 2 {
		s.expectNames(s.receive(10), "after they were received", 0, 1)
		s.expectNames(s.list("", 10), "after they were listed", 0, 1)
	}
}

func (s *dlqRun[T]) readsOldestFirst() {
	s.tb.Helper()
	s.send(s.letter(2, "boom"), s.letter(0, "boom"), s.letter(1, "boom"))
	s.expectNames(s.receive(10), "received", 2, 0, 1)
	s.expectNames(s.list("", 10), "listed", 2, 0, 1)
}

func (s *dlqRun[T]) readsUpTo() {
	s.tb.Helper()
	s.park(3)
	s.expectNames(s.receive(2), "of up to two", 0, 1)
	s.expectNames(s.list("", 1), "of up to one", 0)
	s.expectNames(s.receive(0), "of up to none")
}

func (s *dlqRun[T]) handsOutOwnSlices() {
	s.tb.Helper()
	s.park(2)
	for _, letters := range [][]courier.DeadLetter[T]{s.receive(10), s.list("", 10)} {
		clear(letters)
		s.expectNames(s.receive(10), "after a slice that was handed out was cleared", 0, 1)
	}
}

func (s *dlqRun[T]) listsBehind() {
	s.tb.Helper()
	letters := s.park(5)
	s.expectNames(s.list(letters[1].ID, 2), "behind the second", 2, 3)
	s.expectNames(s.list(letters[3].ID, 10), "behind the fourth", 4)
	s.expectNames(s.list(letters[4].ID, 10), "behind the last")
}

func (s *dlqRun[T]) listsBehindGone() {
	s.tb.Helper()
	letters := s.park(5)
	s.delete(letters[0].ID, letters[2].ID)
	s.expectNames(s.list(letters[2].ID, 10), "behind the third, which is gone,", 3, 4)
	changed := letters[3]
	changed.FailedRedrives++
	s.update(changed)
	s.expectNames(s.list(letters[3].ID, 10), "behind the fourth, which has changed,", 4)
	s.expectNames(s.list(letters[0].ID, 10), "behind the first, which is gone,", 1, 3, 4)
}

func (s *dlqRun[T]) count() (n int) {
	s.tb.Helper()
	s.must("Count", func(ctx context.Context) (err error) {
		n, err = s.DLQ.Count(ctx)
		return err
	})
	return n
}

func (s *dlqRun[T]) counts() {
	s.tb.Helper()
	expect := func(want int, when string) {
		s.tb.Helper()
		if got := s.count(); got != want {
			s.tb.Errorf("%s Count is %d, want %d", when, got, want)
		}
	}
	expect(0, "of an empty queue")
	letters := s.park(3)
	expect(3, "after three records were sent")
	s.update(letters[0])
	expect(3, "after an update")
	s.delete(letters[1].ID)
	expect(2, "after a delete")
}

func (s *dlqRun[T]) takesAtOnce() {
	s.tb.Helper()
	n := 20
	if s.f.Capacity > 0 {
		n = min(n, s.f.Capacity)
	}
	errs := make([]error, n)
	s.must("Send, from several goroutines at once,", func(ctx context.Context) error {
		var all sync.WaitGroup
		begin := make(chan struct{})
		for i := range n {
			letter := s.letter(i, "boom")
			all.Go(func() {
				<-begin
				errs[i] = s.DLQ.Send(ctx, letter)
			})
		}
		close(begin)
		all.Wait()
		return errors.Join(errs...)
	})
	var got, want []string
	for i, letter := range s.receive(n + 1) {
		got, want = append(got, s.name(letter.Record)), append(want, s.name(s.Record(i)))
	}
	if len(got) != n || !same(got, want, false) {
		s.tb.Errorf("of %d records that were sent at once, the queue has %q", n, got)
	}
}

func (s *dlqRun[T]) endedSend() {
	s.tb.Helper()
	err, soon := s.do(ended(), "Send with a context that has ended", func(ctx context.Context) error {
		return s.DLQ.Send(ctx, s.letter(0, "boom"))
	})
	if !soon {
		s.tb.Errorf("Send did not return at once though its context had ended")
	}
	if err == nil {
		s.expectNames(s.receive(10), "after Send returned nil, though its context had ended,", 0)
	}
}

func (s *dlqRun[T]) refusesWhenItFails() {
	s.tb.Helper()
	if s.FailSends == nil {
		return
	}
	heal := s.FailSends()
	if err, _ := s.do(context.Background(), "Send", func(ctx context.Context) error {
		return s.DLQ.Send(ctx, s.letter(0, "boom"))
	}); err == nil {
		s.tb.Errorf("Send returned nil though it cannot have kept the letter: its record is lost")
	}
	heal()
	s.send(s.letter(1, "boom"))
	if letters := s.receive(10); len(letters) == 0 || s.name(letters[len(letters)-1].Record) != s.name(s.Record(1)) {
		s.tb.Errorf("after Send had failed once, a record that is sent is not kept")
	}
}

func (s *dlqRun[T]) isDurable() {
	s.tb.Helper()
	if s.Reopen == nil {
		return
	}
	letters := s.park(3)
	s.delete(letters[1].ID)
	other := *s
	other.DLQ = s.Reopen()
	now := other.receive(10)
	other.expectNames(now, "after it was opened again", 0, 2)
	s.expectSame(now[0], letters[0], "after it was opened again")
	other.delete(letters[0].ID) // an ID lasts as long as its letter
	s.expectNames(s.receive(10), "after one was deleted through another queue", 2)
}

func (s *dlqRun[T]) redrives() {
	s.tb.Helper()
	s.park(3)
	bad := s.name(s.Record(1))
	var result courier.RedriveResult
	s.must("Redrive", func(ctx context.Context) (err error) {
		result, err = courier.Redrive(ctx, s.DLQ, courier.ProcessFunc(func(_ context.Context, record T) error {
			if s.name(record) == bad {
				return textError("still")
			}
			return nil
		}), nil)
		return err
	})
	if result.Succeeded != 2 || result.Failed != 1 {
		s.tb.Errorf("a redrive of three letters, of which one fails, says %+v", result)
	}
	letters := s.receive(10)
	s.expectNames(letters, "after a redrive", 1)
	if l := letters[0]; l.FailedRedrives != 1 || errorText(l.Error) != "still" {
		s.tb.Errorf("after a redrive in vain the letter has FailedRedrives %d and the error %v", l.FailedRedrives, l.Error)
	}
}
