package courier

import (
	"errors"
	"fmt"
)

// complaint is what the log says of the records of a batch that failed: which
// one was the first, and of what.
type complaint struct {
	index int // of the record in the batch
	err   error
}

func (c *complaint) add(index int, err error) {
	if c.err == nil {
		c.index, c.err = index, err
	}
}

func (c *complaint) attrs(name func(index int) string) []any {
	attrs := []any{"record", name(c.index), "error", c.err}
	var p *PanicError
	if errors.As(c.err, &p) {
		attrs = append(attrs, "stack", string(p.Stack))
	}
	return attrs
}

// describe names a record for the log: as the source does, or as it does
// itself, else by its place in the batch. Its content may not be for a log.
func describe[T any](identity func(T) string, record T, index int) string {
	name := ""
	var ignored error
	isolate(&ignored, func() error {
		if identity != nil {
			name = identity(record)
		} else if s, ok := any(record).(fmt.Stringer); ok {
			name = s.String()
		}
		return nil
	})
	if name == "" {
		name = fmt.Sprintf("#%d of the batch", index)
	}
	return name
}
