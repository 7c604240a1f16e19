package main

// relay is the outbox relays to JetStream, which make bench-postgres measures.
var relay = []section{
	sqliteRelay,
	sharedRelay,
	computed(sharedRelay),
	sharedByTwo,
	computed(sharedByTwo),
	keptRelay,
	computed(keptRelay),
	leaderRelay,
	computed(leaderRelay),
	{title: "PostgreSQL to JetStream, beside other libraries with many workers", cases: []benchmark{
		{name: "Rivals/by-hand", title: "loop by hand, SELECT, DELETE", kind: floor, to: bestRival},
		{name: "Rivals/courier", title: "Courier, one of many instances", kind: ours, to: bestRival, goal: cheaper(5)},
		{name: "Rivals/courier-leader", title: "Courier, one leader, streaming", kind: ours, to: bestRival, goal: cheaper(5)},
		{name: "Rivals/river", title: "river", kind: rival, to: bestRival},
		{name: "Rivals/watermill-sql", title: "watermill-sql", kind: rival, to: bestRival},
		{name: "Rivals/gue", title: "gue", kind: rival, to: bestRival},
	}},
	latency("From commit to arrival, 500 rows/s, the median", "p50-ms", atMost(1.5)),
	latency("From commit to arrival, 500 rows/s, the 99th percentile", "p99-ms", atMost(2)),
	{title: "A fetch of 1000 rows, a row", cases: []benchmark{
		{name: "Fetch/kept=0", title: "beside no kept row", kind: floor},
		{name: "Fetch/kept=5000000", title: "beside 5 million", kind: ours, to: "Fetch/kept=0", goal: atMost(1.5)},
	}},
	idle("Nothing to do: transactions in an interval", "transactions/interval", atMost(1)),
	idle("Nothing to do: connections at work", "busy", atMost(0)),
}

var sqliteRelay = section{title: "SQLite to JetStream", plot: true, cases: []benchmark{
	{name: "Relay_HandWritten", title: "loop by hand", kind: floor},
	{name: "Relay_HandWrittenPipelined", title: "loop by hand, pipelined", kind: floor},
	{name: "Relay_Courier", title: "Courier, polling", kind: ours, to: bestFloor},
	{name: "Relay_CourierStream", title: "Courier, streaming", kind: ours, to: bestFloor, goal: shareOf(90)},
}}

var sharedRelay = section{title: "PostgreSQL to JetStream, one of many instances", cases: []benchmark{
	{name: "Shared/delete-returning/1", title: "loop by hand, DELETE RETURNING", kind: floor},
	{name: "Shared/select-delete/1", title: "loop by hand, SELECT, DELETE", kind: floor},
	{name: "Shared/courier/1", title: "Courier", kind: ours, to: bestFloor, goal: shareOf(85)},
	{name: "Shared/courier-lease/1", title: "Courier, WithLease", kind: ours, to: bestFloor},
}}

var sharedByTwo = section{title: "PostgreSQL to JetStream, two of many instances", cases: []benchmark{
	{name: "Shared/delete-returning/2", title: "loop by hand, DELETE RETURNING", kind: floor},
	{name: "Shared/select-delete/2", title: "loop by hand, SELECT, DELETE", kind: floor},
	{name: "Shared/courier/2", title: "Courier", kind: ours, to: bestFloor, goal: shareOf(85)},
}}

var keptRelay = section{title: "PostgreSQL to JetStream, rows are kept", cases: []benchmark{
	{name: "Shared/select-update/1", title: "loop by hand, SELECT, UPDATE", kind: floor},
	{name: "Shared/courier-keep/1", title: "Courier, WithKeep", kind: ours, to: bestFloor, goal: shareOf(85)},
}}

var leaderRelay = section{title: "PostgreSQL to JetStream, one leader", cases: []benchmark{
	{name: "Leader/keyset-pipelined", title: "loop by hand, pipelined, by sequence", kind: floor},
	{name: "Leader/courier", title: "Courier, polling", kind: ours, to: bestFloor},
	{name: "Leader/courier-stream", title: "Courier, streaming", kind: ours, to: bestFloor, goal: shareOf(85)},
}}

// computed is a section by the time that the relay's process computes.
func computed(s section) section {
	s.title, s.unit = s.title+": processor time", "cpu-"+perRecord
	s.cases = append([]benchmark(nil), s.cases...)
	for i := range s.cases {
		if s.cases[i].goal.set() {
			s.cases[i].goal = atMost(1.2)
		}
	}
	return s
}

func latency(title, unit string, g goal) section {
	return section{title: title, unit: unit, cases: []benchmark{
		{name: "Latency/listener-by-hand", title: "listener by hand", kind: floor},
		{name: "Latency/courier", title: "Courier, WithWakeUp", kind: ours, to: bestFloor, goal: g},
		{name: "Latency/courier-polling-10ms", title: "Courier, polling each 10 ms", kind: ours, to: bestFloor},
	}}
}

func idle(title, unit string, g goal) section {
	s := section{title: title, unit: unit}
	for _, mode := range []string{"shared", "lease", "strict", "wake-up"} {
		s.cases = append(s.cases, benchmark{name: "Idle/" + mode, title: "Courier, " + mode, kind: ours, to: limit, goal: g})
	}
	return s
}
