package courier_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/erfanmomeniii/courier"
)

func ExampleNewFanOutApplier() {
	to := func(name string) courier.Applier[int] {
		return courier.ProcessFunc(func(_ context.Context, n int) error {
			if name == "search" {
				return errors.New("index is read-only")
			}
			return nil
		})
	}
	err := courier.NewFanOutApplier(to("broker"), to("search"), to("metrics")).Apply(context.Background(), 1)
	fmt.Println(err)
	// Output: courier: 1 of the fan-out's branches failed: branch 1: index is read-only
}

func ExampleNewFanOutFromConfig() {
	searchIsUp := false
	to := func(name string) courier.Applier[int] {
		return courier.ProcessFunc(func(_ context.Context, n int) error {
			if name == "search" && !searchIsUp {
				return errors.New("index is read-only")
			}
			fmt.Println(name, "has", n)
			return nil
		})
	}
	applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{
		Branches: []courier.Branch[int]{
			{Name: "broker", Applier: to("broker")},
			{Name: "search", Applier: to("search")},
		},
		Identity: strconv.Itoa, // knows a record again
	})
	ctx := context.Background()
	fmt.Println(applier.Apply(ctx, 7))
	searchIsUp = true
	fmt.Println(applier.Apply(ctx, 7)) // delivered again: only search lacks it
	// Output:
	// broker has 7
	// courier: 1 of the fan-out's branches failed: branch search: index is read-only
	// search has 7
	// <nil>
}

func ExampleBranch() {
	ok := courier.ProcessFunc(func(context.Context, string) error { return nil })
	down := courier.ProcessFunc(func(context.Context, string) error { return errors.New("connection refused") })
	applier := courier.NewFanOutFromConfig(courier.FanOutConfig[string]{
		Branches: []courier.Branch[string]{
			{Name: "ledger", Applier: ok},
			{Name: "metrics", Applier: down, Optional: true},
		},
		OnBranchFailure: func(_ context.Context, record, branch string, err error) {
			fmt.Printf("%s goes without %s: %v\n", branch, record, err)
		},
	})
	fmt.Println(applier.Apply(context.Background(), "order 7"))
	// Output:
	// metrics goes without order 7: connection refused
	// <nil>
}

func ExampleFanOutConfig_quorum() {
	replica := func(err error) courier.Applier[int] {
		return courier.ProcessFunc(func(context.Context, int) error { return err })
	}
	applier := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{
		Branches: []courier.Branch[int]{
			{Name: "a", Applier: replica(nil)},
			{Name: "b", Applier: replica(errors.New("disk full"))},
			{Name: "c", Applier: replica(nil)},
		},
		Quorum: 2,
		OnBranchFailure: func(_ context.Context, record int, branch string, err error) {
			fmt.Printf("to repair: record %d at %s: %v\n", record, branch, err)
		},
	})
	fmt.Println(applier.Apply(context.Background(), 1))
	// Output:
	// to repair: record 1 at b: disk full
	// <nil>
}
