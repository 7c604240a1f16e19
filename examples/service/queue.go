package main

import (
	"context"
	"slices"
	"sync"
)

// queue is where the orders come from: always ten more of them.
type queue struct {
	mu      sync.Mutex
	pending []int
	next    int
}

func (q *queue) fetch(context.Context) ([]int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.pending) < 10 {
		q.next++
		q.pending = append(q.pending, q.next)
	}
	return slices.Clone(q.pending), nil
}

func (q *queue) mark(_ context.Context, done []int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pending = slices.DeleteFunc(q.pending, func(order int) bool { return slices.Contains(done, order) })
	return nil
}

func (q *queue) left() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.pending)
}
