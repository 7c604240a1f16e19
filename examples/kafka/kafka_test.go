package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// The test binary is the relay and the members too.
func TestMain(m *testing.M) {
	if text := os.Getenv(workerVariable); text != "" {
		os.Exit(runWorker(context.Background(), text))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(pgtest.Exit))
}

// small is a run of some seconds, without what a group of kfake does not always get over: a
// member that is cut off while it joins has it stand still for ever.
func small(more ...string) []string {
	return append([]string{"-n", "1200", "-pace", "400", "-batch", "50", "-poison", "3", "-outage", "0", "-kills", "1"}, more...)
}

func TestDemo(t *testing.T) {
	for name, pg := range map[string]bool{"SQLite": false, "PostgreSQL": true} {
		t.Run(name, func(t *testing.T) {
			args := small()
			if pg {
				args = append(args, "-pg", pgtest.Shared(t).DSN)
			}
			var stdout, stderr bytes.Buffer
			require.Zero(t, run(t.Context(), args, &stdout, &stderr), "%s\n%s", &stdout, &stderr)
			require.Contains(t, stdout.String(), "Every order arrived or is a dead letter. 1 processes were killed")
			require.Regexp(t, `received +1,197 +of them`, stdout.String())
			require.Regexp(t, `dead letters +3 +orders`, stdout.String())
			require.Contains(t, stdout.String(), "the relay is killed, and started again")
		})
	}
}

var kills = flag.Int("crash.kills", 1, "kill `N` processes in TestKills, the relay and a member in turn")

// TestKills kills processes while the relay and the group are at work. The long form:
//
//	go test ./kafka -run TestKills -v -timeout 0 -args -crash.kills=200
func TestKills(t *testing.T) {
	var stdout, stderr bytes.Buffer
	args := []string{"-n", fmt.Sprint(300 * (*kills)), "-pace", "120", "-outage", "0", "-poison", fmt.Sprint(*kills), "-kills", fmt.Sprint(*kills)}
	require.Zero(t, run(t.Context(), args, &stdout, &stderr), "%s\n%s", &stdout, &stderr)
	_, verdict, _ := strings.Cut(stdout.String(), "all is done\n")
	require.Contains(t, verdict, fmt.Sprintf("%d processes were killed", *kills))
	t.Log(verdict)
}

func TestALossIsTold(t *testing.T) {
	var stdout, stderr bytes.Buffer
	require.Equal(t, exitVerdict, run(t.Context(), []string{"-n", "200", "-outage", "0", "-kills", "0", "-lose", "2"}, &stdout, &stderr), "%s\n%s", &stdout, &stderr)
	require.Contains(t, stderr.String(), "the books do not balance: 2 of the orders are missing, such as order-0000002")
}

// fair is a run in which two orders were received.
func fair() *books {
	b := &books{blows: newBlows(), committed: map[int32]int64{0: 2}, pending: map[string]bool{}, lost: map[string][]int64{}}
	for n := 1; n <= 2; n++ {
		o := order{ID: string(rune('a' + n - 1)), Customer: "c", Number: n, offset: int64(n - 1)}
		b.orders = append(b.orders, o)
		b.topic = append(b.topic, sent{o.ID, o.Customer, place{0, o.offset}})
		b.received = append(b.received, receipt{o, int64(n), "m"})
	}
	return b
}

// once is a receipt of a record that was received before.
func once(r receipt, member string, seq int64) receipt {
	r.member, r.seq = member, seq
	return r
}

func TestVerdict(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*books)
		want   string // "" is none
	}{
		"all is well": {func(*books) {}, ""},
		"missing":     {func(b *books) { b.received = b.received[:1] }, "1 of the orders are missing, such as b"},
		"not consumed": {func(b *books) { b.received, b.committed[0] = b.received[:1], 1 },
			"1 of the orders are still in the topic"},
		"pending": {func(b *books) { b.received, b.topic, b.pending["b"] = b.received[:1], b.topic[:1], true },
			"1 of the orders are still in the outbox"},
		"parked": {func(b *books) {
			b.received, b.letters = b.received[:1], []letter{{"b", place{0, 1}, true}}
		}, ""},
		"parked twice": {func(b *books) {
			b.received, b.letters = b.received[:1], []letter{{"b", place{0, 1}, true}, {"b", place{0, 1}, true}}
		}, "1 repeats without a reason, such as b in the dead letters of the group"},
		"parked twice by the relay": {func(b *books) {
			b.received, b.topic, b.letters = b.received[:1], b.topic[:1], []letter{{id: "b"}, {id: "b"}}
		}, "such as b in the dead letters of the relay"},
		"received twice": {func(b *books) { b.received = append(b.received, once(b.received[1], "n", 3)) },
			"1 repeats without a reason, such as b in the table, by m and n"},
		"received twice, as it was in hand": {func(b *books) {
			b.received = append(b.received, once(b.received[1], "n", 3))
			b.blows.memberKilled("m", map[int32]int64{0: 1})
		}, ""},
		"received twice, though it was committed": {func(b *books) {
			b.received = append(b.received, once(b.received[1], "n", 3))
			b.blows.memberKilled("m", map[int32]int64{0: 2})
		}, "1 repeats"},
		"received twice, after an outage": {func(b *books) {
			b.received, b.lost["m"] = append(b.received, once(b.received[1], "n", 3)), []int64{2}
		}, ""},
		"received twice, as it could not be committed": {func(b *books) {
			b.received = append(b.received, once(b.received[1], "n", 3))
			b.blows.brokersAway(map[int32]int64{0: 1}, map[int32]int64{0: 2})
		}, ""},
		"received twice, though it was committed before the brokers went away": {func(b *books) {
			b.received = append(b.received, once(b.received[1], "n", 3))
			b.blows.brokersAway(map[int32]int64{0: 2}, map[int32]int64{0: 2})
		}, "1 repeats"},
		"received twice, long after an outage": {func(b *books) {
			b.received, b.lost["m"] = append(b.received, once(b.received[1], "n", 3)), []int64{2 + near}
			for n := range near {
				o := order{ID: "b", Customer: "c", Number: 2, partition: 1, offset: int64(n)}
				b.received = append(b.received, receipt{o, int64(3 + n), "m"})
			}
		}, "1 repeats"},
		"sent twice": {func(b *books) { b.topic = append(b.topic, sent{"a", "c", place{0, 2}}) },
			"1 repeats without a reason, such as a in the topic"},
		"sent twice, as it was in hand": {func(b *books) {
			b.topic = append(b.topic, sent{"a", "c", place{0, 2}})
			b.blows.relayKilled([]string{"a"})
		}, ""},
		"sent out of order": {func(b *books) { b.topic[0].place, b.topic[1].place = b.topic[1].place, b.topic[0].place },
			"1 out of order, such as a in the topic"},
		"received out of order": {func(b *books) { b.received[0], b.received[1] = b.received[1], b.received[0] },
			"1 out of order, such as a in the table"},
	} {
		t.Run(name, func(t *testing.T) {
			b := fair()
			test.change(b)
			var out bytes.Buffer
			found := b.judge()
			found.print(&out)
			if test.want == "" {
				require.NoError(t, found.err())
				return
			}
			require.ErrorIs(t, found.err(), errVerdict)
			require.ErrorContains(t, found.err(), test.want)
		})
	}
}

func TestBadInput(t *testing.T) {
	for want, args := range map[string][]string{
		"-n 0: pass 1 or more":                       {"-n", "0"},
		"-poison 3: pass from 0":                     {"-n", "2", "-poison", "3"},
		"-outage 1m0s: pass from 0 to 1.5s":          {"-outage", "1m"},
		"-brokers: leave out -outage":                {"-brokers", "localhost:1", "-outage", "1s"},
		"-lose -1: pass 0 or more":                   {"-lose", "-1"},
		`unexpected argument "x"`:                    {"x"},
		"flag provided but not defined: -y: see kaf": {"-y"},
		"no cluster at localhost:1: ":                {"-brokers", "localhost:1"},
	} {
		var stdout, stderr bytes.Buffer
		require.Equal(t, exitCannotRun, run(t.Context(), args, &stdout, &stderr))
		require.Contains(t, stderr.String(), want)
	}
	var stdout, stderr bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"-h"}, &stdout, &stderr))
	require.Contains(t, stdout.String(), "-brokers ADDRESSES")
}
