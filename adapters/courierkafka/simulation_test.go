//go:build synctests

package courierkafka_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

var (
	simSeed     = flag.Uint64("sim.seed", 1, "TestSimulation: the first seed")
	simEpisodes = flag.Int("sim.episodes", 4, "TestSimulation: how many seeds")
)

// TestSimulation relays an outbox into a topic by a [courierkafka.Sink], and consumes that by
// a group of [courierkafka.Source]s, with real clients, while relays are killed, members of
// the group join, leave, are expelled, killed and cut off, records take long, fail and are poison,
// commits fail, and brokers answer with errors. A model judges each step:
//
//   - No offset is committed, and nothing in the metadata of a commit says that a record is
//     settled, that was not applied or parked. In the end every row of the outbox is.
//   - A record is applied again only if the member that had applied it was killed, lost its
//     partition, or could not commit as the group waited for a member out of reach; and only
//     if it was not committed by then. A row is stored twice only if the relay that had it
//     was killed.
//   - Rows of a key are stored in their order, and each member applies the records of a key
//     one after the other, in their order.
//
// A seed sets what happens, and when. The bubble has one clock for all, but the clients choose
// by the order of maps, by their own random numbers, and by which goroutine comes first: two
// runs of a seed may differ in which of several things come first at one instant.
//
// The long form is 1,000 rebalances or more:
//
//	go test -tags synctests -run TestSimulation -v -timeout 0 -args -sim.episodes=100
func TestSimulation(t *testing.T) {
	total := make(map[string]int)
	for i := range *simEpisodes {
		seed := *simSeed + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for what, n := range simulate(t, seed, 1) {
					total[what] += n
				}
			})
		})
	}
	t.Logf("%d episodes: %v", *simEpisodes, total)
	const sweep = 50
	for _, what := range []string{inOrder, overdue, unheard, partedWith, killed, "kept by an expelled member", "parked", "repeats", "commits refused", "relays killed", "rows stored twice"} {
		require.False(t, *simEpisodes >= sweep && total[what] == 0, "no episode has seen: %s", what)
	}
}

const (
	simTopic      = "many"
	simPartitions = 6
	simRows       = 800
	simKeys       = 40
)

// simulation is an episode.
type simulation struct {
	*model
	k       *kafka
	seed    uint64
	random  *rand.Rand // of the plan
	members []*member
	alive   []int
	box     *outbox
	relays  atomic.Int64
	inHand  map[string][]int // by row: the relays that had it in hand when they were killed
	ending  sync.WaitGroup   // members and relays that were killed

	// haste is 1 in virtual time. In real time it is how many times less everything takes.
	haste time.Duration

	// What is drawn for the episode.
	slow, poison, assigned848 bool
	client                    []kgo.Opt
	source                    []courierkafka.SourceOption
	coordinator               []courier.Option
}

// draw is a number that depends on the seed and on what it is for, and not on what was drawn
// before.
func (s *simulation) draw(most int, of ...any) int {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, s.seed, of)
	return rand.New(rand.NewPCG(h.Sum64(), s.seed)).IntN(most)
}

// milliseconds are a time, longer in the simulation than in real time.
func (s *simulation) milliseconds(n int) time.Duration {
	return time.Duration(n) * time.Millisecond / s.haste
}

func (s *simulation) seconds(n int) time.Duration { return s.milliseconds(1000 * n) }

// startBrokers starts a cluster whose members are given up after a session.
func (s *simulation) startBrokers(t *testing.T, session time.Duration) {
	heartbeat, rebalance := s.seconds(1), s.seconds(30)
	opts := []kfake.Opt{kfake.NumBrokers(3), kfake.SeedTopics(simPartitions, simTopic), kfake.GroupMinSessionTimeout(time.Second), kfake.BrokerConfigs(map[string]string{
		"group.consumer.session.timeout.ms": strconv.Itoa(int(session.Milliseconds())), "group.consumer.heartbeat.interval.ms": strconv.Itoa(int(heartbeat.Milliseconds()))})}
	if s.inRealTime() {
		s.k = startKafkaOn(t, new(net.Dialer).DialContext, opts...)
	} else {
		s.k = startKafka(t, append(opts, kfake.Ports(9092, 9093, 9094))...)
	}
	s.k.session, s.k.heartbeat, s.k.rebalance = session, heartbeat, rebalance
}

func (s *simulation) inRealTime() bool { return s.haste > 1 }

func simulate(t *testing.T, seed uint64, haste int) map[string]int {
	s := &simulation{model: newModel(simPartitions), seed: seed, random: rand.New(rand.NewPCG(seed, 0)), inHand: make(map[string][]int), haste: time.Duration(haste)}
	yes := func(in int) bool { return s.random.IntN(in) == 0 }
	session := s.seconds(10 + 10*s.random.IntN(2))
	if s.inRealTime() {
		session = 3 * time.Second // for which no process waits for a processor
	}
	s.startBrokers(t, session)
	s.patient, s.away = s.seconds(10), session+s.seconds(15)
	s.source = append(s.source, courierkafka.WithRevokeTimeout(s.patient))
	s.slow, s.poison, s.keyed = yes(4), yes(2), !yes(4)
	protocol := s.random.IntN(4)
	if s.inRealTime() { // where there are few episodes
		protocol = int(seed % 3)
	}
	switch protocol {
	case 0: // and else cooperatively
		s.client = append(s.client, kgo.Balancers(kgo.StickyBalancer()))
	case 1: // the brokers assign the partitions (KIP-848)
		s.assigned848 = true
		s.client = append(s.client, kgo.WithContext(context.WithValue(context.Background(), "opt_in_kafka_next_gen_balancer_beta", true))) //nolint:staticcheck // the client has chosen the key
	}
	s.coordinator = append(s.coordinator, quiet, courier.WithDrainTimeout(s.seconds(30)), courier.WithStreamWorkers(1+s.random.IntN(6)), courier.WithBatchSize(1+s.random.IntN(60)))
	if s.keyed {
		s.coordinator = append(s.coordinator, courier.WithOrderKey(courierkafka.OrderKey))
	}
	if yes(4) {
		s.source = append(s.source, courierkafka.WithMaxWindow(20))
	}
	if yes(4) {
		s.coordinator = append(s.coordinator, courier.WithPrefetch(1+s.random.IntN(3)))
	}
	calm, refuse, produceFaults := yes(4), yes(2), yes(2)
	s.faulty = yes(3) && !calm || s.inRealTime() // a process may wait for a processor then

	faults, heal := context.WithCancel(t.Context())
	s.control(faults, refuse)
	if produceFaults && !s.inRealTime() {
		s.k.onProduce(s.k.trouble(faults, rand.New(rand.NewPCG(seed, 1))))
	}
	var relaying sync.WaitGroup
	relaying.Go(func() { s.relay(faults, t, calm) })
	sessions, over := context.WithCancel(t.Context())
	var expiring sync.WaitGroup
	expiring.Go(func() { s.expire(sessions) })
	broken := newBroken(s.k)
	for range 8 + s.random.IntN(10) {
		time.Sleep(s.milliseconds(500 + s.random.IntN(8000)))
		if s.faulty && !s.inRealTime() && len(s.alive) > 0 {
			s.fault(broken)
		}
		s.step(t, calm)
	}
	heal()
	broken.heal()
	if len(s.alive) == 0 {
		s.join(t)
	}
	for _, id := range s.alive {
		s.heal(id)
	}
	s.settles(t)
	relaying.Wait()
	for _, id := range s.alive {
		s.leave(id)
	}
	s.ending.Wait()
	time.Sleep(s.seconds(30)) // for answers that are on their way
	over()
	expiring.Wait()

	topic := s.k.stored(t, simTopic)
	s.judge(topic)
	s.judgeRelays(topic)
	s.count["rebalances"] = int(s.k.GroupInfo("g").Epoch)
	s.count["members"], s.count["relays"], s.count["rows"] = len(s.members), int(s.relays.Load()), simRows
	if s.violation != "" {
		t.Errorf("%s\nto repeat: go test -tags synctests -run TestSimulation -args -sim.episodes=1 -sim.seed=%d", s.violation, seed)
	}
	t.Log(s.count)
	return s.count
}

// control watches the commits, and refuses some until ctx ends.
func (s *simulation) control(ctx context.Context, refuse bool) {
	why := []*kerr.Error{kerr.CoordinatorLoadInProgress, kerr.RebalanceInProgress, kerr.UnknownServerError}
	n := 0
	s.k.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
		s.k.KeepControl()
		n++
		refused := refuse && ctx.Err() == nil && s.draw(5, "commit", n) == 0
		s.committing(request.(*kmsg.OffsetCommitRequest), refused)
		if refused {
			return refuseCommit(request, why[s.draw(len(why), "why", n)]), nil, true
		}
		return nil, nil, false
	})
}

// step has a member join, leave, be expelled, be killed, or be cut off or hear all answers late for
// a while.
func (s *simulation) step(t *testing.T, calm bool) {
	take := func() int {
		i := s.random.IntN(len(s.alive))
		id := s.alive[i]
		s.alive = slices.Delete(s.alive, i, i+1)
		return id
	}
	switch n := s.random.IntN(8); {
	case n < 3 && len(s.alive) < 4 || len(s.alive) < 2:
		s.join(t)
	case n < 5 || calm:
		s.leave(take())
	case n < 6 && !s.assigned848:
		id := s.alive[s.random.IntN(len(s.alive))]
		s.unreachable(id, false)
		member, _ := s.members[id].client.GroupMetadata()
		s.expel(t.Context(), member)
	case n < 7:
		id := take()
		m := s.members[id]
		s.unreachable(id, true)
		m.wire.set(true)
		s.ending.Go(func() { _ = m.stop(); m.client.Close() })
	default:
		id := s.alive[s.random.IntN(len(s.alive))]
		s.unreachable(id, false)
		if s.random.IntN(2) == 0 || s.assigned848 { // the client of KIP-848 may spin if answers are late
			s.members[id].wire.set(true)
		} else {
			s.members[id].wire.slow.Store(int64(s.milliseconds(3000 + s.random.IntN(25_000))))
		}
		time.AfterFunc(s.milliseconds(s.random.IntN(40_000)), func() { s.heal(id) })
	}
}

// heal ends the cut of a member, unless it is dead.
func (s *simulation) heal(id int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dead[id] {
		s.members[id].wire.set(false)
		if s.members[id].wire.slow.Swap(0) != 0 { // answers on their way come late still
			s.outOfReach = append(s.outOfReach, time.Now())
		}
	}
}

// fault has the brokers answer with errors, or move the group. Partitions stay: kfake takes a
// partition that has moved, and was not written to since, for one that has lost its records.
func (s *simulation) fault(b *broken) {
	m := s.members[s.alive[s.random.IntN(len(s.alive))]]
	what := s.k.fault(s.random, b, []*member{m}, false)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(-1, -1, "brokers: %s", what)
}

// join starts a member.
func (s *simulation) join(t *testing.T) {
	id, m := len(s.members), &member{wire: new(cable)}
	m.wire.mute = s.draw(2, "mute", id) == 0 && !s.inRealTime()
	opts := courierkafka.Watched(func(what string, of map[string][]int32) {
		var committed map[int32]kfake.GroupCommit
		if info := s.k.GroupInfo("g"); info != nil {
			committed = info.Commits[simTopic]
		}
		s.event(id, what, slices.Sorted(slices.Values(of[simTopic])), committed)
	})
	m.client = s.k.joinAs(t, opts, m.wire, simTopic, s.client...)
	m.source = courierkafka.NewSource(m.client, s.source...)
	applier := courier.ProcessFunc(func(_ context.Context, r *kgo.Record) error { return s.apply(id, r) })
	if s.poison {
		applier = courier.NewDLQApplier(applier, parked(func(r *kgo.Record) { s.park(id, r) }), courier.DLQPolicy[*kgo.Record]{})
	}
	m.c = courier.NewStreamingCoordinator(&watched{m.source, id, s.model}, applier, s.coordinator...)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.c.Start(ctx) }()
	m.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = m.stop() })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members, s.alive = append(s.members, m), append(s.alive, id)
}

func (s *simulation) leave(id int) {
	s.leaves(id)
	_ = s.members[id].stop()
	s.members[id].client.Close()
}

// watched is a source that tells of what it hands out.
type watched struct {
	*courierkafka.Source
	member int
	model  *model
}

func (w *watched) Fetch(ctx context.Context, limit int) ([]*kgo.Record, error) {
	records, err := w.Source.Fetch(ctx, limit)
	w.model.fetched(w.member, records, err)
	return records, err
}

// parked is a dead letter queue.
type parked func(*kgo.Record)

func (p parked) Send(_ context.Context, letter courier.DeadLetter[*kgo.Record]) error {
	p(letter.Record)
	return nil
}

// apply is what the members do with records.
func (s *simulation) apply(member int, r *kgo.Record) error {
	at := fmt.Sprint(r.Partition, r.Offset)
	try := s.start(member, r)
	pause := s.milliseconds(s.draw(100, "pause", at, try))
	if s.draw(200, "long", at, try) == 0 {
		pause = s.milliseconds(s.draw(4000, "pause", at, try))
		if s.slow {
			pause *= 5 // may be longer than the revoke timeout
		}
	}
	time.Sleep(pause)
	var err error
	switch {
	case s.poison && s.draw(100, "poison", at) == 0:
		err = courier.Permanent(errors.New("poison"))
	case s.draw(14, "fails", at, try) == 0:
		if err = errors.New("not this time"); s.poison { // or the queue would take it
			err = courier.Later(err, s.seconds(1))
		}
	}
	s.stop(member, r, err != nil)
	return err
}

// relay stores the rows of the outbox in the topic, until nothing is pending. Relays are
// killed until ctx ends, and the next one begins a second later.
func (s *simulation) relay(ctx context.Context, t *testing.T, calm bool) {
	all := make([]order, simRows)
	for i := range all {
		all[i] = order{ID: fmt.Sprintf("id-%05d", i), Topic: simTopic, Key: fmt.Sprint("key-", s.draw(simKeys, "key", i)),
			Payload: make([]byte, s.draw(200, "size", i)), CreatedAt: time.Now().Add(s.milliseconds(60_000 * i / simRows))}
	}
	s.box = newOutbox(all)
	for more := true; more; time.Sleep(s.seconds(1)) {
		id := int(s.relays.Load())
		life := s.milliseconds(2000 + s.draw(30_000, "life", id))
		more = !s.relayOnce(ctx, t, id, life, calm)
		s.relays.Add(1)
	}
}

// relayOnce reports whether nothing is pending any more.
func (s *simulation) relayOnce(ctx context.Context, t *testing.T, id int, life time.Duration, calm bool) (done bool) {
	var dead atomic.Bool
	errDead := errors.New("the relay is dead")
	fetched := make(map[string]bool)
	source := courier.BatchSourceFunc[order]{
		FetchFunc: func(ctx context.Context) ([]order, error) {
			rows, err := s.box.fetch(ctx)
			s.box.mu.Lock()
			defer s.box.mu.Unlock()
			if dead.Load() {
				return nil, errDead
			}
			for i := range rows {
				fetched[rows[i].ID] = true
				rows[i].Headers = map[string]string{"relay": strconv.Itoa(id)}
			}
			return rows, err
		},
		MarkFunc: func(ctx context.Context, rows []order) error {
			if dead.Load() {
				return errDead
			}
			return s.box.mark(ctx, rows)
		},
	}
	wire := new(cable)
	client := s.k.connectBy(t, wire)
	sink := courierkafka.NewSink(client, message, courierkafka.WithDeliveryTimeout(s.seconds(1+s.draw(10, "delivery", id))))
	applier, _ := courier.ResilientApplier(sink, nil)
	c := courier.NewPollingCoordinator(source, applier, quiet, courier.WithFastPolling(), courier.WithWorkers(1+s.draw(4, "relay", id)),
		courier.WithOrderKey(func(o order) string { return o.Key }), courier.WithIdentity(func(o order) string { return o.ID }))
	running, cancel := context.WithCancel(context.Background())
	var failed error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		failed = c.Start(running)
	}()
	for began := time.Now(); ; time.Sleep(s.milliseconds(100)) {
		s.box.mu.Lock()
		left := len(s.box.pending)
		kill := left > 0 && !calm && ctx.Err() == nil && time.Since(began) > life
		if kill {
			dead.Store(true)
			for _, row := range s.box.pending {
				if fetched[row.ID] {
					s.inHand[row.ID] = append(s.inHand[row.ID], id)
				}
			}
		}
		s.box.mu.Unlock()
		if kill {
			wire.set(true)
			cancel()
			s.ending.Go(func() { <-ended; client.Close() })
			s.mu.Lock()
			s.count["relays killed"]++
			s.mu.Unlock()
			return false
		}
		if left == 0 {
			cancel()
			<-ended
			if failed != nil {
				t.Error(failed)
			}
			return true
		}
	}
}

// judgeRelays looks at what the relays have stored.
func (s *simulation) judgeRelays(topic []*kgo.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	by := make(map[string][]int) // by row: the relays that have stored it
	first, own := make(map[string]string), make(map[string]string)
	for _, r := range topic {
		id, relay := courierkafka.RecordID(r), 0
		for _, h := range r.Headers {
			if h.Key == "relay" {
				relay, _ = strconv.Atoi(string(h.Value))
			}
		}
		for _, before := range by[id] {
			s.count["rows stored twice"]++
			if before == relay || !slices.Contains(s.inHand[id], min(before, relay)) {
				s.violate(r.Partition, r.Offset, "row %s is stored twice, by relays %d and %d; killed with it: %v", id, before, relay, s.inHand[id])
			}
		}
		key := string(r.Key)
		mine := fmt.Sprint(relay, key)
		if len(by[id]) == 0 && id < first[key] || id < own[mine] {
			s.violate(r.Partition, r.Offset, "row %s is stored after row %s of its key, by relay %d", id, max(first[key], own[mine]), relay)
		}
		by[id] = append(by[id], relay)
		first[key], own[mine] = max(first[key], id), id
	}
	if len(by) < simRows {
		s.violate(-1, -1, "%d rows of %d are in the topic", len(by), simRows)
	}
}

// expire removes members whose session is over, and all of them if a rebalance takes longer than
// its timeout. kfake forgets to if a member's connection ends while it waits to join: the group
// would wait for that member, or leave partitions to it, for ever.
func (s *simulation) expire(ctx context.Context) {
	longest, second := s.seconds(120), s.seconds(1) // four times the rebalance timeout
	away := make(map[string]time.Duration)
	var preparing time.Duration
	for ; ctx.Err() == nil; time.Sleep(second) {
		owned := make(map[string]bool)
		s.mu.Lock()
		for id, m := range s.members {
			if !s.dead[id] && m.client.Context().Err() == nil {
				member, _ := m.client.GroupMetadata()
				owned[member] = true
			}
		}
		s.mu.Unlock()
		info := s.k.GroupInfo("g")
		if preparing += second; info == nil || info.State != "PreparingRebalance" {
			preparing = 0
		}
		for i := 0; info != nil && i < len(info.Members); i++ {
			id := info.Members[i].MemberID
			if away[id] += second; owned[id] {
				delete(away, id)
			}
			if away[id] > s.k.session+s.seconds(5) || preparing > longest {
				s.expel(ctx, id)
			}
		}
		preparing %= longest + second
	}
}

// expel removes a member from the group, which it hears of later.
func (s *simulation) expel(ctx context.Context, member string) {
	request := kmsg.NewPtrLeaveGroupRequest()
	request.Group, request.Members = "g", []kmsg.LeaveGroupRequestMember{{MemberID: member}}
	_, _ = request.RequestWith(ctx, s.k.client)
}

// settles waits until all is relayed, applied and committed.
func (s *simulation) settles(t *testing.T) {
	for range 2000 {
		time.Sleep(s.seconds(1))
		s.box.mu.Lock()
		left := len(s.box.pending)
		s.box.mu.Unlock()
		if left == 0 && s.k.settled(t, simTopic) {
			return
		}
	}
	info := s.k.GroupInfo("g")
	for _, id := range s.alive {
		m := s.members[id]
		_, generation := m.client.GroupMetadata()
		t.Logf("member %d: generation %d, committed %v, in hand %d, ready: %v", id, generation, m.client.CommittedOffsets(), m.c.Stats().InHand, m.c.Ready())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violate(-1, -1, "it does not settle: group %s in generation %d with %d members, commits %v, pending rows %d", info.State, info.Epoch, len(info.Members), info.Commits[simTopic], len(s.box.pending))
}
