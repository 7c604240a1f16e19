package couriernats_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

var _ courier.BatchApplier[order] = (*couriernats.Sink[order])(nil)

// failures returns the listed errors by index.
func failures(tb testing.TB, err error) map[int]error {
	tb.Helper()
	var listed *courier.BatchError
	require.ErrorAs(tb, err, &listed)
	byIndex := make(map[int]error)
	last := -1
	for _, f := range listed.Failures {
		require.Greater(tb, f.Index, last, "each index once, in order")
		byIndex[f.Index], last = f.Err, f.Index
	}
	return byIndex
}

func requireClass(tb testing.TB, want courier.ErrorClass, err error) {
	tb.Helper()
	require.Error(tb, err)
	require.Equal(tb, want, courier.Classify(context.Background(), err), "%v", err)
}

func TestApplyStoresTheMessageWithIDAndHeaders(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	type row struct{ headers, trace map[string]string }
	sink := couriernats.NewSink(b.js, func(r row) (*nats.Msg, error) {
		return couriernats.NewMsg("orders.placed", "id-1", []byte("hello"), r.headers, r.trace)
	})
	require.NoError(t, sink.Apply(t.Context(), row{
		headers: map[string]string{"Content-Type": "text/plain", "Origin": "first"},
		trace:   map[string]string{"traceparent": "00-abc", "Origin": "second"},
	}))
	stored := b.stored(t)
	require.Len(t, stored, 1)
	require.Equal(t, "orders.placed", stored[0].Subject)
	require.Equal(t, "hello", string(stored[0].Data))
	require.Equal(t, nats.Header{
		"Nats-Msg-Id":  {"orders.placed id-1"},
		"Content-Type": {"text/plain"},
		"traceparent":  {"00-abc"},
		"Origin":       {"second"},
	}, stored[0].Header)
}

func TestBatchArrivesInOrder(t *testing.T) {
	t.Parallel()
	for name, window := range map[string]int{"one window": 5000, "default window": 1000, "uneven window": 77} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, jetstream.StreamConfig{})
			all := orders(5000)
			sink := couriernats.NewSink(b.js, message, patient, couriernats.WithMaxPending(window))
			require.NoError(t, sink.ApplyBatch(t.Context(), all))
			require.Equal(t, idsOf(all), b.ids(t))
		})
	}
}

func TestWindowIsTheSinksOwn(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	narrow, err := jetstream.New(b.conn, jetstream.WithPublishAsyncMaxPending(1))
	require.NoError(t, err)
	all := orders(500)
	require.NoError(t, couriernats.NewSink(narrow, message, patient).ApplyBatch(t.Context(), all))
	require.Equal(t, idsOf(all), b.ids(t))
}

// The messages that wait for their acks have a bound in bytes too.
func TestPendingBytesAreBounded(t *testing.T) {
	t.Parallel()
	const each, parts = 3, 4
	header := nats.Header{"n": {strings.Repeat("v", 150)}}
	const size = len("played") + len("NATS/1.0\r\n\r\n") + len("n: \r\n") + 150 + 300
	b := startBroker(t, jetstream.StreamConfig{})
	sizes := make([]int, each*parts)
	for i := range sizes {
		sizes[i] = 300
	}
	sizes = append(sizes, 5000, 1, 5000) // each by itself
	var acked atomic.Int64
	var waiting []*nats.Msg // a played stream, which acks a part as a whole
	_, err := b.conn.Subscribe("played", func(m *nats.Msg) {
		waiting = append(waiting, m)
		if len(waiting) < each && len(m.Data) == 300 {
			return
		}
		for _, m := range waiting {
			acked.Add(1)
			_ = m.Respond([]byte(`{"stream":"ORDERS","seq":1}`))
		}
		waiting = nil
	})
	require.NoError(t, err)
	require.NoError(t, b.conn.Flush())
	made := 0
	sink := couriernats.NewSink(b.js, func(payload int) (*nats.Msg, error) {
		// One message is made ahead of the part before.
		settled := int64(min(max(0, made-1)/each*each, each*parts))
		if made > each*parts+1 {
			settled = int64(made - 1)
		}
		require.GreaterOrEqual(t, acked.Load(), settled, "message %d", made)
		made++
		return &nats.Msg{Subject: "played", Header: header, Data: make([]byte, payload)}, nil
	}, couriernats.WithMaxPendingBytes(each*size))
	require.NoError(t, sink.ApplyBatch(t.Context(), sizes))
	require.Equal(t, len(sizes), made, "each is made once")
	require.Equal(t, int64(len(sizes)), acked.Load())
}

// What is made and not sent any more is listed with the others.
func TestServerLostBetweenParts(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	all := orders(10)
	var made []string
	sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
		if made = append(made, o.id); len(made) == 6 {
			b.shutdown()
			b.await(t, false)
		}
		return o.msg()
	}, couriernats.WithMaxPendingBytes(1))
	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	require.Equal(t, idsOf(all[:6]), made)
	for index := 5; index < 10; index++ {
		requireClass(t, courier.ClassNotAttempted, byIndex[index])
		require.ErrorIs(t, byIndex[index], nats.ErrDisconnected)
	}
}

func TestEmptyBatch(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	require.NoError(t, couriernats.NewSink(b.js, message).ApplyBatch(t.Context(), nil))
}

func TestSecondDeliveryIsStoredOnce(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	sink := couriernats.NewSink(b.js, message)
	all := orders(10)
	require.NoError(t, sink.ApplyBatch(t.Context(), all[:6]))
	require.Zero(t, sink.Duplicates())
	require.NoError(t, sink.ApplyBatch(t.Context(), all))
	require.NoError(t, sink.Apply(t.Context(), all[0]))
	require.Equal(t, uint64(7), sink.Duplicates())
	require.Equal(t, idsOf(all), b.ids(t))
}

func TestEachRecordHasItsOwnResult(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{MaxMsgSize: 4096})
	sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
		switch o.id {
		case "id-00002":
			return nil, errors.New("cannot encode")
		case "id-00003":
			return nil, nil
		}
		return o.msg()
	}, couriernats.WithMaxPending(5))
	all := orders(14)
	all[4].payload = make([]byte, 2<<20) // more than the server takes
	all[5].payload = make([]byte, 8192)  // more than the stream takes
	all[7].subject = "orders.with space"
	all[8].subject = "orders..empty"
	all[9].subject = "orders.*"
	all[10].subject = ""
	all[11].headers = map[string]string{"Big": string(make([]byte, 65<<10))}

	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	for index, want := range map[int]string{
		2:  "cannot encode",
		3:  "neither a message nor an error",
		4:  nats.ErrMaxPayload.Error(),
		5:  "message size exceeds maximum allowed",
		7:  nats.ErrBadSubject.Error(),
		8:  nats.ErrBadSubject.Error(),
		9:  nats.ErrBadSubject.Error(),
		10: nats.ErrBadSubject.Error(),
		11: "the header is too large",
	} {
		requireClass(t, courier.ClassPermanent, byIndex[index])
		require.ErrorContains(t, byIndex[index], want)
		if index > 3 {
			require.ErrorContains(t, byIndex[index], strconv.Quote(all[index].id))
			require.ErrorContains(t, byIndex[index], strconv.Quote(all[index].subject))
		}
	}
	require.Len(t, byIndex, 9)
	require.Equal(t, []string{"id-00000", "id-00001", "id-00006", "id-00012", "id-00013"}, b.ids(t))

	requireClass(t, courier.ClassPermanent, sink.Apply(t.Context(), all[7]))
}

func TestMessageFunctionMaySkip(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
		if o.id == "id-00001" {
			return nil, courier.Skip(errors.New("nothing to send"))
		}
		return o.msg()
	})
	byIndex := failures(t, sink.ApplyBatch(t.Context(), orders(3)))
	require.Len(t, byIndex, 1)
	requireClass(t, courier.ClassSkipped, byIndex[1])
	require.Equal(t, []string{"id-00000", "id-00002"}, b.ids(t))
}

// What the message function returns is the record's, also where it looks like an
// outage.
func TestMessageFunctionThatUsesNATS(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
		if o.id == "id-00001" {
			return nil, nats.ErrDisconnected
		}
		return o.msg()
	})
	requireClass(t, courier.ClassPermanent, failures(t, sink.ApplyBatch(t.Context(), orders(3)))[1])
}

func TestNoStreamForTheSubjectIsRetryable(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	sink := couriernats.NewSink(b.js, message, couriernats.WithMaxPending(1))
	lost := order{id: "id-lost", subject: "invoices.sent"}
	byIndex := failures(t, sink.ApplyBatch(t.Context(), []order{lost, {id: "id-1", subject: "orders.placed"}}))
	require.Len(t, byIndex, 1)
	requireClass(t, courier.ClassRetryable, byIndex[0])
	require.ErrorIs(t, byIndex[0], jetstream.ErrNoStreamResponse)
	require.ErrorContains(t, byIndex[0], `"invoices.sent" (message id "id-lost")`)
	require.ErrorContains(t, byIndex[0], "create one")
	require.Equal(t, []string{"id-1"}, b.ids(t))
}

func TestExpectStream(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	plain := func(o order) (*nats.Msg, error) { return nats.NewMsg(o.subject), nil }
	right := couriernats.NewSink(b.js, plain, couriernats.WithExpectStream("ORDERS"))
	require.NoError(t, right.Apply(t.Context(), orders(1)[0]))
	wrong := couriernats.NewSink(b.js, message, couriernats.WithExpectStream("INVOICES"), couriernats.WithAckTimeout(ackTimeout))
	var err error
	require.Eventually(t, func() bool { // the answer comes within the ack timeout
		err = wrong.Apply(t.Context(), orders(1)[0])
		return err == nil || strings.Contains(err.Error(), "answered")
	}, 30*time.Second, time.Millisecond)
	requireClass(t, courier.ClassRetryable, err)
	require.ErrorContains(t, err, `another stream than the expected one, "ORDERS", answered`)
	require.ErrorContains(t, err, "expected stream does not match")
	require.ErrorContains(t, err, "is the stream of WithExpectStream the one that takes this subject?")
	require.Len(t, b.ids(t), 1)
}

func TestReplySubjectIsPermanent(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
		return &nats.Msg{Subject: o.subject, Reply: "inbox"}, nil
	})
	requireClass(t, courier.ClassPermanent, sink.Apply(t.Context(), orders(1)[0]))
}

func TestEndedContext(t *testing.T) {
	t.Parallel()
	cause := errors.New("shutting down")

	t.Run("before", func(t *testing.T) {
		t.Parallel()
		b := startBroker(t, jetstream.StreamConfig{})
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		sink := couriernats.NewSink(b.js, message)
		require.ErrorIs(t, sink.Apply(ctx, orders(1)[0]), cause)
		require.ErrorIs(t, sink.ApplyBatch(ctx, orders(3)), cause)
		require.Empty(t, b.ids(t))
	})

	t.Run("in the middle of a batch", func(t *testing.T) {
		t.Parallel()
		b := startBroker(t, jetstream.StreamConfig{})
		ctx, cancel := context.WithCancelCause(t.Context())
		all := orders(10)
		sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
			if o.id == all[5].id {
				cancel(cause)
			}
			return o.msg()
		}, couriernats.WithMaxPending(4))
		byIndex := failures(t, sink.ApplyBatch(ctx, all))
		for index := range 4 { // acked before
			require.NotContains(t, byIndex, index)
		}
		for index := 6; index < 10; index++ { // never sent
			require.ErrorIs(t, byIndex[index], cause)
			requireClass(t, courier.ClassNotAttempted, byIndex[index])
		}
		for _, err := range byIndex {
			require.ErrorIs(t, err, cause)
		}
		require.NoError(t, couriernats.NewSink(b.js, message).ApplyBatch(t.Context(), all))
		require.Equal(t, idsOf(all), b.ids(t))
	})

	t.Run("while waiting for an ack", func(t *testing.T) {
		t.Parallel()
		b := startBroker(t, jetstream.StreamConfig{})
		ctx, cancel := context.WithCancelCause(t.Context())
		silent(t, b, "silence", func() { cancel(cause) })
		sink := couriernats.NewSink(b.js, message, couriernats.WithAckTimeout(time.Minute))
		err := sink.Apply(ctx, order{id: "id-1", subject: "silence"})
		require.ErrorIs(t, err, cause)
		require.ErrorContains(t, err, `"silence" (message id "id-1")`)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(ctx, err))
	})
}

// silent subscribes to a subject of no stream, so that the server does not
// report that there is nobody, and never answers.
func silent(tb testing.TB, b *broker, subject string, received func()) {
	tb.Helper()
	_, err := b.conn.Subscribe(subject, func(*nats.Msg) { received() })
	require.NoError(tb, err)
	require.NoError(tb, b.conn.Flush())
}

func TestAckTimeout(t *testing.T) {
	const timeout = 300 * time.Millisecond
	test := func(name string, test func(t *testing.T, sink *couriernats.Sink[order])) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &peer{answer: allBut("silence")}
				test(t, couriernats.NewSink(p.connect(t), message, couriernats.WithAckTimeout(timeout), couriernats.WithMaxPending(2)))
			})
		})
	}

	test("of one record", func(t *testing.T, sink *couriernats.Sink[order]) {
		all := orders(4)
		all[0].subject = "silence"
		byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
		require.Len(t, byIndex, 1, "the server answered others, so all were sent")
		requireClass(t, courier.ClassRetryable, byIndex[0])
		require.ErrorIs(t, byIndex[0], jetstream.ErrAsyncPublishTimeout)
		require.ErrorContains(t, byIndex[0], `"silence" (message id "id-00000")`)
	})

	test("of all", func(t *testing.T, sink *couriernats.Sink[order]) {
		all := orders(100)
		for i := range all {
			all[i].subject = "silence"
		}
		start := time.Now()
		byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
		require.Equal(t, timeout, time.Since(start), "one timeout, not one for each chunk")
		require.Len(t, byIndex, 100)
		requireClass(t, courier.ClassRetryable, byIndex[1])
		requireClass(t, courier.ClassNotAttempted, byIndex[2])
		require.ErrorContains(t, byIndex[99], "not published")
	})
}

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	js := b.js
	for name, row := range map[string]struct {
		sink  *couriernats.Sink[order]
		field string
	}{
		"zero sink":         {new(couriernats.Sink[order]), "Sink"},
		"nil js":            {couriernats.NewSink(nil, message), "js"},
		"nil message":       {couriernats.NewSink[order](js, nil), "message"},
		"ack timeout":       {couriernats.NewSink(js, message, couriernats.WithAckTimeout(0)), "WithAckTimeout"},
		"max pending":       {couriernats.NewSink(js, message, couriernats.WithMaxPending(0)), "WithMaxPending"},
		"max pending bytes": {couriernats.NewSink(js, message, couriernats.WithMaxPendingBytes(0)), "WithMaxPendingBytes"},
		"expect stream":     {couriernats.NewSink(js, message, couriernats.WithExpectStream("a.b")), "WithExpectStream"},
		"reserved subjects": {couriernats.NewSink(js, message, couriernats.WithReservedSubjects("$KV.prices.>")), "WithReservedSubjects"},
		"empty prefix":      {couriernats.NewSink(js, message, couriernats.WithReservedSubjects("")), "WithReservedSubjects"},
		"the first of several": {couriernats.NewSink(js, message,
			couriernats.WithMaxPending(-1), couriernats.WithAckTimeout(-1)), "WithMaxPending"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, err := range []error{
				row.sink.Apply(t.Context(), order{}),
				row.sink.ApplyBatch(t.Context(), orders(2)),
			} {
				var fault *courier.ConfigError
				require.ErrorAs(t, err, &fault)
				require.Equal(t, row.field, fault.Field)
				requireClass(t, courier.ClassNotAttempted, err)
			}
		})
	}
	require.NoError(t, couriernats.NewSink(js, message, nil).Apply(t.Context(), orders(1)[0]), "a nil option is none")
}
