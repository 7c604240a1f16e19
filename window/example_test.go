package window_test

import (
	"fmt"

	"github.com/erfanmomeniii/courier/window"
)

// Records of a partition, by offset. Those with the offsets 8 and 10 do not exist.
func ExampleWindow() {
	w := window.New(7) // the committed offset
	tickets := make(map[int]window.Ticket)
	for _, offset := range []int{7, 9, 11} {
		tickets[offset] = w.Add(offset + 1)
	}
	for _, offset := range []int{9, 7, 11} {
		w.Settle(tickets[offset])
		fmt.Println("settled", offset, "- read on from", w.Position())
	}
	// Output:
	// settled 9 - read on from 7
	// settled 7 - read on from 10
	// settled 11 - read on from 12
}

// Pages of an API, by token: a page is done when its last record is, and all before it.
func ExampleWindow_Add() {
	w := window.New("")
	first := []window.Ticket{w.Add(""), w.Add("page-2")}
	second := []window.Ticket{w.Add("page-2"), w.Add("page-3")}
	w.Settle(first[0])
	w.Settle(second[0])
	w.Settle(second[1])
	fmt.Printf("%q\n", w.Position())
	w.Settle(first[1])
	fmt.Printf("%q\n", w.Position())
	// Output:
	// ""
	// "page-3"
}
