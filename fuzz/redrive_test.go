package fuzz

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
)

// FuzzRedrive: a string of sends by three branches, redrives of one or of all
// with any outcome, crashes, deletes and walks on a queue, two bytes each. No
// letter is lost, none is applied after it was removed or in another branch's
// redrive, and the counts are right. Then some records are poison, and the
// redrives have a retry and a breaker: the others leave the queue all the same.
func FuzzRedrive(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x02\x01\x00"), uint8(10), false)
	f.Add([]byte("\x00\x01\x00\x02\x00\x03\x01\x55\x01\x02\x03\x00\x02\x01\x01\x99"), uint8(2), true)
	f.Add([]byte("\x00\x01\x04\xff\x05\x10\x00\x07\x04\x0f\x01\xaa\x06\x01\x01\x00"), uint8(5), true)
	f.Add([]byte("\x00\x01\x00\x21\x00\x41\x08\x00\x00\x21\x0f\x00"), uint8(5), true) // three branches, one record
	f.Fuzz(func(t *testing.T, ops []byte, capacity uint8, byIdentity bool) {
		if len(ops) > 400 {
			t.Skip("long enough")
		}
		w := &parkedWorld{T: t, now: time.Unix(1_000_000, 0), capacity: int(capacity%20) + 1, byIdentity: byIdentity, letters: map[letterOf]int{}}
		var identity func(int) string
		if byIdentity {
			identity = strconv.Itoa
		}
		w.queue = &courier.MemoryDLQ[int]{Capacity: w.capacity, Identity: identity}
		for i := 0; i+1 < len(ops); i += 2 {
			switch op, arg := ops[i]%7, ops[i+1]; op {
			case 0:
				w.send(t.Context(), letterOf{branches[arg/32%3], int(arg % 32)})
			case 1, 2:
				w.redrive(ops[i]/7, arg, op == 2, nil)
			case 3:
				w.remove(arg)
			case 4, 5:
				w.redrive(ops[i]/7, arg, op == 5, errors.New("crashed"))
			case 6:
				w.walk(arg)
			}
			w.check()
		}
		w.outlast(capacity)
		w.check()
		// In the end the destination is well, and everything parked gets there.
		w.redrive(0, 0, false, nil)
		w.check()
		if len(w.letters) > 0 {
			t.Fatalf("%v are left in the queue", w.letters)
		}
	})
}

// letterOf is what a letter is known by.
type letterOf struct {
	branch string
	record int
}

func known(l courier.DeadLetter[int]) letterOf { return letterOf{l.Branch, l.Record} }

var branches = [...]string{"", "1", "11"} // of which "11" and record 1 look like "1" and record 11

// parkedWorld is a queue and what should be in it.
type parkedWorld struct {
	*testing.T
	queue      *courier.MemoryDLQ[int]
	capacity   int
	byIdentity bool
	letters    map[letterOf]int // how many
	step       int
	now        time.Time
}

// Now and After make the world a courier.Clock. Each wait passes at once, but
// for the timeout of a call of the queue, which never does.
func (w *parkedWorld) Now() time.Time { return w.now }

func (w *parkedWorld) After(d time.Duration) <-chan time.Time {
	if d == 10*time.Second {
		return nil
	}
	w.now = w.now.Add(d)
	over := make(chan time.Time, 1)
	over <- w.now
	return over
}

func (w *parkedWorld) count() (n int) {
	for _, letters := range w.letters {
		n += letters
	}
	return n
}

func (w *parkedWorld) send(ctx context.Context, l letterOf) {
	w.step++
	err := w.queue.Send(ctx, courier.DeadLetter[int]{Record: l.record, Branch: l.branch, Error: fmt.Errorf("step %d", w.step)})
	switch {
	case w.byIdentity && w.letters[l] > 0:
		if err != nil {
			w.Fatalf("a letter in the queue was refused: %v", err)
		}
	case w.count() >= w.capacity:
		if !errors.Is(err, courier.ErrDLQFull) {
			w.Fatalf("a full queue returned %v", err)
		}
	case err != nil:
		w.Fatal(err)
	default:
		w.letters[l]++
	}
}

func (w *parkedWorld) all() []courier.DeadLetter[int] {
	letters, err := w.queue.Receive(w.Context(), 100)
	if err != nil {
		w.Fatal(err)
	}
	return letters
}

func (w *parkedWorld) check() {
	have := map[letterOf]int{}
	for _, letter := range w.all() {
		have[known(letter)]++
	}
	maps.DeleteFunc(w.letters, func(_ letterOf, n int) bool { return n == 0 })
	if !maps.Equal(have, w.letters) {
		w.Fatalf("the queue has %v, want %v", have, w.letters)
	}
}

func (w *parkedWorld) remove(arg byte) {
	letters := w.all()
	if len(letters) == 0 {
		return
	}
	letter := letters[int(arg)%len(letters)]
	if err := w.queue.Delete(w.Context(), letter.ID, letter.ID); err != nil {
		w.Fatal(err)
	}
	w.letters[known(letter)]--
}

// walk iterates while letters are sent, updated and deleted.
func (w *parkedWorld) walk(arg byte) {
	before := w.all()
	met := map[int]int{} // by place among those of before
	sent := 0            // a walk that sends for every letter it meets has no end
	for letter, err := range courier.Letters(w.Context(), w.queue) {
		if err != nil {
			w.Fatal(err)
		}
		if i := slices.IndexFunc(before, func(l courier.DeadLetter[int]) bool { return l.ID == letter.ID }); i >= 0 {
			met[i]++
		}
		switch w.step++; (int(arg) + w.step) % 4 {
		case 0:
			_ = w.queue.Update(w.Context(), letter)
		case 1:
			_ = w.queue.Delete(w.Context(), letter.ID)
			w.letters[known(letter)]--
		case 2:
			if sent < 5 && !w.byIdentity { // or it would replace one that is to be met
				sent++
				w.send(w.Context(), known(letter))
			}
		}
	}
	for i := range before {
		if met[i] != 1 {
			w.Fatalf("the letter %+v was met %d times", before[i], met[i])
		}
	}
}

// redrive applies the records of a branch, or of all, with outcomes that arg
// decides. With a crash the queue fails at some call, before or after the call
// takes effect.
func (w *parkedWorld) redrive(whose, arg byte, batches bool, crash error) {
	chosen := func(l courier.DeadLetter[int]) bool { return whose%4 == 0 || l.Branch == branches[whose%4-1] }
	before := w.all()
	present := map[int]bool{}
	for _, letter := range before {
		if chosen(letter) {
			present[letter.Record] = true
		}
	}
	queue := &crashing{DLQ: w.queue, err: crash, at: int(arg % 5), late: arg%2 == 1}
	applied, succeeded, failed := map[int]int{}, map[int]int{}, 0
	renewed := map[int]bool{}
	apply := func(ctx context.Context, record int) error {
		if !present[record] {
			w.Fatalf("record %d is applied and is not in the queue", record)
		}
		applied[record]++
		switch (int(arg) * (record + 1) / 3) % 9 {
		case 1, 2:
			failed++
			return errFailed
		case 3:
			failed++
			return courier.Permanent(errFailed)
		case 4:
			return &courier.OpenError{Until: time.Unix(1, 0), Cause: errFailed}
		case 5:
			failed++
			panic(errFailed)
		case 6:
			failed++
			runtime.Goexit()
		case 7: // it fails in the pipeline meanwhile, and then goes well here
			letters := w.all()
			i := slices.IndexFunc(letters, func(l courier.DeadLetter[int]) bool { return l.Record == record && chosen(l) })
			if w.byIdentity && i >= 0 {
				renewed[record] = true
				w.send(ctx, known(letters[i]))
			}
		}
		succeeded[record]++
		return nil
	}
	applier := courier.ProcessFunc(apply)
	if batches {
		applier = batchFunc{apply}
	}
	result, err := courier.Redrive[int](w.Context(), queue, applier, &courier.RedriveConfig[int]{Match: chosen, BatchSize: int(arg%4) + 1, Clock: w})

	attempted := 0
	for record, n := range succeeded {
		attempted += n
		if !batches && !renewed[record] && (queue.deleted == nil || !queue.deleted[record]) && crash == nil {
			w.Fatalf("record %d was applied and not removed", record)
		}
	}
	if !batches && (result.Succeeded != attempted || result.Failed != failed) || result.Attempted != result.Succeeded+result.Failed ||
		queue.count > 0 && result.Attempted+result.Left != len(before) {
		w.Fatalf("%+v, with %d successes and %d failures of %d letters: %v", result, attempted, failed, len(before), err)
	}
	if err != nil && !errors.Is(err, courier.ErrRedrive) || queue.crashed && err == nil {
		w.Fatalf("the redrive returned %v", err)
	}
	// What was deleted is what has gone, and was applied.
	for record, gone := range queue.deleted {
		if gone && succeeded[record] == 0 {
			w.Fatalf("record %d was removed and not applied", record)
		}
	}
	for letter, n := range queue.removed {
		w.letters[letter] -= n
	}
	if err == nil {
		redriven := map[string]int{}
		for _, l := range before {
			redriven[place(l.ID)] = l.FailedRedrives
			if chosen(l) {
				redriven[place(l.ID)]++
			}
		}
		for _, l := range w.all() {
			if n, ok := redriven[place(l.ID)]; ok && !renewed[l.Record] && l.FailedRedrives != n {
				w.Fatalf("%+v was redriven %d times", l, n)
			}
		}
	}
}

// outlast redrives, with a retry and a breaker, while every third record is
// poison. One redrive may end at as few as one letter, the one that failed the
// fewest redrives. So each letter may take one redrive, and one more for each that
// another letter has failed and it has not. By then the healthy letters have left.
func (w *parkedWorld) outlast(arg byte) {
	poison := func(record int) bool { return record%3 == int(arg)%3 }
	tried := map[int]int{} // in this redrive, by record
	apply := func(_ context.Context, record int) error {
		if tried[record]++; poison(record) {
			return errFailed
		}
		return nil
	}
	applier := courier.ProcessFunc(apply)
	if arg%2 == 1 {
		applier = batchFunc{apply}
	}
	policy := courier.BreakerPolicy{FailureThreshold: int(arg%5) + 1, OpenFor: 1001 * time.Millisecond, DisableJitter: true, Clock: w}
	breaking := courier.NewCircuitBreakerApplier(applier, courier.NewBreaker(policy))
	retrying := courier.NewRetryableApplier(breaking, courier.RetryPolicy{MaxAttempts: 5, Jitter: courier.NoJitter, Clock: w})
	most, highest := w.count()+1, 0
	for _, letter := range w.all() {
		highest = max(highest, letter.FailedRedrives)
	}
	for _, letter := range w.all() {
		most += highest - letter.FailedRedrives
	}
	for range most {
		clear(tried)
		before := w.count()
		_, err := courier.Redrive[int](w.Context(), w.queue, retrying, &courier.RedriveConfig[int]{Clock: w})
		var stopped *courier.RedriveError
		if errors.As(err, &stopped) && stopped.Until.After(w.now) {
			w.now = stopped.Until
		}
		if len(tried) == 0 && before > 0 && err == nil {
			w.Fatalf("a redrive of %v attempted nothing", w.letters)
		}
		for record, n := range tried {
			switch letters := w.of(record); {
			case !poison(record):
				w.removed(record, n)
			case n > 5*letters:
				w.Fatalf("record %d was applied %d times in one redrive, with 5 attempts for each of %d letters", record, n, letters)
			}
		}
		w.check()
	}
	for _, letter := range w.all() {
		if !poison(letter.Record) || letter.FailedRedrives == 0 {
			w.Fatalf("%d redrives have left %+v, poison: %v", most, letter, poison(letter.Record))
		}
	}
}

// of returns how many letters a record has in all branches.
func (w *parkedWorld) of(record int) (n int) {
	for l, letters := range w.letters {
		if l.record == record {
			n += letters
		}
	}
	return n
}

// removed enters that so many letters of a record are gone, of whichever branches.
func (w *parkedWorld) removed(record, n int) {
	want := w.of(record) - n
	for l := range w.letters {
		if l.record == record {
			w.letters[l] = 0
		}
	}
	for _, letter := range w.all() {
		if letter.Record == record {
			w.letters[letterOf{letter.Branch, record}]++
		}
	}
	if left := w.of(record); left != want {
		w.Fatalf("record %d was applied %d times, and %d letters of it are left, want %d", record, n, left, want)
	}
}

// place is the part of an ID that stays the letter's.
func place(id string) string {
	for i := range id {
		if id[i] == '.' {
			return id[:i]
		}
	}
	return id
}

// crashing is a queue that fails from the call with the number at on, late or
// before it takes effect, and notes what was deleted.
type crashing struct {
	courier.DLQ[int]
	err     error
	at      int
	late    bool
	crashed bool
	count   int
	deleted map[int]bool     // asked for
	removed map[letterOf]int // and gone
}

func (c *crashing) call(do func()) error {
	c.count++
	crash := c.err != nil && c.count > c.at
	if !crash || c.late && !c.crashed {
		do()
	}
	if crash {
		c.crashed = true
		return c.err
	}
	return nil
}

func (c *crashing) Count(ctx context.Context) (int, error) { return c.DLQ.Count(ctx) }

func (c *crashing) List(ctx context.Context, after string, max int) (l []courier.DeadLetter[int], err error) {
	if crash := c.call(func() { l, err = c.DLQ.List(ctx, after, max) }); crash != nil {
		return nil, crash
	}
	return l, err
}

func (c *crashing) Update(ctx context.Context, letter courier.DeadLetter[int]) error {
	return c.call(func() { _ = c.DLQ.Update(ctx, letter) })
}

func (c *crashing) Delete(ctx context.Context, ids ...string) error {
	letters, _ := c.Receive(ctx, 100)
	if c.deleted == nil {
		c.deleted, c.removed = map[int]bool{}, map[letterOf]int{}
	}
	return c.call(func() {
		for _, letter := range letters {
			if slices.Contains(ids, letter.ID) {
				c.deleted[letter.Record] = true
				c.removed[known(letter)]++
			}
		}
		_ = c.DLQ.Delete(ctx, ids...)
	})
}

// batchFunc applies a batch one by one, and stops at what was not attempted.
type batchFunc struct {
	apply func(context.Context, int) error
}

func (b batchFunc) Apply(ctx context.Context, record int) error { return b.apply(ctx, record) }

func (b batchFunc) ApplyBatch(ctx context.Context, records []int) error {
	var list courier.BatchError
	for i, record := range records {
		if err := b.apply(ctx, record); err != nil {
			list.Add(i, err)
		}
	}
	return list.ErrorOrNil()
}
