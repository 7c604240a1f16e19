package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
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
	MessageID   string    `json:"message_id"` // or the name of a record
	Topic       string    `json:"topic,omitempty"`
	Key         string    `json:"key,omitempty"`
	Reason      string    `json:"reason"`
	Error       string    `json:"error"`
	ErrorType   string    `json:"error_type,omitempty"`
	Attempts    int       `json:"attempts"`
	Redriven    int       `json:"redriven"`
	Branch      string    `json:"branch,omitempty"`
	CreatedAt   time.Time `json:"created_at,omitzero"`
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
		ID: l.ID, MessageID: r.ID, Topic: r.Topic, Key: r.Key, Reason: string(l.Reason), Attempts: l.Attempts, Redriven: l.FailedRedrives,
		Branch: l.Branch, CreatedAt: time.UnixMicro(r.CreatedAt).UTC(), FirstFailed: l.FirstFailedAt, LastFailed: l.FailedAt,
	}
	if r.Topic == "" { // a record of any type, which has the letter's key and no time of its own
		report.Key, report.CreatedAt = l.Key, time.Time{}
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

// ofQueue declares the flag that chooses the queue.
func (i *invocation) ofQueue() {
	i.flags.StringVar(&i.dlq, "dlq", "", "the letters of the queue in this table, by its `NAME`, which NewDLQ made, instead of the outbox's")
}

func listFlags(i *invocation) {
	i.ofQueue()
	i.flags.IntVar(&i.limit, "limit", 50, "show up to `N` letters")
	i.flags.StringVar(&i.after, "after", "", "begin after the letter with this `ID`")
	i.ofLetters()
}

// ofLetters declares the flags that choose letters.
func (i *invocation) ofLetters() {
	i.flags.Func("branch", "only letters of the branch `NAME`; '' chooses letters without a branch", func(name string) error {
		i.branch = &name
		return nil
	})
	i.flags.StringVar(&i.key, "key", "", "only letters of this `KEY`: the order key of the letter, or the key of its message")
	i.flags.Func("reason", "only letters with this `REASON`: "+knownReasons, func(reason string) error {
		if !slices.Contains(reasons, courier.Reason(reason)) {
			return errors.New("want " + knownReasons)
		}
		i.reason = reason
		return nil
	})
}

// reasons are those for which a record is parked.
var reasons = []courier.Reason{courier.ReasonExhausted, courier.ReasonPermanent, courier.ReasonKeyParked, courier.ReasonCrashed}

var knownReasons = fmt.Sprintf("%s, %s, %q or %s", courier.ReasonExhausted, courier.ReasonPermanent, courier.ReasonKeyParked, courier.ReasonCrashed)

// filtered reports whether not all letters are chosen.
func (i *invocation) filtered() bool { return i.branch != nil || i.key != "" || i.reason != "" }

// chooses reports whether a letter is one of those that are asked for.
func (i *invocation) chooses(l courier.DeadLetter[couriersql.Row]) bool {
	return (i.branch == nil || *i.branch == l.Branch) && (i.key == "" || i.key == l.Key || i.key == l.Record.Key) &&
		(i.reason == "" || i.reason == string(l.Reason))
}

func list(ctx context.Context, i *invocation) error {
	if i.limit < 1 {
		return errors.New("-limit: pass 1 or more")
	}
	return i.withLetters(ctx, func(ctx context.Context, _ *couriersql.Outbox, dlq *couriersql.DLQ[couriersql.Row]) error {
		total, err := dlq.Count(ctx)
		if err != nil {
			return err
		}
		reports := []letterReport{}
		for after := i.after; len(reports) <= i.limit; { // one more, to know of it
			page, err := dlq.List(ctx, after, i.limit)
			if err != nil {
				return err
			}
			if len(page) == 0 {
				break
			}
			after = page[len(page)-1].ID
			for _, l := range page {
				if i.chooses(l) {
					reports = append(reports, reportOf(l, false))
				}
			}
		}
		more := len(reports) > i.limit
		reports = reports[:min(i.limit, len(reports))]
		return i.print(reports, func(t *table) {
			row := func(id, branch, message, topic string, more ...any) {
				if i.dlq == "" {
					t.row(append([]any{id, branch, message, topic}, more...)...)
				} else {
					t.row(append([]any{id, branch, message}, more...)...)
				}
			}
			if len(reports) > 0 {
				row("ID", "BRANCH", i.record("MESSAGE", "RECORD"), "TOPIC", "KEY", "FAILED AT", "ATTEMPTS", "REASON", "ERROR")
			}
			for _, r := range reports {
				row(r.ID, short(r.Branch), visible(r.MessageID), short(r.Topic), short(r.Key), r.LastFailed.Format(time.RFC3339), r.Attempts, short(r.Reason), oneLine(gaveUp.ReplaceAllString(r.Error, "")))
			}
			t.row(i.summary(reports, more, total))
		})
	})
}

// record is what the letters are of: messages of an outbox, or records.
func (i *invocation) record(message, record string) string {
	if i.dlq == "" {
		return message
	}
	return record
}

// gaveUp is how the error of a retry begins, which says what other columns say.
var gaveUp = regexp.MustCompile(`^courier: gave up after \d+ attempts? \([a-z ]+\): `)

// summary tells how many letters are shown, of which, and how to see more.
func (i *invocation) summary(shown []letterReport, more bool, total int) string {
	text := fmt.Sprintf("%d of %s", len(shown), letters(total))
	if i.filtered() || i.after != "" {
		text = letters(len(shown))
		switch {
		case i.branch == nil:
		case *i.branch == "":
			text += " of no branch"
		default:
			text += " of the branch " + short(*i.branch)
		}
		if i.key != "" {
			text += " of the key " + short(i.key)
		}
		if i.reason != "" {
			text += " with the reason " + short(i.reason)
		}
		if i.after != "" {
			text += " after " + short(i.after)
		}
		text += fmt.Sprintf(", of %d in all", total)
	}
	if more {
		text += "; see more with -after " + shown[len(shown)-1].ID
	}
	return text
}

func letters(n int) string { return plural(n, "dead letter") }

// plural counts things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

func show(ctx context.Context, i *invocation) error {
	if len(i.operands) != 1 {
		return errors.New("pass the ID of one letter: courierctl dlq list shows them")
	}
	return i.withLetters(ctx, func(ctx context.Context, _ *couriersql.Outbox, dlq *couriersql.DLQ[couriersql.Row]) error {
		found, err := lettersWith(ctx, dlq, i.operands)
		if err != nil {
			return err
		}
		r := reportOf(found[0], true)
		return i.print(r, func(t *table) {
			t.row("letter", r.ID)
			t.row("branch", visible(r.Branch))
			t.row(i.record("message", "record"), visible(r.MessageID))
			if i.dlq == "" {
				t.row("topic", visible(r.Topic))
			}
			t.row("key", visible(r.Key))
			t.row("reason", visible(r.Reason))
			t.row("error", visible(r.Error))
			t.row("type", visible(r.ErrorType))
			t.row("attempts", r.Attempts)
			t.row("redriven", r.Redriven)
			if i.dlq == "" {
				t.row("written", r.CreatedAt.Format(time.RFC3339))
			}
			t.row("first failed", r.FirstFailed.Format(time.RFC3339))
			t.row("last failed", r.LastFailed.Format(time.RFC3339))
			if i.dlq == "" {
				t.row("headers", visible(r.Headers))
				t.row("trace", visible(r.Trace))
			}
			t.row("payload", visible(string(found[0].Record.Payload)))
		})
	})
}

// lettersWith returns the letters with the IDs, all or an error.
func lettersWith(ctx context.Context, dlq *couriersql.DLQ[couriersql.Row], ids []string) (found []courier.DeadLetter[couriersql.Row], err error) {
	var missing []string
	for n, id := range ids {
		if slices.Contains(ids[:n], id) {
			continue
		}
		// The place before its own names no letter, and need not.
		place, _, _ := strings.Cut(id, ".")
		seq, err := strconv.ParseInt(place, 10, 64)
		var at []courier.DeadLetter[couriersql.Row]
		if err == nil && seq > 0 {
			if at, err = dlq.List(ctx, fmt.Sprintf("%d.1.0", seq-1), 1); err != nil {
				return nil, err
			}
		}
		if len(at) == 1 && at[0].ID == id {
			found = append(found, at[0])
		} else {
			missing = append(missing, visible(id))
		}
	}
	if len(missing) > 0 {
		return nil, finding("no dead letter has the ID %s (a letter's ID changes when it fails again): nothing was done; courierctl dlq list shows them", strings.Join(missing, ", "))
	}
	return found, nil
}

func changeFlags(i *invocation) {
	i.ofQueue()
	i.dry()
	i.flags.BoolVar(&i.all, "all", false, "all letters that there are now")
	i.ofLetters()
}

// chosen returns the letters that a command is for.
func (i *invocation) chosen(ctx context.Context, dlq *couriersql.DLQ[couriersql.Row]) (chosen []courier.DeadLetter[couriersql.Row], err error) {
	if !i.all {
		return lettersWith(ctx, dlq, i.operands)
	}
	for l, err := range courier.Letters(ctx, dlq) {
		if err != nil {
			return nil, err
		}
		if i.chooses(l) {
			l.Record = couriersql.Row{} // of which there may be many
			chosen = append(chosen, l)
		}
	}
	return chosen, nil
}

// changeReport says what happened to the chosen letters, or would happen.
type changeReport struct {
	Letters []string  `json:"letters"`           // that were changed
	Refused []refusal `json:"refused,omitempty"` // of branches
	Left    []string  `json:"left,omitempty"`    // that changed meanwhile
	DryRun  bool      `json:"dry_run"`
}

type refusal struct {
	ID     string `json:"id"`
	Branch string `json:"branch"`
}

// changing runs a command on the chosen letters. change returns the IDs of the
// letters that it changed.
func changing(ctx context.Context, i *invocation, what string, branches bool, change func(ctx context.Context, outbox *couriersql.Outbox, dlq *couriersql.DLQ[couriersql.Row], ids []string) ([]string, error)) error {
	switch {
	case i.all && len(i.operands) > 0:
		return errors.New("pass the IDs of letters or -all, not both: nothing was done")
	case !i.all && len(i.operands) == 0:
		return errors.New("pass the IDs of letters, or -all: courierctl dlq list shows them")
	case i.filtered() && !i.all:
		return errors.New("-branch, -key and -reason: go with -all")
	}
	return i.withLetters(ctx, func(ctx context.Context, outbox *couriersql.Outbox, dlq *couriersql.DLQ[couriersql.Row]) error {
		chosen, err := i.chosen(ctx, dlq)
		if err != nil {
			return err
		}
		if i.dryRun && !branches {
			if err := wholeKeys(ctx, dlq, chosen); err != nil {
				return err
			}
		}
		report := changeReport{Letters: []string{}, DryRun: i.dryRun}
		for _, l := range chosen {
			if l.Branch == "" || branches {
				report.Letters = append(report.Letters, l.ID)
			} else {
				report.Refused = append(report.Refused, refusal{l.ID, l.Branch})
			}
		}
		if !i.dryRun && len(report.Letters) > 0 {
			changed, err := change(ctx, outbox, dlq, report.Letters)
			if err != nil {
				return err
			}
			report.Left = slices.DeleteFunc(report.Letters, func(id string) bool { return slices.Contains(changed, id) })
			report.Letters = changed
		}
		n := len(report.Letters)
		err = i.print(report, func(t *table) { t.row(letters(n) + " " + did(n, what, i.dryRun)) })
		if err != nil {
			return err
		}
		return report.verdict(len(chosen), what)
	})
}

// verdict is nil when all that was chosen was changed.
func (r *changeReport) verdict(chosen int, what string) error {
	var why []string
	if n := len(r.Refused); n > 0 {
		var names []string
		for _, refused := range r.Refused {
			if name := strconv.Quote(refused.Branch); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		why = append(why, fmt.Sprintf("%s of a branch (%s) %s, because a row of the outbox goes to all branches: redrive each letter with courier.Redrive, the applier of its branch and a Match by Branch",
			letters(n), strings.Join(names, ", "), did(n, "refused", r.DryRun)))
	}
	if n := len(r.Left); n > 0 {
		why = append(why, fmt.Sprintf("%s changed meanwhile, or a relay has the row in hand (%s)", letters(n), strings.Join(r.Left, ", ")))
	}
	switch {
	case why == nil:
		return nil
	case len(r.Letters) == 0:
		return finding("no dead letter %s: %s", did(1, what, r.DryRun), strings.Join(why, "; "))
	}
	return partly("%d of %s %s: %s", len(r.Letters), letters(chosen), did(len(r.Letters), what, r.DryRun), strings.Join(why, "; "))
}

func requeue(ctx context.Context, i *invocation) error {
	if i.dlq != "" {
		return finding("the letters of %s are of no outbox into which they could be put back: redrive them with courier.Redrive in a program that has their applier", visible(i.dlq))
	}
	err := changing(ctx, i, "put back into the outbox", false, func(ctx context.Context, outbox *couriersql.Outbox, _ *couriersql.DLQ[couriersql.Row], ids []string) ([]string, error) {
		return outbox.Requeue(ctx, ids...)
	})
	if errors.Is(err, couriersql.ErrOfKey) {
		return finding("%w", err)
	}
	return err
}

// wholeKeys is the error with which Requeue would refuse some of the letters of a key.
func wholeKeys(ctx context.Context, dlq *couriersql.DLQ[couriersql.Row], chosen []courier.DeadLetter[couriersql.Row]) error {
	some, all := make(map[string]int), make(map[string]int)
	for _, l := range chosen {
		if l.Key != "" && l.Branch == "" {
			some[l.Key]++
		}
	}
	if len(some) == 0 {
		return nil
	}
	for l, err := range courier.Letters(ctx, dlq) {
		if err != nil {
			return err
		}
		if l.Branch == "" {
			all[l.Key]++
		}
	}
	for key, n := range some {
		if n < all[key] {
			return fmt.Errorf("%d of the %d letters of the key %q: %w", n, all[key], key, couriersql.ErrOfKey)
		}
	}
	return nil
}

func remove(ctx context.Context, i *invocation) error {
	return changing(ctx, i, "deleted", true, func(ctx context.Context, _ *couriersql.Outbox, dlq *couriersql.DLQ[couriersql.Row], ids []string) ([]string, error) {
		return dlq.Remove(ctx, ids...)
	})
}
