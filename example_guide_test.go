package courier_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/erfanmomeniii/courier"
)

// job is a row of a table that several processes work on.
type job struct {
	ID       int
	owner    string
	until    time.Time // of the lease
	notUntil time.Time // when it may be tried again
	done     bool
}

// jobs is a source that leases its rows. In a database each method is one statement.
type jobs struct {
	mu    sync.Mutex
	rows  []*job
	owner string
	lease time.Duration
}

func (s *jobs) each(jobs []job, do func(row *job)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range jobs {
		for _, row := range s.rows {
			if row.ID == j.ID && row.owner == s.owner { // a lost lease is passed over
				do(row)
			}
		}
	}
}

// Fetch leases at most limit rows that are free.
func (s *jobs) Fetch(_ context.Context, limit int) (fetched []job, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, row := range s.rows {
		if len(fetched) < limit && !row.done && now.After(row.until) && now.After(row.notUntil) {
			row.owner, row.until = s.owner, now.Add(s.lease)
			fetched = append(fetched, *row)
		}
	}
	return fetched, nil
}

// Mark notes that rows are done.
func (s *jobs) Mark(_ context.Context, jobs []job) error {
	s.each(jobs, func(row *job) { row.done = true })
	return nil
}

// Release gives rows back that were not settled. They may be fetched again after a
// while.
func (s *jobs) Release(_ context.Context, jobs []job, after time.Duration) error {
	s.each(jobs, func(row *job) { row.owner, row.until, row.notUntil = "", time.Time{}, time.Now().Add(after) })
	return nil
}

// RenewEvery and Renew extend the leases of rows that are still being worked on.
func (s *jobs) RenewEvery() time.Duration { return s.lease / 3 }

func (s *jobs) Renew(_ context.Context, jobs []job) error {
	renewed := make(map[int]bool)
	s.each(jobs, func(row *job) { row.until, renewed[row.ID] = time.Now().Add(s.lease), true })
	var lost courier.BatchError
	for i, j := range jobs {
		if !renewed[j.ID] {
			lost.Add(i, fmt.Errorf("job %d is leased to another process", j.ID))
		}
	}
	return lost.ErrorOrNil()
}

// Identity names a row, so that it is known again when it is fetched a second time.
func (s *jobs) Identity(j job) string { return fmt.Sprint("job ", j.ID) }

// A source that leases its records, renews the leases and takes records back.
func ExampleSource() {
	table := &jobs{owner: "worker 1", lease: time.Minute}
	for id := range 3 {
		table.rows = append(table.rows, &job{ID: id})
	}
	process := courier.ProcessFunc(func(_ context.Context, j job) error {
		if j.ID == 1 {
			return fmt.Errorf("job %d: the printer is on fire", j.ID)
		}
		return nil
	})
	coordinator := courier.NewPollingCoordinator(table, process, quiet)
	fmt.Println(coordinator.RunOnce(context.Background()))
	for _, row := range table.rows {
		fmt.Printf("%d %t %q\n", row.ID, row.done, row.owner)
	}
	// Output:
	// courier: 1 of the batch's records failed: index 1: job 1: the printer is on fire
	// 0 true "worker 1"
	// 1 false ""
	// 2 true "worker 1"
}

// A readiness probe that says why the service is not ready.
func ExamplePollingCoordinator_Ready() {
	coordinator := courier.Sync(noOrders, shipNothing, markNothing, quiet)
	ready := func(w http.ResponseWriter, _ *http.Request) {
		err := coordinator.Ready()
		if err != nil && !errors.Is(err, courier.ErrOpen) { // an outage holds up no rollout
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}

	answer := httptest.NewRecorder()
	ready(answer, nil)
	fmt.Print(answer.Code, " ", answer.Body)
	// Output: 503 courier: the coordinator is not running
}

// Pause stops the intake during a maintenance window. What is in work is finished.
func ExamplePollingCoordinator_Pause() {
	fetched := make(chan struct{}, 100)
	fetch := func(context.Context) ([]string, error) {
		fetched <- struct{}{}
		return nil, nil
	}
	coordinator := courier.Sync(fetch, shipNothing, markNothing, quiet)
	ended := make(chan error)
	go func() { ended <- coordinator.Start(context.Background()) }()

	<-fetched
	coordinator.Pause()
	fmt.Println(coordinator.Ready())
	coordinator.Resume() // fetches at once
	<-fetched
	fmt.Println(coordinator.Ready())
	_ = coordinator.Stop(context.Background())
	fmt.Println(<-ended)
	// Output:
	// courier: the coordinator is paused, until Resume is called
	// <nil>
	// <nil>
}

// Wake ends the wait between two polls. Here a goroutine listens to a channel, as one
// would listen to PostgreSQL's NOTIFY.
func ExamplePollingCoordinator_Wake() {
	var mu sync.Mutex
	var table []string
	notifications := make(chan string)
	shipped := make(chan string)
	fetch := func(context.Context) ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(table), nil
	}
	ship := func(_ context.Context, order string) error {
		shipped <- order
		return nil
	}
	mark := func(_ context.Context, done []string) error {
		mu.Lock()
		defer mu.Unlock()
		table = slices.DeleteFunc(table, func(o string) bool { return slices.Contains(done, o) })
		return nil
	}
	coordinator := courier.Sync(fetch, ship, mark, courier.WithInterval(time.Hour), quiet)
	go func() {
		for range notifications { // a LISTEN loop
			coordinator.Wake()
		}
	}()
	ended := make(chan error)
	go func() { ended <- coordinator.Start(context.Background()) }()

	mu.Lock()
	table = append(table, "order 1")
	mu.Unlock()
	notifications <- "orders"
	fmt.Println(<-shipped)
	close(notifications)
	_ = coordinator.Stop(context.Background())
	fmt.Println(<-ended)
	// Output:
	// order 1
	// <nil>
}

// WithPrefetch fetches the next batches while one is being processed.
func ExampleWithPrefetch() {
	table := &jobs{owner: "worker 1", lease: time.Minute}
	for id := range 100 {
		table.rows = append(table.rows, &job{ID: id})
	}
	done := make(chan struct{})
	processed := 0
	process := courier.ProcessFunc(func(context.Context, job) error {
		if processed++; processed == 100 {
			close(done)
		}
		return nil
	})
	coordinator := courier.NewPollingCoordinator(table, process, courier.WithBatchSize(10), courier.WithPrefetch(2), quiet)
	ended := make(chan error)
	go func() { ended <- coordinator.Start(context.Background()) }()
	<-done
	_ = coordinator.Stop(context.Background())
	fmt.Println(<-ended, processed)
	// Output: <nil> 100
}

func noOrders(context.Context) ([]string, error)  { return nil, nil }
func shipNothing(context.Context, string) error   { return nil }
func markNothing(context.Context, []string) error { return nil }

// Retries, a circuit breaker and a dead letter queue around one function.
func Example_resilient() {
	ctx, stop := context.WithCancel(context.Background())
	ship := func(_ context.Context, order string) error {
		if order == "order 2" {
			return courier.Permanent(errors.New("no such address"))
		}
		fmt.Println("shipped", order)
		return nil
	}
	source := courier.BatchSourceFunc[string]{
		FetchFunc: func(context.Context) ([]string, error) { return []string{"order 1", "order 2"}, nil },
		MarkFunc:  func(context.Context, []string) error { stop(); return nil },
	}

	applier, dlq := courier.ResilientApplier(courier.ProcessFunc(ship), &courier.ResilientConfig[string]{
		AttemptTimeout: 10 * time.Second, // of one call of ship
		Retry:          courier.RetryPolicy{MaxAttempts: 10},
	})
	coordinator := courier.NewPollingCoordinator(source, applier, courier.WithWorkers(8))
	if err := coordinator.Start(ctx); err != nil { // runs until ctx ends
		log.Fatal(err)
	}

	letters, err := dlq.Receive(context.Background(), 100) // the parked records
	if err != nil {
		log.Fatal(err)
	}
	for _, letter := range letters {
		fmt.Println(letter.Record, letter.Error)
	}
	// Output:
	// shipped order 1
	// order 2 courier: gave up after 1 attempt (permanent): no such address
}

// A service that a signal stops; examples/service is one to run.
func Example_service() {
	fetch, process, mark := noOrders, shipNothing, markNothing

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	coordinator := courier.SyncWithRetry(fetch, process, mark, 5, courier.WithDrainTimeout(20*time.Second))
	if err := coordinator.Start(ctx); err != nil { // nil after a stop that left nothing unmarked
		log.Fatal(err)
	}
}
