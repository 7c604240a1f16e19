package courierkafka

import (
	"fmt"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/twmb/franz-go/pkg/kgo"
)

// SourceOptions returns the options that the client of a [Source] needs, for
// [kgo.NewClient]: the source hears when partitions come and go, and the client commits
// no offset by itself. Pass them for each client anew, before options of your own.
func SourceOptions() []kgo.Opt {
	g := newGroup()
	return []kgo.Opt{
		kgo.WithHooks(g),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(g.assigned),
		kgo.OnPartitionsRevoked(g.revoking),
		kgo.OnPartitionsLost(g.lost),
		kgo.OnOffsetsFetched(g.fetched),
	}
}

// groupOf finds what SourceOptions has made.
func groupOf(client *kgo.Client) *group {
	hooks, _ := client.OptValue(kgo.WithHooks).([]kgo.Hook)
	for _, hook := range hooks {
		if g, ok := hook.(*group); ok {
			return g
		}
	}
	return nil
}

// startsAtStart reports whether a partition without a commit is read from its first record.
func startsAtStart(client *kgo.Client) bool {
	start, _ := client.OptValue(kgo.ConsumeStartOffset).(kgo.Offset)
	return start == kgo.NewOffset().AtStart()
}

// sourceFault looks at the options on which the guarantee depends.
func sourceFault(client *kgo.Client, config sourceConfig) error {
	reject := func(option, problem string) error {
		return &courier.ConfigError{Field: "client", Problem: "has the option " + option + ", " + problem}
	}
	set := func(option any) bool { on, _ := client.OptValue(option).(bool); return on }
	rebalance, _ := client.OptValue(kgo.RebalanceTimeout).(time.Duration)
	reset, _ := client.OptValue(kgo.ConsumeResetOffset).(kgo.Offset)
	transaction := client.OptValues(kgo.TransactionalID)
	switch {
	case !set(kgo.DisableAutoCommit) || set(kgo.AutoCommitMarks) || set(kgo.GreedyAutoCommit):
		return reject("AutoCommitMarks or GreedyAutoCommit", "by which offsets are committed of records that are not settled: leave it out")
	case set(kgo.BlockRebalanceOnPoll):
		return reject("BlockRebalanceOnPoll", "by which a rebalance waits for ever, as the source ends its polls in another way: leave it out")
	case len(transaction) == 2 && transaction[1] == true:
		return reject("TransactionalID", "and the source takes part in no transaction: leave it out")
	case reset == kgo.NewOffset().AtEnd():
		return reject("ConsumeResetOffset", "of the end, by which records are skipped whenever the committed offset does not exist: for a new group that begins at the end, use kgo.ConsumeStartOffset")
	case rebalance > 0 && config.drainTimeout > rebalance/2:
		return &courier.ConfigError{Field: "WithRevokeTimeout", Problem: fmt.Sprintf("is %v, more than half of the client's RebalanceTimeout of %v: the group would go on before the commit", config.drainTimeout, rebalance)}
	}
	return nil
}
