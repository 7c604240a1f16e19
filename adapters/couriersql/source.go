package couriersql

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
)

// ErrLeaseLost is the error of a row that this relay held and does not hold any
// more: its lease ran out and another relay took it, its transaction ended, or
// another relay was elected.
var ErrLeaseLost = errors.New("couriersql: the row is held by this relay no more")

// Source hands out the pending rows of an outbox. It is made by
// [Outbox.Source], for one coordinator, and safe for concurrent use.
type Source struct {
	outbox *Outbox
	holder holder
	waker  *waker
	origin origin
	head   head
	hidden hidden
	cut    atomic.Bool // the last fetch, by its bytes
}

var (
	_ courier.Source[Row]     = (*Source)(nil)
	_ courier.Releaser[Row]   = (*Source)(nil)
	_ courier.Failer[Row]     = (*Source)(nil)
	_ courier.Renewer[Row]    = (*Source)(nil)
	_ courier.Waker           = (*Source)(nil)
	_ courier.Pager           = (*Source)(nil)
	_ courier.Lagger          = (*Source)(nil)
	_ courier.Identifier[Row] = (*Source)(nil)
	_ courier.Validator       = (*Source)(nil)
)

// holder is how rows are held between their fetch and their settlement. Its
// methods are called with at least one row.
type holder interface {
	// fetch leaves out rows without an attempt whose number is below from.
	fetch(ctx context.Context, limit int, from int64) ([]Row, error)
	mark(ctx context.Context, rows []Row) error
	fail(ctx context.Context, failed []failure) error
	release(ctx context.Context, rows []failure) error
	park(ctx context.Context, letter courier.DeadLetter[Row]) error
	// renew returns the IDs of rows that are held no more.
	renew(ctx context.Context, rows []Row) (lost map[string]bool, err error)
	renewEvery() time.Duration
	// begin is called when a coordinator begins to run, which fails or releases
	// what it does not mark, and may fetch more before it does.
	begin()
	close()
}

// Source returns a source for a polling coordinator. Each has its own hold on
// what it fetches: make one for each coordinator.
func (o *Outbox) Source() *Source {
	s := &Source{outbox: o, waker: &waker{outbox: o, wake: make(chan struct{}, 1), probe: probeEvery}}
	switch {
	case o.relayed != nil:
		s.holder = newTabled(o)
	case o.lease > 0:
		s.holder = newLeased(o)
	case o.strict:
		s.waker.elected = newElected(o)
		s.holder = s.waker.elected
	case o.dialect == Postgres:
		s.holder = newLocked(o)
	default:
		s.holder = &shared{outbox: o}
	}
	return s
}

// Ordered reports whether the outbox was made by [WithStrictOrder], see [courier.Ordered].
func (s *Source) Ordered() bool { return s.outbox.strict }

// Fetch returns up to limit pending rows that are due, in the order in which
// they were written, and none that is in other hands. Of more rows than limit, those
// that failed before, or were to wait ([Message].NotBefore), come first, but with [WithStrictOrder], in MySQL and in SQLite, where the
// earliest do. It does not wait for a row. The rows are the caller's. With an error
// there are none.
func (s *Source) Fetch(ctx context.Context, limit int) ([]Row, error) {
	o := s.outbox
	if o.fault != nil {
		return nil, o.fault
	}
	if limit <= 0 { // to SQLite, a negative limit is none
		return nil, nil
	}
	batch, err := s.fetch(ctx, limit)
	for l, leased := s.holder.(*leased); leased && err == nil && l.apart.await(ctx, len(batch)); {
		batch, err = s.fetch(ctx, limit)
	}
	if err != nil {
		return nil, err
	}
	for i := range batch {
		batch[i].origin = &s.origin
	}
	o.pruner.look()
	s.cut.Store(len(batch) < limit && bytesOf(batch) >= o.fetchBytes)
	return batch, nil
}

// fetch is one try of Fetch.
func (s *Source) fetch(ctx context.Context, limit int) (batch []Row, err error) {
	o := s.outbox
	err = o.bounded(ctx, func(ctx context.Context) (err error) {
		if o.dialect == SQLite {
			if err := o.file.look(ctx, o); err != nil {
				return err
			}
		}
		warn := o.inspect(ctx)
		began := o.now()
		from, moves := s.head.from(began)
		if s.hidden.due(false, began) {
			if err := s.lookForHidden(ctx); err != nil {
				return err
			}
		}
		if batch, err = s.holder.fetch(ctx, limit, from); err == nil && len(batch) == 0 && s.hidden.due(true, began) {
			batch, err = s.fetchHidden(ctx, limit, from)
		}
		if err == nil {
			now := o.now()
			s.head.sees(batch, from, moves, now, now.Sub(began))
			warn()
		}
		return err
	})
	s.heard(ctx, err)
	if err != nil {
		return nil, o.failed(err, "fetching up to %s of %s", plural(limit, "pending row"), o.table)
	}
	return batch, nil
}

// More reports whether the last Fetch ended for its bytes ([WithFetchBytes]), or returned a
// part of the rows that were in hand when a relay died ([WithMaxCrashes]), so that a
// coordinator fetches again at once.
func (s *Source) More() bool {
	l, leased := s.holder.(*leased)
	return s.cut.Load() || leased && l.apart.more()
}

// Mark deletes the rows, or with [WithKeep] sets the time they were processed
// at, in one statement whatever their number. Rows that are marked already, or
// gone, are passed over, and so are those of a claim that was lost. All others
// are marked or none, but for those that the database leaves as they are
// ([ErrSuppressed]); after an error it may be unknown which, and marking them again is safe.
func (s *Source) Mark(ctx context.Context, rows []Row) error {
	o := s.outbox
	if o.fault != nil {
		return o.fault
	}
	if len(rows) == 0 {
		return nil
	}
	if err := o.bounded(ctx, func(ctx context.Context) error { return s.holder.mark(ctx, rows) }); err != nil {
		return o.failed(err, "marking %s of %s (all or none; to be marked again)", plural(len(rows), "row"), o.table)
	}
	return nil
}

// Fail notes in the rows that they were attempted in vain, with the error, and
// when they are to be handed out again, see [WithBackoff]. A row that is marked,
// or in other hands by now, is passed over.
func (s *Source) Fail(ctx context.Context, failed []courier.FailedRecord[Row]) error {
	o := s.outbox
	if o.fault != nil {
		return o.fault
	}
	if len(failed) == 0 {
		return nil
	}
	list := make([]failure, len(failed))
	for i, f := range failed {
		list[i] = failureOf(f.Record)
		list[i].delay = max(f.After, o.backoff.delay(f.Record.Attempts))
		if f.Error != nil {
			list[i].text = plain(f.Error.Error())
		}
	}
	if err := o.bounded(ctx, func(ctx context.Context) error { return s.note(ctx, list) }); err != nil {
		s.head.back()
		return o.failed(err, "noting the failure of %s of %s (to be tried again)", plural(len(failed), "row"), o.table)
	}
	return nil
}

// note notes failures in one statement. Where the database refuses a value of one
// row, note notes the other rows without it: by halves, as such rows are few.
func (s *Source) note(ctx context.Context, failed []failure) error {
	err := s.holder.fail(ctx, failed)
	if err == nil || !s.outbox.grammar.refused(err) {
		return err
	}
	if n := len(failed) / 2; n > 0 {
		return errors.Join(s.note(ctx, failed[:n]), s.note(ctx, failed[n:]))
	}
	one := failed[0]
	one.text = strconv.QuoteToASCII(one.text) // the database's encoding may lack a character
	if s.holder.fail(ctx, []failure{one}) == nil {
		return nil
	}
	switch s.holder.(type) {
	case *locked, *tabled: // whose transaction would stay open, or lease stay, for the row
		err = errors.Join(err, s.holder.release(ctx, failed))
	}
	return err
}

// Release gives rows back that were not attempted. They are to be had at once,
// whatever time it is given: a row that was held back would be overtaken by
// later ones, and another relay may well be able to deliver it.
func (s *Source) Release(ctx context.Context, rows []Row, _ time.Duration) error {
	o := s.outbox
	if o.fault != nil {
		return o.fault
	}
	if len(rows) == 0 {
		return nil
	}
	list := make([]failure, len(rows))
	for i, row := range rows {
		list[i] = failureOf(row)
	}
	err := o.bounded(ctx, func(ctx context.Context) error { return s.holder.release(ctx, list) })
	s.head.back()
	if err != nil {
		return o.failed(err, "giving %s of %s back", plural(len(rows), "row"), o.table)
	}
	return nil
}

// RenewEvery is a third of a lease, or how often the source looks whether the
// rows are still its own; 0 where there is nothing to look for. A coordinator
// asks when it begins to run: from then on rows that are in its hand are not
// handed out again, so that it may fetch ahead ([courier.WithPrefetch]).
func (s *Source) RenewEvery() time.Duration {
	if s.outbox.fault != nil {
		return 0
	}
	s.head.begin()
	s.holder.begin()
	return s.holder.renewEvery()
}

// Renew extends the hold on rows that are being worked on. Those that are held
// no more are listed in a [*courier.BatchError], with [ErrLeaseLost].
func (s *Source) Renew(ctx context.Context, rows []Row) error {
	o := s.outbox
	if o.fault != nil {
		return o.fault
	}
	if len(rows) == 0 {
		return nil
	}
	var lost map[string]bool
	err := o.bounded(ctx, func(ctx context.Context) (err error) {
		lost, err = s.holder.renew(ctx, rows)
		return err
	})
	s.heard(ctx, err)
	if err != nil {
		return o.failed(err, "renewing the hold on %s of %s", plural(len(rows), "row"), o.table)
	}
	var list courier.BatchError
	if len(lost) > 0 {
		s.head.back()
	}
	for i, row := range rows {
		if lost[row.ID] {
			list.Add(i, ErrLeaseLost)
		}
	}
	if len(lost) > 0 && s.waker.elected != nil {
		return &leadLost{o.table, &list}
	}
	return list.ErrorOrNil()
}

// heard notes how a call to the database has ended.
func (s *Source) heard(ctx context.Context, err error) {
	if l, leased := s.holder.(*leased); leased {
		l.apart.heard(ctx, err)
	}
}

// leadLost lists the rows that a relay had in hand when it lost the lead.
type leadLost struct {
	table string
	list  *courier.BatchError
}

func (e *leadLost) Error() string {
	return fmt.Sprintf("couriersql: this relay lost the lead of %s: it finishes and marks the rows in progress, and leaves the others to the relay that leads", e.table)
}

func (e *leadLost) Unwrap() error { return e.list }

// Lag tells how many rows are due, and for how long the oldest of them has been
// there, without those that this source has handed out and a coordinator is
// working on; rows that a transaction has locked count. It counts them one by
// one: ask once a minute, not once a batch.
func (s *Source) Lag(ctx context.Context) (courier.Lag, error) {
	if h, ok := s.holder.(interface{ bounds() (first, last int64) }); ok {
		first, last := h.bounds()
		return s.outbox.lagBut(ctx, first, last)
	}
	return s.outbox.Lag(ctx)
}

// Identity names a row by its message's ID.
func (s *Source) Identity(row Row) string { return row.ID }

// Validate reports what the outbox was misconfigured with, and a pool that has fewer
// connections than a relay holds at a time: it would wait for itself, in silence.
func (s *Source) Validate() error {
	o := s.outbox
	if o.fault != nil {
		return o.fault
	}
	needs, what := 1, "the batch in hand"
	if s.waker.elected != nil {
		needs, what = needs+1, "the election, marks"
	}
	if o.wakeUp {
		needs, what = needs+1, what+", wake-up"
	}
	return o.pool(needs, what)
}

// pool reports a pool of fewer connections than needed.
func (o *Outbox) pool(needs int, what string) error {
	if has := o.db.Stats().MaxOpenConnections; has > 0 && has < needs {
		return &courier.ConfigError{Field: "SetMaxOpenConns", Problem: fmt.Sprintf("of %d is too few for a relay of %s: it holds %d at a time (%s)", has, o.table, needs, what)}
	}
	return nil
}

func failureOf(row Row) failure {
	return failure{seq: row.Seq, id: row.ID, claim: row.claim, attempts: row.attempts()}
}

// backoff is how long a row waits that failed.
type backoff struct{ initial, longest time.Duration }

var defaultBackoff = backoff{initial: time.Second, longest: 5 * time.Minute}

func (b backoff) delay(failures int) time.Duration {
	delay := b.initial
	for range failures {
		if delay >= b.longest/2 {
			return b.longest
		}
		delay *= 2
	}
	return delay
}

// bytesOf are those of rows that may be large.
func bytesOf(rows []Row) (n int64) {
	for _, row := range rows {
		n += row.bytes()
	}
	return n
}

func (r Row) bytes() int64 {
	if n, without := r.without(); without {
		return n
	}
	return int64(len(r.Payload) + len(r.Headers))
}

// without reports whether a fetch left payload and headers out, and how many bytes they
// have. Headers are a JSON object otherwise, or empty.
func (r Row) without() (bytes int64, yes bool) {
	if r.Payload != nil {
		return 0, false
	}
	bytes, err := strconv.ParseInt(r.Headers, 10, 64)
	return bytes, err == nil
}

// withoutPayload are the rows of which a fetch left payload and headers out.
func withoutPayload(rows []Row) (list []Row) {
	for _, row := range rows {
		if _, without := row.without(); without {
			list = append(list, row)
		}
	}
	return list
}

// withLarge are the rows, in their place, with what a fetch left out, by their numbers. Rows that
// were not found are gone.
func withLarge(rows []Row, found map[int64]Row) []Row {
	whole := rows[:0]
	for _, row := range rows {
		if _, without := row.without(); without {
			large, there := found[row.Seq]
			if !there {
				continue
			}
			row.Payload, row.Headers = large.Payload, large.Headers
		}
		whole = append(whole, row)
	}
	clear(rows[len(whole):])
	return whole
}

// inOrder sorts what a fetch returns part by part, or as an update comes across it.
func inOrder(rows []Row) []Row {
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.Seq, b.Seq) })
	return rows
}

// earliest are up to limit of the rows, in order, until their bytes reach the bound. Of
// each part, a fetch that holds nothing returns up to both.
func (o *Outbox) earliest(rows []Row, limit int) []Row {
	inOrder(rows)
	clear(rows[min(limit, len(rows)):])
	return o.within(rows[:min(limit, len(rows))])
}

// within are the rows until their bytes reach the bound.
func (o *Outbox) within(rows []Row) []Row {
	bytes := int64(0)
	for i, row := range rows {
		if bytes >= o.fetchBytes {
			clear(rows[i:])
			return rows[:i]
		}
		bytes += row.bytes()
	}
	return rows
}

// rows reads what a statement that fetches returns: of the rows that failed, and of
// the others, each in order, until their bytes reach the bound.
func (o *Outbox) rows(ctx context.Context, on executor, limit int, bound int64, text string, args ...any) ([]Row, error) {
	rows, err := on.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	var batch []Row
	var row Row
	var ofFailed, ofOthers int64
	var attempts int64 // as the driver returns it: database/sql would convert to int through text
	into := []any{&row.Seq, &row.ID, &row.Topic, &row.Key, &pieces{into: &row.Payload}, &row.Headers, &row.Trace,
		(*micros)(&row.CreatedAt), &attempts, &row.claim}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		row.count(int(attempts))
		bytes := &ofFailed
		if attempts == 0 {
			bytes = &ofOthers
		}
		if *bytes >= bound {
			continue
		}
		*bytes += row.bytes()
		if batch == nil { // an idle poll allocates no batch, a huge limit no huge one
			batch = make([]Row, 0, min(limit, 1000))
		}
		batch = append(batch, row)
	}
	return batch, rows.Err()
}

// marking are the arguments of a statement that marks.
func (o *Outbox) marking(args ...any) []any {
	if o.keep {
		args = append(args, o.grammar.time(o.now().UnixMicro()))
	}
	return args
}

// reused tells of rows that were delivered and whose numbers other messages have
// by now, and returns how many they are. A mark leaves those messages alone.
func (o *Outbox) reused(ctx context.Context, rows []Row) (n int) {
	if err := o.on(ctx, func(conn *sql.Conn) error {
		return conn.QueryRowContext(ctx, o.sql(o.grammar.reused), o.grammar.known(rows)...).Scan(&n)
	}); err == nil && n > 0 {
		o.log.Warn("couriersql: rows were delivered whose numbers other messages have by now, which are left pending: a failover, a crash or a TRUNCATE took the delivered ones back; look for a replica that missed the last commits",
			"table", o.table, "rows", n)
	}
	return n
}
