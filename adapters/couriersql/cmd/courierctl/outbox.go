package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
)

// statusReport is what status prints as JSON.
type statusReport struct {
	Table         string          `json:"table"`
	SchemaVersion int             `json:"schema_version"`
	Pending       int             `json:"pending"`
	Due           int             `json:"due"`
	OldestSeconds float64         `json:"oldest_seconds"`
	DeadLetters   int             `json:"dead_letters"`
	Leader        *leaderReport   `json:"leader,omitempty"`
	Failing       []failingReport `json:"failing"`
}

type failingReport struct {
	ID       string `json:"id"`
	Attempts int    `json:"attempts"`
	Error    string `json:"error"`
}

// leaderReport is the relay that leads.
type leaderReport struct {
	Backend     int    `json:"backend"`
	Application string `json:"application_name"`
}

// queueReport is what status prints as JSON for a queue that is no outbox's.
type queueReport struct {
	Table       string `json:"table"`
	DeadLetters int    `json:"dead_letters"`
}

func statusFlags(i *invocation) {
	i.ofQueue()
	i.duration(&i.maxLag, "max-lag", "exit with 1 when the oldest row that is due has waited for longer than this `TIME`; 0 is no limit")
	i.flags.IntVar(&i.maxDead, "max-dead", -1, "exit with 1 when there are more than `N` dead letters; -1 is no limit")
}

func status(ctx context.Context, i *invocation) error {
	if i.dlq != "" {
		return statusOfQueue(ctx, i)
	}
	return i.with(ctx, func(ctx context.Context, outbox *couriersql.Outbox) error {
		s, err := outbox.Status(ctx)
		if err != nil {
			return err
		}
		report := statusReport{i.table, s.Version, s.Pending, s.Due, s.Oldest.Seconds(), s.Dead, (*leaderReport)(s.Leader), []failingReport{}}
		for _, f := range s.Failing {
			report.Failing = append(report.Failing, failingReport(f))
		}
		err = i.print(report, func(t *table) {
			t.row("table", report.Table)
			t.row("schema version", report.SchemaVersion)
			t.row("pending", report.Pending, "rows to be delivered")
			t.row("due", report.Due, "of them, to be had now")
			t.row("oldest", inDays(s.Oldest.Round(time.Millisecond)), "the age of the oldest that is due")
			t.row("dead letters", report.DeadLetters)
			if l := report.Leader; l != nil {
				t.row("leader", l.Backend, visible(l.Application))
			}
			for _, f := range report.Failing {
				t.row("failing", visible(f.ID), plural(f.Attempts, "attempt")+": "+oneLine(f.Error))
			}
		})
		switch {
		case err != nil:
			return err
		case i.maxLag > 0 && s.Oldest > i.maxLag:
			return finding("the oldest row has been due for %s, longer than -max-lag %s", inDays(s.Oldest.Round(time.Millisecond)), inDays(i.maxLag))
		case i.maxDead >= 0 && s.Dead > i.maxDead:
			return finding("the outbox has %s, more than -max-dead %d", letters(s.Dead), i.maxDead)
		}
		return nil
	})
}

// statusOfQueue is status for a queue that is no outbox's.
func statusOfQueue(ctx context.Context, i *invocation) error {
	if i.maxLag > 0 {
		return errors.New("-max-lag: the queue of -dlq has no rows that wait to be delivered: leave one of the two out")
	}
	return i.withLetters(ctx, func(ctx context.Context, _ *couriersql.Outbox, dlq *couriersql.DLQ[couriersql.Row]) error {
		dead, err := dlq.Count(ctx)
		if err != nil {
			return err
		}
		err = i.print(queueReport{i.dlq, dead}, func(t *table) {
			t.row("table", i.dlq)
			t.row("dead letters", dead)
		})
		if err == nil && i.maxDead >= 0 && dead > i.maxDead {
			return finding("the queue has %s, more than -max-dead %d", letters(dead), i.maxDead)
		}
		return err
	})
}

func (i *invocation) dry() {
	i.flags.BoolVar(&i.dryRun, "dry-run", false, "tell what would be done, and do nothing")
}

func migrateFlags(i *invocation) {
	i.dry()
	i.flags.BoolVar(&i.wakeUp, "wake-up", false, "add the trigger that wakes relays (PostgreSQL)")
}

func migrate(ctx context.Context, i *invocation) error {
	if i.wakeUp {
		i.options = append(i.options, couriersql.WithWakeUp())
	}
	i.create = true
	return i.withAny(ctx, func(ctx context.Context, outbox *couriersql.Outbox) error {
		before, err := outbox.Version(ctx)
		if err != nil {
			return err
		}
		after := couriersql.SchemaVersion(outbox.Dialect())
		work := outbox.Migrate
		if i.dryRun {
			work = outbox.CheckMigrate
		}
		if err := work(ctx); err != nil {
			return err
		}
		report := struct {
			Table   string `json:"table"`
			From    int    `json:"from"`
			To      int    `json:"to"`
			Created string `json:"created,omitempty"` // a file
			DryRun  bool   `json:"dry_run"`
		}{i.table, before, after, i.created, i.dryRun}
		return i.print(report, func(t *table) {
			if i.created != "" {
				t.row(fmt.Sprintf("%s %s", visible(i.created), did(1, "created", i.dryRun)))
			}
			switch {
			case before == after:
				t.row(fmt.Sprintf("%s has schema version %d already", i.table, after))
			case i.dryRun:
				t.row(fmt.Sprintf("%s would go from schema version %d to %d", i.table, before, after))
			default:
				t.row(fmt.Sprintf("%s went from schema version %d to %d", i.table, before, after))
			}
			if i.wakeUp {
				t.row("the trigger that wakes relays " + did(1, "added", i.dryRun) + " unless it was there")
			}
		})
	})
}

func pruneFlags(i *invocation) {
	i.dry()
	i.duration(&i.olderThan, "older-than", "delete rows that were delivered longer ago than this `TIME`, such as 7d; required")
}

func prune(ctx context.Context, i *invocation) error {
	given := false
	i.flags.Visit(func(f *flag.Flag) { given = given || f.Name == "older-than" })
	switch {
	case !given:
		return errors.New("-older-than: pass the time for which delivered rows are to be kept, such as 7d")
	case i.olderThan == 0:
		return errors.New("-older-than: pass a time above 0, such as 7d")
	}
	return i.with(ctx, func(ctx context.Context, outbox *couriersql.Outbox) error {
		before := time.Now().Add(-i.olderThan)
		work := outbox.Prune
		if i.dryRun {
			work = outbox.Prunable
		}
		n, failed := work(ctx, before)
		if failed != nil && n == 0 {
			return failed
		}
		report := struct {
			Table  string    `json:"table"`
			Before time.Time `json:"before"`
			Rows   int       `json:"rows"`
			DryRun bool      `json:"dry_run"`
		}{i.table, before, n, i.dryRun}
		err := i.print(report, func(t *table) {
			t.row(fmt.Sprintf("%s of %s delivered before %s %s", plural(n, "row"), i.table, before.Format(time.RFC3339), did(n, "deleted", i.dryRun)))
		})
		if failed != nil {
			return partly("not all of them: %w", failed)
		}
		return err
	})
}

// did says that n things were deleted, say, or would be.
func did(n int, what string, dryRun bool) string {
	switch {
	case dryRun:
		return "would be " + what
	case n == 1:
		return "was " + what
	}
	return "were " + what
}
