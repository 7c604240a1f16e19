package courier_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/erfanmomeniii/courier"
)

func ExampleWithDLQ() {
	applier, dlq := courier.WithDLQ(courier.ProcessFunc(func(_ context.Context, s string) error {
		_, err := strconv.Atoi(s)
		return err
	}))
	ctx := context.Background()
	_ = applier.Apply(ctx, "12")
	_ = applier.Apply(ctx, "twelve")

	parked, _ := dlq.Receive(ctx, 100) // they stay until they are deleted
	for _, letter := range parked {
		fmt.Printf("record %v failed: %v\n", letter.Record, letter.Error)
		_ = dlq.Delete(ctx, letter.ID)
	}
	// Output: record twelve failed: strconv.Atoi: parsing "twelve": invalid syntax
}

// Once what was wrong is mended, the parked records are applied again. Those
// that fail once more stay.
func ExampleRedrive() {
	mended := false
	ship := courier.ProcessFunc(func(_ context.Context, order int) error {
		if order < 0 || !mended {
			return courier.Permanent(fmt.Errorf("order %d is refused", order))
		}
		return nil
	})
	applier, dlq := courier.WithDLQ(ship)
	ctx := context.Background()
	for _, order := range []int{1, -2, 3} {
		_ = applier.Apply(ctx, order)
	}

	mended = true
	result, err := courier.Redrive(ctx, dlq, ship, nil) // ship, not applier: that parks
	fmt.Println(result.Succeeded, result.Failed, err)
	for letter, err := range courier.Letters(ctx, dlq) {
		fmt.Println(letter.Record, letter.FailedRedrives, letter.Error, err)
	}
	// Output:
	// 2 1 <nil>
	// -2 1 order -2 is refused <nil>
}

// Branches of a fan-out share a queue. Each owes the record to its destination,
// and gets its own letters back.
func ExampleDLQPolicy_branch() {
	dlq := &courier.MemoryDLQ[int]{Identity: strconv.Itoa}
	down := errors.New("410 Gone")
	deliver := func(branch string) courier.Applier[int] {
		return courier.ProcessFunc(func(_ context.Context, order int) error {
			if down != nil {
				return courier.Permanent(down)
			}
			fmt.Println(branch, "has", order)
			return nil
		})
	}
	var branches []courier.Branch[int]
	for _, name := range []string{"mail", "search"} {
		parking := courier.DLQPolicy[int]{Branch: name}
		branches = append(branches, courier.Branch[int]{Name: name, Applier: courier.NewDLQApplier(deliver(name), courier.DLQ[int](dlq), parking)})
	}
	ctx := context.Background()
	err := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: branches}).Apply(ctx, 7)
	parked, _ := dlq.Count(ctx)
	fmt.Println(parked, "letters,", err)

	down = nil
	ofSearch := func(l courier.DeadLetter[int]) bool { return l.Branch == "search" }
	_, err = courier.Redrive(ctx, courier.DLQ[int](dlq), deliver("search"), &courier.RedriveConfig[int]{Match: ofSearch})
	parked, _ = dlq.Count(ctx)
	fmt.Println(parked, "letter,", err)
	// Output:
	// 2 letters, <nil>
	// search has 7
	// 1 letter, <nil>
}

// Letters walks through a queue of any size, and may delete as it goes.
func ExampleLetters() {
	applier, dlq := courier.WithDLQ(courier.ProcessFunc(func(_ context.Context, n int) error {
		return fmt.Errorf("%d does not fit", n)
	}))
	ctx := context.Background()
	for n := range 10 {
		_ = applier.Apply(ctx, n)
	}
	for letter, err := range courier.Letters(ctx, dlq) {
		if err != nil {
			break // the queue failed, or ctx ended
		}
		if letter.Record < 7 {
			_ = dlq.Delete(ctx, letter.ID)
		}
	}
	fmt.Println(dlq.Count(ctx))
	// Output: 3 <nil>
}

// Later orders of a customer wait behind one that failed, for their order to be
// kept, and are redriven after it.
func ExampleDLQPolicy() {
	type order struct{ customer, item string }
	ship := courier.ProcessFunc(func(_ context.Context, o order) error {
		if o.item == "anvil" {
			return errors.New("too heavy")
		}
		fmt.Println("shipped", o)
		return nil
	})
	queue := &courier.MemoryDLQ[order]{}
	applier := courier.NewDLQApplier(ship, courier.DLQ[order](queue), courier.DLQPolicy[order]{
		Key: func(o order) string { return o.customer },
		OnPark: func(_ context.Context, letter courier.DeadLetter[order]) {
			fmt.Println("parked", letter.Record, "as", letter.Reason)
		},
	})
	for _, o := range []order{{"ann", "anvil"}, {"bob", "book"}, {"ann", "apple"}} {
		_ = applier.Apply(context.Background(), o)
	}
	// Output:
	// parked {ann anvil} as exhausted
	// shipped {bob book}
	// parked {ann apple} as key parked
}
