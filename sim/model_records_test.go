package sim

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/erfanmomeniii/courier"
)

// record is what the model moves. Its number is its identity.
type record interface {
	fmt.Stringer
	number() int
}

// form is the type of the records.
type form int

const (
	orders    form = iota // values, alike at each fetch
	versions              // values that no two fetches return alike
	documents             // pointers, to what a handler changes
)

var formNames = []string{"orders", "versions", "documents"}

type order struct{ N int }

// version has a column that counts its fetches.
type version struct{ N, Fetches int }

type document struct {
	N      int
	Status string
	Lines  []string
}

func (o order) String() string     { return names[o.N] }
func (o order) number() int        { return o.N }
func (v version) String() string   { return names[v.N] }
func (v version) number() int      { return v.N }
func (d *document) String() string { return names[d.N] }
func (d *document) number() int    { return d.N }

// handle is what a handler does to its record.
func (d *document) handle(ctx context.Context) {
	d.Status = fmt.Sprintf("attempt %d since %v", courier.AttemptFromContext(ctx), processOf(ctx).w.Now())
	slices.Reverse(d.Lines)
}

// handle lets a handler change its record, if the form allows that.
func handle[T record](ctx context.Context, record T) {
	if d, ok := any(record).(*document); ok {
		d.handle(ctx)
	}
}

var names = func() (names [120 + extras]string) {
	for n := range names {
		names[n] = "r" + strconv.Itoa(n)
	}
	return names
}()

// lay has the model move records of the form that was drawn.
func (m *model) lay() {
	switch m.form {
	case versions:
		lay(m, func(n int) version {
			m.rows[n].fetches++
			return version{n, m.rows[n].fetches}
		}, nil)
	case documents:
		lay(m, func(n int) *document { return &document{n, "new", []string{"first", "second"}} }, func(d *document) *document {
			again := *d
			again.Lines = slices.Clone(d.Lines)
			return &again
		})
	default:
		lay(m, func(n int) order { return order{n} }, nil)
	}
}

// pipe is what a model does with records of one type.
type pipe[T record] struct {
	*model
	read  func(n int) T // what a fetch returns
	clone func(T) T     // nil where nobody changes a record
	queue *courier.MemoryDLQ[T]
	aside *courier.MemoryDLQ[T] // the second branch's
}

// letter is what the model looks at in a dead letter.
type letter struct {
	id, key, branch string
	n               int
}

func lay[T record](m *model, read func(n int) T, clone func(T) T) {
	queue := func() *courier.MemoryDLQ[T] {
		return &courier.MemoryDLQ[T]{Capacity: 2 * len(m.rows), Identity: func(record T) string { return names[record.number()] }}
	}
	x := &pipe[T]{m, read, clone, queue(), queue()}
	m.letters = func() []letter { return append(lettersOf(x.queue), lettersOf(x.aside)...) }
	if m.Shared {
		x.aside = x.queue
		m.letters = func() []letter { return lettersOf(x.queue) }
	}
	m.pipe, m.live, m.redrive, m.open = x, x.live, x.redrive, x.open
}

// lettersOf are the letters in a queue, oldest first.
func lettersOf[T record](queue *courier.MemoryDLQ[T]) (list []letter) {
	all, _ := queue.Receive(context.Background(), math.MaxInt) // its error is always nil
	for i := range all {
		list = append(list, letter{all[i].ID, all[i].Key, all[i].Branch, all[i].Record.number()})
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
