package main

import (
	"context"
	"errors"
	"io"
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
		return i.print(reports, func(w io.Writer) {
			if len(reports) > 0 {
				printf(w, "ID\tMESSAGE\tTOPIC\tKEY\tFAILED AT\tATTEMPTS\tREASON\tERROR\n")
			}
			for _, r := range reports {
				printf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", r.ID, r.MessageID, r.Topic, oneLine(r.Key), r.LastFailed.Format(time.RFC3339), r.Attempts, r.Reason, oneLine(r.Error))
			}
			printf(w, "%d of %d dead letters\n", len(reports), total)
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
		return i.print(r, func(w io.Writer) {
			printf(w, "letter\t%s\nmessage\t%s\ntopic\t%s\nkey\t%s\n", r.ID, r.MessageID, r.Topic, r.Key)
			printf(w, "reason\t%s\nerror\t%s\ntype\t%s\nattempts\t%d\nredriven\t%d\nbranch\t%s\n", r.Reason, r.Error, r.ErrorType, r.Attempts, r.Redriven, r.Branch)
			printf(w, "written\t%s\nfirst failed\t%s\nlast failed\t%s\n", r.CreatedAt.Format(time.RFC3339), r.FirstFailed.Format(time.RFC3339), r.LastFailed.Format(time.RFC3339))
			printf(w, "headers\t%s\ntrace\t%s\n", r.Headers, r.Trace)
			if r.Bytes != nil {
				printf(w, "payload\t%q\n", r.Bytes)
			} else {
				printf(w, "payload\t%s\n", r.Payload)
			}
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
		return i.print(report, func(w io.Writer) {
			printf(w, "%d dead letters %s\n", len(ids), done(what, i.dryRun))
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
