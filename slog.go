package courier

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
)

// SlogObserver returns an observer that logs what goes wrong, at Warn and Error,
// and that it goes well again, at Info. A nil logger is slog.Default().
//
// What repeats is said once: a message with the same error, whatever numbers are
// in it, again the 10th, 100th, 1000th time, with the count, and once more when
// it is over. The pauses of an outage are one thing that repeats. It is what a
// coordinator has by default, see [WithLogger].
func SlogObserver(logger *slog.Logger) Observer {
	if logger == nil {
		logger = slog.Default()
	}
	l := newSlogObserver(logger)
	return Observer{
		Fetched: l.fetched, Applied: l.applied, Marked: l.marked, Released: l.released, Renewed: l.renewed,
		Paused: l.paused, Resumed: l.resumed, Stopped: l.stopped,
	}
}

func newSlogObserver(logger *slog.Logger) *slogObserver {
	return &slogObserver{logger: logger, said: make(map[saying]int)}
}

// slogObserver costs nothing while all is well.
type slogObserver struct {
	logger *slog.Logger
	some   atomic.Bool // something was said
	mu     sync.Mutex
	said   map[saying]int
}

// say calls the logger, whose handler is the user's.
func (l *slogObserver) say(ctx context.Context, level slog.Level, message string, attrs ...any) {
	var ignored error
	isolate(&ignored, func() error {
		l.logger.Log(ctx, level, message, attrs...)
		return nil
	})
}

// saying is what makes two complaints the same.
type saying struct{ message, err string }

// maxSayings bounds what is remembered, for errors whose text is never the same.
const maxSayings = 256

// complain logs a message unless it was said before and is not worth saying
// again.
func (l *slogObserver) complain(ctx context.Context, level slog.Level, message string, err error, attrs ...any) {
	key := saying{message: message}
	if err != nil {
		attrs = append(attrs, "error", err)
		if message != saidPause && message != saidStuck { // of which each has another time
			key.err = numberless(err.Error())
		}
	}
	l.mu.Lock()
	if len(l.said) >= maxSayings {
		clear(l.said)
	}
	l.said[key]++
	l.some.Store(true)
	times := l.said[key]
	l.mu.Unlock()
	if !tenfold(times) {
		return
	}
	if times > 1 {
		attrs = append(attrs, "times", times)
	}
	var p *PanicError
	if errors.As(err, &p) && times == 1 {
		attrs = append(attrs, "stack", string(p.Stack))
	}
	l.say(ctx, level, message, attrs...)
}

// numberless returns a text with each number in it replaced.
func numberless(text string) string {
	var b strings.Builder
	number := false
	for _, r := range text {
		if digit := '0' <= r && r <= '9'; !digit || !number {
			if number = digit; digit {
				r = '#'
			}
			b.WriteRune(r)
		}
	}
	return b.String()
}

// tenfold reports whether n is 1, 10, 100 and so on.
func tenfold(n int) bool {
	for n >= 10 && n%10 == 0 {
		n /= 10
	}
	return n == 1
}

// over says that what was complained of has ended, and forgets it.
func (l *slogObserver) over(ctx context.Context, message string, of ...string) {
	if !l.some.Load() {
		return
	}
	times := 0
	l.mu.Lock()
	for key, n := range l.said {
		for _, m := range of {
			if key.message == m {
				times += n
				delete(l.said, key)
			}
		}
	}
	l.some.Store(len(l.said) > 0)
	l.mu.Unlock()
	if times > 0 && message != "" {
		l.say(ctx, slog.LevelInfo, message, "failures", times)
	}
}

const (
	saidFetch  = "courier: fetch failed"
	saidMark   = "courier: mark failed, nothing is fetched until it succeeds"
	saidPause  = "courier: paused, records stay pending"
	saidStuck  = "courier: paused, and every record at hand has failed as a probe: the outage goes on, or they are poison that nothing else can tell from one"
	saidFailed = "courier: records failed and stay pending"
)

func (l *slogObserver) fetched(ctx context.Context, e FetchEvent) {
	if e.Err != nil {
		l.complain(ctx, slog.LevelWarn, saidFetch, e.Err, "records", e.Records, "retry_in", e.RetryIn)
		return
	}
	l.over(ctx, "courier: fetch works again", saidFetch)
}

func (l *slogObserver) applied(ctx context.Context, e ApplyEvent) {
	if e.DrainOver {
		l.complain(ctx, slog.LevelWarn, "courier: the drain timeout cut the work short; what was not applied stays pending", nil,
			"pending", e.Records-e.Applied-e.Failed, "batch", e.Records)
	}
	switch {
	case e.Failed > 0:
		l.complain(ctx, slog.LevelWarn, saidFailed, e.Err, "record", e.Record, "failed", e.Failed, "refused", e.Refused, "batch", e.Records)
	case e.Refused > 0:
		l.complain(ctx, slog.LevelError, "courier: records were not settled and stay pending", e.Err, "record", e.Record, "refused", e.Refused, "batch", e.Records)
	}
}

func (l *slogObserver) marked(ctx context.Context, e MarkEvent) {
	switch {
	case e.Err == nil:
		l.over(ctx, "courier: mark works again", saidMark)
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
	switch {
	case e.Err == nil:
		l.say(ctx, slog.LevelInfo, "courier: paused until Resume is called")
	case e.Stuck:
		l.complain(ctx, slog.LevelWarn, saidStuck, e.Err, "until", e.Until)
	default:
		l.complain(ctx, slog.LevelWarn, saidPause, e.Err, "until", e.Until)
	}
}

func (l *slogObserver) resumed(ctx context.Context, e ResumeEvent) {
	l.over(ctx, "", saidPause, saidStuck)
	l.say(ctx, slog.LevelInfo, "courier: resumed", "pauses", e.Pauses)
}

func (l *slogObserver) keeping(ctx context.Context, records int) {
	l.complain(ctx, slog.LevelInfo, "courier: nothing more is fetched until the records of this batch are settled, because they could not be known again: give the coordinator WithIdentity", nil, "records", records)
}

func (l *slogObserver) stopped(ctx context.Context, e StopEvent) {
	if e.Unsettled > 0 {
		l.say(ctx, slog.LevelError, "courier: records were not settled and cannot be given back: Start returns them", "records", e.Unsettled, "error", e.Err)
	}
}
