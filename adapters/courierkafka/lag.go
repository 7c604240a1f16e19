package courierkafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier"
)

const (
	atEnd   = -1 // timestamps that a broker takes for places
	atStart = -2
)

// Lag returns how many offsets the partitions of this member have that are neither settled
// nor in the coordinator's hands (see Stats.InHand), and the age of the oldest record that
// the client has read and is not settled. Offsets without a record, such as the ends of
// transactions, count. Of a group that does not begin at the start, a partition counts from
// its first record on. Pending is -1, not known, while the client is not in its group. It asks
// the brokers, within ctx and the commit timeout.
func (s *Source) Lag(ctx context.Context) (courier.Lag, error) {
	if err := s.Validate(); err != nil {
		return courier.Lag{}, err
	}
	if !s.group.inside() {
		return courier.Lag{Pending: -1}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.group.commitTimeout())
	defer cancel()
	from, known, oldest := s.group.progress()
	committed := s.client.CommittedOffsets()
	unknown := make(map[partition]int64)
	for p, offset := range from {
		if offset >= 0 {
			continue
		}
		switch c, ok := committed[p.topic][p.number]; {
		case ok && c.Offset >= 0:
			from[p] = c.Offset
		case startsAtStart(s.client):
			unknown[p] = 0
		default: // it has read all that there was when it began
			delete(from, p)
		}
	}
	starts, err := s.offsets(ctx, unknown, atStart)
	if err != nil {
		return courier.Lag{}, err
	}
	ends, err := s.offsets(ctx, from, atEnd)
	if err != nil {
		return courier.Lag{}, err
	}
	lag := courier.Lag{Oldest: oldest}
	for p, end := range ends {
		offset := from[p]
		if start, ok := starts[p]; ok {
			offset = start
		}
		lag.Pending += int(max(0, end-offset-known[p]))
	}
	return lag, nil
}

// progress returns the offset of each partition before which all is settled, -1 if no
// record of it was read; how many records beyond it are settled or in hand; and the age of
// the oldest record that was read and is not settled.
func (g *group) progress() (offsets, known map[partition]int64, age time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	offsets, known = make(map[partition]int64), make(map[partition]int64)
	var oldest time.Time
	for p, a := range g.partitions {
		offsets[p] = -1
		if a.window == nil {
			continue
		}
		offsets[p] = a.window.Position().Offset
		known[p] = int64(a.window.Len() - a.window.Pending() + a.out)
		if first, some := a.window.Oldest(); some && (oldest.IsZero() || first.written.Before(oldest)) {
			oldest = first.written
		}
	}
	if !oldest.IsZero() {
		age = max(0, time.Since(oldest))
	}
	return offsets, known, age
}

// offsets asks the brokers for the first or the next offset of partitions.
func (s *Source) offsets(ctx context.Context, of map[partition]int64, place int64) (map[partition]int64, error) {
	offsets := make(map[partition]int64)
	if len(of) == 0 {
		return offsets, nil
	}
	byTopic := make(map[string]int)
	request := kmsg.NewPtrListOffsetsRequest()
	request.ReplicaID = -1
	for p := range of {
		i, ok := byTopic[p.topic]
		if !ok {
			i = len(request.Topics)
			byTopic[p.topic] = i
			topic := kmsg.NewListOffsetsRequestTopic()
			topic.Topic = p.topic
			request.Topics = append(request.Topics, topic)
		}
		asked := kmsg.NewListOffsetsRequestTopicPartition()
		asked.Partition, asked.Timestamp = p.number, place
		request.Topics[i].Partitions = append(request.Topics[i].Partitions, asked)
	}
	for _, part := range s.client.RequestSharded(ctx, request) {
		if isGone(part.Err) { // nothing of these topics is left to do
			continue
		}
		if part.Err != nil {
			return nil, fmt.Errorf("courierkafka: ask for offsets: %w", part.Err)
		}
		list, ok := part.Resp.(*kmsg.ListOffsetsResponse)
		if !ok {
			return nil, errors.New("courierkafka: ask for offsets: the answer is of another kind")
		}
		for _, t := range list.Topics {
			for _, p := range t.Partitions {
				err := kerr.ErrorForCode(p.ErrorCode)
				if isGone(err) {
					continue
				}
				if err != nil {
					return nil, fmt.Errorf("courierkafka: ask for offsets of %v: %w", partition{t.Topic, p.Partition}, err)
				}
				offsets[partition{t.Topic, p.Partition}] = p.Offset
			}
		}
	}
	return offsets, nil
}
