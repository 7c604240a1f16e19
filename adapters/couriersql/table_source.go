package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
)

// TableSource hands out the pending rows of a [Table]. It is made by [Table.Source], for
// one coordinator, and safe for concurrent use.
type TableSource[T any] struct {
	table *Table[T]
	owner string
	turn  chan struct{} // holds a value while rows are settled
	asks  chan struct{} // holds a value while rows are fetched

	asked time.Time // of the last fetch, in its turn

	marked   atomic.Bool // a mark was seen to do what it should
	readable atomic.Bool // a row was read
	unread   unreadRows  // until then

	mu       sync.Mutex
	settling []part               // under way: their leases may be gone, and are not lost
	inHand   map[string]handedOut // by the text of the key
	left     map[int64]int        // how many rows of a batch are in hand
	runs     bool                 // a coordinator does, and settles all that it fetches
	owed     map[string]T         // in hand, by their names, and nobody's: that they were given back could not be noted

	apart suspects
	held  int // how many rows are not handed out for their crashes
}

// handedOut is a row that is in hand.
type handedOut struct {
	batch    int64
	name     string
	key      []string
	attempts int
	noted    bool // in the table beside
}

var (
	_ courier.Source[Row]     = (*TableSource[Row])(nil)
	_ courier.Releaser[Row]   = (*TableSource[Row])(nil)
	_ courier.Failer[Row]     = (*TableSource[Row])(nil)
	_ courier.Renewer[Row]    = (*TableSource[Row])(nil)
	_ courier.Pager           = (*TableSource[Row])(nil)
	_ courier.Lagger          = (*TableSource[Row])(nil)
	_ courier.Identifier[Row] = (*TableSource[Row])(nil)
	_ courier.Ordered         = (*TableSource[Row])(nil)
	_ courier.Validator       = (*TableSource[Row])(nil)
)

// tableStore is a described table in a database. Its calls take one connection, and
// each of them is one transaction.
type tableStore interface {
	// tables names the tables beside the user's, for their migration.
	tables(d *database)
	fetchText() string
	markText() string
	pendingText() string
	// plan is how the database would execute the fetch.
	plan(ctx context.Context, conn *sql.Conn) ([]string, error)
	// check has the database look at the mark, and execute nothing.
	check(ctx context.Context, conn *sql.Conn) error
	// slow says why a fetch takes longer the more rows there are, "" if it does not.
	slow(ctx context.Context, conn *sql.Conn) (string, error)

	// fetch leases rows, and has read called for each with a scan that sets the row too.
	// The batch is 0 if there are none; with an error there may be one that nobody knows. It
	// is errRunOut, and nothing is leased, if there are leases of others that have run out
	// and crashes are counted ([crashCounter]).
	fetch(ctx context.Context, conn *sql.Conn, c claim, read func(row *handedOut, scan func(dest ...any) error) error) (batch int64, err error)
	// settle ends the hold on rows of batches, all or none, but those of batches that
	// are the owner's no more, whose indices it returns. touched is how many rows a mark has
	// changed: where these are not all of a part, the lease of the part stays, and in doubt
	// it stays in any case.
	settle(ctx context.Context, conn *sql.Conn, owner string, how settlement, parts []part, doubt bool) (touched int, lost []int, err error)
	// forget ends the leases of an owner but those that it knows.
	forget(ctx context.Context, conn *sql.Conn, owner string, known []int64) error
	// note notes failures of rows that are in nobody's hand.
	note(ctx context.Context, conn *sql.Conn, failed part) error
	// renew returns which of the batches are still the owner's.
	renew(ctx context.Context, conn *sql.Conn, owner string, batches []int64, lease time.Duration) ([]int64, error)
	// pending counts which of the rows are.
	pendingOf(ctx context.Context, conn *sql.Conn, keys [][]string) (int, error)
	lag(ctx context.Context, conn *sql.Conn) (due int, seconds float64, err error)

	// markIn marks rows that are pending and the owner's, in somebody's transaction, and
	// returns how many. The lease stays.
	markIn(ctx context.Context, t queries, owner string, p part) (int, error)
	// pendingIn returns the names of rows that are pending, and whether their batch is the
	// owner's.
	pendingIn(ctx context.Context, t queries, owner string, p part) (names []string, mine bool, err error)
}

// crashCounter is a [tableStore] that counts crashes. Others end leases that have run out when
// they fetch.
type crashCounter interface {
	// bury ends the leases of others that have run out. In rows of them that are pending it
	// counts a crash, if the lease began in the last contact, and returns how many these are.
	bury(ctx context.Context, conn *sql.Conn, owner string, lease, contact time.Duration) (int, error)
	// suspects returns the fewest and the most crashes of rows that are due and have any, but
	// not too many, 0 if there is none, and how many have too many.
	suspects(ctx context.Context, conn *sql.Conn) (fewest, most, more int, err error)
}

// claim is what a fetch asks for. The owner's leases but those that it knows end with it:
// they are of a fetch whose answer was lost. In strict order the rows of such a lease would
// be overtaken, and anyhow they would wait for its end.
//
// Relays that are not alone share the order keys. Each fetch leaves a lease of no rows for a
// while, as a sign: the keys are divided among those whose sign is there. One that fetches no
// more, for whatever reason, keeps the keys of the rows that it has in hand, and no others.
type claim struct {
	owner string
	lease time.Duration
	limit int
	known []int64
	sign  time.Duration

	// Of rows that were in hand at crashes, 0 to 0 for the others.
	fewest, most int
	alone        bool // a row that is alone in hand
	behind       bool // and of their order keys, whose rows wait behind each other
}

// errRunOut is the error of a fetch that has to wait until leases are buried.
var errRunOut = errors.New("couriersql: leases have run out")

// stuckEnder is a [tableStore] in which a fetch whose relay takes no rows holds up the others
// until it is ended. Elsewhere the server ends it by itself.
type stuckEnder interface {
	// endStuck ends the session of a fetch that holds up the others, if its relay has taken no
	// rows for some time.
	endStuck(ctx context.Context, conn *sql.Conn, since time.Duration) (stuck, error)
}

type settlement int

const (
	toMark settlement = iota
	toFail
	toRelease
)

// part is rows of one batch.
type part struct {
	batch     int64
	keys      [][]string
	failures  []tableFailure // of each key, where they failed
	attempted bool           // some have failed before, or were in hand at a crash
	last      bool           // the batch has no others in hand
}

// tableFailure is the failure of a row.
type tableFailure struct {
	delay time.Duration
	text  string
}

// Source returns a source for a polling coordinator. Each has its own hold on what it
// fetches: make one for each coordinator.
func (t *Table[T]) Source() *TableSource[T] {
	return &TableSource[T]{
		table: t, owner: newOwner(), turn: make(chan struct{}, 1), asks: make(chan struct{}, 1),
		inHand: make(map[string]handedOut), left: make(map[int64]int), owed: make(map[string]T), apart: newSuspects(t.config.Strict),
	}
}

// Ordered reports whether the table is [TableConfig].Strict, see [courier.Ordered].
func (s *TableSource[T]) Ordered() bool { return s.table.config.Strict }

// Validate reports what the table was misconfigured with.
func (s *TableSource[T]) Validate() error { return s.table.fault }

// Identity names a record by its key: the text of the column, or of several columns their
// texts in quotes, with commas in between.
func (s *TableSource[T]) Identity(record T) string { return string(s.table.appendName(nil, record)) }

// appendName appends the name of a record. To look for it costs no memory.
func (t *Table[T]) appendName(to []byte, record T) []byte {
	values := t.config.KeyOf(record)
	for i, value := range values {
		if len(values) > 1 {
			to = appendQuotedValue(to, i, value)
			continue
		}
		to = appendValue(to, value)
	}
	return to
}

// appendValue appends the text of a value of a key.
func appendValue(to []byte, value any) []byte {
	switch v := value.(type) {
	case string:
		return append(to, v...)
	case []byte:
		return append(to, v...)
	case int64:
		return strconv.AppendInt(to, v, 10)
	case int:
		return strconv.AppendInt(to, int64(v), 10)
	}
	return fmt.Append(to, value)
}

// appendQuotedValue appends the i-th value of a key of several.
func appendQuotedValue(to []byte, i int, value any) []byte {
	if text, is := value.(string); is {
		return appendQuoted(to, i, text)
	}
	var short [32]byte
	return appendQuoted(to, i, string(appendValue(short[:0], value)))
}

// nameOf is the name of the record with a key.
func nameOf(key []string) string {
	if len(key) == 1 {
		return key[0]
	}
	size := 0
	for _, text := range key {
		size += len(text) + len(`,""`)
	}
	name := make([]byte, 0, size)
	for i, text := range key {
		name = appendQuoted(name, i, text)
	}
	return string(name)
}

// appendQuoted appends the i-th text of a name of several.
func appendQuoted(to []byte, i int, text string) []byte {
	if i > 0 {
		to = append(to, ',')
	}
	return strconv.AppendQuote(to, text)
}

// unreadable is the error of a row of which no record can be made.
type unreadable struct {
	key      []string // nil where that is not known
	attempts int      // before this one
	err      error
}

// unreadRows are the rows that could not be read before any other was.
type unreadRows struct {
	rows  int
	err   error     // of the last one
	until time.Time // that counts
}

func (u *unreadable) Error() string { return u.err.Error() }
func (u *unreadable) Unwrap() error { return u.err }

// mostUnreadable is how many rows a fetch passes over because they cannot be read.
const mostUnreadable = 100

// Fetch leases up to limit pending rows that are due and in nobody's hand, and returns
// them in their order. It does not wait for a row. The records are the caller's. With an
// error there are none.
func (s *TableSource[T]) Fetch(ctx context.Context, limit int) ([]T, error) {
	t := s.table
	if t.fault != nil {
		return nil, t.fault
	}
	if limit <= 0 {
		return nil, nil
	}
	store, err := t.described(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.check(ctx, store); err != nil {
		return nil, err
	}
	records, err := s.fetchOne(ctx, store, limit)
	if err != nil {
		return nil, t.failed(err, "fetching up to %s of %s", plural(limit, "pending row"), t.table)
	}
	return records, nil
}

// fetchOne is Fetch of one caller at a time: what another one leases is not known yet.
func (s *TableSource[T]) fetchOne(ctx context.Context, store tableStore, limit int) ([]T, error) {
	if err := enter(ctx, s.asks); err != nil {
		return nil, err
	}
	defer func() { <-s.asks }()
	if err := s.giveOwed(ctx); err != nil {
		return nil, err
	}
	for {
		records, err := s.fetch(ctx, store, limit)
		if s.apart.heard(ctx, err); err != nil {
			if errors.Is(err, ErrQueryTimeout) || postgresWaited(err) {
				s.endStuck(ctx, store)
			}
			return nil, err
		}
		if !s.apart.await(ctx, len(records)) {
			return records, nil
		}
	}
}

// endStuck ends the fetch of another relay that this one has waited for in vain. If that
// fails, as the database itself does not answer, the next fetch that waits tries again.
func (s *TableSource[T]) endStuck(ctx context.Context, store tableStore) {
	ender, ends := store.(stuckEnder)
	if !ends {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	t := s.table
	var ended stuck
	if err := t.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		ended, err = ender.endStuck(ctx, conn, t.timeout)
		return err
	}); err == nil && ended.backend != 0 {
		ended.tell(t.log, "a relay", t.table)
	}
}

// readOver takes rows, and passes over those that cannot be read. As long as none could be,
// they may not be to blame but TableConfig.Scan: then the fetch fails that has no others.
func (s *TableSource[T]) readOver(ctx context.Context, store tableStore, c claim) ([]T, error) {
	for passed := 0; ; passed++ {
		records, err := s.take(ctx, store, c)
		readable := s.readable.Load()
		if err == nil && len(records) == 0 && !readable && s.table.now().Before(s.unread.until) {
			return nil, s.unread.err
		}
		var bad *unreadable
		if err == nil || !errors.As(err, &bad) || bad.key == nil || passed == mostUnreadable || !readable && s.unread.rows == mostUnreadable {
			return records, err
		}
		wait := s.table.wait.delay(bad.attempts)
		if !readable {
			s.unread = unreadRows{s.unread.rows + 1, err, s.table.now().Add(2*wait + time.Second)} // until it was tried again
		}
		if err := s.passOver(ctx, store, bad, wait); err != nil {
			return nil, err
		}
	}
}

// take leases rows once.
func (s *TableSource[T]) take(ctx context.Context, store tableStore, c claim) (records []T, err error) {
	t := s.table
	c.owner, c.lease, c.known, c.sign = s.owner, t.lease, s.known(), s.sign()
	var rows []handedOut
	var batch int64
	err = t.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		records, rows = nil, nil
		var bytes int64
		var keys []string // of all rows
		var name []byte
		batch, err = store.fetch(ctx, conn, c, func(row *handedOut, scan func(...any) error) error {
			record, scanned, err := s.read(row, scan)
			if err != nil {
				bad := &unreadable{err: err}
				if scanned {
					bad.key, bad.attempts = slices.Clone(row.key), row.attempts
				}
				return bad
			}
			row.name = nameOf(row.key)
			if t.own != nil {
				if bytes >= t.own.most {
					return errFull
				}
				t.own.known(&record, row.key, row.attempts)
				bytes += t.own.bytes(record)
			}
			if name = t.appendName(name[:0], record); string(name) != row.name {
				return &unreadable{err: fmt.Errorf("TableConfig.KeyOf returned %s for the row with the key %s: return the values of %s, written as the database writes them",
					name, row.name, strings.Join(t.config.Key, ", "))}
			}
			if records == nil { // an idle poll allocates no batch, a huge limit no huge one
				n := min(c.limit, 1000)
				records, rows, keys = make([]T, 0, n), make([]handedOut, 0, n), make([]string, 0, n*len(row.key))
			}
			keys = append(keys, row.key...)
			records = append(records, record)
			rows = append(rows, handedOut{name: row.name, key: keys[len(keys)-len(row.key) : len(keys) : len(keys)], attempts: row.attempts, noted: row.attempts > 0 || c.most > 0})
			return nil
		})
		return err
	})
	if err != nil {
		if batch != 0 || ctx.Err() != nil { // else the next fetch ends a lease that nobody knows
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			_ = t.ask(last, func(ctx context.Context, conn *sql.Conn) error { return store.forget(ctx, conn, c.owner, c.known) })
		}
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, row := range rows {
		row.batch = batch
		s.forget(row.name) // one of a lease that was lost
		s.inHand[row.name] = row
		s.left[batch]++
	}
	if len(rows) > 0 {
		s.readable.Store(true)
	}
	return records, nil
}

// sign is for how long the source is among those that share the order keys: longer than until
// its next fetch, as far as the last ones tell.
func (s *TableSource[T]) sign() time.Duration {
	now := s.table.now()
	since := now.Sub(s.asked)
	s.asked = now
	return min(max(3*since, time.Second), s.table.lease)
}

// known are the batches that are in hand.
func (s *TableSource[T]) known() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.left))
}

// read makes a record of a row, and tells whether it came to know the row.
func (s *TableSource[T]) read(row *handedOut, scan func(...any) error) (record T, scanned bool, err error) {
	record, err = s.table.config.Scan(func(dest ...any) error {
		if want := len(s.table.config.Columns); len(dest) != want {
			return fmt.Errorf("Scan asks for %s, and TableConfig.Columns has %d", plural(len(dest), "column"), want)
		}
		scanned = true
		return scan(dest...)
	})
	switch {
	case err != nil && scanned:
		err = fmt.Errorf("reading the row %s: %w", nameOf(row.key), err)
	case err == nil && !scanned:
		err = errors.New("TableConfig.Scan did not call scan, which reads the row")
	}
	return record, scanned, err
}

// passOver notes the failure of a row that cannot be read, so that it holds up no other.
func (s *TableSource[T]) passOver(ctx context.Context, store tableStore, bad *unreadable, wait time.Duration) error {
	t := s.table
	message := "couriersql: a row cannot be read; it is passed over, and tried again later"
	if t.config.OrderKey != "" {
		message += ", and the later rows of its OrderKey after it"
	}
	t.log.Warn(message, "table", t.table, "key", nameOf(bad.key), "attempts", bad.attempts+1, "retry_in", wait, "error", bad.err)
	err := t.ask(ctx, func(ctx context.Context, conn *sql.Conn) error {
		return store.note(ctx, conn, part{keys: [][]string{bad.key}, failures: []tableFailure{{wait, plain(bad.Error())}}})
	})
	if err != nil {
		return fmt.Errorf("noting that the row %s cannot be read: %w", nameOf(bad.key), err)
	}
	return nil
}

// drop takes all rows out of the hand. The next fetch ends their leases, as it does with all that
// are not known.
func (s *TableSource[T]) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.inHand)
	clear(s.left)
	clear(s.owed)
	s.apart.emptied()
}

// endAll takes all rows out of the hand, and ends their leases.
func (s *TableSource[T]) endAll(ctx context.Context) error {
	return s.inTurn(ctx, func(store tableStore) error {
		s.drop()
		return s.table.ask(ctx, func(ctx context.Context, conn *sql.Conn) error { return store.forget(ctx, conn, s.owner, nil) })
	})
}

// forget takes a row out of the hand.
func (s *TableSource[T]) forget(name string) {
	row, found := s.inHand[name]
	if !found {
		return
	}
	delete(s.inHand, name)
	delete(s.owed, name)
	if s.left[row.batch]--; s.left[row.batch] == 0 {
		delete(s.left, row.batch)
	}
	if len(s.inHand) == 0 {
		s.apart.emptied()
	}
}

// parts are the records that are in hand, by their batches. failures may be nil.
func (s *TableSource[T]) parts(records []T, failures func(i, attempts int) tableFailure) (parts []part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := make(map[int64]int)
	met := make(map[string]bool, len(records))
	var name []byte
	for i, record := range records {
		name = s.table.appendName(name[:0], record)
		row, found := s.inHand[string(name)]
		if !found || met[row.name] {
			continue
		}
		met[row.name] = true
		n, found := at[row.batch]
		if !found {
			n = len(parts)
			at[row.batch] = n
			parts = append(parts, part{batch: row.batch})
		}
		p := &parts[n]
		p.keys = append(p.keys, row.key)
		p.attempted = p.attempted || row.noted
		if failures != nil {
			p.failures = append(p.failures, failures(i, row.attempts))
		}
	}
	for i := range parts {
		parts[i].last = len(parts[i].keys) == s.left[parts[i].batch]
	}
	slices.SortFunc(parts, func(a, b part) int { return int(a.batch - b.batch) }) // two that settle do not wait for each other
	return parts
}

// settle ends the hold on records. Those that are not in hand are passed over.
func (s *TableSource[T]) settle(ctx context.Context, how settlement, records []T, failures func(i, attempts int) tableFailure) error {
	var names []string
	var batches []int64
	if how != toMark {
		names, batches = s.batchesOf(records)
	}
	err := s.settleNow(ctx, how, records, failures)
	if err != nil && how != toMark {
		s.owe(records, names, batches)
	}
	return err
}

// batchesOf are the names of records, and their batches, 0 of those that are not in hand.
func (s *TableSource[T]) batchesOf(records []T) (names []string, batches []int64) {
	names, batches = make([]string, len(records)), make([]int64, len(records))
	for i, record := range records {
		names[i] = s.Identity(record)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, name := range names {
		batches[i] = s.inHand[name].batch
	}
	return names, batches
}

func (s *TableSource[T]) settleNow(ctx context.Context, how settlement, records []T, failures func(i, attempts int) tableFailure) error {
	return s.inTurn(ctx, func(store tableStore) error {
		return s.settleParts(ctx, store, how, s.parts(records, failures))
	})
}

// inTurn has nobody else settle rows meanwhile.
func (s *TableSource[T]) inTurn(ctx context.Context, work func(tableStore) error) error {
	store, err := s.table.described(ctx)
	if err != nil {
		return err
	}
	if err := enter(ctx, s.turn); err != nil {
		return err
	}
	defer func() { <-s.turn }()
	return work(store)
}

// owe notes that nobody works on records of batches any more, which are in hand for want of a
// note. A record that came anew meanwhile is of another batch.
func (s *TableSource[T]) owe(records []T, names []string, batches []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, record := range records {
		if batches[i] != 0 && s.inHand[names[i]].batch == batches[i] {
			s.owed[names[i]] = record
		}
	}
}

// giveOwed gives back what nobody works on, before others are fetched that come after it.
func (s *TableSource[T]) giveOwed(ctx context.Context) error {
	s.mu.Lock()
	owed := slices.Collect(maps.Values(s.owed))
	s.mu.Unlock()
	if len(owed) == 0 {
		return nil
	}
	return s.settleNow(ctx, toRelease, owed, nil)
}

func (s *TableSource[T]) settleParts(ctx context.Context, store tableStore, how settlement, parts []part) error {
	if len(parts) == 0 {
		return nil
	}
	t := s.table
	s.nowSettling(parts)
	defer s.nowSettling(nil)
	err := t.ask(ctx, func(ctx context.Context, conn *sql.Conn) error {
		doubt := how == toMark && !s.marked.Load()
		touched, lost, err := store.settle(ctx, conn, s.owner, how, parts, doubt)
		if err != nil || how != toMark {
			return err
		}
		return s.checkMark(ctx, conn, store, parts, touched, lost, doubt)
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range parts {
		for _, key := range p.keys {
			if name := nameOf(key); s.inHand[name].batch == p.batch {
				s.forget(name)
			}
		}
	}
	return nil
}

func (s *TableSource[T]) nowSettling(parts []part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settling = parts
}

// checkMark looks for rows that are pending after their mark. It tells of those whose
// lease was lost before, and fails for those that the database has left as they were, which
// stay in hand. The leases of the others it ends.
func (s *TableSource[T]) checkMark(ctx context.Context, conn *sql.Conn, store tableStore, parts []part, touched int, lost []int, doubt bool) error {
	t := s.table
	var taken, own [][]string
	var ended []part
	for i, p := range parts {
		if slices.Contains(lost, i) {
			taken = append(taken, p.keys...)
			continue
		}
		own = append(own, p.keys...)
		if p.last {
			ended = append(ended, part{batch: p.batch, last: true})
		}
	}
	if len(own) > 0 && (touched < len(own) || doubt) {
		left, err := store.pendingOf(ctx, conn, own)
		if err != nil {
			return err
		}
		if left > 0 {
			return fmt.Errorf("%w: %d of %d; look for %s on %s, and whether TableConfig.Pending is false after TableConfig.Mark", ErrSuppressed, left, len(own), t.grammar.suppressors, t.table)
		}
		s.marked.Store(true)
		if len(ended) > 0 {
			if _, _, err := store.settle(ctx, conn, s.owner, toRelease, ended, false); err != nil {
				return err
			}
		}
	}
	if len(taken) > 0 {
		left, err := store.pendingOf(ctx, conn, taken) // else an earlier try has marked them
		if err == nil && left > 0 {
			t.log.Warn("couriersql: rows were not marked, as their lease was lost; they are delivered again, by the relay that has them",
				"table", t.table, "rows", left, "lease", t.lease)
		}
	}
	return nil
}

// Mark marks the rows, in one statement for each batch that they were fetched in. Rows
// that are marked already, or gone, are passed over, and so are those of a lease that was
// lost. All others are marked or none; after an error it may be unknown which, and marking
// them again is safe.
func (s *TableSource[T]) Mark(ctx context.Context, records []T) error {
	t := s.table
	if t.fault != nil {
		return t.fault
	}
	if len(records) == 0 {
		return nil
	}
	if err := s.settle(ctx, toMark, records, nil); err != nil {
		return t.failed(err, "marking %s of %s (all or none; to be marked again)", plural(len(records), "row"), t.table)
	}
	return nil
}

// Fail notes beside the table that rows were attempted in vain, with the error, and when
// they are to be handed out again. A row that is marked, or in other hands by now, is
// passed over.
func (s *TableSource[T]) Fail(ctx context.Context, failed []courier.FailedRecord[T]) error {
	t := s.table
	if t.fault != nil {
		return t.fault
	}
	if len(failed) == 0 {
		return nil
	}
	records := make([]T, len(failed))
	for i, f := range failed {
		records[i] = f.Record
	}
	if err := s.settle(ctx, toFail, records, func(i, attempts int) tableFailure {
		failure := tableFailure{delay: max(failed[i].After, t.wait.delay(attempts))}
		if err := failed[i].Error; err != nil {
			failure.text = plain(err.Error())
		}
		return failure
	}); err != nil {
		return t.failed(err, "noting the failure of %s of %s (to be tried again)", plural(len(failed), "row"), t.table)
	}
	return nil
}

// Release gives rows back that were not attempted. They are to be had at once, whatever
// time it is given, as with [Source.Release].
func (s *TableSource[T]) Release(ctx context.Context, records []T, _ time.Duration) error {
	t := s.table
	if t.fault != nil {
		return t.fault
	}
	if len(records) == 0 {
		return nil
	}
	if err := s.settle(ctx, toRelease, records, nil); err != nil {
		return t.failed(err, "giving %s of %s back", plural(len(records), "row"), t.table)
	}
	return nil
}

// RenewEvery is a third of the lease.
func (s *TableSource[T]) RenewEvery() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs = true
	return s.table.lease / 3
}

// Renew extends the leases of records that are being worked on. Those whose lease was lost
// are listed in a [*courier.BatchError], with [ErrLeaseLost].
func (s *TableSource[T]) Renew(ctx context.Context, records []T) error {
	t := s.table
	if t.fault != nil {
		return t.fault
	}
	lost, err := s.renew(ctx, records)
	if err != nil {
		return t.failed(err, "renewing the lease of %s of %s", plural(len(records), "row"), t.table)
	}
	var list courier.BatchError
	for _, i := range lost {
		list.Add(i, ErrLeaseLost)
	}
	return list.ErrorOrNil()
}

// renew returns the indices of the records whose lease was lost.
func (s *TableSource[T]) renew(ctx context.Context, records []T) (lost []int, err error) {
	t := s.table
	store, err := t.described(ctx)
	if err != nil {
		return nil, err
	}
	names, of := s.batchesOf(records)
	var batches []int64
	for _, batch := range of {
		if batch != 0 && !slices.Contains(batches, batch) {
			batches = append(batches, batch)
		}
	}
	if len(batches) == 0 {
		return nil, nil
	}
	var held []int64
	err = t.renewing(ctx, t.lease, func(ctx context.Context, conn *sql.Conn) (err error) {
		held, err = store.renew(ctx, conn, s.owner, batches, t.lease)
		return err
	})
	s.apart.heard(ctx, err)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, name := range names {
		if of[i] == 0 || slices.Contains(held, of[i]) || slices.ContainsFunc(s.settling, func(p part) bool { return p.batch == of[i] }) {
			continue
		}
		if s.inHand[name].batch == of[i] { // else it was settled meanwhile
			s.forget(name)
			lost = append(lost, i)
		}
	}
	return lost, nil
}

// Lag tells how many rows are due and in nobody's hand, and by [TableConfig].Age for how
// long the oldest of them has been pending. It counts them one by one: ask once a minute,
// not once a batch.
func (s *TableSource[T]) Lag(ctx context.Context) (lag courier.Lag, err error) {
	t := s.table
	if t.fault != nil {
		return lag, t.fault
	}
	store, err := t.described(ctx)
	if err != nil {
		return lag, err
	}
	var seconds float64
	if err := t.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		lag.Pending, seconds, err = store.lag(ctx, conn)
		return err
	}); err != nil {
		return courier.Lag{}, t.failed(err, "counting the rows of %s that are due", t.table)
	}
	lag.Oldest = max(0, time.Duration(seconds*float64(time.Second)))
	return lag, nil
}
