package courierkafka

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/window"
)

// group is what a source knows of its partitions and of the records that it has handed
// out. The client calls it when partitions come and go.
type group struct {
	revoked chan struct{} // has a coordinator ask which records are lost
	sending chan struct{} // holds a value while offsets are committed
	losses  atomic.Uint64 // partitions that the group took away

	mu         sync.Mutex
	config     sourceConfig
	partitions map[partition]*assignment
	member     string                    // as which the client has the partitions
	found      map[partition]lastCommit  // before the assignments
	records    map[*kgo.Record]*delivery // handed out, or given back, and not settled
	returned   returned                  // those that were given back
	polling    *polling                  // the call of the client under way
	renewal    uint64                    // number of the last call of Renew
	changed    chan struct{}             // is closed when a record of a partition that leaves has left the coordinator, or there is trouble
	noText     bool                      // the brokers take no metadata of this length
	trouble    error                     // is returned by the next Fetch
	expelled   error                     // why the client left the group the last time
	standing
}

func newGroup() *group {
	return &group{
		revoked: make(chan struct{}, 1), sending: make(chan struct{}, 1),
		config:     newSourceConfig(nil),
		partitions: make(map[partition]*assignment),
		found:      make(map[partition]lastCommit),
		records:    make(map[*kgo.Record]*delivery),
		changed:    make(chan struct{}),
	}
}

type partition struct {
	topic  string
	number int32
}

func (p partition) String() string { return fmt.Sprintf("partition %d of %q", p.number, clip(p.topic)) }

// assignment is a partition for as long as the group leaves it to this member. The next
// one of the same partition is another value, so that records of the two are told apart.
type assignment struct {
	partition
	window    *window.Window[position] // nil before the first record
	committed place                    // offset -1 if a next member would begin elsewhere
	done      settled                  // what a member before this one has settled beyond the committed offset
	read      int64                    // the next offset to be read
	out       int                      // records that the coordinator has
	paused    bool                     // the window is full
	leaving   bool                     // it is being revoked: nothing more is handed out
	unknown   bool                     // the member was expelled and has kept it: its last commit is not known
	from      kgo.EpochOffset          // where it goes on if there is no commit, -1 if nothing was read
	gone      bool                     // it is another member's, or nobody's: nothing more is committed
	missing   time.Time                // since when the brokers know no such topic
}

func newAssignment(p partition) *assignment {
	nowhere := kgo.EpochOffset{Epoch: -1, Offset: -1}
	return &assignment{partition: p, from: nowhere, committed: place{EpochOffset: nowhere}}
}

// position is the place after a record, and when that was written.
type position struct {
	kgo.EpochOffset
	written time.Time
}

func positionOf(r *kgo.Record) kgo.EpochOffset {
	return kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset}
}

// place is what is committed of a partition: the offset, and a text about what is settled
// beyond it.
type place struct {
	kgo.EpochOffset
	beyond string
}

// place is what can be committed of a partition now.
func (g *group) place(a *assignment) place {
	if a.window == nil {
		return a.committed
	}
	at := a.window.Position().EpochOffset
	if g.noText {
		return place{EpochOffset: at}
	}
	return place{at, settledOf(a.window).with(a.done, a.read).text(at.Offset)}
}

// delivery is a record that is not settled.
type delivery struct {
	record *kgo.Record
	of     *assignment
	ticket window.Ticket
	listed uint64    // the last call of Renew that named it
	due    time.Time // when it may be handed out again
	index  int       // among those that were given back, -1 if the coordinator has it
}

// returned is a heap of records that were given back, by the time they are due.
type returned []*delivery

func (r returned) Len() int { return len(r) }
func (r returned) Less(i, j int) bool {
	if a, b := r[i], r[j]; !a.due.Equal(b.due) || a.of != b.of {
		return a.due.Before(b.due)
	}
	return r[i].ticket < r[j].ticket
}
func (r returned) Swap(i, j int) {
	r[i], r[j] = r[j], r[i]
	r[i].index, r[j].index = i, j
}
func (r *returned) Push(d any) {
	d.(*delivery).index = len(*r)
	*r = append(*r, d.(*delivery))
}
func (r *returned) Pop() any {
	last := len(*r) - 1
	d := (*r)[last]
	(*r)[last] = nil
	*r = (*r)[:last]
	d.index = -1
	return d
}

// polling is a call of the client that may wait for records.
type polling struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when its records are taken in
}

// OnGroupManageError tells of an error that keeps the client out of the group. It is a
// hook of the client, which tries on.
func (g *group) OnGroupManageError(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expelled = err
	g.join(false)
	g.tell(&groupError{err})
}

// isTold reports whether a poll brings an error that OnGroupManageError has told already.
func (g *group) isTold(err error) bool {
	var session *kgo.ErrGroupSession
	return errors.As(err, &session) && errors.Is(g.expelled, session.Err)
}

// tell has the next Fetch return an error.
func (g *group) tell(err error) {
	if g.trouble == nil {
		g.trouble = err
	}
	if g.polling != nil {
		g.polling.cancel()
	}
	g.stir()
}

// assigned is called by the client before it fetches from new partitions.
func (g *group) assigned(ctx context.Context, client *kgo.Client, added map[string][]int32) {
	if isProbe(ctx) {
		return
	}
	member, _ := client.GroupMetadata()
	g.mu.Lock()
	defer g.mu.Unlock()
	for topic, numbers := range added {
		for _, number := range numbers {
			if old := g.partitions[partition{topic, number}]; old != nil {
				g.fence(client, old)
			}
		}
	}
	if g.member != "" && g.member != member {
		g.rejoined(client)
	}
	g.member = member
	if g.join(true); g.failed && g.polling != nil { // it waits for longer than it has to now
		g.polling.cancel()
	}
	if len(added) == 0 {
		return
	}
	g.awaitPoll()
	for topic, numbers := range added {
		for _, number := range numbers {
			p := partition{topic, number}
			g.partitions[p] = newAssignment(p)
			delete(g.found, p)
		}
	}
}

// awaitPoll ends a call of the client that is under way. It may have taken records of a
// partition before that was lost, which must not be taken for records of a new assignment.
func (g *group) awaitPoll() {
	for p := g.polling; p != nil && p == g.polling; {
		p.cancel()
		g.mu.Unlock()
		<-p.done
		g.mu.Lock()
	}
}

// revoking is called by the client before it gives partitions back. What the coordinator
// has begun of them is finished and committed, if it does not take too long.
func (g *group) revoking(ctx context.Context, client *kgo.Client, revoked map[string][]int32) {
	if isProbe(ctx) {
		return
	}
	member, _ := client.GroupMetadata()
	g.mu.Lock()
	if member != g.member { // the group had expelled it: other members have its partitions since
		g.mu.Unlock()
		g.lost(ctx, client, revoked)
		return
	}
	leaving := g.leave(revoked)
	g.mu.Unlock()
	if len(leaving) == 0 {
		return
	}
	g.drain(client, leaving)
	err := g.commitLast(client)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range leaving {
		if err != nil && g.place(a) != a.committed {
			g.tell(&revokeError{a.partition, err})
		}
		g.fence(client, a)
	}
}

// lost is called by the client when the group has taken partitions away already.
func (g *group) lost(ctx context.Context, client *kgo.Client, lost map[string][]int32) {
	if isProbe(ctx) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	gone := g.leave(lost)
	g.losses.Add(uint64(len(gone)))
	for _, a := range gone {
		g.fence(client, a)
	}
}

// leave has no more records handed out of some partitions, those that were given back
// included: who has the partition next gets them.
func (g *group) leave(of map[string][]int32) (leaving []*assignment) {
	for topic, numbers := range of {
		for _, number := range numbers {
			if a := g.partitions[partition{topic, number}]; a != nil {
				a.leaving = true
				leaving = append(leaving, a)
			}
		}
	}
	for _, d := range g.records {
		if d.of.leaving && d.index >= 0 {
			g.forget(d)
		}
	}
	return leaving
}

// drain waits until the coordinator has no record of these partitions any more. It has
// Renew called, which tells the coordinator what not to begin, and is told by the next
// call what it has let go of.
func (g *group) drain(client *kgo.Client, leaving []*assignment) {
	const (
		mostPause = 50 * time.Millisecond
		// patience is how many times in a row a signal may not have been taken until it is
		// sure that no coordinator runs: two seconds, and longer where the process is slow.
		patience = 45
	)
	g.mu.Lock()
	timeout := g.config.drainTimeout
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(client.Context(), timeout)
	defer cancel()
	unheard := 0
	var given []uint64 // the renewals until each signal was given
	for pause := time.Millisecond; unheard < patience; pause = min(2*pause, mostPause) {
		g.mu.Lock()
		out := 0
		for _, a := range leaving {
			out += a.out
		}
		changed, renewal := g.changed, g.renewal
		g.mu.Unlock()
		if out == 0 {
			return
		}
		if g.signal() {
			unheard = 0 // the signal before this one was taken, and the one before that has had its effect
			if given = append(given, renewal); len(given) > 2 {
				g.notRenewed(given[len(given)-3])
			}
		} else {
			unheard++
		}
		if !rest(ctx, pause, changed) {
			return
		}
	}
}

// rest waits for a time, or less if something changes, and reports whether ctx goes on.
func rest(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	over := time.NewTimer(d)
	defer over.Stop()
	select {
	case <-over.C:
	case <-changed:
	case <-ctx.Done():
		return false
	}
	return true
}

// signal has a coordinator call Renew, and reports false if it has not taken the signal
// before this one.
func (g *group) signal() bool {
	select {
	case g.revoked <- struct{}{}:
		return true
	default:
		return false
	}
}

// fence lets nothing more of an assignment be marked, released or committed.
func (g *group) fence(client *kgo.Client, a *assignment) {
	a.leaving, a.gone = true, true
	if g.partitions[a.partition] == a {
		delete(g.partitions, a.partition)
	}
	for _, d := range g.records {
		if d.of == a {
			g.forget(d)
		}
	}
	if a.paused { // a pause outlives an assignment
		a.paused = false
		client.ResumeFetchPartitions(map[string][]int32{a.topic: {a.number}})
	}
	g.signal()
}

// forget lets go of a record.
func (g *group) forget(d *delivery) {
	delete(g.records, d.record)
	if d.index >= 0 {
		heap.Remove(&g.returned, d.index)
		return
	}
	d.of.out--
	if d.of.leaving {
		g.stir()
	}
}

// stir wakes who waits for records to leave the coordinator, or for a turn to poll.
func (g *group) stir() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// begin takes records that were given back and are due, or else begins a poll.
func (g *group) begin(ctx context.Context, limit int) (due []*kgo.Record, p *polling, polled context.Context, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.turn(ctx); err != nil {
		return nil, nil, nil, err
	}
	now := time.Now()
	for len(due) < limit && len(g.returned) > 0 && !g.returned[0].due.After(now) {
		d := heap.Pop(&g.returned).(*delivery)
		d.of.out++
		d.listed = 0
		due = append(due, d.record)
	}
	if len(due) > 0 {
		return due, nil, nil, nil
	}
	p = &polling{done: make(chan struct{})}
	until := g.until(now)
	if len(g.returned) > 0 && (until.IsZero() || g.returned[0].due.Before(until)) {
		until = g.returned[0].due
	}
	if until.IsZero() {
		polled, p.cancel = context.WithCancel(ctx)
	} else {
		polled, p.cancel = context.WithDeadline(ctx, until)
	}
	g.polling = p
	return nil, p, polled, nil
}

// turn waits until no other call polls the client, and returns the error, if any, that the
// next Fetch has to return instead of records.
func (g *group) turn(ctx context.Context) error {
	for {
		if err := g.trouble; err != nil {
			g.trouble = nil
			return err
		}
		p, changed := g.polling, g.changed
		if p == nil {
			return nil
		}
		g.mu.Unlock()
		select {
		case <-p.done:
		case <-changed:
		case <-ctx.Done():
		}
		g.mu.Lock()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// admit takes in what a poll has brought.
func (g *group) admit(client *kgo.Client, p *polling, fetches kgo.Fetches) (records []*kgo.Record, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.polling = nil
	close(p.done)
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		a := g.partitions[partition{f.Topic, f.Partition}]
		switch fault := f.Err; {
		case fault == nil || interrupted(fault) || g.isTold(fault):
		case isGone(fault): // the client says so when it is sure
			if a != nil {
				g.dropTopic(client, a.topic)
			}
			return
		case err == nil:
			err = fetchFault(partition{f.Topic, f.Partition}, fault)
		}
		if len(f.Records) == 0 {
			return
		}
		if a != nil && a.unknown && a.from.Offset < 0 { // the client goes on after them
			a.from = positionOf(f.Records[0])
		}
		if a == nil || a.leaving || a.unknown { // another member has them, or will have, or may have had
			return
		}
		begin, expected := positionOf(f.Records[0]), a.read
		if a.window == nil {
			last, found := g.found[a.partition]
			if expected = a.from.Offset; found && last.Offset >= 0 {
				expected = last.Offset
			}
			a.window = window.New(position{EpochOffset: begin})
			a.done = last.settled
			if found && last.Offset >= 0 || startsAtStart(client) {
				a.committed.EpochOffset = begin
			}
		}
		if end := min(begin.Offset, f.LogStartOffset); expected >= 0 && expected < end && err == nil {
			err = &deletedError{a.partition, expected, end}
		}
		for _, r := range f.Records {
			next := kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset + 1}
			ticket := a.window.Add(position{next, r.Timestamp})
			a.read = next.Offset
			if a.done.has(r) {
				a.window.Settle(ticket)
				continue
			}
			g.records[r] = &delivery{record: r, of: a, ticket: ticket, index: -1}
			a.out++
			records = append(records, r)
		}
		if !a.paused && a.window.Len() >= g.config.maxWindow {
			a.paused = true
			client.PauseFetchPartitions(map[string][]int32{a.topic: {a.number}})
		}
	})
	return records, err
}

// settle notes that records are done. Those of a partition that is gone are another
// member's.
func (g *group) settle(client *kgo.Client, records []*kgo.Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range records {
		d := g.records[r]
		if d == nil {
			continue
		}
		g.forget(d)
		a := d.of
		if a.window.Settle(d.ticket); a.paused && a.window.Len() <= g.config.maxWindow/2 {
			a.paused = false
			client.ResumeFetchPartitions(map[string][]int32{a.topic: {a.number}})
		}
	}
}

// release takes records back, to hand them out again later.
func (g *group) release(records []*kgo.Record, after time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	due := time.Now().Add(after)
	for _, r := range records {
		d := g.records[r]
		switch {
		case d == nil || d.index >= 0:
		case d.of.leaving: // who has the partition next gets it
			g.forget(d)
		default:
			d.of.out--
			d.due = due
			heap.Push(&g.returned, d)
		}
	}
	if g.polling != nil { // it waits for too long
		g.polling.cancel()
	}
}

// renew reports which records are of partitions that are being revoked, or gone. What it
// has reported before and is not asked about again, the coordinator has let go of.
func (g *group) renew(records []*kgo.Record) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.renewal++
	var lost courier.BatchError
	for i, r := range records {
		switch d := g.records[r]; {
		case d == nil:
			lost.Add(i, errLost)
		case d.of.leaving:
			d.listed = g.renewal
			lost.Add(i, errRevoked)
		}
	}
	g.letGo()
	return lost.ErrorOrNil()
}

// notRenewed is told that a coordinator has taken a signal since a renewal. If it has not
// called Renew, it has nothing in hand: it has let go of all that was reported.
func (g *group) notRenewed(since uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.renewal == since {
		g.renewal++ // one of nothing
		g.letGo()
	}
}

// letGo forgets records of leaving partitions that the coordinator no longer holds: an earlier
// renewal listed them, and the last one did not.
func (g *group) letGo() {
	for _, d := range g.records {
		if d.of.leaving && d.index < 0 && d.listed != 0 && d.listed != g.renewal {
			g.forget(d)
		}
	}
}

func (g *group) commitTimeout() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.config.commitTimeout
}
