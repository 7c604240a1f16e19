package main

// kafka is both sides of Kafka, which make bench-kafka measures.
var kafka = []section{
	kafkaRelay,
	kafkaComputed(kafkaRelay),
	{title: "Kafka consumer group, a handler of 1 ms, 8 at a time in the order of a key", cases: []benchmark{
		{name: "KafkaGroup_HandWritten", title: "loop by hand, a commit for each poll", kind: floor},
		{name: "KafkaGroup_HandWrittenUnsafe", title: "loop by hand that may lose", kind: floor},
		{name: "KafkaGroup_Courier", title: "Courier", kind: ours, to: bestFloor, goal: shareOf(95)},
		{name: "KafkaGroup_CourierPoison", title: "Courier, 1 % is poison and parked", kind: ours, to: "KafkaGroup_Courier", goal: shareOf(90)},
	}},
}

var kafkaRelay = section{title: "SQLite to Kafka, batches of 1000 of 256 bytes", cases: []benchmark{
	{name: "KafkaRelay_HandWritten", title: "loop by hand, a promise for each record", kind: floor},
	{name: "KafkaRelay_Courier", title: "Courier, polling", kind: ours, to: bestFloor, goal: shareOf(95)},
	{name: "KafkaRelay_CourierStream", title: "Courier, streaming", kind: ours, to: bestFloor, goal: shareOf(95)},
}}

func kafkaComputed(s section) section {
	s = computed(s)
	for i := range s.cases {
		if s.cases[i].goal.set() {
			s.cases[i].goal = atMost(1.1)
		}
	}
	return s
}
