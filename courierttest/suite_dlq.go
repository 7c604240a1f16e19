package courierttest

import (
	"context"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
)

// DLQFixture is a dead letter queue under test. An optional field that is nil skips the
// checks that need it.
type DLQFixture[T any] struct {
	// DLQ is the queue under test, empty. Required.
	DLQ courier.DLQ[T]

	// Record returns the n-th record, for any n from 0: always the same record for the
	// same n. Required.
	Record func(n int) T

	// Name names a record. nil is fmt.Sprint.
	Name func(record T) string

	// Reopen returns another queue over the same store, for another process, or for the
	// same process after a restart.
	Reopen func() courier.DLQ[T]

	// Other returns a queue of the same type over another store.
	Other func() courier.DLQ[T]

	// FailSends makes Send fail until heal is called.
	FailSends func() (heal func())
}

// DLQFeatures says which features a dead letter queue has beyond the contract of
// [courier.DLQ]. The zero value has none. Features that a queue does not have are not
// tested. A capability that the queue has but the features do not name is an error, and
// so is the reverse.
type DLQFeatures struct {
	// Bubble runs each check in a bubble of its own, see [Bubble]: for implementations in
	// memory.
	Bubble bool

	// Identity means that the queue keeps one letter of a record for each branch, however
	// often it is parked.
	Identity bool

	// Keyed means that it is a courier.KeyedDLQ, Shared that it is a courier.SharedDLQ.
	Keyed, Shared bool

	// Capacity is the number of letters after which the queue returns courier.ErrDLQFull:
	// at least 5 here. 0 is no limit.
	Capacity int

	// Precision is the precision with which the queue stores the times of a letter. 0 is
	// a microsecond.
	Precision time.Duration

	// Patience is how long a call may take. 0 is 10 seconds.
	Patience time.Duration
}

// TestDLQ tests a dead letter queue, each check on a fresh one that open makes.
func TestDLQ[T any](t *testing.T, open func(t *testing.T) DLQFixture[T], features DLQFeatures) {
	runSuite(t, features.Bubble, func(t *testing.T) *dlqRun[T] {
		return newDLQRun(t, open(t), features)
	}, dlqChecks[T](features))
}

func dlqChecks[T any](f DLQFeatures) []check[dlqRun[T]] {
	type run = dlqRun[T]
	list := []check[run]{
		{"has the features it is said to have", (*run).hasFeatures},
		{"gives back what was sent", (*run).givesBack},
		{"gives the letters IDs of its own", (*run).givesIDs},
		{"is empty without waiting", (*run).isEmpty},
		{"removes nothing when it is read", (*run).readsOnly},
		{"reads the oldest first", (*run).readsOldestFirst},
		{"reads up to a maximum", (*run).readsUpTo},
		{"hands out slices of the caller's own", (*run).handsOutOwnSlices},
		{"lists behind a letter", (*run).listsBehind},
		{"lists behind what is gone or changed", (*run).listsBehindGone},
		{"counts", (*run).counts},
		{"deletes by ID", (*run).deletes},
		{"passes over IDs that no letter has", (*run).deletesUnknown},
		{"leaves the newer failure to a delete out of date", (*run).deletesOutOfDate},
		{"gives no ID twice", (*run).givesNoIDTwice},
		{"updates a letter in its place", (*run).updates},
		{"does nothing for an update out of date", (*run).updatesOutOfDate},
		{"keeps the letters of branches apart", (*run).keepsApart},
		{"takes letters at once", (*run).takesAtOnce},
		{"tells the truth of a send whose context has ended", (*run).endedSend},
		{"refuses when it fails", (*run).refusesWhenItFails},
		{"is durable", (*run).isDurable},
		{"redrives", (*run).redrives},
	}
	add := func(when bool, name string, f func(*run)) {
		if when {
			list = append(list, check[run]{name, f})
		}
	}
	add(f.Identity, "keeps one letter of a record", (*run).keepsOne)
	add(f.Identity, "keeps what a parked key knows less of", (*run).keepsFailure)
	add(f.Identity, "keeps one letter of a record for each branch", (*run).keepsOneEach)
	add(f.Keyed, "tells parked keys", (*run).tellsKeys)
	add(f.Keyed, "tells the parked keys of a branch", (*run).tellsKeysOfABranch)
	add(f.Shared, "knows itself", (*run).knowsItself)
	add(f.Capacity > 0, "refuses when it is full", (*run).refusesWhenFull)
	add(f.Capacity > 0, "updates when it is full", (*run).updatesWhenFull)
	return list
}

// dlqRun is one check of a dead letter queue.
type dlqRun[T any] struct {
	attempt
	DLQFixture[T]
	f    DLQFeatures
	name func(T) string
}

func newDLQRun[T any](tb TB, x DLQFixture[T], f DLQFeatures) *dlqRun[T] {
	if f.Precision <= 0 {
		f.Precision = time.Microsecond
	}
	return &dlqRun[T]{newAttempt(tb, f.Patience), x, f, nameBy(x.Name)}
}

// letter returns a letter of the n-th record.
func (s *dlqRun[T]) letter(n int, text string) courier.DeadLetter[T] {
	at := time.Date(2026, 3, 1, 12, 0, n, 123456789, time.UTC).Truncate(s.f.Precision)
	return courier.DeadLetter[T]{
		Record: s.Record(n), Error: textError(text), Reason: courier.ReasonExhausted, Attempts: n + 1,
		FirstFailedAt: at.Add(-time.Minute), FailedAt: at,
	}
}

type textError string

func (e textError) Error() string { return string(e) }

// of makes it a branch's letter.
func of[T any](branch string, l courier.DeadLetter[T]) courier.DeadLetter[T] {
	l.Branch = branch
	return l
}

func (s *dlqRun[T]) send(letters ...courier.DeadLetter[T]) {
	s.tb.Helper()
	for _, letter := range letters {
		s.must("Send", func(ctx context.Context) error { return s.DLQ.Send(ctx, letter) })
	}
}

// park sends letters of the first n records, and returns them as they are read.
func (s *dlqRun[T]) park(n int) []courier.DeadLetter[T] {
	s.tb.Helper()
	for i := range n {
		s.send(s.letter(i, "boom"))
	}
	letters := s.receive(n + 1)
	if len(letters) != n {
		s.tb.Fatalf("after %d records were sent, Receive returns %d letters", n, len(letters))
	}
	return letters
}

func (s *dlqRun[T]) receive(most int) (letters []courier.DeadLetter[T]) {
	s.tb.Helper()
	s.must("Receive", func(ctx context.Context) (err error) {
		letters, err = s.DLQ.Receive(ctx, most)
		return err
	})
	return letters
}

func (s *dlqRun[T]) list(after string, most int) (letters []courier.DeadLetter[T]) {
	s.tb.Helper()
	s.must("List", func(ctx context.Context) (err error) {
		letters, err = s.DLQ.List(ctx, after, most)
		return err
	})
	return letters
}

func (s *dlqRun[T]) update(letter courier.DeadLetter[T]) {
	s.tb.Helper()
	s.must("Update", func(ctx context.Context) error { return s.DLQ.Update(ctx, letter) })
}

func (s *dlqRun[T]) delete(ids ...string) {
	s.tb.Helper()
	s.must("Delete", func(ctx context.Context) error { return s.DLQ.Delete(ctx, ids...) })
}

// expectNames checks which records letters have, in order.
func (s *dlqRun[T]) expectNames(letters []courier.DeadLetter[T], when string, records ...int) {
	s.tb.Helper()
	got, want := []string{}, []string{}
	for _, letter := range letters {
		got = append(got, s.name(letter.Record))
	}
	for _, n := range records {
		want = append(want, s.name(s.Record(n)))
	}
	if !same(got, want, true) {
		s.tb.Fatalf("%s the letters are those of %q, want %q", when, got, want)
	}
}

// expectSame compares two letters but for their IDs.
func (s *dlqRun[T]) expectSame(got, want courier.DeadLetter[T], when string) {
	s.tb.Helper()
	compare := func(field string, got, want any) {
		s.tb.Helper()
		if got != want {
			s.tb.Errorf("%s the letter's %s is %v, want %v", when, field, got, want)
		}
	}
	compare("Record", s.name(got.Record), s.name(want.Record))
	compare("Key", got.Key, want.Key)
	compare("Error", errorText(got.Error), errorText(want.Error))
	compare("Reason", got.Reason, want.Reason)
	compare("Attempts", got.Attempts, want.Attempts)
	compare("FirstFailedAt", got.FirstFailedAt.UTC().String(), want.FirstFailedAt.UTC().String())
	compare("FailedAt", got.FailedAt.UTC().String(), want.FailedAt.UTC().String())
	compare("Branch", got.Branch, want.Branch)
	compare("FailedRedrives", got.FailedRedrives, want.FailedRedrives)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
