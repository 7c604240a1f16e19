package courierkafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// lastCommit is the group's last commit of a partition. If there is none, the offset is
// negative.
type lastCommit struct {
	kgo.EpochOffset
	settled settled // beyond the offset
}

// fetched is called by the client when it has fetched the offsets of new partitions.
func (g *group) fetched(ctx context.Context, client *kgo.Client, answer *kmsg.OffsetFetchResponse) error {
	commits, _ := readCommits(ctx, client, answer)
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, last := range commits {
		g.found[p] = last.settled
	}
	return nil
}

// readCommits returns the commits in an answer, and the errors in it.
func readCommits(ctx context.Context, client *kgo.Client, answer *kmsg.OffsetFetchResponse) (commits map[partition]lastCommit, err error) {
	commits = make(map[partition]lastCommit)
	list := func(topic string, number int32, offset int64, epoch int32, text *string, code int16) {
		if code != 0 {
			err = errors.Join(err, kerr.ErrorForCode(code))
			return
		}
		last := lastCommit{EpochOffset: kgo.EpochOffset{Epoch: epoch, Offset: offset}}
		if text != nil {
			last.settled = parseSettled(*text, offset)
		}
		commits[partition{topic, number}] = last
	}
	err = kerr.ErrorForCode(answer.ErrorCode)
	for _, t := range answer.Topics {
		for _, p := range t.Partitions {
			list(t.Topic, p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode)
		}
	}
	var names map[[16]byte]string
	for _, group := range answer.Groups {
		err = errors.Join(err, kerr.ErrorForCode(group.ErrorCode))
		for _, t := range group.Topics {
			if t.Topic == "" && names == nil {
				names = topicNames(ctx, client)
			}
			topic := t.Topic
			if topic == "" {
				topic = names[t.TopicID]
			}
			for _, p := range t.Partitions {
				list(topic, p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode)
			}
		}
	}
	return commits, err
}

// askCommits asks the brokers for the last commits of some partitions.
func (g *group) askCommits(ctx context.Context, client *kgo.Client, of map[partition]*assignment) (map[partition]lastCommit, error) {
	ctx, cancel := context.WithTimeout(ctx, g.commitTimeout())
	defer cancel()
	ids := make(map[string][16]byte)
	for id, name := range topicNames(ctx, client) {
		ids[name] = id
	}
	numbers := make(map[string][]int32)
	for p := range of {
		numbers[p.topic] = append(numbers[p.topic], p.number)
	}
	asked := kmsg.NewOffsetFetchRequestGroup()
	asked.Group, _ = client.OptValue(kgo.ConsumerGroup).(string)
	for name, numbers := range numbers {
		t := kmsg.NewOffsetFetchRequestGroupTopic()
		t.Topic, t.TopicID, t.Partitions = name, ids[name], numbers
		asked.Topics = append(asked.Topics, t)
	}
	request := kmsg.NewPtrOffsetFetchRequest()
	request.RequireStable, request.Groups = true, []kmsg.OffsetFetchRequestGroup{asked}
	answer, err := request.RequestWith(ctx, client)
	if err != nil {
		return nil, err
	}
	commits, err := readCommits(ctx, client, answer)
	for p := range of {
		if _, ok := commits[p]; !ok && err == nil {
			err = errNoCommitAnswer
		}
	}
	return commits, err
}

// topicNames asks the brokers for the names of the client's topics, which newer answers
// leave out, by their numbers. Without them records are delivered again, and none is lost.
func topicNames(ctx context.Context, client *kgo.Client) map[[16]byte]string {
	names := make(map[[16]byte]string)
	request := kmsg.NewPtrMetadataRequest()
	for _, topic := range client.GetConsumeTopics() {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(topic)
		request.Topics = append(request.Topics, t)
	}
	if answer, err := request.RequestWith(ctx, client); err == nil {
		for _, t := range answer.Topics {
			if t.Topic != nil {
				names[t.TopicID] = *t.Topic
			}
		}
	}
	return names
}
