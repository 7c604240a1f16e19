package sim

import (
	"context"
	"errors"

	"github.com/erfanmomeniii/courier"
)

// runner is a coordinator that makes one pass.
type runner interface {
	coordinator
	RunOnce(ctx context.Context) error
}

// cron runs a coordinator every so often, until the process is asked to stop; or
// once, where each run is a process of its own.
func (l *life) cron(ctx context.Context, c runner) error {
	for {
		l.pass, l.fetches = l.pass[:0], 0
		err := c.RunOnce(ctx)
		l.ranOnce(err)
		if l.runs++; ctx.Err() == nil && l.m.Fresh {
			return again(l.m.Cron)
		}
		select {
		case <-l.p.clock.After(l.m.Cron):
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			var unmarked *courier.MarkError
			if errors.As(err, &unmarked) {
				return err
			}
			return nil
		}
	}
}

// ranOnce looks at what a run returned, which is about all that it fetched.
func (l *life) ranOnce(err error) {
	m := l.m
	if l.p.dead {
		return
	}
	l.look(nil)
	clear(l.waits.of) // the next run fetches them anew
	clear(l.waits.untried)
	clear(l.waits.unbegun)
	if errors.Is(err, courier.ErrMark) { // its records come again
		l.markFailed = false
		clear(l.inHand)
		clear(l.tries) // nor does the next run know of them
		for n := range m.rows {
			if r := &m.rows[n]; !r.marked {
				r.sure[l.p.instance] = nil
			}
		}
	}
	var unmarked []string
	for _, n := range l.pass {
		if !m.rows[n].marked {
			unmarked = append(unmarked, names[n])
		}
	}
	switch {
	case err == nil && len(unmarked) > 0:
		m.Fail("RunOnce: process %d returned no error, and %v are not marked", l.p.number, unmarked)
	case err != nil:
		m.Sometimes("a run returned an error")
	}
	var list *courier.BatchError
	if !errors.As(err, &list) {
		return
	}
	for _, f := range list.Failures {
		switch id := blamed(f.Err) &^ beside; {
		case f.Index < 0 || f.Index >= len(l.pass):
			m.Fail("RunOnce: process %d tells of record %d of %d", l.p.number, f.Index, len(l.pass))
			return
		case !m.Batches && id > 0 && int(id-1) != l.pass[f.Index] && courier.Classify(context.Background(), f.Err) != courier.ClassNotAttempted: // of those another may be to blame, and of a batch its first
			m.Fail("RunOnce: process %d tells of %s as record %d, which is %s: %v", l.p.number, names[id-1], f.Index, names[l.pass[f.Index]], f.Err)
		}
	}
}
