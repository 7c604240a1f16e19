//go:build synctests

// A wait for a mutex of the client is no wait to a bubble, unless this tag makes them
// channels.

package courierkafka_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
	"github.com/erfanmomeniii/courier/courierttest"
)

// quiet is the options of a coordinator that logs nothing.
var quiet = courier.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))

// join makes a client that consumes in the group "g".
func (k *kafka) join(tb testing.TB, c *cable, topic string, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	return k.joinAs(tb, courierkafka.SourceOptions(), c, topic, opts...)
}

func (k *kafka) joinAs(tb testing.TB, source []kgo.Opt, c *cable, topic string, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	c.network = k.dial
	client, err := kgo.NewClient(append(append(source, kgo.SeedBrokers(k.seeds...), kgo.Dialer(c.dial),
		kgo.ConsumerGroup("g"), kgo.ConsumeTopics(topic), kgo.FetchMaxWait(100*time.Millisecond), kgo.SessionTimeout(k.session),
		kgo.HeartbeatInterval(k.heartbeat), kgo.RebalanceTimeout(k.rebalance)), opts...)...)
	require.NoError(tb, err)
	tb.Cleanup(client.Close)
	return client
}

// write stores records with the values from..to, each with the key of key.
func (k *kafka) write(tb testing.TB, topic string, from, to int, key func(int) string) {
	tb.Helper()
	var all []*kgo.Record
	for n := from; n < to; n++ {
		all = append(all, &kgo.Record{Topic: topic, Key: []byte(key(n)), Value: []byte(strconv.Itoa(n))})
	}
	require.NoError(tb, k.client.ProduceSync(context.Background(), all...).FirstErr())
}

func number(r *kgo.Record) int {
	n, _ := strconv.Atoi(string(r.Value))
	return n
}

// committed returns the group's offset of a partition, -1 if it has none.
func (k *kafka) committed(tb testing.TB, topic string, partition int32) int64 {
	tb.Helper()
	request := kmsg.NewPtrOffsetFetchRequest()
	request.Group = "g"
	asked := kmsg.NewOffsetFetchRequestTopic()
	asked.Topic, asked.Partitions = topic, []int32{partition}
	request.Topics = append(request.Topics, asked)
	group := kmsg.NewOffsetFetchRequestGroup()
	group.Group = "g"
	inGroup := kmsg.NewOffsetFetchRequestGroupTopic()
	inGroup.Topic, inGroup.Partitions = topic, []int32{partition}
	group.Topics = append(group.Topics, inGroup)
	request.Groups = append(request.Groups, group)
	answer, err := request.RequestWith(context.Background(), k.client)
	require.NoError(tb, err)
	for _, g := range answer.Groups {
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				return p.Offset
			}
		}
	}
	for _, t := range answer.Topics {
		for _, p := range t.Partitions {
			return p.Offset
		}
	}
	return -1
}

// reopened is the source that was opened last: only one at a time has the partition.
type reopened struct{ *courierkafka.Source }

func TestConformance_Source(t *testing.T) {
	courierttest.TestStreamSource(t, func(t *testing.T) courierttest.SourceFixture[*kgo.Record] {
		k := startKafka(t)
		client := k.join(t, new(cable), "orders")
		source := &reopened{courierkafka.NewSource(client)}
		n := 0
		return courierttest.SourceFixture[*kgo.Record]{
			Source: source,
			Name:   func(r *kgo.Record) string { return string(r.Value) },
			Add: func(more int) (names []string) {
				k.write(t, "orders", n, n+more, func(int) string { return "key" })
				for range more {
					names = append(names, strconv.Itoa(n))
					n++
				}
				return names
			},
			Reopen: func() courier.Source[*kgo.Record] {
				client.Close()
				client = k.join(t, new(cable), "orders")
				source.Source = courierkafka.NewSource(client)
				return source.Source
			},
		}
	}, courierttest.SourceFeatures{Bubble: true, Ordered: true, Releaser: true, Lagger: true, Identifier: true, Patience: 30 * time.Second})
}

// member is a coordinator of the group that notes what it has applied.
type member struct {
	client *kgo.Client
	source *courierkafka.Source
	wire   *cable
	c      *courier.StreamingCoordinator[*kgo.Record]
	stop   func() error
}

// ledger is what all members of a group have applied.
type ledger struct {
	mu      sync.Mutex
	applied []application
}

type application struct {
	member     int
	generation int32
	at         time.Time
	record     *kgo.Record
	n          int
}

func (l *ledger) note(member int, r *kgo.Record) { l.noteIn(0, member, r) }

func (l *ledger) noteIn(generation int32, member int, r *kgo.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.applied = append(l.applied, application{member, generation, time.Now(), r, number(r)})
}

func (l *ledger) numbers() (all []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.applied {
		all = append(all, a.n)
	}
	return all
}

// of tells who applied a record, and when.
func (l *ledger) of(n int) (said []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.applied {
		if a.n == n {
			said = append(said, fmt.Sprintf("member %d at %v, partition %d offset %d", a.member, a.at.Format("04:05.000"), a.record.Partition, a.record.Offset))
		}
	}
	return said
}

func (l *ledger) all() []application {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.applied)
}

// times returns how often each record was applied.
func (l *ledger) times() map[int]int {
	times := make(map[int]int)
	for _, n := range l.numbers() {
		times[n]++
	}
	return times
}

// run starts a member of the group.
func (k *kafka) run(t *testing.T, topic string, apply func(context.Context, *kgo.Record) error, sourceOptions []courierkafka.SourceOption, opts ...courier.Option) *member {
	t.Helper()
	m := &member{wire: new(cable)}
	m.client = k.join(t, m.wire, topic)
	m.source = courierkafka.NewSource(m.client, sourceOptions...)
	m.c = courier.NewStreamingCoordinator(m.source, courier.ProcessFunc(apply), append([]courier.Option{quiet}, opts...)...)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.c.Start(ctx) }()
	m.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = m.stop() })
	return m
}

// leave stops a member and has it leave the group.
func (m *member) leave(t *testing.T) {
	t.Helper()
	require.NoError(t, m.stop())
	m.client.Close()
}

// No offset is committed beyond a record that is not settled.
func TestSource_CommitsUpToTheFirstRecordThatIsNotSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 20, strconv.Itoa)
		hold := make(chan struct{})
		l := new(ledger)
		m := k.run(t, "orders", func(_ context.Context, r *kgo.Record) error {
			if number(r) == 5 {
				<-hold
			}
			l.note(0, r)
			return nil
		}, nil, courier.WithStreamWorkers(4), courier.WithOrderKey(courierkafka.OrderKey))
		time.Sleep(5 * time.Second)
		require.Len(t, l.numbers(), 19, "the others go on")
		require.EqualValues(t, 5, k.committed(t, "orders", 0))
		lag, err := m.c.Lag(t.Context())
		require.NoError(t, err)
		require.Zero(t, lag.Pending, "it is in hand")
		require.GreaterOrEqual(t, lag.Oldest, 4*time.Second)
		close(hold)
		time.Sleep(5 * time.Second)
		require.EqualValues(t, 20, k.committed(t, "orders", 0))
		m.leave(t)
	})
}

// A member that joins gets partitions without a record being lost or applied twice,
// though records are in progress, and others wait, when they are revoked. So with
// one that leaves.
func TestSource_ARebalanceLosesAndRepeatsNothing(t *testing.T) {
	for name, test := range map[string]struct {
		opts   []courier.Option
		client []kgo.Opt
	}{
		"by key":       {opts: []courier.Option{courier.WithStreamWorkers(4), courier.WithOrderKey(courierkafka.OrderKey)}},
		"in any order": {opts: []courier.Option{courier.WithStreamWorkers(4)}},
		"one worker":   {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := startKafka(t)
				const records = 400
				k.write(t, "wide", 0, records, func(n int) string { return strconv.Itoa(n % 40) })
				l := new(ledger)
				apply := func(member int) func(context.Context, *kgo.Record) error {
					return func(_ context.Context, r *kgo.Record) error {
						time.Sleep(200 * time.Millisecond)
						l.note(member, r)
						return nil
					}
				}
				first := k.run(t, "wide", apply(1), nil, test.opts...)
				time.Sleep(7 * time.Second)
				second := k.run(t, "wide", apply(2), nil, test.opts...)
				time.Sleep(20 * time.Second)
				first.leave(t)
				time.Sleep(2 * time.Minute)
				second.leave(t)
				byMember := map[int]int{}
				for _, a := range l.applied {
					byMember[a.member]++
				}
				require.Greater(t, byMember[1], 10)
				require.Greater(t, byMember[2], 10)
				times := l.times()
				for n := range records {
					require.Equal(t, 1, times[n], "record %d: %v", n, l.of(n))
				}
				if name != "in any order" {
					l.requireOrder(t)
				}
			})
		})
	}
}

// requireOrder checks that the records of each key were applied in their order.
func (l *ledger) requireOrder(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	last := make(map[string]application)
	for _, a := range l.applied {
		key := courierkafka.OrderKey(a.record)
		if before, ok := last[key]; ok && before.record.Offset > a.record.Offset {
			require.Failf(t, "out of order", "key %q: %d was applied after %d", key, a.n, before.n)
		}
		last[key] = a
	}
}

// A record that takes longer than the revoke timeout is delivered again by the next
// member, with what is after it. What was not begun is not applied by the first.
func TestSource_ARevokeWaitsNoLongerThanItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "wide", 0, 100, func(n int) string { return strconv.Itoa(n) })
		l := new(ledger)
		slow := func(_ context.Context, r *kgo.Record) error {
			time.Sleep(time.Minute)
			l.note(1, r)
			return nil
		}
		first := k.run(t, "wide", slow, []courierkafka.SourceOption{courierkafka.WithRevokeTimeout(5 * time.Second)}, courier.WithDrainTimeout(2*time.Minute))
		time.Sleep(10 * time.Second)
		second := k.run(t, "wide", func(_ context.Context, r *kgo.Record) error { l.note(2, r); return nil }, nil)
		time.Sleep(25 * time.Second)
		require.NotEmpty(t, l.numbers(), "the second has its partition while the first is at work")
		time.Sleep(10 * time.Minute)
		first.leave(t)
		time.Sleep(time.Minute)
		second.leave(t)
		times, twice := l.times(), 0
		for n := range 100 {
			require.GreaterOrEqual(t, times[n], 1, "record %d", n)
			if times[n] > 1 {
				twice++
			}
		}
		require.LessOrEqual(t, twice, 1, "the one in progress")
	})
}

// A handler that takes longer than the session timeout keeps no member from its group.
func TestSource_ASlowHandlerStaysInTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 5, func(int) string { return "key" })
		l := new(ledger)
		m := k.run(t, "orders", func(_ context.Context, r *kgo.Record) error {
			time.Sleep(time.Minute) // the session timeout is 6 seconds
			l.note(1, r)
			return nil
		}, nil)
		time.Sleep(6 * time.Minute)
		require.Equal(t, []int{0, 1, 2, 3, 4}, l.numbers())
		require.EqualValues(t, 5, k.committed(t, "orders", 0))
		m.leave(t)
	})
}

// A member that is out of reach loses its partitions: the other delivers again what was
// in hand, and nothing that the first one marks later is committed.
func TestSource_AMemberThatIsCutOffCommitsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 50, func(n int) string { return strconv.Itoa(n) })
		l := new(ledger)
		hold := make(chan struct{})
		first := k.run(t, "orders", func(_ context.Context, r *kgo.Record) error {
			l.note(1, r)
			if number(r) == 10 {
				<-hold
			}
			return nil
		}, nil)
		time.Sleep(5 * time.Second)
		require.EqualValues(t, 10, k.committed(t, "orders", 0))
		first.wire.set(true)
		second := k.run(t, "orders", func(_ context.Context, r *kgo.Record) error { l.note(2, r); return nil }, nil)
		time.Sleep(time.Minute)
		require.EqualValues(t, 50, k.committed(t, "orders", 0))
		first.wire.set(false)
		time.Sleep(time.Minute)
		close(hold)
		time.Sleep(time.Minute)
		require.EqualValues(t, 50, k.committed(t, "orders", 0))
		times := l.times()
		for n := range 50 {
			want := 1
			if n == 10 {
				want = 2
			}
			require.Equal(t, want, times[n], "record %d", n)
		}
		require.EqualValues(t, 1, first.source.Lost())
		require.Zero(t, second.source.Lost())
		second.leave(t)
		first.leave(t)
	})
}

// A commit that fails is repeated; its records are not applied again, and no more are
// fetched meanwhile than are in hand.
func TestSource_AFailedCommitIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 30, strconv.Itoa)
		var mu sync.Mutex
		var answers []error
		fail := true
		k.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
			k.KeepControl()
			mu.Lock()
			defer mu.Unlock()
			if !fail {
				return nil, nil, false
			}
			answers = append(answers, kerr.GroupAuthorizationFailed)
			return refuseCommit(request, kerr.GroupAuthorizationFailed), nil, true
		})
		l := new(ledger)
		var marks []courier.MarkEvent
		m := k.run(t, "orders", func(_ context.Context, r *kgo.Record) error { l.note(1, r); return nil }, nil,
			courier.WithObserver(courier.Observer{Marked: func(_ context.Context, e courier.MarkEvent) { marks = append(marks, e) }}))
		time.Sleep(30 * time.Second)
		require.EqualValues(t, -1, k.committed(t, "orders", 0))
		mu.Lock()
		fail = false
		require.Greater(t, len(answers), 2)
		mu.Unlock()
		time.Sleep(time.Minute)
		require.EqualValues(t, 30, k.committed(t, "orders", 0))
		require.Len(t, l.numbers(), 30)
		require.ErrorIs(t, marks[0].Err, kerr.GroupAuthorizationFailed)
		require.ErrorContains(t, marks[0].Err, "grant it")
		m.leave(t)
	})
}

// A commit whose answer does not name a partition is none: it is repeated.
func TestSource_ACommitWithoutAnAnswerIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 10, strconv.Itoa)
		source := courierkafka.NewSource(k.join(t, new(cable), "orders"))
		records := fetchAll(t, source, 10)
		k.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
			return request.ResponseKind(), nil, true // once
		})
		require.ErrorContains(t, source.Mark(t.Context(), records), "leaves a partition out")
		require.EqualValues(t, -1, k.committed(t, "orders", 0))
		require.NoError(t, source.Mark(t.Context(), records))
		require.EqualValues(t, 10, k.committed(t, "orders", 0))
	})
}

// The metadata of a commit goes on to say what the one before said of records that the member
// has not read yet.
func TestSource_CommitsAgainWhatIsSettledAndNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 20, strconv.Itoa)
		join := func() (*courierkafka.Source, func()) {
			client := k.join(t, new(cable), "orders")
			return courierkafka.NewSource(client), client.Close
		}
		first, leave := join()
		records := fetchAll(t, first, 20)
		require.NoError(t, first.Mark(t.Context(), append(records[:2:2], records[10:15]...)))
		leave()
		second, leave := join()
		require.NoError(t, second.Mark(t.Context(), fetchAll(t, second, 3)[:1]))
		leave()
		third, _ := join()
		var offsets []int64
		for _, r := range fetchAll(t, third, 12) {
			offsets = append(offsets, r.Offset)
		}
		require.Equal(t, []int64{3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 18, 19}, offsets)
	})
}

// A cluster that takes no metadata of the length gets the offsets alone.
func TestSource_CommitsOffsetsAloneWhereMetadataIsTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 20, strconv.Itoa)
		k.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
			k.KeepControl()
			for _, t := range request.(*kmsg.OffsetCommitRequest).Topics {
				for _, p := range t.Partitions {
					if p.Metadata != nil && len(*p.Metadata) > 0 {
						return refuseCommit(request, kerr.OffsetMetadataTooLarge), nil, true
					}
				}
			}
			return nil, nil, false
		})
		hold := make(chan struct{})
		var failed []error
		m := k.run(t, "orders", func(_ context.Context, r *kgo.Record) error {
			if number(r) == 5 {
				<-hold
			}
			return nil
		}, nil, courier.WithStreamWorkers(4), courier.WithOrderKey(courierkafka.OrderKey), courier.WithObserver(courier.Observer{
			Marked: func(_ context.Context, e courier.MarkEvent) { failed = append(failed, e.Err) },
		}))
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 5, k.committed(t, "orders", 0))
		close(hold)
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 20, k.committed(t, "orders", 0))
		m.leave(t)
		require.NoError(t, errors.Join(failed...))
	})
}

// refuseCommit makes an answer that refuses all of a commit.
func refuseCommit(request kmsg.Request, why *kerr.Error) kmsg.Response {
	answer := request.ResponseKind().(*kmsg.OffsetCommitResponse)
	for _, t := range request.(*kmsg.OffsetCommitRequest).Topics {
		topic := kmsg.NewOffsetCommitResponseTopic()
		topic.Topic, topic.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			partition := kmsg.NewOffsetCommitResponseTopicPartition()
			partition.Partition, partition.ErrorCode = p.Partition, why.Code
			topic.Partitions = append(topic.Partitions, partition)
		}
		answer.Topics = append(answer.Topics, topic)
	}
	return answer
}

// A partition whose window is full is paused alone, and goes on when there is room.
func TestSource_AFullWindowPausesItsPartitionAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "wide", 0, 2000, strconv.Itoa)
		l := new(ledger)
		var mu sync.Mutex
		held := int32(-1)
		hold := make(chan struct{})
		release := sync.OnceFunc(func() { close(hold) })
		defer release()
		m := k.run(t, "wide", func(_ context.Context, r *kgo.Record) error {
			mu.Lock()
			first := held < 0
			if first {
				held = r.Partition
			}
			mu.Unlock()
			if first {
				<-hold
			}
			l.note(1, r)
			return nil
		}, []courierkafka.SourceOption{courierkafka.WithMaxWindow(200)}, courier.WithStreamWorkers(3), courier.WithOrderKey(courierkafka.OrderKey))
		time.Sleep(time.Minute)
		byPartition := make(map[int32]int)
		for _, a := range l.all() {
			byPartition[a.record.Partition]++
		}
		require.InDelta(t, 250, byPartition[held], 100, "its window")
		require.Greater(t, byPartition[1-held], 800, "all of the other")
		release()
		time.Sleep(time.Minute)
		require.Len(t, l.numbers(), 2000)
		m.leave(t)
	})
}

// A record that fails is tried again, without holding up the others, and the order of
// its key is kept where that was asked for.
func TestSource_AFailedRecordIsTriedAgain(t *testing.T) {
	for name, opts := range map[string][]courier.Option{
		"given back": {courier.WithStreamWorkers(2)},
		"by key":     {courier.WithStreamWorkers(2), courier.WithOrderKey(courierkafka.OrderKey)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := startKafka(t)
				k.write(t, "orders", 0, 40, func(n int) string { return strconv.Itoa(n % 4) })
				l := new(ledger)
				attempts := 0
				m := k.run(t, "orders", func(_ context.Context, r *kgo.Record) error {
					if number(r) == 7 {
						if attempts++; attempts < 4 {
							return errors.New("not yet")
						}
					}
					l.note(1, r)
					return nil
				}, nil, opts...)
				time.Sleep(5 * time.Minute)
				require.Len(t, l.numbers(), 40)
				require.EqualValues(t, 40, k.committed(t, "orders", 0))
				if name == "by key" {
					l.requireOrder(t)
				}
				m.leave(t)
			})
		})
	}
}

// What the client cannot do is refused before anything is fetched.
func TestSource_Validate(t *testing.T) {
	group := []kgo.Opt{kgo.ConsumerGroup("g"), kgo.ConsumeTopics("orders")}
	for name, test := range map[string]struct {
		client  []kgo.Opt
		bare    bool
		source  []courierkafka.SourceOption
		problem string
	}{
		"well":             {client: group},
		"a start offset":   {client: append(group, kgo.ConsumeStartOffset(kgo.NewOffset().AtEnd()))},
		"without options":  {client: group, bare: true, problem: "SourceOptions"},
		"blocks rebalance": {client: append(group, kgo.BlockRebalanceOnPoll()), problem: "BlockRebalanceOnPoll"},
		"resets to start":  {client: append(group, kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))},
		"rewinds":          {client: append(group, kgo.ConsumeResetOffset(kgo.RewindOffset(time.Hour)))},
		"resets to end":    {client: append(group, kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd())), problem: "ConsumeStartOffset"},
		"before the end":   {client: append(group, kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd().Relative(-1))), problem: "ConsumeResetOffset"},
		"looks back":       {client: append(group, kgo.ConsumeResetOffset(kgo.LookbackOffset(time.Hour))), problem: "ConsumeResetOffset"},
		"after a time":     {client: append(group, kgo.ConsumeResetOffset(kgo.NewOffset().AfterMilli(1))), problem: "ConsumeResetOffset"},
		"no reset":         {client: append(group, kgo.ConsumeResetOffset(kgo.NoResetOffset())), problem: "ConsumeResetOffset"},
		"own assigned":     {client: append(group, kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) {})), problem: "OnPartitionsAssigned"},
		"own revoked":      {client: append(group, kgo.OnPartitionsRevoked(func(context.Context, *kgo.Client, map[string][]int32) {})), problem: "OnPartitionsRevoked"},
		"own lost":         {client: append(group, kgo.OnPartitionsLost(func(context.Context, *kgo.Client, map[string][]int32) {})), problem: "OnPartitionsLost"},
		"own fetched":      {client: append(group, kgo.OnOffsetsFetched(func(context.Context, *kgo.Client, *kmsg.OffsetFetchResponse) error { return nil })), problem: "OnOffsetsFetched"},
		"window":           {client: group, source: []courierkafka.SourceOption{courierkafka.WithMaxWindow(0)}, problem: "WithMaxWindow"},
		"revoke":           {client: group, source: []courierkafka.SourceOption{courierkafka.WithRevokeTimeout(0)}, problem: "WithRevokeTimeout"},
		"long revoke":      {client: append(group, kgo.RebalanceTimeout(15*time.Second)), source: []courierkafka.SourceOption{courierkafka.WithRevokeTimeout(9 * time.Second)}, problem: "RebalanceTimeout"},
		"commit":           {client: group, source: []courierkafka.SourceOption{courierkafka.WithCommitTimeout(-1)}, problem: "WithCommitTimeout"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := startKafka(t)
				opts := append([]kgo.Opt{kgo.SeedBrokers(k.seeds...), kgo.Dialer(k.dial)}, test.client...)
				if !test.bare {
					opts = append(courierkafka.SourceOptions(), opts...)
				}
				client, err := kgo.NewClient(opts...)
				require.NoError(t, err)
				source := courierkafka.NewSource(client, test.source...)
				err = source.Validate()
				if test.problem == "" {
					require.NoError(t, err)
				} else {
					var config *courier.ConfigError
					require.ErrorAs(t, err, &config)
					require.ErrorContains(t, err, test.problem)
					_, fetched := source.Fetch(t.Context(), 1)
					require.Equal(t, err, fetched)
				}
				client.Close()
				require.Error(t, source.Validate())
			})
		})
	}
	require.Error(t, courierkafka.NewSource(nil).Validate())
	require.Error(t, new(courierkafka.Source).Validate())
}

// The order key of records without a Kafka key is another for each.
func TestOrderKey(t *testing.T) {
	a := &kgo.Record{Topic: "t", Offset: 1}
	b := &kgo.Record{Topic: "t", Offset: 2}
	require.NotEqual(t, courierkafka.OrderKey(a), courierkafka.OrderKey(b))
	a.Key, b.Key = []byte{}, []byte{}
	require.Equal(t, courierkafka.OrderKey(a), courierkafka.OrderKey(b))
	b.Topic = "u"
	require.NotEqual(t, courierkafka.OrderKey(a), courierkafka.OrderKey(b))
}
