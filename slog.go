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

// SlogObserver returns an observer that logs what goes wrong, every record that is
// parked included, at Warn and Error, and that it goes well again, at Info. A nil logger is slog.Default().
//
// What repeats is said once: a message with the same error, whatever numbers are
// in it, again the 10th, 100th, 1000th time and the first time after 5 minutes, with the
// count, and once more when it is over. The pauses of an outage are one thing that repeats. That failing
// records are well again, or do not go to the dead letter queue in masses any more,
// no single event tells: it is logged with the first event after a minute or more (up
// to an hour, where failures come at longer intervals) without such a failure. Of many errors
// that differ, the observer remembers the latest 256. It logs 8 kB of an error's
// text, a stack or a record's name, and how many bytes it left out. It is what a
// coordinator has by default, see [WithLogger].
func SlogObserver(logger *slog.Logger) Observer {
	if logger == nil {
		logger = slog.Default()
	}
	l := newSlogObserver(logger, newSteady(systemClock{}), 0)
	return Observer{
		Fetched: l.fetched, Applied: l.applied, Marked: l.marked, Released: l.released, Renewed: l.renewed,
		Parked: l.parked, Paused: l.paused, Resumed: l.resumed, Stopped: l.stopped,
		Stalled: l.stalled,
	}
}

func newSlogObserver(logger *slog.Logger, clock *steady, interval time.Duration) *slogObserver {
	wait := max(time.Minute, min(2*min(interval, time.Hour), time.Hour))
	return &slogObserver{
		logger: logger, clock: clock, said: make(map[saying]said), seed: maphash.MakeSeed(), failing: calm{wait: wait}, guarded: calm{wait: wait},
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

	clock            *steady
	failing, guarded calm // records that stay pending; pauses over too many dead letters
	loud             bool // there was a pause that is over with its end
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
	well, open := l.failing.over(now), l.guarded.over(now)
	failing, guarded := l.failing.wait, l.guarded.wait
	l.mu.Unlock()
	if well {
		l.over(ctx, fmt.Sprintf("courier: no record has failed and stayed pending for %v", failing), "seen_in_batches", saidFailed, saidCut, saidRefused)
		l.over(ctx, "", "", saidHidden)
	}
	if open {
		l.over(ctx, fmt.Sprintf("courier: resumed, with no new pause over too many dead letters for %v", guarded), "pauses", saidGuard)
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
// again.
func (l *slogObserver) complain(ctx context.Context, level slog.Level, message string, err error, attrs ...any) {
	key := saying{message: message}
	if err != nil {
		attrs = append(attrs, "error", brief(err))
		if message != saidPause && message != saidStuck && message != saidGuard { // of which each has another time
			key.err = l.digest(err.Error())
		}
	}
	times, due := l.count(key)
	if !due {
		return
	}
	if times > 1 {
		attrs = append(attrs, countOf(message), times)
	}
	var p *PanicError
	if errors.As(err, &p) && times == 1 {
		attrs = append(attrs, "stack", cutText(string(p.Stack)))
	}
	l.say(ctx, level, message, attrs...)
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
	saidStuck   = "courier: paused, and every record at hand has failed as a probe: the outage goes on, or they are poison that nothing else can tell from one"
	saidGuard   = "courier: paused, because too many records go to the dead letter queue; records stay pending"
	saidFailed  = "courier: records failed and stay pending; this is the first of them"
	saidCut     = "courier: records failed and stay pending, and their next attempt is not waited for; this is the first of them"
	saidHidden  = "courier: all records of a full batch have failed, two times in a row; the source returns them again, and no record that comes after them is seen: park the ones that never succeed, with a dead letter queue"
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
	l.complain(ctx, slog.LevelWarn, saidFetch, e.Err, attrs...)
}

func (l *slogObserver) applied(ctx context.Context, e ApplyEvent) {
	named := []any{"record", cutText(e.Record)}
	if e.DrainOver {
		attrs := []any{"pending", e.Records - e.Applied - e.Failed, "batch", e.Records}
		var cut error
		if e.Failed+e.Refused == 0 && e.Err != nil {
			attrs, cut = append(named, attrs...), e.Err
		}
		l.complain(ctx, slog.LevelWarn, "courier: the drain timeout cut the work short; the records that were not applied stay pending", cut, attrs...)
	}
	if e.Failed+e.Refused == 0 {
		l.lookBack(ctx)
		return
	}
	l.stir(&l.failing, time.Time{})
	switch {
	case e.Failed > 0:
		l.complain(ctx, slog.LevelWarn, saidFailed, e.Err, append(named, "failed", e.Failed, "refused", e.Refused, "batch", e.Records)...)
	case cutShort(e.Err):
		l.complain(ctx, slog.LevelWarn, saidCut, e.Err, append(named, "failed", e.Refused, "batch", e.Records)...)
	default:
		l.complain(ctx, slog.LevelError, saidRefused, e.Err, append(named, "refused", e.Refused, "batch", e.Records)...)
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
		l.complain(ctx, slog.LevelWarn, "courier: the source could not be told of failed records; they come back when their lease ends", e.Err, "records", e.Records)
	default:
		l.complain(ctx, slog.LevelWarn, "courier: release failed; the records come back when their lease ends", e.Err, "records", e.Records)
	}
}

func (l *slogObserver) renewed(ctx context.Context, e RenewEvent) {
	if e.Err != nil {
		l.complain(ctx, slog.LevelWarn, "courier: leases were not renewed", e.Err, "records", e.Records, "lost", e.Lost)
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
	l.mu.Lock()
	l.loud = true
	l.mu.Unlock()
	switch {
	case e.Err == nil:
		l.say(ctx, slog.LevelInfo, "courier: paused until Resume is called")
	case e.Stuck:
		l.complain(ctx, slog.LevelWarn, saidStuck, e.Err, attrs...)
	default:
		l.complain(ctx, slog.LevelWarn, saidPause, e.Err, attrs...)
	}
}

// resumed says nothing of the end of a pause over too many dead letters: only time
// tells whether the next one follows, see lookBack.
func (l *slogObserver) resumed(ctx context.Context, e ResumeEvent) {
	l.over(ctx, "", "", saidPause, saidStuck)
	l.mu.Lock()
	loud := l.loud
	l.loud = false
	l.mu.Unlock()
	if loud {
		l.say(ctx, slog.LevelInfo, "courier: resumed", "pauses", e.Pauses)
	}
}

func (l *slogObserver) waiting(ctx context.Context, d time.Duration) {
	l.complain(ctx, slog.LevelInfo, "courier: a failed record asked for a wait, and the coordinator cannot recognize it among others, so it fetches nothing for as long; name the records with WithIdentity", nil, "wait", d)
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
