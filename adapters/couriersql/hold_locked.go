package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// locked holds rows by the locks of transactions, one for each batch, that are
// open from the fetch until the batch is settled. Other relays skip what is
// locked.
type locked struct {
	outbox *Outbox
	marks  string // marks rows that a transaction has locked

	mu      sync.Mutex
	several bool // a coordinator settles all that it fetches, and may fetch ahead
	batches []*lockedBatch
	parked  map[rowKey]parkedRow // rows that have not come to mark yet
	left    map[rowKey]time.Time // rows that a mark has left in hand, and until when at least they are kept from others
}

// holding is the batch that has a row, nil if none does. While a batch whose
// transaction was lost is still in hand, another one may have another row of the
// same number.
func (l *locked) holding(key rowKey) *lockedBatch {
	for _, b := range l.batches {
		if _, found := b.rows.find(key); found {
			return b
		}
	}
	return nil
}

// lockedBatch is a transaction.
type lockedBatch struct {
	*locked
	turn  chan struct{} // holds a value while somebody uses what follows
	conn  *sql.Conn     // nil once the transaction has ended
	rows  rowKeys       // guarded by mu
	dirty bool          // there is something to commit
}

// leftover is for how long the rows that a mark leaves in a batch, whose locks go
// with its transaction, are kept from other relays. They are about to be failed or
// released, which ends it, or wait in hand to be tried again, for as long as they are
// renewed: another relay that took one before could not be told of its failures, and
// the row would be tried again at once, without end. It is longer than the time from one
// renewal to the next, and the rows of a relay that dies wait for as long. Plain functions fail and release
// nothing, and are to have the rows again at the next fetch.
const leftover = 8 * time.Second

// orphanAfter is when the server ends the transaction of a coordinator that it does
// not hear of, though it renews: a connection that died without a sign would keep
// its rows locked for as long as TCP takes to notice.
const orphanAfter = time.Minute

// closeTimeout is for how long a close tries to be orderly: the server notices
// only some time later that a connection is gone, and with it what it holds.
const closeTimeout = 5 * time.Second

func newLocked(o *Outbox) *locked {
	return &locked{outbox: o, marks: o.sql(o.either(o.grammar.delete, o.grammar.keep)), parked: make(map[rowKey]parkedRow), left: make(map[rowKey]time.Time)}
}

// enter waits for a turn, which a renewal may have.
func enter(ctx context.Context, turn chan struct{}) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *locked) begin() {
	l.drop() // what another run has left
	l.mu.Lock()
	l.several = true
	l.mu.Unlock()
}

// drop ends what is held, of which nothing comes to mark any more.
func (l *locked) drop() {
	l.close()
	l.mu.Lock()
	clear(l.parked)
	clear(l.left)
	l.mu.Unlock()
}

// runs reports whether a coordinator does.
func (l *locked) runs() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.several
}

func (l *locked) fetch(ctx context.Context, limit int, from int64) (rows []Row, err error) {
	if !l.runs() { // nobody says of what was not marked that it is to be had again
		l.drop()
	}
	if err := l.makeRoom(ctx, min(mostOpen, l.room())); err != nil {
		return nil, err
	}
	o := l.outbox
	b := &lockedBatch{locked: l, turn: make(chan struct{}, 1)}
	if b.conn, err = o.connection(ctx); err != nil {
		return nil, err
	}
	rows, err = b.lock(ctx, limit, from)
	if err == nil && len(rows) == 0 {
		err = b.end(ctx)
	}
	if err != nil {
		b.abandon()
		return nil, err
	}
	inOrder(rows)
	if len(rows) > 0 {
		b.hold(rows)
	}
	return rows, nil
}

// mostOpen is how many transactions may be open before the next fetch. Those of which
// all rows wait in hand are not ended by a mark, and would take one connection each.
const mostOpen = 2

// room is how many transactions the pool has room for beside one more connection.
func (l *locked) room() int {
	others := 1
	if l.outbox.wakeUp {
		others++
	}
	if has := l.outbox.db.Stats().MaxOpenConnections; has > 0 {
		return max(0, has-others)
	}
	return math.MaxInt
}

// makeRoom ends the oldest transactions where there are too many, and keeps their rows
// from others in the way of those that a mark leaves.
func (l *locked) makeRoom(ctx context.Context, most int) error {
	l.mu.Lock()
	old := slices.Clone(l.batches[:max(0, len(l.batches)-most)])
	l.mu.Unlock()
	for _, b := range old {
		if err := b.leaveAll(ctx); err != nil {
			return err
		}
	}
	return nil
}

// on uses a connection of the pool beside the transactions, which may have taken all.
func (l *locked) on(ctx context.Context, use func(*sql.Conn) error) error {
	if l.runs() {
		if err := l.makeRoom(ctx, l.room()); err != nil {
			return err
		}
	}
	return l.outbox.on(ctx, use)
}

func (b *lockedBatch) leaveAll(ctx context.Context) error {
	if err := enter(ctx, b.turn); err != nil {
		return err
	}
	defer func() { <-b.turn }()
	if b.conn == nil {
		return nil
	}
	batch := new(pgx.Batch)
	b.queueHold(batch, b.settled(0, nil))
	return b.commitAndLeave(ctx, batch)
}

// queueHold adds the statement that keeps rows from other relays once their locks are
// gone.
func (b *lockedBatch) queueHold(batch *pgx.Batch, seqs []int64) {
	batch.Queue(b.outbox.sql(b.outbox.grammar.hold), seqs, leftover.Microseconds())
}

// commitAndLeave ends the transaction with some statements, and notes the rows that it
// leaves in hand.
func (b *lockedBatch) commitAndLeave(ctx context.Context, batch *pgx.Batch) error {
	batch.Queue("COMMIT")
	until := time.Now().Add(leftover)
	if err := send(ctx, b.conn, batch); err != nil {
		b.abandon()
		return err
	}
	b.leave(until)
	b.forget()
	return nil
}

// lock begins the transaction, and locks rows in it. It locks no more than fit: others
// are to have what does not.
func (b *lockedBatch) lock(ctx context.Context, limit int, from int64) (rows []Row, err error) {
	o := b.outbox
	for n := limit; ; n = len(rows) {
		statements := o.planned(&rows, n, o.grammar.lock, n, from, o.share(n))
		if b.runs() { // and so renews
			statements.Queue(o.grammar.orphan, orphanAfter.Milliseconds())
		}
		if err := send(ctx, b.conn, statements); err != nil {
			return nil, err
		}
		locked := len(rows)
		if rows = o.within(rows); len(rows) == locked {
			break
		}
		if _, err := b.conn.ExecContext(ctx, "ROLLBACK"); err != nil {
			return nil, err
		}
	}
	if rest := o.leftOut(&rows); rest != nil {
		err = send(ctx, b.conn, rest)
	}
	return rows, err
}

// hold notes what a new batch has.
func (b *lockedBatch) hold(rows []Row) {
	b.mu.Lock()
	for _, other := range b.batches { // that has them no more: its transaction was lost
		other.rows.remove(len(rows), func(i int) rowKey { return rows[i].key() })
	}
	b.rows.add(rows)
	b.batches = append(b.batches, b)
	b.mu.Unlock()
	b.outbox.opened(b.locked, true)
}

// settled notes that rows are held no more, and returns those that still are.
func (b *lockedBatch) settled(n int, key func(int) rowKey) (rest []int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows.remove(n, key)
	for _, left := range b.rows.keys {
		rest = append(rest, left.seq)
	}
	return rest
}

// split sorts rows by the batch that holds them, nil where none does.
func (l *locked) split(n int, key func(int) rowKey) map[*lockedBatch][]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	parts := make(map[*lockedBatch][]int, 1)
	for i := range n {
		b := l.holding(key(i))
		if parts[b] == nil {
			parts[b] = make([]int, 0, n-i)
		}
		parts[b] = append(parts[b], i)
	}
	return parts
}

// chosen are the elements with the indices, without a copy where that is all.
func chosen[T any](all []T, index []int) []T {
	if len(index) == len(all) {
		return all
	}
	some := make([]T, len(index))
	for i, j := range index {
		some[i] = all[j]
	}
	return some
}

func (l *locked) mark(ctx context.Context, rows []Row) error {
	for b, index := range l.split(len(rows), func(i int) rowKey { return rows[i].key() }) {
		part := chosen(rows, index)
		if b == nil {
			if err := l.markLate(ctx, part); err != nil {
				return err
			}
		} else if err := b.mark(ctx, part); err != nil {
			return err
		}
	}
	l.gone(len(rows), func(i int) rowKey { return rows[i].key() })
	return nil
}

// gone forgets rows that the coordinator no longer has in hand.
func (l *locked) gone(n int, key func(int) rowKey) {
	l.forgetParked(n, key)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range n {
		if len(l.left) == 0 {
			return
		}
		delete(l.left, key(i))
	}
}

func (b *lockedBatch) mark(ctx context.Context, rows []Row) error {
	if err := enter(ctx, b.turn); err != nil {
		return err
	}
	defer func() { <-b.turn }()
	o := b.outbox
	if b.conn == nil { // lost meanwhile
		return b.markLate(ctx, rows)
	}
	if rows = b.unparked(b, rows); len(rows) == 0 {
		return nil
	}
	batch := new(pgx.Batch)
	var marked pgconn.CommandTag
	batch.Queue(b.marks, o.marking(numberList(len(rows), func(i int) int64 { return rows[i].Seq }))...).
		Exec(func(tag pgconn.CommandTag) error { marked = tag; return nil })
	if rest := b.settled(len(rows), func(i int) rowKey { return rows[i].key() }); len(rest) > 0 && b.runs() {
		b.queueHold(batch, rest)
	}
	if err := b.commitAndLeave(ctx, batch); err != nil || marked.RowsAffected() == int64(len(rows)) {
		return err
	}
	return o.recountAlone(ctx, len(rows), o.grammar.left, o.grammar.known(rows)...)
}

// leave notes the rows that a mark has left in hand.
func (b *lockedBatch) leave(until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, key := range b.rows.keys {
		if b.several {
			b.left[key] = until
		}
	}
}

// How often and how long markLate waits for a lock to go, unless its call has to end
// before.
const (
	lateTries = 20
	latePause = 50 * time.Millisecond
)

// markLate marks rows whose transaction was lost. They may be locked: by this
// relay's own session, of which the server has not noticed yet that it is dead,
// or by another relay, which then delivers them once more and decides about
// them. To wait for that one would be to stand still for as long as it works.
func (l *locked) markLate(ctx context.Context, rows []Row) error {
	o := l.outbox
	if rows = l.unparked(nil, rows); len(rows) == 0 {
		return nil
	}
	tries := min(lateTries, 1+int(o.timeout/2/latePause))
	for try := 1; ; try++ {
		var left int
		if err := l.on(ctx, func(conn *sql.Conn) error {
			if _, err := conn.ExecContext(ctx, o.sql(o.either(o.grammar.deleteFree, o.grammar.keepFree)), o.marking(o.grammar.known(rows)...)...); err != nil {
				return err
			}
			return conn.QueryRowContext(ctx, o.sql(o.grammar.left), o.grammar.known(rows)...).Scan(&left)
		}); err != nil {
			return err
		}
		if left == 0 {
			o.reused(ctx, rows)
			return nil
		}
		if try == tries {
			if err := o.recountAlone(ctx, len(rows), o.grammar.leftFree, o.grammar.attempted(rows)...); err != nil {
				return err
			}
			o.log.Warn("couriersql: rows were not marked, as another session has locked them since this relay's transaction was lost; they are delivered again",
				"table", o.table, "rows", left)
			return nil
		}
		select {
		case <-time.After(latePause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (l *locked) fail(ctx context.Context, failed []failure) error {
	return l.settle(ctx, failed, true, func(on executor, part []failure) error { return l.outbox.fail(ctx, on, part) })
}

func (l *locked) release(ctx context.Context, rows []failure) error {
	return l.settle(ctx, rows, false, func(on executor, part []failure) error {
		o := l.outbox
		_, err := on.ExecContext(ctx, o.sql(o.grammar.free), o.grammar.failures(part)...)
		return err
	})
}

// settle writes what became of rows that were not marked: in the transaction
// that has them, or after its end.
func (l *locked) settle(ctx context.Context, rows []failure, writes bool, write func(executor, []failure) error) error {
	defer l.gone(len(rows), func(i int) rowKey { return rows[i].key() })
	for b, index := range l.split(len(rows), func(i int) rowKey { return rows[i].key() }) {
		part := chosen(rows, index)
		if b == nil {
			if err := l.writeLate(ctx, part, write); err != nil {
				return err
			}
		} else if err := b.settle(ctx, part, writes, write); err != nil {
			return err
		}
	}
	return nil
}

func (l *locked) writeLate(ctx context.Context, rows []failure, write func(executor, []failure) error) error {
	return l.on(ctx, func(conn *sql.Conn) error { return write(conn, rows) })
}

func (b *lockedBatch) settle(ctx context.Context, rows []failure, writes bool, write func(executor, []failure) error) error {
	if err := enter(ctx, b.turn); err != nil {
		return err
	}
	defer func() { <-b.turn }()
	if b.conn == nil {
		return b.writeLate(ctx, rows, write)
	}
	var suppressed error
	if writes {
		if err := b.apart(ctx, func() error {
			err := write(b.conn, rows)
			if errors.Is(err, ErrSuppressed) { // the others are noted
				suppressed, err = err, nil
			}
			return err
		}); err != nil {
			if !b.outbox.grammar.refused(err) {
				b.abandon()
			}
			return err
		}
	}
	if rest := b.settled(len(rows), func(i int) rowKey { return rows[i].key() }); len(rest) > 0 {
		return suppressed
	}
	if err := b.end(ctx); err != nil {
		b.abandon()
		return err
	}
	return suppressed
}

// apart does work that the transaction outlives if it fails.
func (b *lockedBatch) apart(ctx context.Context, work func() error) error {
	if _, err := b.conn.ExecContext(ctx, "SAVEPOINT apart"); err != nil {
		b.abandon()
		return err
	}
	if err := work(); err != nil {
		if _, lost := b.conn.ExecContext(ctx, "ROLLBACK TO apart"); lost != nil {
			b.abandon()
		}
		return err
	}
	if _, err := b.conn.ExecContext(ctx, "RELEASE apart"); err != nil {
		b.abandon()
		return err
	}
	b.dirty = true
	return nil
}

// renew looks whether the transactions are alive, and keeps them from being
// ended as idle. The rows that marks have left in hand are kept from others for longer.
func (l *locked) renew(ctx context.Context, rows []Row) (map[string]bool, error) {
	lost := make(map[string]bool)
	for b, index := range l.split(len(rows), func(i int) rowKey { return rows[i].key() }) {
		if b != nil {
			alive, err := b.alive(ctx)
			if err != nil {
				return nil, err
			}
			if alive {
				continue
			}
		}
		part := chosen(rows, index)
		kept, err := l.keepLeft(ctx, part)
		if err != nil {
			return nil, err
		}
		for _, row := range part {
			if !kept[row.ID] {
				lost[row.ID] = true
			}
		}
	}
	return lost, nil
}

// keepLeft keeps rows that marks have left in hand from others for longer, and returns
// the IDs of those that others cannot have had meanwhile.
func (l *locked) keepLeft(ctx context.Context, rows []Row) (kept map[string]bool, err error) {
	now := time.Now()
	l.mu.Lock()
	left := slices.DeleteFunc(slices.Clone(rows), func(row Row) bool { return !now.Before(l.left[row.key()]) })
	l.mu.Unlock()
	if len(left) == 0 {
		return nil, nil
	}
	var ids []string
	o := l.outbox
	if err := l.on(ctx, func(conn *sql.Conn) (err error) {
		ids, err = texts(ctx, conn, o.sql(o.grammar.held), append(o.grammar.known(left), leftover.Microseconds())...)
		return err
	}); err != nil {
		return nil, err
	}
	kept = make(map[string]bool, len(ids))
	for _, id := range ids {
		kept[id] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, row := range left {
		if _, still := l.left[row.key()]; still && kept[row.ID] {
			l.left[row.key()] = now.Add(leftover)
		}
	}
	return kept, nil
}

func (b *lockedBatch) alive(ctx context.Context) (bool, error) {
	if err := enter(ctx, b.turn); err != nil {
		return false, err
	}
	defer func() { <-b.turn }()
	if b.conn == nil {
		return false, nil
	}
	if _, err := b.conn.ExecContext(ctx, "SELECT 1"); err != nil {
		b.abandon() // also where the context has ended, and the connection with it
		return false, ctx.Err()
	}
	return true, nil
}

func (l *locked) renewEvery() time.Duration { return 5 * time.Second }

// end ends the transaction and gives its connection back.
func (b *lockedBatch) end(ctx context.Context) error {
	text := "ROLLBACK"
	if b.dirty {
		text = "COMMIT"
	}
	if _, err := b.conn.ExecContext(ctx, text); err != nil {
		return err
	}
	b.forget()
	return nil
}

// abandon throws the connection away, and the transaction with it.
func (b *lockedBatch) abandon() {
	if b.conn != nil {
		discard(b.conn)
		b.forget()
	}
}

func (b *lockedBatch) forget() {
	_ = b.conn.Close() // back to the pool, or gone already
	b.conn = nil
	b.mu.Lock()
	b.rows = rowKeys{}
	b.batches = slices.DeleteFunc(b.batches, func(other *lockedBatch) bool { return other == b })
	none := len(b.batches) == 0
	b.mu.Unlock()
	if none {
		b.outbox.opened(b.locked, false)
	}
}

func (l *locked) close() {
	l.mu.Lock()
	batches := slices.Clone(l.batches)
	l.mu.Unlock()
	for _, b := range batches {
		b.close()
	}
}

func (b *lockedBatch) close() {
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	if b.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if b.end(ctx) != nil {
		b.abandon()
	}
}
