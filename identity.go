package courier

import (
	"reflect"
	"time"
)

// recordKey is how a poller knows a record again: by its name, by its value, or,
// while the record stays in hand, by its number in the order fetched. The zero key
// is of no record.
type recordKey struct {
	name   string
	value  any
	number uint64
}

// identity is how a poller knows the records of its source again.
type identity[T any] struct {
	name    func(T) string // nil when nobody names them
	byValue bool           // by its value
	unsure  bool           // though that may be another one when it comes again

	// comparable says that equal values are the same record, if they are equal.
	comparable bool

	// inHand is for records that cannot be known again once the source has
	// returned them anew: those that a breaker interrupts stay in hand until they
	// are settled.
	inHand bool
}

// identityOf says how records are known: as the user names them, or the source
// does; a number or a string by its value. Any other value is no name: a handler
// may set a field of a record, and a row may have another time or count at each
// fetch. It has to do for a source whose leases cannot be renewed, and so not held
// over a pause.
func identityOf[T any](source Source[T], c *config, once, renews bool) identity[T] {
	id := identity[T]{byValue: scalar(reflect.TypeFor[T]()), comparable: comparableValue(reflect.TypeFor[T]())}
	if named, ok := source.(Identifier[T]); ok {
		id.name = named.Identity
	}
	if f, ok := c.identityOf.(func(T) string); ok {
		id.name = f
	}
	_, leases := source.(Releaser[T])
	if !once && id.name == nil && !id.byValue && leases && !renews {
		id.unsure, id.byValue = true, id.comparable
	}
	id.inHand = once || id.name == nil && !id.byValue && !id.unsure
	return id
}

// keysOf returns how each record is known, of which the first has a number and the others
// those after it. A record over which the function panics has no name, and one that does
// not equal itself no value to be known by.
func (d *identity[T]) keysOf(records []T, first uint64) []recordKey {
	keys := make([]recordKey, len(records))
	if d.inHand {
		for i := range keys {
			keys[i].number = first + uint64(i)
		}
		return keys
	}
	for next := 0; d.name != nil && next < len(records); {
		var ignored error
		isolate(&ignored, func() error {
			for next < len(records) {
				next++ // before the call, which may panic
				keys[next-1].name = d.name(records[next-1])
			}
			return nil
		})
	}
	for i := range keys {
		if d.byValue && keys[i].name == "" && equal(records[i], records[i]) {
			keys[i].value = records[i]
		}
	}
	return keys
}

// lasting returns how each record is known again when the source returns it anew.
func (d *identity[T]) lasting(records []T) []recordKey {
	known := identity[T]{name: d.name, byValue: d.comparable}
	return known.keysOf(records, 0)
}

// equal compares records whose type is comparable. One with a NaN in it equals none,
// not even itself.
func equal[T any](a, b T) bool { return any(a) == any(b) }

// scalar reports whether a type's values are numbers or strings.
func scalar(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	}
	return false
}

// comparableValue reports whether two values of the type that are equal are the
// same to everybody: they have nothing behind a pointer.
func comparableValue(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Interface, reflect.Pointer, reflect.UnsafePointer, reflect.Chan:
		return false
	case reflect.Array:
		return comparableValue(t.Elem())
	case reflect.Struct:
		if t == reflect.TypeFor[time.Time]() { // whose pointer is to a location
			return true
		}
		for i := range t.NumField() {
			if !comparableValue(t.Field(i).Type) {
				return false
			}
		}
		return true
	}
	return t.Comparable()
}

// What follows is about the pace of failed records of a source that takes nothing
// back: each fetch returns them again, also before it is time to try them.

// waits is when failed records may be tried again, as far as they are known again.
type waits map[recordKey]wait

type wait struct {
	until time.Time
	asked bool // by the record's error, so that Wake does not end it
}

// maxWaits bounds how many records are remembered; the others come with each fetch.
const maxWaits = 10_000

func (w waits) note(key recordKey, until time.Time, asked bool, now time.Time) {
	if len(w) >= maxWaits {
		w.left(now)
	}
	if key != (recordKey{}) && len(w) < maxWaits {
		w[key] = wait{until, asked}
	}
}

// left forgets those whose time has come, and returns how many the others are.
func (w waits) left(now time.Time) int {
	for key, wait := range w {
		if !now.Before(wait.until) {
			delete(w, key)
		}
	}
	return len(w)
}

// until reports whether the time of a record has not come at some time.
func (w waits) until(at time.Time) bool {
	for _, wait := range w {
		if at.Before(wait.until) {
			return true
		}
	}
	return false
}

// lift has the records go that no error asks to wait.
func (w waits) lift() {
	for key, wait := range w {
		if !wait.asked {
			delete(w, key)
		}
	}
}

// pace notes when the failed records of a batch may be tried again: after about
// the interval, or what the error asks for. Of a record that cannot be known again
// the next fetch as a whole has to wait for that, within reason.
func (p *poller[T]) pace(failed []T, errs []error) {
	if p.releaser != nil || p.failer != nil || p.once { // they keep the time
		return
	}
	now := p.config.clock.Now()
	if p.waits == nil {
		p.waits = make(waits)
	}
	for i, key := range p.identity.lasting(failed) {
		asked := afterOf(errs[i], maxAfter)
		p.waits.note(key, now.Add(max(asked, p.config.interval/10*9)), asked > 0, now)
		if key == (recordKey{}) && asked > 0 {
			still := min(asked, maxStill)
			if until := now.Add(still); until.After(p.asked) {
				p.asked = until
			}
			p.watch.log.waiting(p.life.settle, still)
		}
	}
}

// noteHidden tells of records that the source returns in vain again and again, before
// all others that it has. A source that takes records back does not.
func (p *poller[T]) noteHidden() {
	if p.pass.handed || p.paused || p.releaser != nil || p.failer != nil {
		return
	}
	if !p.pass.full || !p.pass.whole || !p.limitless && p.waits.until(p.config.clock.Now().Add(p.config.interval)) { // which are looked past
		p.watch.hidden = 0
		return
	}
	if p.watch.hidden++; p.watch.hidden > 1 {
		p.watch.log.hiding(p.life.settle, p.pass.taken)
	}
}

// maxStill is how long a poller fetches nothing for the sake of a record that asks
// for it, and that it could not tell from the others.
const maxStill = time.Minute

// dropEarly leaves the records to the source that it has returned before their time,
// and those that come after them in their order.
func (p *poller[T]) dropEarly() {
	if len(p.waits) == 0 {
		return
	}
	now := p.config.clock.Now()
	ids := p.identity.lasting(p.pass.records)
	keys, _ := p.keysOf(nil, p.pass.records)
	var due []int
	held := make(map[string]bool)
	for i := range p.pass.records {
		wait, waits := p.waits[ids[i]]
		switch {
		case waits && now.Before(wait.until):
			if keys != nil {
				held[keys[i]] = true
			}
			continue
		case keys != nil && held[keys[i]]:
			continue
		case waits:
			delete(p.waits, ids[i])
		}
		due = append(due, i)
	}
	if len(due) < p.pass.len() {
		p.identify(&p.pass.run)
		var items []pending[T]
		for i, it := range p.pass.items {
			if n := len(items); n == len(due) || i != due[n] {
				p.dropped(it.number)
				continue
			}
			it.place = len(items)
			items = append(items, it)
		}
		p.pass.run = runOf(items)
	}
}
