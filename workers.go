package courier

import "context"

// worker is a goroutine that applies the records it is handed. What it is at is
// noted before user code is called, so that its loop can be called again after
// a Goexit, see supervise.
type worker[H interface {
	run(stop, ctx context.Context)
}] struct {
	todo      <-chan H
	done      chan<- H
	stop, ctx context.Context

	hand H
	busy bool
}

func (w *worker[H]) loop() {
	for {
		if !w.busy {
			hand, ok := <-w.todo
			if !ok {
				return
			}
			w.hand, w.busy = hand, true
		}
		w.hand.run(w.stop, w.ctx)
		w.busy = false
		w.done <- w.hand
	}
}
