package main

import "slices"

// plan is the table: its sections, their cases, and what each is compared to.
var plan = slices.Concat(core, relay, kafka)

// core is what a record costs without a source and a destination, and what make
// bench measures.
var core = []section{
	{title: "Polling: one worker, batches of 1000", plot: true, cases: []benchmark{
		{name: "Pass_Floor", title: "plain loop", kind: floor},
		{name: "Pass_Courier", title: "Courier", kind: ours, to: "Pass_Floor", goal: atMostFree(4)},
		{name: "Pass_CourierBatch", title: "Courier, batch applier", kind: ours, to: "Pass_Floor"},
		{name: "Pass_HandWritten", title: "retry and breaker by hand", kind: floor},
		{name: "Pass_CourierResilient", title: "Courier, ResilientApplier", kind: ours, to: "Pass_HandWritten", goal: atMostFree(3)},
	}},
	{title: "Polling: many workers, batches of 1000", plot: true, cases: []benchmark{
		{name: "Workers4_Floor", title: "4 goroutines, atomic index", kind: floor},
		{name: "Workers4_Courier", title: "Courier, 4 workers", kind: ours, to: "Workers4_Floor", goal: atMostFree(2)},
		{name: "Workers4_CourierByKey", title: "Courier, 4 workers, 100 keys", kind: ours, to: "Workers4_Floor"},
		{name: "Workers16_Floor", title: "16 goroutines, atomic index", kind: floor},
		{name: "Workers16_Courier", title: "Courier, 16 workers", kind: ours, to: "Workers16_Floor", goal: atMostFree(2)},
	}},
	{title: "Streaming: 4 workers", plot: true, cases: []benchmark{
		{name: "Stream_Floor", title: "buffered channel, select", kind: floor},
		{name: "Stream_Courier", title: "Courier, the same channel", kind: ours, to: "Stream_Floor", goal: atMostFree(1.5)},
		{name: "Stream_Slices", title: "channel of 64-record slices", kind: floor},
		{name: "Stream_CourierSource", title: "Courier, a source of batches", kind: ours, to: "Stream_Slices"},
	}},
	{title: "10 % of the attempts fail, retried without a wait", plot: true, cases: []benchmark{
		{name: "Flaky_HandWrittenRetry", title: "retry by hand", kind: floor},
		{name: "Flaky_CourierRetry", title: "Courier, WithRetry", kind: ours, to: "Flaky_HandWrittenRetry", goal: atMost(4)},
		{name: "Flaky_HandWritten", title: "retry and breaker by hand", kind: floor},
		{name: "Flaky_CourierResilient", title: "Courier, ResilientApplier", kind: ours, to: "Flaky_HandWritten", goal: atMost(4)},
	}},
	{title: "A handler that takes 1 ms", cases: []benchmark{
		{name: "Slow64_Limit", title: "64 goroutines, own loops", kind: floor},
		{name: "Slow64_Courier", title: "Courier, streaming, 64 workers", kind: ours, to: "Slow64_Limit", goal: shareOf(98)},
		{name: "Slow256_Limit", title: "256 goroutines, own loops", kind: floor},
		{name: "Slow256_Courier", title: "Courier, streaming, 256 workers", kind: ours, to: "Slow256_Limit", goal: shareOf(96)},
	}},
	{title: "One call that succeeds, beside other libraries", plot: true, cases: []benchmark{
		{name: "Success_Floor", title: "direct call", kind: floor},
		{name: "Success_HandWritten", title: "retry and breaker by hand", kind: floor, to: "Success_Floor"},
		{name: "Success_CourierRetry", title: "WithRetry", kind: ours, to: "Success_Floor"},
		{name: "Success_CourierBreaker", title: "WithCircuitBreaker", kind: ours, to: "Success_Floor"},
		{name: "Success_CourierRetryBreaker", title: "WithRetry(WithCircuitBreaker)", kind: ours, to: "Success_Floor"},
		{name: "Success_CourierResilient", title: "ResilientApplier", kind: ours, to: "Success_Floor"},
		{name: "Success_BackoffGobreaker", title: "gobreaker with backoff", kind: rival, to: "Success_Floor"},
		{name: "Success_FailsafeRetryBreaker", title: "failsafe-go", kind: rival, to: "Success_Floor"},
	}},
	{title: "Messages to a handler with retry, breaker and dead letters", plot: true, cases: []benchmark{
		{name: "Router_WatermillResilient", title: "watermill, 3 middlewares", kind: rival},
		{name: "Router_Watermill", title: "watermill without them", kind: rival, to: "Router_WatermillResilient"},
		{name: "Router_HandWritten", title: "retry and breaker by hand, channel", kind: floor, to: "Router_WatermillResilient"},
		{name: "Router_CourierChannel", title: "Courier, by a channel", kind: ours, to: "Router_WatermillResilient", goal: cheaper(100)},
		{name: "Router_CourierPolling", title: "Courier, polling", kind: ours, to: "Router_WatermillResilient", goal: cheaper(100)},
	}},
	{title: "A batch of 1000 for 4 workers, beside other libraries", plot: true, cases: []benchmark{
		{name: "Pool_Floor", title: "goroutines, atomic index", kind: floor},
		{name: "Pool_CourierPolling", title: "Courier, polling", kind: ours, to: "Pool_Floor"},
		{name: "Pool_CourierStreaming", title: "Courier, streaming", kind: ours, to: "Pool_Floor"},
		{name: "Pool_ConcForEach", title: "conc, iter.ForEach", kind: rival, to: "Pool_Floor"},
		{name: "Pool_ConcPool", title: "conc, pool", kind: rival, to: "Pool_Floor"},
		{name: "Pool_Errgroup", title: "errgroup", kind: rival, to: "Pool_Floor"},
		{name: "Pool_Pond", title: "pond", kind: rival, to: "Pool_Floor"},
		{name: "Pool_Ants", title: "ants", kind: rival, to: "Pool_Floor"},
	}},
	{title: "Fan-out to three branches", cases: []benchmark{
		{name: "FanOut_Floor", title: "a goroutine a branch", kind: floor},
		{name: "FanOut_One", title: "a record", kind: ours, to: "FanOut_Floor"},
		{name: "FanOut_OneWhileOthersWait", title: "a record, while 1000 wait", kind: ours, to: "FanOut_Floor"},
		{name: "FanOut_Batch", title: "a batch of 1000", kind: ours, to: "FanOut_Floor"},
		{name: "FanOut_BatchWhileOthersWait", title: "a batch of 1000, while 1000 wait", kind: ours, to: "FanOut_Floor"},
	}},
	{title: "Polling, by batch size", cases: []benchmark{
		{name: "Shape_PollingBatch/1", title: "1", kind: ours, to: cheapest},
		{name: "Shape_PollingBatch/10", title: "10", kind: ours, to: cheapest},
		{name: "Shape_PollingBatch/100", title: "100", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_PollingBatch/1000", title: "1,000", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_PollingBatch/10000", title: "10,000", kind: ours, to: cheapest, goal: atMost(2)},
	}},
	{title: "Polling, by workers", cases: []benchmark{
		{name: "Shape_PollingWorkers/1", title: "1", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_PollingWorkers/4", title: "4", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_PollingWorkers/16", title: "16", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_PollingWorkers/64", title: "64", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_PollingWorkers/256", title: "256", kind: ours, to: cheapest, goal: atMost(2)},
	}},
	{title: "Batch handed out by an atomic index, by goroutines", cases: []benchmark{
		{name: "Shape_HandOut/1", title: "1", kind: floor, to: cheapest},
		{name: "Shape_HandOut/4", title: "4", kind: floor, to: cheapest},
		{name: "Shape_HandOut/16", title: "16", kind: floor, to: cheapest},
		{name: "Shape_HandOut/64", title: "64", kind: floor, to: cheapest},
		{name: "Shape_HandOut/256", title: "256", kind: floor, to: cheapest},
	}},
	{title: "Polling, by payload, records are pointers", cases: []benchmark{
		{name: "Shape_PollingPayload/64B", title: "64 B", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_PollingPayload/1024B", title: "1 KiB", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_PollingPayload/8192B", title: "8 KiB", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_PollingPayload/65536B", title: "64 KiB", kind: ours, to: cheapest, goal: atMost(2)},
	}},
	{title: "Streaming, by batch size", cases: []benchmark{
		{name: "Shape_StreamingBatch/1", title: "1", kind: ours, to: cheapest},
		{name: "Shape_StreamingBatch/10", title: "10", kind: ours, to: cheapest},
		{name: "Shape_StreamingBatch/100", title: "100", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_StreamingBatch/1000", title: "1,000", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_StreamingBatch/10000", title: "10,000", kind: ours, to: cheapest, goal: atMost(2)},
	}},
	{title: "Streaming, by workers", cases: []benchmark{
		{name: "Shape_StreamingWorkers/1", title: "1", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_StreamingWorkers/4", title: "4", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_StreamingWorkers/16", title: "16", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_StreamingWorkers/64", title: "64", kind: ours, to: cheapest, goal: atMost(2)},
		{name: "Shape_StreamingWorkers/256", title: "256", kind: ours, to: cheapest, goal: atMost(2)},
	}},
	{title: "Memory kept while a source is worked off, at most", unit: "kept-B", cases: []benchmark{
		{name: "Memory_Polling1M", title: "polling, 1 million records", kind: floor},
		{name: "Memory_Polling10M", title: "polling, 10 million records", kind: ours, to: "Memory_Polling1M", goal: atMost(2)},
		{name: "Memory_Streaming1M", title: "streaming, 1 million records", kind: floor},
		{name: "Memory_Streaming10M", title: "streaming, 10 million records", kind: ours, to: "Memory_Streaming1M", goal: atMost(2)},
	}},
	{title: "The same with the garbage that is not yet collected", unit: "peak-heap-B", cases: []benchmark{
		{name: "Memory_Polling10M", title: "polling, 10 million records", kind: ours},
		{name: "Memory_Streaming10M", title: "streaming, 10 million records", kind: ours},
	}},
	{title: "The same, all that the Go runtime has of the system", unit: "peak-resident-B", cases: []benchmark{
		{name: "Memory_Polling10M", title: "polling, 10 million records", kind: ours},
		{name: "Memory_Streaming10M", title: "streaming, 10 million records", kind: ours},
	}},
}
