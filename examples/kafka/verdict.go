package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
)

// errVerdict is the error, to errors.Is, of a run in which an order was lost, repeated
// without a reason or out of order.
var errVerdict = errors.New("the books do not balance")

// blows is what was in hand when processes were killed, and when the brokers were away.
type blows struct {
	relay   map[string]bool            // ids of rows that a killed relay had in hand
	members map[string]map[int32]int64 // what was committed when a member was killed
	kills   int
	outages []outage
}

// outage is what was committed before it, and where the topic ended after it.
type outage struct{ committed, ends map[int32]int64 }

func (b *blows) brokersAway(committed, ends map[int32]int64) {
	b.outages = append(b.outages, outage{committed, ends})
}

// away reports whether a record may have been in somebody's hand while the brokers were
// away: a member that could not commit has it repeated, whether it came back or not.
func (b *blows) away(p place) bool {
	return slices.ContainsFunc(b.outages, func(o outage) bool {
		return p.offset >= o.committed[p.partition] && p.offset < o.ends[p.partition]
	})
}

func newBlows() blows {
	return blows{relay: make(map[string]bool), members: make(map[string]map[int32]int64)}
}

func (b *blows) relayKilled(inHand []string) {
	b.kills++
	for _, id := range inHand {
		b.relay[id] = true
	}
}

func (b *blows) memberKilled(name string, committed map[int32]int64) {
	b.kills++
	b.members[name] = committed
}

// killed reports whether a member was killed with this record applied or in work, and not
// committed.
func (b *blows) killed(member string, p place) bool {
	committed, killed := b.members[member]
	return killed && p.offset >= committed[p.partition]
}

// place is where a record is in the topic of orders.
type place struct {
	partition int32
	offset    int64
}

// books is all that can be read at the end. Nothing in it comes from the relay or the
// consumers themselves, but what they have written.
type books struct {
	blows     blows
	orders    []order // that were written
	pending   map[string]bool
	topic     []sent
	committed map[int32]int64
	letters   []letter
	received  []receipt
	lost      map[string][]int64 // the rows of the table at which members had lost their partitions
}

// near is how many orders a member had processed at most between a record that was in hand
// when it lost its partitions, and the note of that: more than it has in hand.
const near = 1000

// cutOff reports whether a record was in hand when its member lost its partitions.
func (b *books) cutOff(r receipt) bool {
	return slices.ContainsFunc(b.lost[r.member], func(at int64) bool {
		between := 0
		for _, other := range b.received {
			if other.member == r.member && (other.seq > r.seq && other.seq <= at || other.seq > at && other.seq <= r.seq) {
				between++
			}
		}
		return between < near
	})
}

// sent is a record of the topic of orders.
type sent struct {
	id, customer string
	place        place
}

// letter is a record of the topic of dead letters.
type letter struct {
	id       string
	place    place // of the record that was consumed
	consumed bool
}

// receipt is a row of the table of received orders.
type receipt struct {
	order
	seq    int64
	member string
}

func (d *demo) readBack(ctx context.Context) (*books, error) {
	b := &books{blows: d.blows, pending: make(map[string]bool), lost: make(map[string][]int64)}
	rows, err := d.shop.QueryContext(ctx, `SELECT id, customer, number FROM orders ORDER BY number`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var o order
		if err := rows.Scan(&o.ID, &o.Customer, &o.Number); err != nil {
			return nil, err
		}
		b.orders = append(b.orders, o)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	pending, err := d.shop.pending(ctx, len(b.orders))
	if err != nil {
		return nil, err
	}
	for _, id := range pending {
		b.pending[id] = true
	}
	topic, err := d.kafka.read(ctx, d.kafka.orders)
	if err != nil {
		return nil, err
	}
	for _, r := range topic {
		b.topic = append(b.topic, sent{recordID(r), string(r.Key), place{r.Partition, r.Offset}})
	}
	dead, err := d.kafka.read(ctx, d.kafka.deadLetters)
	if err != nil {
		return nil, err
	}
	for _, r := range dead {
		at, consumed := original(r)
		b.letters = append(b.letters, letter{recordID(r), at, consumed})
	}
	if b.committed, err = d.kafka.committed(ctx); err != nil {
		return nil, err
	}
	return b, d.readReceived(ctx, b)
}

func (d *demo) readReceived(ctx context.Context, b *books) error {
	if err := d.readLost(ctx, b); err != nil {
		return err
	}
	rows, err := d.received.QueryContext(ctx, `SELECT seq, id, customer, number, member, kafka_partition, kafka_offset FROM received ORDER BY seq`)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var r receipt
		if err := rows.Scan(&r.seq, &r.ID, &r.Customer, &r.Number, &r.member, &r.partition, &r.offset); err != nil {
			return err
		}
		b.received = append(b.received, r)
	}
	return rows.Err()
}

func (d *demo) readLost(ctx context.Context, b *books) error {
	rows, err := d.received.QueryContext(ctx, `SELECT member, seq FROM lost`)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var member string
		var at int64
		if err := rows.Scan(&member, &at); err != nil {
			return err
		}
		b.lost[member] = append(b.lost[member], at)
	}
	return rows.Err()
}

// findings is what there is to report.
type findings struct {
	written, relayed, received, letters, pending, unread, missing int
	sentAgain, receivedAgain                                      int
	beyond, disorder                                              []string // repeats without a reason, and orders of a customer that came in the wrong order
	lost                                                          string   // one that is missing
	kills                                                         int
}

// judge compares what was written with what arrived.
func (b *books) judge() *findings {
	f := &findings{written: len(b.orders), pending: len(b.pending), kills: b.blows.kills}
	found := make(map[string]bool)
	relayed := b.judgeTopic(f)
	received := b.judgeReceived(f)
	letters := b.judgeLetters(f)
	f.relayed, f.received, f.letters = len(relayed), len(received), len(letters)
	for _, ids := range []map[string]bool{received, letters, b.pending} {
		for id := range ids {
			found[id] = true
		}
	}
	unread := make(map[string]bool)
	for _, s := range b.topic {
		unread[s.id] = s.place.offset >= b.committed[s.place.partition]
	}
	for _, o := range b.orders {
		switch {
		case found[o.ID]:
		case unread[o.ID]:
			f.unread++
		default:
			f.missing++
			f.lost = o.ID
		}
	}
	return f
}

// judgeTopic looks for what the relay sent twice, or out of order.
func (b *books) judgeTopic(f *findings) map[string]bool {
	numbers := make(map[string]int)
	for _, o := range b.orders {
		numbers[o.ID] = o.Number
	}
	seen, last := make(map[string]bool), make(map[string]int)
	inOrder := slices.Clone(b.topic)
	slices.SortFunc(inOrder, func(x, y sent) int {
		if x.place.partition != y.place.partition {
			return int(x.place.partition - y.place.partition)
		}
		return int(x.place.offset - y.place.offset)
	})
	for _, s := range inOrder {
		if seen[s.id] {
			f.sentAgain++
			if !b.blows.relay[s.id] {
				f.beyond = append(f.beyond, s.id+" in the topic")
			}
			continue
		}
		seen[s.id] = true
		if numbers[s.id] < last[s.customer] {
			f.disorder = append(f.disorder, s.id+" in the topic")
		}
		last[s.customer] = numbers[s.id]
	}
	return seen
}

// judgeReceived looks for what the group processed twice, or out of order.
func (b *books) judgeReceived(f *findings) map[string]bool {
	seen, last := make(map[string]bool), make(map[string]int)
	before := make(map[place]receipt)
	for _, r := range b.received {
		at := place{r.partition, r.offset}
		if first, again := before[at]; again {
			f.receivedAgain++
			if !b.blows.killed(first.member, at) && !b.blows.away(at) && !b.cutOff(first) {
				f.beyond = append(f.beyond, fmt.Sprintf("%s in the table, by %s and %s", r.ID, first.member, r.member))
			}
		}
		before[at] = r
		if seen[r.ID] {
			continue
		}
		seen[r.ID] = true
		if r.Number < last[r.Customer] {
			f.disorder = append(f.disorder, r.ID+" in the table")
		}
		last[r.Customer] = r.Number
	}
	return seen
}

// judgeLetters looks for what was parked twice.
func (b *books) judgeLetters(f *findings) map[string]bool {
	seen := make(map[string]bool)
	before := make(map[place]bool)
	for _, l := range b.letters {
		switch {
		case l.consumed && before[l.place]:
			// The letter does not say which member parked it.
			inHand := len(b.lost) > 0 || b.blows.away(l.place)
			for member := range b.blows.members {
				inHand = inHand || b.blows.killed(member, l.place)
			}
			if f.receivedAgain++; !inHand {
				f.beyond = append(f.beyond, l.id+" in the dead letters of the group")
			}
		case !l.consumed && seen[l.id]:
			if f.sentAgain++; !b.blows.relay[l.id] {
				f.beyond = append(f.beyond, l.id+" in the dead letters of the relay")
			}
		}
		if l.consumed {
			before[l.place] = true
		}
		seen[l.id] = true
	}
	return seen
}

// print writes the table.
func (f *findings) print(w io.Writer) {
	_, _ = fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name string, n int, meaning string) {
		_, _ = fmt.Fprintf(table, "%s\t%9s\t%s\n", name, humanize.Comma(int64(n)), meaning)
	}
	row("written", f.written, "orders, each in one transaction with its outbox row")
	row("relayed", f.relayed, "of them are in the topic, read back")
	row("received", f.received, "of them are in the table of the consumers")
	row("dead letters", f.letters, "orders that the relay or the consumers could not process")
	row("still pending", f.pending, "rows in the outbox")
	row("not consumed", f.unread, "records of the topic that the group has not committed")
	row("missing", f.missing, "orders that are in none of these places")
	row("sent again", f.sentAgain, "records that a killed relay had in hand")
	row("received again", f.receivedAgain, "records that a member had in hand when it was killed, or lost the brokers")
	row("repeated without a reason", len(f.beyond), "")
	row("out of order", len(f.disorder), "orders of a customer, by the first time that each came")
	_ = table.Flush()
	_, _ = fmt.Fprintln(w)
	if f.err() == nil {
		_, _ = fmt.Fprintf(w, "Every order arrived or is a dead letter. %d processes were killed; only what was in hand came again.\n", f.kills)
	}
}

// err is nil when every order is accounted for.
func (f *findings) err() error {
	switch {
	case f.missing > 0:
		return fmt.Errorf("%w: %s of the orders are missing, such as %s", errVerdict, humanize.Comma(int64(f.missing)), f.lost)
	case f.pending > 0:
		return fmt.Errorf("%w: %s of the orders are still in the outbox, though nothing goes on any more", errVerdict, humanize.Comma(int64(f.pending)))
	case f.unread > 0:
		return fmt.Errorf("%w: %s of the orders are still in the topic, though nothing goes on any more", errVerdict, humanize.Comma(int64(f.unread)))
	case len(f.beyond) > 0:
		return fmt.Errorf("%w: %d repeats without a reason, such as %s", errVerdict, len(f.beyond), f.beyond[0])
	case len(f.disorder) > 0:
		return fmt.Errorf("%w: %d out of order, such as %s", errVerdict, len(f.disorder), f.disorder[0])
	}
	return nil
}
