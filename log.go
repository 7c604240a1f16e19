package courier

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// This file is about the log of a coordinator. What goes wrong there is a trouble: it
// begins with a complaint, and is over once there was none for a while. Meanwhile its
// complaints are counted, and few of them are lines.

// slogObserver costs nothing while all is well.
type slogObserver struct {
	logger *slog.Logger
	clock  *steady
	seed   maphash.Seed
	wait   time.Duration // before a trouble is over, at least
	some   atomic.Bool   // there is trouble

	mu       sync.Mutex
	troubles map[string]*trouble // by the first of their messages
}

func newSlogObserver(logger *slog.Logger, clock *steady, interval time.Duration) *slogObserver {
	wait := max(time.Minute, min(2*min(interval, time.Hour), time.Hour))
	return &slogObserver{logger: logger, clock: clock, seed: maphash.MakeSeed(), wait: wait, troubles: make(map[string]*trouble)}
}

// trouble is complaints that follow each other.
type trouble struct {
	at   time.Time     // of the last one, or until when it lasts
	wait time.Duration // without one before it is over; longer where they come at longer intervals
	on   bool
	loud bool             // its end is to be said
	said map[string]*said // by message
}

func (t *trouble) stir(now, until time.Time) {
	if !t.at.IsZero() {
		t.wait = max(t.wait, min(2*now.Sub(t.at), time.Hour))
	}
	t.on = true
	for _, at := range [...]time.Time{now, until} {
		if at.After(t.at) {
			t.at = at
		}
	}
}

// over reports whether there was no complaint for long enough. A trouble whose end shows
// by an event is over after that.
func (t *trouble) over(now time.Time, event bool) bool {
	return t.on && now.Sub(t.at) >= t.wait && (!event || !t.loud)
}

func (t *trouble) times() (n int) {
	for _, s := range t.said {
		n += s.times
	}
	return n
}

// said is how often a message was to be said, and how many lines there is room for.
type said struct {
	times  int
	room   int
	filled time.Time            // when that was counted
	known  map[uint64]time.Time // when it was said last, by what it was about
}

// sayAgain is how long what repeats is not said again at the most.
const sayAgain = 5 * time.Minute

// A message has mostRoom for lines at first, and room for two more each sayAgain. What was
// said is known for as long as knownFor.
const (
	mostRoom = 10
	knownFor = time.Hour
)

func (s *said) refill(now time.Time) {
	const each = sayAgain / 2
	n := now.Sub(s.filled) / each
	s.room, s.filled = int(min(mostRoom, time.Duration(s.room)+n)), s.filled.Add(n*each)
	for about, at := range s.known {
		if now.Sub(at) >= knownFor {
			delete(s.known, about)
		}
	}
}

// complaint is what may be a line.
type complaint struct {
	level   slog.Level
	message string
	about   uint64 // what makes it another one than those with the same message
	err     error
	until   time.Time // it lasts until then
	goesOn  bool      // it was counted before
	attrs   []any
}

// complain logs a message with an error unless it was said before and is not worth saying
// again.
func (l *slogObserver) complain(ctx context.Context, level slog.Level, message string, err error, attrs ...any) {
	l.tell(ctx, complaint{level: level, message: message, about: l.digestOf(err), err: err, attrs: attrs})
}

// tell is complain, and reports whether it has logged.
func (l *slogObserver) tell(ctx context.Context, c complaint) (logged bool) {
	times, due, news := l.count(&c)
	if !due {
		return false
	}
	if c.err != nil {
		c.attrs = append(c.attrs, "error", brief(c.err))
	}
	if times > 1 {
		c.attrs = append(c.attrs, countOf(c.message), times)
	}
	var p *PanicError
	if news && errors.As(c.err, &p) {
		c.attrs = append(c.attrs, "stack", cutText(string(p.Stack)))
	}
	l.say(ctx, c.level, c.message, c.attrs...)
	return true
}

// count returns how often a message was to be said, this time included, whether it is now,
// and whether it was not known.
func (l *slogObserver) count(c *complaint) (times int, due, news bool) {
	now, until := l.clock.Now(), l.clock.of(c.until)
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.trouble(c.message)
	t.stir(now, until)
	s := t.said[c.message]
	if s == nil {
		s = &said{room: mostRoom, filled: now, known: make(map[uint64]time.Time)}
		t.said[c.message] = s
	}
	s.refill(now)
	if !c.goesOn {
		s.times++
	}
	at, known := s.known[c.about]
	lines := 1
	if eventEnds(c.message) && (!t.loud || c.message == saidStalled) { // and that of its end
		lines = 2
	}
	due = s.room >= lines && (!known || now.Sub(at) >= sayAgain || tenfold(s.times) && !c.goesOn)
	if due {
		s.room -= lines
		s.known[c.about] = now
		t.loud = true
	}
	l.some.Store(true)
	return s.times, due, !known
}

// trouble returns that of a message. The lock is held.
func (l *slogObserver) trouble(message string) *trouble {
	first := firstOf(message)
	t := l.troubles[first]
	if t == nil {
		t = &trouble{wait: l.wait, said: make(map[string]*said)}
		l.troubles[first] = t
	}
	return t
}

// lookBack ends the troubles that have not shown for a while.
func (l *slogObserver) lookBack(ctx context.Context) {
	if !l.some.Load() {
		return
	}
	type line struct {
		text, count string
		times       int
	}
	var lines []line
	some := false
	now := l.clock.Now()
	l.mu.Lock()
	for message, t := range l.troubles {
		if t.over(now, eventEnds(message)) {
			if text := timeEnds(message); text != "" && t.loud {
				lines = append(lines, line{fmt.Sprintf(text, t.wait), countOf(message), t.times()})
			}
			t.on, t.loud = false, false
			clear(t.said)
		}
		some = some || t.on || t.loud
	}
	l.some.Store(some)
	l.mu.Unlock()
	slices.SortFunc(lines, func(a, b line) int { return strings.Compare(a.text, b.text) })
	for _, end := range lines {
		l.say(ctx, slog.LevelInfo, end.text, end.count, end.times)
	}
}

// ends takes the end of a trouble in, which is for now: the next complaint is news, and goes
// on with the count. It returns the count, and whether the end is to be said.
func (l *slogObserver) ends(message string) (times int, loud bool) {
	if !l.some.Load() {
		return 0, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.trouble(message)
	loud, t.loud = t.loud, false
	for _, s := range t.said {
		clear(s.known)
	}
	return t.times(), loud
}

// say calls the logger, whose handler is the user's.
func (l *slogObserver) say(ctx context.Context, level slog.Level, message string, attrs ...any) {
	var ignored error
	isolate(&ignored, func() error {
		l.logger.Log(ctx, level, message, attrs...)
		return nil
	})
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
	saidRetried = "courier: a record has failed for a long time, and is tried again"
	saidRefused = "courier: records were not settled and stay pending; this is the first of them"
)

// firstOf returns the message by which the trouble is known that a message is of.
func firstOf(message string) string {
	switch message {
	case saidCut, saidRefused, saidRetried:
		return saidFailed
	case saidStuck:
		return saidPause
	}
	return message
}

// eventEnds reports whether an event shows the end of a trouble.
func eventEnds(message string) bool {
	switch firstOf(message) {
	case saidFetch, saidMark, saidPause, saidStalled:
		return true
	}
	return false
}

// timeEnds returns what is said of a trouble of which only time tells whether it is over.
func timeEnds(message string) string {
	switch message {
	case saidFailed:
		return "courier: no record has failed and stayed pending for %v"
	case saidLater:
		return "courier: no record has asked again to be tried later for %v"
	case saidGuard:
		return "courier: resumed, with no new pause because of too many dead letters for %v"
	}
	return ""
}

// countOf names what the times of a message are.
func countOf(message string) string {
	switch message {
	case saidFailed, saidCut, saidRefused:
		return "seen_in_batches"
	case saidGuard:
		return "pauses"
	}
	return "times"
}

// maxText bounds what is logged of one text.
const maxText = 8 << 10

// digestOf returns a hash of an error's text, in which all numbers are the same.
func (l *slogObserver) digestOf(err error) uint64 {
	if err == nil {
		return 0
	}
	return l.digest(err.Error())
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

// cutShort reports whether an error is that of a record whose retries were cut short.
func cutShort(err error) bool {
	retried := retriesIn(err)
	return retried != nil && retried.NotAttempted()
}

func (l *slogObserver) fetched(ctx context.Context, e FetchEvent) {
	l.lookBack(ctx)
	if e.Err == nil {
		if failures, loud := l.ends(saidFetch); loud {
			l.say(ctx, slog.LevelInfo, "courier: fetch works again", "failures", failures)
		}
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
		if failures, loud := l.ends(saidMark); loud {
			l.say(ctx, slog.LevelInfo, "courier: mark works again", "failures", failures)
		}
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

func (l *slogObserver) paused(ctx context.Context, e PauseEvent) { l.pause(ctx, e, false) }

// pausedStill tells again of a pause that goes on.
func (l *slogObserver) pausedStill(ctx context.Context, e PauseEvent) { l.pause(ctx, e, true) }

func (l *slogObserver) pause(ctx context.Context, e PauseEvent, goesOn bool) {
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
	if e.Err == nil {
		l.mu.Lock()
		l.trouble(saidPause).loud = true
		l.some.Store(true)
		l.mu.Unlock()
		l.say(ctx, slog.LevelInfo, "courier: paused until Resume is called")
		return
	}
	c := complaint{level: slog.LevelWarn, message: saidPause, err: e.Err, until: e.Until, goesOn: goesOn, attrs: attrs}
	switch {
	case errors.Is(e.Err, ErrFullHand): // whatever the record's error is
		c.about = l.digestOf(ErrFullHand)
	case errors.Is(e.Err, ErrParkRate):
		c.message = saidGuard
	case errors.Is(e.Err, ErrOpen): // each has another text
		c.about = l.digest(e.Branch + "\n" + e.Breaker)
	default:
		c.about = l.digestOf(e.Err)
	}
	if e.Stuck && c.message == saidPause {
		c.message = saidStuck
	}
	l.tell(ctx, c)
}

// resumed says nothing of the end of a pause that was not said. Of one over too many dead
// letters only time tells whether the next one follows, see lookBack.
func (l *slogObserver) resumed(ctx context.Context, e ResumeEvent) {
	if _, loud := l.ends(saidPause); loud {
		l.say(ctx, slog.LevelInfo, "courier: resumed", "pauses", e.Pauses)
	}
}

// retried is called by the workers.
func (l *slogObserver) retried(ctx context.Context, e RetryEvent, failing time.Duration) {
	attrs := []any{"records", e.Records, "attempt", e.Attempt, "for", failing, "retry_in", e.Delay}
	if e.Record != "" {
		attrs = append([]any{"record", cutText(e.Record)}, attrs...)
	}
	l.tell(ctx, complaint{
		level: slog.LevelWarn, message: saidRetried, about: l.digestOf(e.Err), err: e.Err,
		until: l.clock.Clock.Now().Add(e.Delay + min(failing, time.Minute)), attrs: attrs, // another delivery may follow, and be as long before it is told
	})
}

func (l *slogObserver) later(ctx context.Context, record string, due time.Time, err error) {
	l.tell(ctx, complaint{
		level: slog.LevelWarn, message: saidLater, about: l.digestOf(err), err: err, until: due,
		attrs: []any{"record", cutText(record), "until", due},
	})
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
	_, _ = l.ends(saidPause) // nothing has resumed
	if e.Unsettled > 0 {
		l.say(ctx, slog.LevelError, "courier: records were not settled and cannot be given back: Start returns them", "records", e.Unsettled, "error", brief(e.Err))
	}
}
