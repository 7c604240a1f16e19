package courierkafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier"
)

// Source hands out the records of a consumer group, for a
// [courier.StreamingCoordinator]: its Fetch waits for records, for which a polling
// coordinator is not ready. It is made by [NewSource]; the zero Source hands out nothing.
//
// Each member of the group has partitions of its own. A record may be settled out of
// order, by several workers: the source commits the offset of a partition up to its first
// record that is not settled, and never beyond it. What is settled beyond that is in the
// metadata of the commit. After a crash, whoever has the partition next begins there, so
// that records which were in hand, or not committed yet, are delivered again.
//
// If the group revokes a partition, the coordinator begins no more records of it. The
// source waits until those in progress are settled ([WithRevokeTimeout]), commits, and
// gives the partition back: nothing is delivered twice. If the member has lost the
// partition already, since it was out of reach for longer than the session timeout, what
// was in hand is delivered again by another member.
//
// A record that the coordinator gives back stays in the source's memory, and is handed out
// again when it is due.
//
// Source implements [courier.Releaser], [courier.Renewer], [courier.Revoker],
// [courier.Lagger], [courier.Identifier] and [courier.Validator].
type Source struct {
	client *kgo.Client
	group  *group
	fault  error
}

// NewSource makes a source of a client with a consumer group. Make the client with
// [SourceOptions]:
//
//	client, err := kgo.NewClient(append(courierkafka.SourceOptions(),
//		kgo.SeedBrokers(brokers...), kgo.ConsumerGroup("billing"), kgo.ConsumeTopics("orders"))...)
//
// The client is for one source. It stays the caller's to close, when the coordinator has
// ended: then it leaves the group, so that other members take over at once.
//
// If the arguments or the client's options are wrong, Validate and Fetch return a
// [*courier.ConfigError], and so does the coordinator before it fetches.
func NewSource(client *kgo.Client, opts ...SourceOption) *Source {
	s := &Source{client: client}
	config := newSourceConfig(opts)
	if client == nil {
		s.fault = &courier.ConfigError{Field: "client", Problem: "is nil: pass the result of kgo.NewClient"}
		return s
	}
	if s.group = groupOf(client); s.group == nil {
		s.fault = &courier.ConfigError{Field: "client", Problem: "was made without courierkafka.SourceOptions: pass them to kgo.NewClient"}
		return s
	}
	if s.fault = config.fault; s.fault == nil {
		s.fault = sourceFault(client, config)
	}
	if s.fault == nil {
		s.group.mu.Lock()
		s.group.config = config
		s.group.mu.Unlock()
	}
	return s
}

// Fetch returns records that were given back and are due, or else blocks until the
// brokers have some. While the client is not in its group it returns an error from time to
// time, and after an error it returns nothing, once, when all has been well for some seconds.
func (s *Source) Fetch(ctx context.Context, limit int) ([]*kgo.Record, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	for ctx.Err() == nil {
		records, over, err := s.fetch(ctx, limit)
		if over {
			if ctx.Err() == nil {
				s.group.fetchEnded(err)
			}
			return records, err
		}
	}
	return nil, context.Cause(ctx)
}

// fetch hands out what is due, or else polls once. It reports whether Fetch is over.
func (s *Source) fetch(ctx context.Context, limit int) (records []*kgo.Record, over bool, err error) {
	records, p, polled, err := s.group.begin(ctx, limit)
	if p != nil {
		fetches, failed := s.poll(polled, limit)
		p.cancel()
		records, err = s.group.admit(s.client, p, fetches)
		err = cmp.Or(failed, err)
	}
	if len(records) > 0 {
		if failed := s.group.commitStarts(ctx, s.client); failed != nil {
			s.group.release(records, 0)
			return nil, true, cmp.Or(err, failed)
		}
	}
	if len(records) > 0 || err != nil {
		return records, true, err
	}
	over, err = s.overdue(ctx)
	return nil, over, err
}

// poll polls the client, when it is known where each partition goes on.
func (s *Source) poll(ctx context.Context, limit int) (kgo.Fetches, error) {
	switch err := s.group.resume(ctx, s.client); {
	case ctx.Err() != nil:
		return nil, nil
	case errors.Is(err, kgo.ErrClientClosed):
		return nil, errClientClosed
	case err != nil:
		return nil, err
	}
	return s.client.PollRecords(ctx, limit), nil
}

// Mark notes that records are done, and commits the offsets of the partitions up to the
// first record of each that is not. Records of a partition that the member has lost are
// passed over.
func (s *Source) Mark(ctx context.Context, records []*kgo.Record) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.group.settle(s.client, records)
	return s.group.commit(ctx, s.client)
}

// Release takes records back. They are handed out again after the given time, as long as
// the member has their partitions.
func (s *Source) Release(_ context.Context, records []*kgo.Record, after time.Duration) error {
	if s.group != nil {
		s.group.release(records, after)
	}
	return nil
}

// RenewEvery returns 0: a partition is the member's until the group takes it away.
func (s *Source) RenewEvery() time.Duration { return 0 }

// Revoked returns a channel that tells of partitions that the member loses.
func (s *Source) Revoked() <-chan struct{} {
	if s.group == nil {
		return nil
	}
	return s.group.revoked
}

// Renew lists the records of partitions that are being revoked, or are lost.
func (s *Source) Renew(_ context.Context, records []*kgo.Record) error {
	if s.group == nil {
		return nil
	}
	return s.group.renew(records)
}

// Lost returns how many partitions the group has taken from this member without asking it
// to give them back, because it was out of reach for too long. Records that it had in hand,
// or could not commit any more, are delivered again by other members.
func (s *Source) Lost() uint64 {
	if s.group == nil {
		return 0
	}
	return s.group.losses.Load()
}

// Identity names a record by its topic, partition and offset.
func (s *Source) Identity(r *kgo.Record) string {
	return fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Offset)
}

// Validate reports a misconfiguration of the source or the client, or [ErrClosed].
func (s *Source) Validate() error {
	switch {
	case s.fault != nil:
		return s.fault
	case s.client == nil:
		return &courier.ConfigError{Field: "Source", Problem: "is the zero value: make it with NewSource"}
	case s.client.Context().Err() != nil:
		return errClientClosed
	}
	return nil
}

// OrderKey names the key of a record, for [courier.WithOrderKey]: records with one Kafka
// key are applied in their order, those with other keys beside them. A record without a
// key is in no order.
func OrderKey(r *kgo.Record) string {
	if r.Key == nil {
		return fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Offset)
	}
	return r.Topic + "\x00" + string(r.Key)
}

var (
	_ courier.Source[*kgo.Record]     = (*Source)(nil)
	_ courier.Releaser[*kgo.Record]   = (*Source)(nil)
	_ courier.Renewer[*kgo.Record]    = (*Source)(nil)
	_ courier.Revoker                 = (*Source)(nil)
	_ courier.Lagger                  = (*Source)(nil)
	_ courier.Identifier[*kgo.Record] = (*Source)(nil)
	_ courier.Validator               = (*Source)(nil)
)
