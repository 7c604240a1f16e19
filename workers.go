package courier

import "context"

// worker is a goroutine that applies the records it is handed. What it is at is
// noted before user code is called, so that its loop can be called again after
// a Goexit, see supervise.
type worker[H task] struct {
	todo      <-chan H
	stop, ctx context.Context

	task H
	busy bool
}

// task is what a worker is handed.
type task interface {
	run(stop, ctx context.Context)
	done() // by the worker, which is free again
}

func (w *worker[H]) loop() {
	w.ctx = withExits(w.ctx)
	for {
		if !w.busy {
			task, ok := <-w.todo
			if !ok {
				return
			}
			w.task, w.busy = task, true
		}
		w.task.run(w.stop, w.ctx)
		w.busy = false
		w.task.done()
	}
}
