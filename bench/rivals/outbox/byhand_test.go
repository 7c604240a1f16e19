package outbox

import (
	"database/sql"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

func BenchmarkRelay_HandWritten(b *testing.B) {
	measure(b, func(bed *bed) {
		l := newLoop(b, bed)
		defer l.close()
		for {
			batch := l.next()
			if len(batch) == 0 {
				return
			}
			l.send(batch)
			l.done(batch)
		}
	})
}

// One fetches while another publishes and a third marks. It goes by a cursor,
// which in SQLite passes nothing over: there is one writer at a time.
func BenchmarkRelay_HandWrittenPipelined(b *testing.B) {
	measure(b, func(bed *bed) {
		l := newLoop(b, bed)
		defer l.close()
		fetched, published := make(chan []row, 1), make(chan []row, 1)
		var group sync.WaitGroup
		group.Go(func() {
			defer close(fetched)
			for {
				batch := l.next()
				if len(batch) == 0 {
					return
				}
				fetched <- batch
			}
		})
		group.Go(func() {
			defer close(published)
			for batch := range fetched {
				l.send(batch)
				published <- batch
			}
		})
		for batch := range published {
			l.done(batch)
		}
		group.Wait()
	})
}

type row struct {
	seq       int64
	id, topic string
	payload   []byte
}

// loop is the three steps of a relay by hand.
type loop struct {
	js          jetstream.JetStream
	fetch, mark *sql.Stmt
	last        int64
}

func newLoop(b *testing.B, bed *bed) *loop {
	fetch, err := bed.db.Prepare(`SELECT seq, id, topic, payload FROM courier_outbox WHERE processed_at IS NULL AND seq > ? ORDER BY seq LIMIT ?`)
	require.NoError(b, err)
	mark, err := bed.db.Prepare(`UPDATE courier_outbox SET processed_at = ? WHERE seq IN (SELECT value FROM json_each(?))`)
	require.NoError(b, err)
	return &loop{js: bed.js, fetch: fetch, mark: mark}
}

func (l *loop) close() {
	_ = l.fetch.Close()
	_ = l.mark.Close()
}

func (l *loop) next() []row {
	found, err := l.fetch.Query(l.last, batchSize)
	must(err)
	batch := make([]row, 0, batchSize)
	for found.Next() {
		var r row
		must(found.Scan(&r.seq, &r.id, &r.topic, &r.payload))
		batch = append(batch, r)
		l.last = r.seq
	}
	must(found.Err())
	return batch
}

func (l *loop) send(batch []row) {
	acks := make([]jetstream.PubAckFuture, len(batch))
	for i, r := range batch {
		var err error
		acks[i], err = l.js.PublishMsgAsync(&nats.Msg{Subject: r.topic, Data: r.payload, Header: nats.Header{jetstream.MsgIDHeader: {r.id}}})
		must(err)
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			must(err)
		}
	}
}

func (l *loop) done(batch []row) {
	seqs := make([]int64, len(batch))
	for i, r := range batch {
		seqs[i] = r.seq
	}
	list, err := json.Marshal(seqs)
	must(err)
	_, err = l.mark.Exec(time.Now().UnixMicro(), string(list))
	must(err)
}

// must is for goroutines that may not end the benchmark.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
