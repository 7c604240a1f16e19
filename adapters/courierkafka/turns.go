package courierkafka

import (
	"context"
	"sync"
)

// turns lets either any number of calls produce, or one call alone.
type turns struct {
	mu      sync.Mutex
	sharing int
	alone   bool
	wanted  int           // calls that wait to be alone, which no other call overtakes
	changed chan struct{} // is closed when a call leaves; nil when nobody waits
}

// enter waits for a turn, or for the end of ctx, of which it returns the cause.
func (t *turns) enter(ctx context.Context, alone bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if alone {
		t.wanted++
		defer func() { t.wanted-- }()
	}
	for t.alone || alone && t.sharing > 0 || !alone && t.wanted > 0 {
		if t.changed == nil {
			t.changed = make(chan struct{})
		}
		changed := t.changed
		t.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		t.mu.Lock()
		if ctx.Err() != nil {
			if alone {
				t.wake()
			}
			return context.Cause(ctx)
		}
	}
	if alone {
		t.alone = true
	} else {
		t.sharing++
	}
	return nil
}

func (t *turns) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.alone {
		t.alone = false
	} else {
		t.sharing--
	}
	t.wake()
}

// wake lets those who wait look again.
func (t *turns) wake() {
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}
