package courierttest_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

func ExampleParse() {
	faults, err := courierttest.Parse(`
		error if during 10s..1m30s and not record "vip"
		delay 50ms if chance 0.1 seed 7
		permanent if record "poison"
	`)
	fmt.Println(err)
	for _, fault := range faults {
		fmt.Println(fault)
	}
	_, err = courierttest.Parse("error when call 1")
	fmt.Println(err)
	// Output:
	// <nil>
	// error if during 10s..1m30s and not record "vip"
	// delay 50ms if chance 0.1 seed 7
	// permanent if record "poison"
	// courierttest: faults "error when call 1", at "when call 1": "when" is not expected here
}

func ExampleFaults() {
	faults := courierttest.Faults{
		{Effect: courierttest.Delay(2 * time.Second), When: courierttest.Every(10)},
		{Effect: courierttest.Error, When: courierttest.And(courierttest.Attempts(1, 2), courierttest.Not(courierttest.OnRecord("vip")))},
	}
	fmt.Println(faults)
	// Output: delay 2s if every 10; error if attempt 1..2 and not record "vip"
}

func ExampleScript() {
	var records courierttest.Recorder[string]
	shop := records.Applier(courierttest.Script(courierttest.Error, courierttest.OK, courierttest.RetryAfter(time.Minute), courierttest.Skip))
	for range 5 {
		err := shop.Apply(context.Background(), "a")
		fmt.Println(err != nil && errors.Is(err, courierttest.ErrInjected), err)
	}
	// Output:
	// true injected fault: error for record "a" at call 1
	// false <nil>
	// true injected fault: retry-after 1m0s for record "a" at call 3
	// true skipped: injected fault: skip for record "a" at call 4
	// false <nil>
}

// An outage that the test begins and ends.
func ExampleInjector() {
	var records courierttest.Recorder[string]
	shop := records.Applier(nil)
	ctx := context.Background()

	shop.Faults.Set(courierttest.Fault{Effect: courierttest.Error})
	fmt.Println(courier.Classify(ctx, shop.Apply(ctx, "a")))
	shop.Faults.Set(courierttest.Fault{Effect: courierttest.Permanent})
	fmt.Println(courier.Classify(ctx, shop.Apply(ctx, "a")))
	shop.Faults.Set()
	fmt.Println(shop.Apply(ctx, "a"), shop.Faults.Calls())
	// Output:
	// retryable
	// permanent
	// <nil> 3
}
