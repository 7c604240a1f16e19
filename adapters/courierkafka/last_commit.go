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
func (g *group) fetched(ctx context.Context, _ *kgo.Client, answer *kmsg.OffsetFetchResponse) error {
	if isProbe(ctx) {
		return nil
	}
	commits, _ := readCommits(answer)
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, last := range commits {
		g.found[p] = last
	}
	return nil
}

// readCommits returns the commits in an answer for one group, and the errors in it.
func readCommits(answer *kmsg.OffsetFetchResponse) (commits map[partition]lastCommit, err error) {
	commits = make(map[partition]lastCommit)
	err = kerr.ErrorForCode(answer.ErrorCode)
	for _, t := range answer.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 {
				err = errors.Join(err, kerr.ErrorForCode(p.ErrorCode))
				continue
			}
			last := lastCommit{EpochOffset: kgo.EpochOffset{Epoch: p.LeaderEpoch, Offset: p.Offset}}
			if p.Metadata != nil {
				last.settled = parseSettled(*p.Metadata, p.Offset)
			}
			commits[partition{t.Topic, p.Partition}] = last
		}
	}
	return commits, err
}

// askCommits asks the brokers for the last commits of some partitions.
func (g *group) askCommits(ctx context.Context, client *kgo.Client, of map[partition]*assignment) (map[partition]lastCommit, error) {
	ctx, cancel := context.WithTimeout(ctx, g.commitTimeout())
	defer cancel()
	numbers := make(map[string][]int32)
	for p := range of {
		numbers[p.topic] = append(numbers[p.topic], p.number)
	}
	request := kmsg.NewPtrOffsetFetchRequest()
	request.RequireStable = true
	request.Group, _ = client.OptValue(kgo.ConsumerGroup).(string)
	for name, numbers := range numbers {
		t := kmsg.NewOffsetFetchRequestTopic()
		t.Topic, t.Partitions = name, numbers
		request.Topics = append(request.Topics, t)
	}
	answer, err := request.RequestWith(ctx, client)
	if err != nil {
		return nil, err
	}
	commits, err := readCommits(answer)
	for p := range of {
		if _, ok := commits[p]; !ok && err == nil {
			err = errNoCommitAnswer
		}
	}
	return commits, err
}
