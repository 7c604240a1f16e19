package couriersql

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

func TestConformance_Source(t *testing.T) {
	for name, opts := range keeping {
		t.Run(name, func(t *testing.T) {
			courierttest.TestSource(t, func(t *testing.T) courierttest.SourceFixture[Row] {
				db := open(t, filepath.Join(t.TempDir(), "test.db"))
				o := outboxIn(t, db, opts...)
				written := 0
				return courierttest.SourceFixture[Row]{
					Source: o.Source(),
					Add: func(n int) (ids []string) {
						for range n {
							ids = append(ids, fmt.Sprintf("message %d", written))
							written++
						}
						write(t, o, named(ids...)...)
						return ids
					},
					Name:   o.Source().Identity,
					Reopen: func() courier.Source[Row] { return outboxIn(t, db, opts...).Source() },
					FailMarks: func(row Row) func() {
						for _, change := range []string{"DELETE", "UPDATE"} {
							execute(t, db, fmt.Sprintf(`CREATE TRIGGER refuse_%s BEFORE %[1]s ON courier_outbox WHEN old.seq = %d BEGIN SELECT raise(ABORT, 'refused'); END`, change, row.Seq))
						}
						return func() {
							execute(t, db, `DROP TRIGGER refuse_DELETE`)
							execute(t, db, `DROP TRIGGER refuse_UPDATE`)
						}
					},
				}
			}, courierttest.SourceFeatures{Ordered: true, Identifier: true})
		})
	}
}

func TestConformance_DLQ(t *testing.T) {
	courierttest.TestDLQ(t, func(t *testing.T) courierttest.DLQFixture[Row] {
		db := open(t, filepath.Join(t.TempDir(), "test.db"))
		o := outboxIn(t, db)
		return courierttest.DLQFixture[Row]{
			DLQ: o.DLQ(),
			Record: func(n int) Row {
				return Row{Seq: int64(n + 1), ID: fmt.Sprintf("message %d", n), Topic: "orders", Payload: []byte{0xff, byte(n)}, CreatedAt: start.UnixMicro()}
			},
			Name: func(row Row) string {
				type columns Row // which are all printed
				return fmt.Sprintf("%+v", columns(row))
			},
			Reopen: func() courier.DLQ[Row] { return outboxIn(t, db).DLQ() },
			Other:  func() courier.DLQ[Row] { return outboxIn(t, db, WithTable("events")).DLQ() },
			FailSends: func() func() {
				execute(t, db, `ALTER TABLE courier_outbox_dlq RENAME TO away`)
				return func() { execute(t, db, `ALTER TABLE away RENAME TO courier_outbox_dlq`) }
			},
		}
	}, courierttest.DLQFeatures{Identity: true, Keyed: true, Shared: true})
}
