package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier/adapters/courierkafka"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	partitions = 6
	// largestLetter is the bytes of a dead letter at most. The topic of orders takes the
	// default, a megabyte.
	largestLetter = 4 << 20
	// insideSession is how long a member of the group in the process may be silent. A
	// killed one holds its partitions for that long.
	insideSession = 3 * time.Second
	// longestOutage leaves the members time to connect again within the session.
	longestOutage = insideSession / 2
	// outsideSession is the least that a cluster takes by default.
	outsideSession = 6 * time.Second
)

// cluster is the Kafka of a run: one in this process, or one outside.
type cluster struct {
	fake    *kfake.Cluster // nil outside
	gate    *gate
	client  *kgo.Client // of the referee
	brokers []string
	session time.Duration

	orders, deadLetters, group string
}

func openCluster(ctx context.Context, brokers string) (_ *cluster, err error) {
	run := strings.ToLower(rand.Text()[:8])
	c := &cluster{brokers: strings.Split(brokers, ","), session: outsideSession,
		orders: "courier-demo-" + run, deadLetters: "courier-demo-" + run + ".dead", group: "courier-demo-" + run}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if brokers == "" {
		c.gate, c.session = newGate(), insideSession
		c.fake, err = kfake.NewCluster(kfake.NumBrokers(3), kfake.ListenFn(c.gate.listen), kfake.GroupMinSessionTimeout(insideSession))
		if err != nil {
			return nil, err
		}
		c.brokers = c.fake.ListenAddrs()
	}
	if c.client, err = kgo.NewClient(kgo.SeedBrokers(c.brokers...)); err != nil {
		return nil, err
	}
	return c, c.createTopics(ctx)
}

func (c *cluster) createTopics(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request := kmsg.NewPtrCreateTopicsRequest()
	for topic, config := range map[string]string{c.orders: "", c.deadLetters: strconv.Itoa(largestLetter)} {
		t := kmsg.NewCreateTopicsRequestTopic()
		t.Topic, t.NumPartitions, t.ReplicationFactor = topic, partitions, -1
		if config != "" { // room for records that were too large elsewhere
			most := kmsg.NewCreateTopicsRequestTopicConfig()
			most.Name, most.Value = "max.message.bytes", &config
			t.Configs = append(t.Configs, most)
		}
		request.Topics = append(request.Topics, t)
	}
	answer, err := request.RequestWith(ctx, c.client)
	if err != nil {
		return fmt.Errorf("no cluster at %s: %w", strings.Join(c.brokers, ","), err)
	}
	for _, t := range answer.Topics {
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return fmt.Errorf("creating the topic %s: %w", t.Topic, err)
		}
	}
	return nil
}

func (c *cluster) close() {
	if c.client != nil {
		if c.fake == nil {
			c.deleteTopics()
		}
		c.client.Close()
	}
	if c.fake != nil {
		c.fake.Close()
	}
}

func (c *cluster) deleteTopics() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	request := kmsg.NewPtrDeleteTopicsRequest()
	for _, topic := range []string{c.orders, c.deadLetters} {
		request.TopicNames = append(request.TopicNames, topic)
		t := kmsg.NewDeleteTopicsRequestTopic()
		t.Topic = &topic
		request.Topics = append(request.Topics, t)
	}
	_, _ = request.RequestWith(ctx, c.client)
}

// ends returns the end of each partition of a topic.
func (c *cluster) ends(ctx context.Context, topic string) (map[int32]int64, error) {
	request := kmsg.NewPtrListOffsetsRequest()
	request.ReplicaID = -1
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = topic
	for number := range int32(partitions) {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = number, -1
		t.Partitions = append(t.Partitions, p)
	}
	request.Topics = append(request.Topics, t)
	answer, err := again(ctx, func(ctx context.Context) (kmsg.Response, error) { return c.client.Request(ctx, request) })
	if err != nil {
		return nil, err
	}
	list, _ := answer.(*kmsg.ListOffsetsResponse)
	ends := make(map[int32]int64)
	for _, t := range list.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, err
			}
			ends[p.Partition] = p.Offset
		}
	}
	return ends, nil
}

// again asks until there is an answer: the connections of the client may have ended.
func again[T any](ctx context.Context, ask func(context.Context) (T, error)) (answer T, err error) {
	const tries = 5
	for range tries {
		asking, cancel := context.WithTimeout(ctx, 2*time.Second)
		answer, err = ask(asking)
		cancel()
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return answer, err
}

// committed returns the offsets of the group: before them all is processed.
func (c *cluster) committed(ctx context.Context) (map[int32]int64, error) {
	asked := kmsg.NewOffsetFetchRequestGroup()
	asked.Group = c.group
	t := kmsg.NewOffsetFetchRequestGroupTopic()
	t.Topic = c.orders
	for number := range int32(partitions) {
		t.Partitions = append(t.Partitions, number)
	}
	asked.Topics = append(asked.Topics, t)
	request := kmsg.NewPtrOffsetFetchRequest()
	request.Groups = append(request.Groups, asked)
	answer, err := again(ctx, func(ctx context.Context) (*kmsg.OffsetFetchResponse, error) {
		return request.RequestWith(ctx, c.client)
	})
	if err != nil {
		return nil, err
	}
	offsets := make(map[int32]int64)
	for _, g := range answer.Groups {
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil {
			return nil, err
		}
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				offsets[p.Partition] = max(0, p.Offset) // -1 is none
			}
		}
	}
	return offsets, nil
}

// stable reports whether the group has so many members, and each has its partitions.
func (c *cluster) stable(ctx context.Context, members int) (bool, error) {
	request := kmsg.NewPtrDescribeGroupsRequest()
	request.Groups = []string{c.group}
	answer, err := again(ctx, func(ctx context.Context) (kmsg.Response, error) { return c.client.Request(ctx, request) })
	if err != nil {
		return false, err
	}
	list, _ := answer.(*kmsg.DescribeGroupsResponse)
	for _, g := range list.Groups {
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil {
			return false, err
		}
		if g.State == "Stable" && len(g.Members) == members {
			return true, nil
		}
	}
	return false, nil
}

// read returns all records of a topic.
func (c *cluster) read(ctx context.Context, topic string) (all []*kgo.Record, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ends, err := c.ends(ctx, topic)
	if err != nil {
		return nil, err
	}
	want := int64(0)
	for _, end := range ends {
		want += end
	}
	reader, err := kgo.NewClient(kgo.SeedBrokers(c.brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	for int64(len(all)) < want {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return nil, fmt.Errorf("reading %s back: %w", topic, err)
		}
		all = append(all, fetches.Records()...)
	}
	return all, nil
}

// original returns where the record of a letter was consumed, and false if it was not.
func original(letter *kgo.Record) (place, bool) {
	var p place
	found := 0
	for _, h := range letter.Headers {
		switch h.Key {
		case "courier-original-partition":
			n, _ := fmt.Sscan(string(h.Value), &p.partition)
			found += n
		case "courier-original-offset":
			n, _ := fmt.Sscan(string(h.Value), &p.offset)
			found += n
		}
	}
	return p, found == 2
}

// recordID returns the id of the outbox row that a record was made of.
func recordID(r *kgo.Record) string { return courierkafka.RecordID(r) }

// gate is the way to all brokers in the process.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // is closed while the gate is open
	conns  map[net.Conn]bool
	doors  []*door
}

func newGate() *gate {
	g := &gate{opened: make(chan struct{}), conns: make(map[net.Conn]bool)}
	close(g.opened)
	return g
}

// listen is [net.Listen] for a broker.
func (g *gate) listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	d := &door{gate: g, Listener: l}
	g.doors = append(g.doors, d)
	return d, nil
}

// away takes the brokers away for a time: connections end, and new ones are refused.
func (g *gate) away(ctx context.Context, d time.Duration) error {
	g.mu.Lock()
	g.opened = make(chan struct{})
	for _, door := range g.doors {
		_ = door.Close()
	}
	for conn := range g.conns {
		_ = conn.Close()
	}
	clear(g.conns)
	g.mu.Unlock()
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, door := range g.doors {
		l, err := net.Listen("tcp", door.Addr().String())
		if err != nil {
			return err
		}
		door.Listener = l
	}
	close(g.opened)
	return nil
}

func (g *gate) isOpen() bool {
	if g == nil {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.opened:
		return true
	default:
		return false
	}
}

// door is the listener of a broker.
type door struct {
	gate         *gate
	net.Listener // another one after each outage
}

// Accept outlasts an outage.
func (d *door) Accept() (net.Conn, error) {
	for {
		d.gate.mu.Lock()
		opened := d.gate.opened
		d.gate.mu.Unlock()
		<-opened
		d.gate.mu.Lock()
		l := d.Listener
		d.gate.mu.Unlock()
		conn, err := l.Accept()
		d.gate.mu.Lock()
		outage := d.gate.opened != opened
		if err == nil && !outage {
			d.gate.conns[conn] = true
		}
		d.gate.mu.Unlock()
		switch {
		case outage && err == nil:
			_ = conn.Close()
		case outage:
		case err != nil:
			return nil, err
		default:
			return &passing{conn, d.gate}, nil
		}
	}
}

// passing is a connection to a broker.
type passing struct {
	net.Conn
	gate *gate
}

func (p *passing) Close() error {
	p.gate.mu.Lock()
	delete(p.gate.conns, p.Conn)
	p.gate.mu.Unlock()
	return p.Conn.Close()
}
