package main

// kafka is both sides of Kafka, which make bench-kafka measures.
var kafka = []section{
	kafkaRelay,
	kafkaComputed(kafkaRelay),
	kafkaPostgres,
	kafkaComputed(kafkaPostgres),
	kafkaLatency("PostgreSQL to Kafka, from commit to arrival, 500 rows/s, the median", "p50-ms"),
	kafkaLatency("PostgreSQL to Kafka, from commit to arrival, 500 rows/s, the 99th percentile", "p99-ms"),
	{title: "Kafka consumer group, a handler of 1 ms, 8 at a time in the order of a key", cases: []benchmark{
		{name: "KafkaGroup_HandWritten", title: "loop by hand, a commit for each poll", kind: floor},
		{name: "KafkaGroup_HandWrittenUnsafe", title: "loop by hand that may lose", kind: floor},
		{name: "KafkaGroup_Courier", title: "Courier", kind: ours, to: bestFloor, goal: shareOf(95)},
		{name: "KafkaGroup_CourierPoison", title: "Courier, 1 % is poison and parked", kind: ours, to: "KafkaGroup_Courier", goal: shareOf(90)},
	}},
}

var kafkaRelay = section{title: "SQLite to Kafka, batches of 1000 of 256 bytes", cases: []benchmark{
	{name: "KafkaRelay_HandWritten", title: "loop by hand that promises less", kind: floor},
	{name: "KafkaRelay_HandWrittenWhole", title: "loop by hand that promises the same", kind: floor},
	{name: "KafkaRelay_Courier", title: "Courier, polling", kind: ours, to: "KafkaRelay_HandWrittenWhole", goal: shareOf(95)},
	{name: "KafkaRelay_CourierStream", title: "Courier, streaming", kind: ours, to: "KafkaRelay_HandWrittenWhole", goal: shareOf(95)},
}}

var kafkaPostgres = section{title: "PostgreSQL to Kafka, batches of 1000 of 256 bytes, one of many instances", cases: []benchmark{
	{name: "KafkaPostgres_HandWritten", title: "loop by hand, SELECT, a promise for each record, DELETE", kind: floor},
	{name: "KafkaPostgres_HandWrittenReturning", title: "loop by hand, DELETE RETURNING", kind: floor},
	{name: "KafkaPostgres_Courier", title: "Courier", kind: ours, to: bestFloor, goal: shareOf(95)},
}}

func kafkaLatency(title, unit string) section {
	return section{title: title, unit: unit, cases: []benchmark{
		{name: "KafkaLatency/listener-by-hand", title: "listener by hand", kind: floor},
		{name: "KafkaLatency/courier", title: "Courier, WithWakeUp", kind: ours, to: bestFloor, goal: atMost(1.5)},
	}}
}

func kafkaComputed(s section) section {
	s = computed(s)
	for i := range s.cases {
		if s.cases[i].goal.set() {
			s.cases[i].goal = atMost(1.1)
		}
		if s.cases[i].to == bestFloor { // of the rate: another loop may compute less and take longer
			s.cases[i].to = s.cases[0].name
		}
	}
	return s
}
