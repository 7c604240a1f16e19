package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// demo is what a run works with.
type demo struct {
	opts     options
	kafka    *cluster
	places   places
	shop     *shop
	received *received
	stderr   io.Writer
	relay    *process
	members  []*process
	started  int // members
	written  atomic.Int64
	blows    blows
	saying   chan string // what happens, for the table
}

// play is one run: it opens what is needed, lets the processes work while this and that
// befalls them, and tells how it went.
func play(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	d := &demo{opts: o, stderr: &shared{w: stderr}, saying: make(chan string, 16), blows: newBlows()}
	var remove func() error
	if d.places, remove, err = makePlaces(ctx, o.pg); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if d.shop, err = d.places.openShop(); err != nil {
		return err
	}
	defer d.shop.close()
	if d.received, err = d.places.openReceived(""); err != nil {
		return err
	}
	defer func() { _ = d.received.Close() }()
	if err = errors.Join(d.shop.create(ctx), d.received.create(ctx, d.places.Driver)); err != nil {
		return err
	}
	if d.kafka, err = openCluster(ctx, o.brokers); err != nil {
		return err
	}
	defer d.kafka.close()
	defer d.killAll()
	if err = d.work(ctx, stdout); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err = d.stopAll(); err != nil {
		return err
	}
	if err = d.lose(ctx); err != nil {
		return err
	}
	read, err := d.readBack(ctx)
	if err != nil {
		return err
	}
	found := read.judge()
	found.print(stdout)
	return found.err()
}

// work writes, relays and consumes, until nothing is left to do or nothing goes on.
func (d *demo) work(ctx context.Context, stdout io.Writer) error {
	if err := d.startRelay(); err != nil {
		return err
	}
	for range 3 {
		if err := d.join(); err != nil {
			return err
		}
	}
	running, end := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer end()
	failed := make(chan error, 1)
	group.Go(func() {
		err := d.shop.writeAll(running, d.kafka.orders, d.opts, func(n int) { d.written.Store(int64(n)) })
		if err != nil {
			failed <- err
			end()
		}
	})
	group.Go(func() { d.show(running, stdout) })
	for _, event := range d.events() {
		if !d.reach(running, event.at) {
			break
		}
		d.say(event.name)
		if err := event.do(running); err != nil && running.Err() == nil {
			return fmt.Errorf("%s: %w", event.name, err)
		}
	}
	err := d.drained(running)
	select {
	case err = <-failed:
	default:
	}
	return err
}

// event is something that happens when a share of the orders is written.
type event struct {
	at   float64
	name string
	do   func(context.Context) error
}

func (d *demo) events() []event {
	all := []event{
		{0.10, "a fourth member joins", func(context.Context) error { return d.join() }},
		{0.20, "a member leaves", func(context.Context) error { return d.leave() }},
	}
	if d.opts.outage > 0 {
		all = append(all, event{0.35, "the brokers are away", d.outage})
	}
	for i := range d.opts.kills {
		e := event{0.55 + 0.4*float64(i)/float64(d.opts.kills), "the relay is killed, and started again", d.killRelay}
		if i%2 == 1 {
			e.name, e.do = "a member is killed, and another started", d.killMember
		}
		all = append(all, e)
	}
	return all
}

// reach waits until a share of the orders is written.
func (d *demo) reach(ctx context.Context, share float64) bool {
	for float64(d.written.Load()) < share*float64(d.opts.orders) {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (d *demo) worker(name string) worker {
	return worker{Name: name, Places: d.places, Brokers: d.kafka.brokers, Orders: d.kafka.orders, DeadLetters: d.kafka.deadLetters,
		Group: d.kafka.group, Session: d.kafka.session, Batch: d.opts.batch}
}

func (d *demo) startRelay() (err error) {
	d.relay, err = d.worker("").start(d.stderr)
	return err
}

func (d *demo) join() error {
	d.started++
	m, err := d.worker(memberName(d.started)).start(d.stderr)
	if err == nil {
		d.members = append(d.members, m)
	}
	return err
}

// memberName returns a, b and so on, and a2 after z.
func memberName(n int) string {
	name := string(rune('a' + (n-1)%26))
	if n > 26 {
		name += strconv.Itoa(1 + (n-1)/26)
	}
	return name
}

// leave has the member that came first stop.
func (d *demo) leave() error {
	first := d.members[0]
	d.members = d.members[1:]
	return first.stop()
}

// outage takes the brokers away. A member whose client notices has to join the group anew:
// what it had applied and not committed comes again.
func (d *demo) outage(ctx context.Context) error {
	if err := d.settled(ctx); err != nil {
		return err
	}
	committed, err := d.kafka.committed(ctx)
	if err != nil {
		return err
	}
	if err := d.kafka.gate.away(ctx, d.opts.outage); err != nil {
		return err
	}
	d.say("they are back")
	ends, err := d.kafka.ends(ctx, d.kafka.orders)
	d.blows.brokersAway(committed, ends)
	return err
}

// settled waits until each member has its partitions. A member that goes while it joins would
// hold the others up for the rebalance timeout.
func (d *demo) settled(ctx context.Context) error {
	for since := time.Now(); ; {
		stable, err := d.kafka.stable(ctx, len(d.members))
		switch {
		case err != nil:
			return err
		case stable:
			return nil
		case time.Since(since) > patience:
			return fmt.Errorf("the group of %d has not settled within %v", len(d.members), patience)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *demo) killRelay(ctx context.Context) error {
	d.relay.kill()
	inHand, err := d.shop.pending(ctx, d.opts.batch)
	if err != nil {
		return err
	}
	d.blows.relayKilled(inHand)
	return d.startRelay()
}

func (d *demo) killMember(ctx context.Context) error {
	if err := d.settled(ctx); err != nil {
		return err
	}
	oldest := d.members[0]
	d.members = d.members[1:]
	oldest.kill()
	committed, err := d.kafka.committed(ctx) // nobody else has its partitions yet
	if err != nil {
		return err
	}
	d.blows.memberKilled(oldest.name, committed)
	return d.join()
}

func (d *demo) killAll() {
	for _, p := range d.members {
		p.kill()
	}
	if d.relay != nil {
		d.relay.kill()
	}
}

func (d *demo) stopAll() error {
	errs := []error{d.relay.stop()}
	for _, p := range d.members {
		errs = append(errs, p.stop())
	}
	d.relay, d.members = nil, nil
	return errors.Join(errs...)
}

// patience is how long nothing may go on before the run is over.
const patience = 20 * time.Second

// drained waits until everything is relayed, consumed and committed. It gives up when
// nothing goes on any more: the verdict tells what is left.
func (d *demo) drained(ctx context.Context) error {
	if !d.reach(ctx, 1) {
		return nil
	}
	var before map[int32]int64
	for since := time.Now(); time.Since(since) < patience; {
		pending, err := d.shop.outbox.Pending(ctx)
		if err != nil {
			return err
		}
		ends, err := d.kafka.ends(ctx, d.kafka.orders)
		if err != nil {
			return err
		}
		committed, err := d.kafka.committed(ctx)
		if err != nil {
			return err
		}
		if pending == 0 && maps.Equal(ends, committed) {
			return nil
		}
		if !maps.Equal(before, committed) {
			before, since = committed, time.Now()
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// lose deletes received orders, as -lose says.
func (d *demo) lose(ctx context.Context) error {
	if d.opts.lose == 0 {
		return nil
	}
	_, err := d.received.ExecContext(ctx, `DELETE FROM received WHERE id IN (SELECT DISTINCT id FROM received ORDER BY id LIMIT $1)`, d.opts.lose)
	return err
}

// shared is an output that several processes write to.
type shared struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}
