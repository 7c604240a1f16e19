package courierttest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Condition says which calls a fault applies to. Conditions are values, made by the
// functions of this package, and combine with [And], [Or] and [Not].
type Condition interface {
	// String is the text form, see [Parse].
	String() string

	holds(c call) bool
	validate() error
	rank() int // how loosely its text binds
}

const (
	atomRank = iota
	andRank
	orRank
)

// Calls holds from the first to the last of the given calls of the fake; if last is 0
// there is no end. In a batch each record counts as a call.
func Calls(first, last int) Condition { return calls{first, last} }

// Every holds for every n-th call of the fake.
func Every(n int) Condition { return every{n} }

// OnRecord holds for calls about the record with the given name, see
// [Recorder].Name.
func OnRecord(name string) Condition { return record{name} }

// Attempts holds from the first to the last of the given attempts, counted for each
// record; if last is 0 there is no end.
func Attempts(first, last int) Condition { return attempts{first, last} }

// Chance holds with the given probability. The draw depends on the seed, the record and
// the attempt only, not on which goroutine comes first.
func Chance(probability float64, seed uint64) Condition { return chance{probability, seed} }

// During holds while the time since the first call of the fake is at least from
// and less than to, such as for an outage.
func During(from, to time.Duration) Condition { return during{from, to} }

// And holds if all of the conditions do.
func And(a, b Condition, more ...Condition) Condition {
	return and(flat(andRank, append([]Condition{a, b}, more...)))
}

// Or holds if any of the conditions does.
func Or(a, b Condition, more ...Condition) Condition {
	return or(flat(orRank, append([]Condition{a, b}, more...)))
}

// Not holds if the condition does not.
func Not(c Condition) Condition { return not{c} }

type (
	calls    struct{ first, last int }
	attempts struct{ first, last int }
	every    struct{ n int }
	record   struct{ name string }
	chance   struct {
		p    float64
		seed uint64
	}
	during struct{ from, to time.Duration }
	and    []Condition
	or     []Condition
	not    struct{ c Condition }
)

func (c calls) holds(x call) bool    { return within(x.n, c.first, c.last) }
func (c attempts) holds(x call) bool { return within(x.attempt, c.first, c.last) }
func (c every) holds(x call) bool    { return c.n > 0 && x.n%c.n == 0 }
func (c record) holds(x call) bool   { return x.name == c.name }
func (c chance) holds(x call) bool   { return draw(c.seed, x.name, x.attempt) < c.p }
func (c during) holds(x call) bool   { return x.since >= c.from && x.since < c.to }
func (c not) holds(x call) bool      { return !c.c.holds(x) }
func (c and) holds(x call) bool {
	return !slices.ContainsFunc(c, func(c Condition) bool { return !c.holds(x) })
}
func (c or) holds(x call) bool {
	return slices.ContainsFunc(c, func(c Condition) bool { return c.holds(x) })
}

func within(n, first, last int) bool { return n >= first && (last == 0 || n <= last) }

func (c calls) String() string    { return "call " + span(c.first, c.last) }
func (c attempts) String() string { return "attempt " + span(c.first, c.last) }
func (c every) String() string    { return fmt.Sprintf("every %d", c.n) }
func (c record) String() string   { return "record " + strconv.Quote(c.name) }
func (c chance) String() string {
	return fmt.Sprintf("chance %s seed %d", strconv.FormatFloat(c.p, 'g', -1, 64), c.seed)
}
func (c during) String() string { return fmt.Sprintf("during %s..%s", c.from, c.to) }
func (c not) String() string    { return "not " + bracketed(c.c, atomRank) }
func (c and) String() string    { return joined(c, " and ", andRank-1) }
func (c or) String() string     { return joined(c, " or ", orRank-1) }

func span(first, last int) string {
	switch last {
	case first:
		return strconv.Itoa(first)
	case 0:
		return fmt.Sprintf("%d..", first)
	}
	return fmt.Sprintf("%d..%d", first, last)
}

func joined(list []Condition, word string, most int) string {
	texts := make([]string, len(list))
	for i, c := range list {
		texts[i] = bracketed(c, most)
	}
	return strings.Join(texts, word)
}

func bracketed(c Condition, most int) string {
	if c.rank() > most {
		return "(" + c.String() + ")"
	}
	return c.String()
}

func (calls) rank() int    { return atomRank }
func (attempts) rank() int { return atomRank }
func (every) rank() int    { return atomRank }
func (record) rank() int   { return atomRank }
func (chance) rank() int   { return atomRank }
func (during) rank() int   { return atomRank }
func (not) rank() int      { return atomRank }
func (and) rank() int      { return andRank }
func (or) rank() int       { return orRank }

func (c calls) validate() error    { return validSpan("call", c.first, c.last) }
func (c attempts) validate() error { return validSpan("attempt", c.first, c.last) }
func (c every) validate() error {
	if c.n < 1 {
		return fmt.Errorf("every %d: want at least 1", c.n)
	}
	return nil
}
func (record) validate() error { return nil }
func (c chance) validate() error {
	if !(c.p >= 0 && c.p <= 1) {
		return fmt.Errorf("chance %v: want a probability from 0 to 1", c.p)
	}
	return nil
}
func (c during) validate() error {
	if c.from < 0 || c.to <= c.from {
		return fmt.Errorf("%s: want a span of time", c)
	}
	return nil
}
func (c not) validate() error { return validAll([]Condition{c.c}) }
func (c and) validate() error { return validAll(c) }
func (c or) validate() error  { return validAll(c) }

func validSpan(word string, first, last int) error {
	if first < 1 || last != 0 && last < first {
		return fmt.Errorf("%s %s: want a span that begins at 1 or later", word, span(first, last))
	}
	return nil
}

func validAll(list []Condition) error {
	for _, c := range list {
		if c == nil {
			return fmt.Errorf("a condition is nil")
		}
		if err := c.validate(); err != nil {
			return err
		}
	}
	return nil
}

// flat takes up the parts of conditions of the same kind, since their text
// cannot tell them apart.
func flat(rank int, list []Condition) []Condition {
	var parts []Condition
	for _, c := range list {
		switch c := c.(type) {
		case and:
			if rank == andRank {
				parts = append(parts, c...)
				continue
			}
		case or:
			if rank == orRank {
				parts = append(parts, c...)
				continue
			}
		}
		parts = append(parts, c)
	}
	return parts
}
