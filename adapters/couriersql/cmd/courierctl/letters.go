package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

// letterReport is a dead letter as JSON. Its payload is text where it is valid
// UTF-8, and base64 elsewhere.
type letterReport struct {
	ID          string    `json:"id"`
	MessageID   string    `json:"message_id"`
	Topic       string    `json:"topic"`
	Key         string    `json:"key,omitempty"`
	Reason      string    `json:"reason"`
	Error       string    `json:"error"`
	ErrorType   string    `json:"error_type,omitempty"`
	Attempts    int       `json:"attempts"`
	Redriven    int       `json:"redriven"`
	Branch      string    `json:"branch,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
	FirstFailed time.Time `json:"first_failed_at"`
	LastFailed  time.Time `json:"last_failed_at"`

	Headers string `json:"headers,omitempty"`
	Trace   string `json:"trace,omitempty"`
	Payload string `json:"payload,omitempty"`
	Bytes   []byte `json:"payload_base64,omitempty"`
}

func reportOf(l courier.DeadLetter[couriersql.Row], whole bool) letterReport {
	r := l.Record
	report := letterReport{
		ID: l.ID, MessageID: r.ID, Topic: r.Topic, Key: r.Key, Reason: string(l.Reason), Attempts: l.Attempts, Redriven: l.Redriven,
		Branch: l.Branch, CreatedAt: time.UnixMicro(r.CreatedAt).UTC(), FirstFailed: l.FirstFailedAt, LastFailed: l.FailedAt,
	}
	var stored *couriersql.StoredError
	if errors.As(l.Error, &stored) {
		report.Error, report.ErrorType = stored.Text, stored.Type
	}
	if whole {
		report.Headers, report.Trace = r.Headers, r.Trace
		if utf8.Valid(r.Payload) {
			report.Payload = string(r.Payload)
		} else {
			report.Bytes = r.Payload
		}
	}
	return report
}

func listFlags(i *invocation) {
	i.flags.IntVar(&i.limit, "limit", 50, "show up to `N` letters")
	i.flags.StringVar(&i.after, "after", "", "begin behind the letter with this `ID`")
}

func list(ctx context.Context, i *invocation) error {
	if i.limit < 1 {
		return errors.New("-limit: pass 1 or more")
	}
	return i.with(ctx, func(ctx context.Context, outbox *couriersql.Outbox) error {
		total, err := outbox.DLQ().Count(ctx)
		if err != nil {
			return err
		}
		letters, err := outbox.DLQ().List(ctx, i.after, i.limit)
		if err != nil {
			return err
		}
		reports := []letterReport{}
		for _, l := range letters {
			reports = append(reports, reportOf(l, false))
		}
		return i.print(reports, func(t *table) {
			if len(reports) > 0 {
				t.row("ID", "MESSAGE", "TOPIC", "KEY", "FAILED AT", "ATTEMPTS", "REASON", "ERROR")
			}
			for _, r := range reports {
				t.row(r.ID, visible(r.MessageID), short(r.Topic), short(r.Key), r.LastFailed.Format(time.RFC3339), r.Attempts, short(r.Reason), oneLine(r.Error))
			}
			t.row(fmt.Sprintf("%d of %d dead letters", len(reports), total))
		})
	})
}

func show(ctx context.Context, i *invocation) error {
	if len(i.operands) != 1 {
		return errors.New("pass the ID of one letter: courierctl dlq list shows them")
	}
	return i.with(ctx, func(ctx context.Context, outbox *couriersql.Outbox) error {
		found, err := lettersWith(ctx, outbox, i.operands)
		if err != nil {
			return err
		}
		r := reportOf(found[0], true)
		return i.print(r, func(t *table) {
			t.row("letter", r.ID)
			t.row("branch", visible(r.Branch))
			t.row("message", visible(r.MessageID))
			t.row("topic", visible(r.Topic))
			t.row("key", visible(r.Key))
			t.row("reason", visible(r.Reason))
			t.row("error", visible(r.Error))
			t.row("type", visible(r.ErrorType))
			t.row("attempts", r.Attempts)
			t.row("redriven", r.Redriven)
			t.row("written", r.CreatedAt.Format(time.RFC3339))
			t.row("first failed", r.FirstFailed.Format(time.RFC3339))
			t.row("last failed", r.LastFailed.Format(time.RFC3339))
			t.row("headers", visible(r.Headers))
			t.row("trace", visible(r.Trace))
			t.row("payload", visible(string(found[0].Record.Payload)))
		})
	})
}

// lettersWith returns the letters with the IDs, all or an error.
func lettersWith(ctx context.Context, outbox *couriersql.Outbox, ids []string) (found []courier.DeadLetter[couriersql.Row], err error) {
	for l, err := range courier.Letters(ctx, outbox.DLQ()) {
		if err != nil {
			return nil, err
		}
		if slices.Contains(ids, l.ID) {
			found = append(found, l)
		}
	}
	var missing []string
	for _, id := range ids {
		if !slices.ContainsFunc(found, func(l courier.DeadLetter[couriersql.Row]) bool { return l.ID == id }) {
			missing = append(missing, id)
		}
	}
	if len(missing) > 0 {
		return nil, finding("no dead letter has the ID %s (a letter's ID changes when it fails again): nothing was done; courierctl dlq list shows them", strings.Join(missing, ", "))
	}
	return found, nil
}

func changeFlags(i *invocation) {
	i.dry()
	i.flags.BoolVar(&i.all, "all", false, "all letters that there are now")
}

// changing is a command on chosen letters.
func changing(ctx context.Context, i *invocation, what string, change func(ctx context.Context, dlq *couriersql.DLQ, ids []string) error) error {
	if i.all == (len(i.operands) > 0) {
		return errors.New("pass the IDs of letters, or -all: courierctl dlq list shows them")
	}
	return i.with(ctx, func(ctx context.Context, outbox *couriersql.Outbox) error {
		ids := []string{}
		if i.all {
			for l, err := range courier.Letters(ctx, outbox.DLQ()) {
				if err != nil {
					return err
				}
				ids = append(ids, l.ID)
			}
		} else if _, err := lettersWith(ctx, outbox, i.operands); err != nil {
			return err
		} else {
			ids = i.operands
		}
		if !i.dryRun {
			if err := change(ctx, outbox.DLQ(), ids); err != nil {
				return err
			}
		}
		report := struct {
			Letters []string `json:"letters"`
			DryRun  bool     `json:"dry_run"`
		}{ids, i.dryRun}
		return i.print(report, func(t *table) {
			t.row(fmt.Sprintf("%d dead letters %s", len(ids), did("were", what, i.dryRun)))
		})
	})
}

func redrive(ctx context.Context, i *invocation) error {
	return changing(ctx, i, "put back into the outbox", func(ctx context.Context, dlq *couriersql.DLQ, ids []string) error {
		requeued, err := dlq.Requeue(ctx, ids...)
		if err == nil && len(requeued) < len(ids) {
			return finding("%d of %d letters were put back into the outbox; the others changed meanwhile", len(requeued), len(ids))
		}
		return err
	})
}

func remove(ctx context.Context, i *invocation) error {
	return changing(ctx, i, "deleted", func(ctx context.Context, dlq *couriersql.DLQ, ids []string) error {
		return dlq.Delete(ctx, ids...)
	})
}
