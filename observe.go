package courier

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Observer is told what a coordinator does: per batch, and per failure. Only
// RecordStarted and RecordEnded are called for every record, at a cost if they are set.
// Every function may be nil.
//
// The functions are called one at a time for a coordinator, except Renewed and Stalled,
// and except RecordStarted, RecordEnded, Retried and Parked, which its workers call. They
// delay the coordinator while they run. They may call any of its methods but Stop, which
// would wait for them, and a panic in them does no harm. Counts are of records. ctx is
// the context of the work or of the marks that the event is about, for its values.
type Observer struct {
	Fetched  func(ctx context.Context, event FetchEvent)
	Applied  func(ctx context.Context, event ApplyEvent)
	Failed   func(ctx context.Context, event FailEvent)
	Retried  func(ctx context.Context, event RetryEvent)
	Parked   func(ctx context.Context, event ParkEvent)
	Marked   func(ctx context.Context, event MarkEvent)
	Released func(ctx context.Context, event ReleaseEvent)
	Renewed  func(ctx context.Context, event RenewEvent)
	Paused   func(ctx context.Context, event PauseEvent)
	Resumed  func(ctx context.Context, event ResumeEvent)
	Stalled  func(ctx context.Context, event StallEvent)
	Stopped  func(ctx context.Context, event StopEvent)

	RecordStarted func(ctx context.Context, event RecordEvent)
	RecordEnded   func(ctx context.Context, event RecordEvent)
}

// FetchEvent is a fetch that has returned.
type FetchEvent struct {
	Records int
	Elapsed time.Duration
	Err     error         // nil when it succeeded
	RetryIn time.Duration // after a failure: the least delay before the next fetch; 0 for RunOnce
}

// ApplyEvent is a batch, or a worker's part of a stream, that was applied as far as
// possible.
type ApplyEvent struct {
	Records       int
	Elapsed       time.Duration
	Applied       int    // or parked, or skipped: will be marked
	Failed        int    // stay pending
	Waiting       int    // will be retried while others go on; their outcome is open
	NotAttempted  int    // for another reason than a pause or a stop, or refused by the dead letter queue
	Record        string // the first that failed, was refused, or was cut short by the drain timeout
	Err           error  // of that record
	DrainTimedOut bool   // the drain timeout cut the work short
}

// FailEvent is a record that failed, or was refused, and stays pending.
type FailEvent struct {
	Record string
	Class  ErrorClass
	Err    error
}

// ParkEvent is a record that a dead letter queue has taken.
type ParkEvent struct {
	Record string // by name, "" if it has none
	Branch string // DLQPolicy.Branch
	Reason Reason
	Err    error
}

// MarkEvent is a mark that has returned.
type MarkEvent struct {
	Records int
	Elapsed time.Duration
	Err     error         // nil when it succeeded
	RetryIn time.Duration // after a failure; 0 is never: the records will be applied again
}

// ReleaseEvent is a set of records that were given back to their source, or reported to
// it as failed.
type ReleaseEvent struct {
	Records int
	Failed  bool          // by Fail; else by Release
	After   time.Duration // the delay that was passed to Release
	Err     error         // if not nil, they come back immediately, or when their lease ends
}

// RenewEvent is a renewal of leases.
type RenewEvent struct {
	Records int
	Lost    int // to others, or by time, before they were applied
	Revoked int // lost records that were handed over in order, see ErrRevoked
	Err     error
}

// PauseEvent is a stop of the intake.
type PauseEvent struct {
	Until                   time.Time // zero: not known, or until Resume is called
	Err                     error     // why; nil if Pause was called
	Record, Branch, Breaker string    // by name: the first record that was refused, the branch of a fan-out, the breaker; "" if there is none or it is not known

	Waiting int // records in hand that wait for a retry, if no more may be in hand

	Stuck bool // every available record has failed as a probe: a long outage, or poison that cannot be told from one
}

// ResumeEvent is the end of a pause.
type ResumeEvent struct {
	Pauses int // the number of PauseEvents; a breaker causes one each time it opens, also after a probe
}

// StallEvent is a record that has been in progress for longer than [WithStallAfter], or
// the end of that. There is one event at the beginning, and one at the end.
type StallEvent struct {
	Record  string        // by name; a text that says so if it is one of several, or the first of several in one call
	Records int           // 1, or how many these several are
	Attempt int           // of this delivery: 1 is the first
	InWork  time.Duration // for at least this long
	Over    bool          // its call has returned
}

// StopEvent is the end of a run.
type StopEvent struct {
	Unsettled int // records in the *UnsettledError of a stream
	Err       error
}

// RecordEvent is one record on its way to the applier, or back.
type RecordEvent struct {
	Record  string
	Number  uint64        // of the delivery: the first record that was fetched since Start is 1; another delivery of a record has another
	Elapsed time.Duration // at its end: of its call; all records of a batch share one
	Err     error         // at its end, nil if it was applied
}

// teeObservers returns an observer that calls all others, in order.
func teeObservers(observers ...Observer) Observer {
	return Observer{
		Fetched:  teed(observers, func(o Observer) func(context.Context, FetchEvent) { return o.Fetched }),
		Applied:  teed(observers, func(o Observer) func(context.Context, ApplyEvent) { return o.Applied }),
		Failed:   teed(observers, func(o Observer) func(context.Context, FailEvent) { return o.Failed }),
		Retried:  teed(observers, func(o Observer) func(context.Context, RetryEvent) { return o.Retried }),
		Parked:   teed(observers, func(o Observer) func(context.Context, ParkEvent) { return o.Parked }),
		Marked:   teed(observers, func(o Observer) func(context.Context, MarkEvent) { return o.Marked }),
		Released: teed(observers, func(o Observer) func(context.Context, ReleaseEvent) { return o.Released }),
		Renewed:  teed(observers, func(o Observer) func(context.Context, RenewEvent) { return o.Renewed }),
		Paused:   teed(observers, func(o Observer) func(context.Context, PauseEvent) { return o.Paused }),
		Resumed:  teed(observers, func(o Observer) func(context.Context, ResumeEvent) { return o.Resumed }),
		Stalled:  teed(observers, func(o Observer) func(context.Context, StallEvent) { return o.Stalled }),
		Stopped:  teed(observers, func(o Observer) func(context.Context, StopEvent) { return o.Stopped }),

		RecordStarted: teed(observers, func(o Observer) func(context.Context, RecordEvent) { return o.RecordStarted }),
		RecordEnded:   teed(observers, func(o Observer) func(context.Context, RecordEvent) { return o.RecordEnded }),
	}
}

// teed joins the functions that are set, none to nil, so that an event without an
// observer costs nothing.
func teed[E any](observers []Observer, of func(Observer) func(context.Context, E)) func(context.Context, E) {
	var all []func(context.Context, E)
	for _, o := range observers {
		if f := of(o); f != nil {
			all = append(all, f)
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return func(ctx context.Context, event E) {
		for _, f := range all {
			tell(ctx, f, event)
		}
	}
}

// tell calls an observer's function if there is one.
func tell[E any](ctx context.Context, f func(context.Context, E), event E) {
	if f != nil { // apart: an event that nobody wants is not to be allocated
		tellOf(ctx, f, event)
	}
}

// tellOf calls an observer's function on a new goroutine, so that a panic or a Goexit in
// it does no harm.
func tellOf[E any](ctx context.Context, f func(context.Context, E), event E) {
	var ignored error
	isolate(&ignored, func() error {
		f(ctx, event)
		return nil
	})
}

func newSlogObserver(logger *slog.Logger, clock *steady, interval time.Duration) *slogObserver {
	wait := max(time.Minute, min(2*min(interval, time.Hour), time.Hour))
	return &slogObserver{
		logger: logger, clock: clock, said: make(map[saying]said), seed: maphash.MakeSeed(),
		failing: calm{wait: wait}, postponed: calm{wait: wait}, pausing: calm{wait: wait}, guarded: calm{wait: wait},
	}
}

// slogObserver costs nothing while all is well.
type slogObserver struct {
	logger *slog.Logger
	some   atomic.Bool // something was said
	seed   maphash.Seed
	mu     sync.Mutex
	said   map[saying]said
	turn   uint64 // counts the complaints

	clock     *steady
	failing   calm // records that stay pending
	postponed calm // records that asked again for a later time
	pausing   calm // pauses, but for those over too many dead letters
	guarded   calm // those
	loud      bool // the end of the pause is to be said
}

// calm tells when something has not happened for long enough to be over. Where it
// happens at longer intervals it waits longer.
type calm struct {
	at   time.Time // the last time
	wait time.Duration
	on   bool
}

func (c *calm) stir(now, until time.Time) {
	if !c.at.IsZero() {
		c.wait = max(c.wait, min(2*now.Sub(c.at), time.Hour))
	}
	c.at, c.on = now, true
	if until.After(now) {
		c.at = until
	}
}

func (c *calm) over(now time.Time) bool {
	over := c.on && now.Sub(c.at) >= c.wait
	c.on = c.on && !over
	return over
}

// lookBack says what has not happened for a while.
func (l *slogObserver) lookBack(ctx context.Context) {
	if !l.some.Load() {
		return
	}
	now := l.clock.Now()
	l.mu.Lock()
	well, ready, steady, open := l.failing.over(now), l.postponed.over(now), l.pausing.over(now), l.guarded.over(now)
	failing, postponed, guarded := l.failing.wait, l.postponed.wait, l.guarded.wait
	l.mu.Unlock()
	if well {
		l.over(ctx, fmt.Sprintf("courier: no record has failed and stayed pending for %v", failing), "seen_in_batches", saidFailed, saidCut, saidRefused)
		l.over(ctx, "", "", saidHidden)
	}
	if ready {
		l.over(ctx, fmt.Sprintf("courier: no record has asked again to be tried later for %v", postponed), "times", saidLater)
	}
	if steady {
		l.over(ctx, "", "", saidPause, saidStuck)
	}
	if open {
		l.over(ctx, fmt.Sprintf("courier: resumed, with no new pause because of too many dead letters for %v", guarded), "pauses", saidGuard)
	}
}

func (l *slogObserver) stir(c *calm, until time.Time) {
	now := l.clock.Now()
	until = l.clock.of(until)
	l.mu.Lock()
	defer l.mu.Unlock()
	c.stir(now, until)
}

// say calls the logger, whose handler is the user's.
func (l *slogObserver) say(ctx context.Context, level slog.Level, message string, attrs ...any) {
	var ignored error
	isolate(&ignored, func() error {
		l.logger.Log(ctx, level, message, attrs...)
		return nil
	})
}

// saying is what makes two complaints the same. Of the error it has a hash, as
// its text may be of any length.
type saying struct {
	message string
	err     uint64
}

// said is how often something was to be said, its last turn, and when it was said.
type said struct {
	times int
	turn  uint64
	at    time.Time
}

// sayAgain is how long what repeats is not said again at the most.
const sayAgain = 5 * time.Minute

// maxSayings bounds what is remembered, for errors whose text is never the same,
// and maxText what is logged of one text.
const (
	maxSayings = 256
	maxText    = 8 << 10
)

// complain logs a message unless it was said before and is not worth saying
// again, and reports whether it did.
func (l *slogObserver) complain(ctx context.Context, level slog.Level, message string, err error, attrs ...any) (logged bool) {
	key := saying{message: message}
	if err != nil {
		attrs = append(attrs, "error", brief(err))
		if message != saidPause && message != saidStuck && message != saidGuard { // of which each has another time
			key.err = l.digest(err.Error())
		}
	}
	times, due := l.count(key)
	if !due {
		return false
	}
	if times > 1 {
		attrs = append(attrs, countOf(message), times)
	}
	var p *PanicError
	if errors.As(err, &p) && times == 1 {
		attrs = append(attrs, "stack", cutText(string(p.Stack)))
	}
	l.say(ctx, level, message, attrs...)
	return true
}

// countOf names what the times of a message are.
func countOf(message string) string {
	switch message {
	case saidFailed, saidCut, saidRefused:
		return "seen_in_batches"
	}
	return "times"
}

// count returns how often something was to be said, this time included, and whether it
// is now. What did not repeat for the longest makes room.
func (l *slogObserver) count(key saying) (times int, due bool) {
	clock := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn++
	now, known := l.said[key]
	if !known && len(l.said) >= maxSayings {
		oldest, since := key, l.turn
		for k, s := range l.said {
			if s.turn < since {
				oldest, since = k, s.turn
			}
		}
		delete(l.said, oldest)
	}
	now.times++
	now.turn = l.turn
	due = tenfold(now.times) || clock.Sub(now.at) >= sayAgain
	if due {
		now.at = clock
	}
	l.said[key] = now
	l.some.Store(true)
	return now.times, due
}

// digest returns a hash of a text in which all numbers are the same.
func (l *slogObserver) digest(text string) uint64 {
	digit := func(r rune) bool { return '0' <= r && r <= '9' }
	var h maphash.Hash
	h.SetSeed(l.seed)
	for text != "" {
		i := strings.IndexFunc(text, digit)
		if i < 0 {
			_, _ = h.WriteString(text)
			break
		}
		_, _ = h.WriteString(text[:i])
		_ = h.WriteByte('#')
		text = strings.TrimLeftFunc(text[i:], digit)
	}
	return h.Sum64()
}

// brief returns an error whose text is not too long for a log.
func brief(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if len(text) <= maxText {
		return err
	}
	return &briefError{err, cutText(text)}
}

// briefError is an error with a part of its text.
type briefError struct {
	err  error
	text string
}

func (e *briefError) Error() string { return e.text }
func (e *briefError) Unwrap() error { return e.err }

// cutText returns the beginning of a text that is too long for a log.
func cutText(text string) string {
	if len(text) <= maxText {
		return text
	}
	n := runeStart(text, maxText)
	return fmt.Sprintf("%s… (%d bytes left out)", text[:n], len(text)-n)
}

// runeStart returns where in a longer text a rune starts, at n or a little before.
func runeStart(text string, n int) int {
	for most := n; n > most-utf8.UTFMax && !utf8.RuneStart(text[n]); {
		n--
	}
	return n
}

// tenfold reports whether n is 1, 10, 100 and so on.
func tenfold(n int) bool {
	for n >= 10 && n%10 == 0 {
		n /= 10
	}
	return n == 1
}

// over says that what was complained of has ended, and forgets it.
func (l *slogObserver) over(ctx context.Context, message, count string, of ...string) {
	if !l.some.Load() {
		return
	}
	times := 0
	l.mu.Lock()
	for key, s := range l.said {
		for _, m := range of {
			if key.message == m {
				times += s.times
				delete(l.said, key)
			}
		}
	}
	l.some.Store(len(l.said) > 0)
	l.mu.Unlock()
	if times > 0 && message != "" {
		l.say(ctx, slog.LevelInfo, message, count, times)
	}
}

const (
	saidFetch   = "courier: fetch failed"
	saidMark    = "courier: mark failed, and is tried again"
	saidPause   = "courier: paused, records stay pending"
	saidStuck   = "courier: paused: every available record failed as a probe; either the outage continues or these records are poison, which stays pending until enough others get through: each lets it make up to FailureThreshold more attempts"
	saidGuard   = "courier: paused, because too many records go to the dead letter queue; records stay pending"
	saidFailed  = "courier: records failed and stay pending; this is the first of them"
	saidCut     = "courier: records failed and stay pending, and the run does not wait for their next attempt; this is the first of them"
	saidHidden  = "courier: all records of a full batch have failed twice in a row; the source returns them again and hides the records after them: park records that never succeed in a dead letter queue"
	saidLater   = "courier: a record asked again to be tried later, and waits in hand"
	saidRefused = "courier: records were not settled and stay pending; this is the first of them"
)

// cutShort reports whether an error is that of a record whose retries were cut short.
func cutShort(err error) bool {
	retried := retriesIn(err)
	return retried != nil && retried.NotAttempted()
}

func (l *slogObserver) fetched(ctx context.Context, e FetchEvent) {
	l.lookBack(ctx)
	if e.Err == nil {
		l.over(ctx, "courier: fetch works again", "failures", saidFetch)
		return
	}
	attrs := []any{"records", e.Records}
	if e.RetryIn > 0 {
		attrs = append(attrs, "retry_in", e.RetryIn)
	}
	level := slog.LevelWarn
	if e.RetryIn > 0 && afterOf(e.Err, maxCallAfter) == e.RetryIn { // the source says when: a quota, and no trouble
		level = slog.LevelInfo
	}
	l.complain(ctx, level, saidFetch, e.Err, attrs...)
}

func (l *slogObserver) applied(ctx context.Context, e ApplyEvent) {
	named := []any{"record", cutText(e.Record)}
	if e.DrainTimedOut {
		attrs := []any{"pending", e.Records - e.Applied - e.Failed, "batch", e.Records}
		var cut error
		if e.Failed+e.NotAttempted == 0 && e.Err != nil {
			attrs, cut = append(named, attrs...), e.Err
		}
		l.complain(ctx, slog.LevelWarn, "courier: the drain timeout cut the work short; the records that were not applied stay pending", cut, attrs...)
	}
	if e.Failed+e.NotAttempted == 0 {
		l.lookBack(ctx)
		return
	}
	l.stir(&l.failing, time.Time{})
	switch {
	case e.Failed > 0:
		l.complain(ctx, slog.LevelWarn, saidFailed, e.Err, append(named, "failed", e.Failed, "refused", e.NotAttempted, "batch", e.Records)...)
	case cutShort(e.Err):
		l.complain(ctx, slog.LevelWarn, saidCut, e.Err, append(named, "failed", e.NotAttempted, "batch", e.Records)...)
	default:
		l.complain(ctx, slog.LevelError, saidRefused, e.Err, append(named, "refused", e.NotAttempted, "batch", e.Records)...)
	}
}

// parked is called by the workers.
func (l *slogObserver) parked(ctx context.Context, e ParkEvent) {
	attrs := []any{"reason", e.Reason}
	if e.Record != "" {
		attrs = append([]any{"record", cutText(e.Record)}, attrs...)
	}
	if e.Branch != "" {
		attrs = append(attrs, "branch", e.Branch)
	}
	l.complain(ctx, slog.LevelWarn, "courier: the dead letter queue has taken a record, which is marked as done", e.Err, attrs...)
}

func (l *slogObserver) marked(ctx context.Context, e MarkEvent) {
	switch {
	case e.Err == nil:
		l.over(ctx, "courier: mark works again", "failures", saidMark)
	case e.RetryIn > 0:
		l.complain(ctx, slog.LevelWarn, saidMark, e.Err, "records", e.Records, "retry_in", e.RetryIn)
	default:
		l.complain(ctx, slog.LevelError, "courier: gave up marking; the records will be applied again", e.Err, "records", e.Records)
	}
}

func (l *slogObserver) released(ctx context.Context, e ReleaseEvent) {
	switch {
	case e.Err == nil:
	case e.Failed:
		l.complain(ctx, slog.LevelWarn, "courier: the source did not accept the report of failed records; they come back immediately, or when their lease ends", e.Err, "records", e.Records)
	default:
		l.complain(ctx, slog.LevelWarn, "courier: release failed; the records come back immediately, or when their lease ends", e.Err, "records", e.Records)
	}
}

func (l *slogObserver) renewed(ctx context.Context, e RenewEvent) {
	switch {
	case e.Err == nil:
	case e.Lost > 0 && e.Revoked == e.Lost:
		l.complain(ctx, slog.LevelInfo, "courier: the source hands records over to another process, in order: this process finishes the records in progress and leaves the others to that one", nil, "records", e.Lost)
	default:
		l.complain(ctx, slog.LevelWarn, "courier: the hold on records was not renewed", e.Err, "records", e.Records, "lost", e.Lost)
	}
}

func (l *slogObserver) paused(ctx context.Context, e PauseEvent) {
	var attrs []any
	if !e.Until.IsZero() {
		attrs = []any{"until", e.Until}
	}
	for _, about := range [...]struct{ key, name string }{{"record", cutText(e.Record)}, {"branch", e.Branch}, {"breaker", e.Breaker}} {
		if about.name != "" {
			attrs = append(attrs, about.key, about.name)
		}
	}
	if e.Waiting > 0 {
		attrs = append(attrs, "waiting", e.Waiting)
	}
	if e.Err != nil && errors.Is(e.Err, ErrParkRate) {
		l.stir(&l.guarded, e.Until)
		l.complain(ctx, slog.LevelWarn, saidGuard, e.Err, attrs...)
		return
	}
	if e.Err == nil {
		l.louder(true)
		l.say(ctx, slog.LevelInfo, "courier: paused until Resume is called")
		return
	}
	message := saidPause
	if e.Stuck {
		message = saidStuck
	}
	l.stir(&l.pausing, e.Until)
	if l.complain(ctx, slog.LevelWarn, message, e.Err, attrs...) {
		l.louder(true)
	}
}

// louder sets whether the end of the pause is to be said, and returns whether it was.
func (l *slogObserver) louder(to bool) (was bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was, l.loud = l.loud, to
	return was
}

// resumed says nothing of the end of a pause that was not said. Of one over too many dead
// letters only time tells whether the next one follows, see lookBack.
func (l *slogObserver) resumed(ctx context.Context, e ResumeEvent) {
	if l.louder(false) {
		l.say(ctx, slog.LevelInfo, "courier: resumed", "pauses", e.Pauses)
	}
}

func (l *slogObserver) later(ctx context.Context, record string, due time.Time, err error) {
	l.stir(&l.postponed, due)
	l.complain(ctx, slog.LevelWarn, saidLater, err, "record", cutText(record), "until", due)
}

func (l *slogObserver) waiting(ctx context.Context, d time.Duration) {
	l.complain(ctx, slog.LevelInfo, "courier: a failed record asked for a wait, and the coordinator cannot recognize it among others, so it fetches nothing until the wait is over; name the records with WithIdentity", nil, "wait", d)
}

func (l *slogObserver) keeping(ctx context.Context, records int) {
	l.complain(ctx, slog.LevelInfo, "courier: the coordinator settles the records of this batch before it fetches more, because it could not recognize them if they were fetched again; name the records with WithIdentity", nil, "records", records)
}

func (l *slogObserver) nameless(ctx context.Context) {
	l.complain(ctx, slog.LevelWarn, "courier: a record failed as the probe of a breaker and has no name, because its identity function returned none or panicked: its attempts are not counted over the breaker's pauses", nil)
}

func (l *slogObserver) leaving(ctx context.Context, letters int) {
	l.complain(ctx, slog.LevelWarn, "courier: the dead letter queue is in memory, and its letters are lost when this process ends, while their records are marked as done: redrive or store them before that", nil, "letters", letters)
}

func (l *slogObserver) hiding(ctx context.Context, records int) {
	l.complain(ctx, slog.LevelWarn, saidHidden, nil, "records", records)
}

func (l *slogObserver) stopped(ctx context.Context, e StopEvent) {
	if e.Unsettled > 0 {
		l.say(ctx, slog.LevelError, "courier: records were not settled and cannot be given back: Start returns them", "records", e.Unsettled, "error", brief(e.Err))
	}
}
