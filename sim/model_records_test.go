package sim

import (
	"context"
	"fmt"
	"strconv"

	"github.com/erfanmomeniii/courier"
)

// record is what the model moves. Its number is its identity.
type record interface {
	fmt.Stringer
	number() int
}

// order is a record that is alike at each fetch.
type order struct{ N int }

func (o order) String() string { return names[o.N] }
func (o order) number() int    { return o.N }

var names = func() (names [120 + extras]string) {
	for n := range names {
		names[n] = "r" + strconv.Itoa(n)
	}
	return names
}()

// pipe is what a model does with records of one type.
type pipe[T record] struct {
	*model
	read  func(n int) T // what a fetch returns
	queue *courier.MemoryDLQ[T]
}

// letter is what the model looks at in a dead letter.
type letter struct {
	id, key string
	n       int
}

// lay has the model move records of one type.
func lay[T record](m *model, read func(n int) T) {
	x := &pipe[T]{m, read, courier.NewMemoryDLQByIdentity(len(m.rows), func(record T) string { return names[record.number()] })}
	m.inQueue, m.letters = x.queue.Len, x.letters
	m.live, m.redrive, m.open = x.live, x.redrive, x.open
}

// letters are those in the queue, oldest first.
func (x *pipe[T]) letters() (list []letter) {
	all, _ := x.queue.Receive(context.Background(), len(x.rows)) // a MemoryDLQ always can
	for i := range all {
		list = append(list, letter{all[i].ID, all[i].Key, all[i].Record.number()})
	}
	return list
}

// numbersOf returns the numbers of records.
func numbersOf[T record](records []T) []int {
	list := make([]int, len(records))
	for i, r := range records {
		list[i] = r.number()
	}
	return list
}

// line is a channel of records, into which each process gets what is not marked.
type line[T record] struct {
	*pipe[T]
	queued chan T
}

func (x *pipe[T]) open() stream { return &line[T]{x, make(chan T, len(x.rows))} }

func (l *line[T]) send(n int)   { l.queued <- l.read(n) }
func (l *line[T]) waiting() int { return len(l.queued) }

// stream is a line of whatever type.
type stream interface {
	send(n int)
	waiting() int
}
