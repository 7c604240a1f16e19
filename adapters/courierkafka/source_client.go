package courierkafka

import (
	"context"
	"fmt"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
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
	if option := replacedCallback(client); option != "" {
		return reject(option, "which takes the place of that of courierkafka.SourceOptions: leave it out")
	}
	switch {
	case !set(kgo.DisableAutoCommit) || set(kgo.AutoCommitMarks) || set(kgo.GreedyAutoCommit):
		return reject("AutoCommitMarks or GreedyAutoCommit", "by which offsets are committed of records that are not settled: leave it out")
	case set(kgo.BlockRebalanceOnPoll):
		return reject("BlockRebalanceOnPoll", "by which a rebalance waits for ever, as the source ends its polls in another way: leave it out")
	case len(transaction) == 2 && transaction[1] == true:
		return reject("TransactionalID", "and the source takes part in no transaction: leave it out")
	case !skipsNothing(reset):
		return reject("ConsumeResetOffset", "by which records are skipped whenever the committed offset does not exist: leave it out, or use kgo.RewindOffset or the start; for a new group that begins at the end, use kgo.ConsumeStartOffset")
	case rebalance > 0 && config.drainTimeout > rebalance/2:
		return &courier.ConfigError{Field: "WithRevokeTimeout", Problem: fmt.Sprintf("is %v, more than half of the client's RebalanceTimeout of %v: the group would go on before the commit", config.drainTimeout, rebalance)}
	}
	return nil
}

// skipsNothing reports whether a reset loses no records: it is to the start, or goes back.
func skipsNothing(reset kgo.Offset) bool {
	return reset == kgo.NewOffset().AtStart() || reset.EpochOffset() == kgo.RewindOffset(0).EpochOffset()
}

// reached is the key in a context of a callback that has only to set a bool.
type reached struct{}

// isProbe reports whether a callback is called by replacedCallback.
func isProbe(ctx context.Context) bool {
	hit, ok := ctx.Value(reached{}).(*bool)
	if ok {
		*hit = true
	}
	return ok
}

// replacedCallback names a callback of the client that does not come to the group. The client
// wraps them, so that they can be told apart by a call only.
func replacedCallback(client *kgo.Client) string {
	var hit bool
	ctx := context.WithValue(context.Background(), reached{}, &hit)
	for _, option := range []struct {
		name string
		is   any
	}{
		{"OnPartitionsAssigned", kgo.OnPartitionsAssigned},
		{"OnPartitionsRevoked", kgo.OnPartitionsRevoked},
		{"OnPartitionsLost", kgo.OnPartitionsLost},
		{"OnOffsetsFetched", kgo.OnOffsetsFetched},
	} {
		hit = false
		switch call := client.OptValue(option.is).(type) {
		case func(context.Context, *kgo.Client, map[string][]int32):
			call(ctx, client, nil)
		case func(context.Context, *kgo.Client, *kmsg.OffsetFetchResponse) error:
			_ = call(ctx, client, kmsg.NewPtrOffsetFetchResponse())
		}
		if !hit {
			return option.name
		}
	}
	return ""
}
