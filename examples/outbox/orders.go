package main

import (
	"fmt"
	"iter"
	"strings"
)

// The topics of the outbox.
const (
	topicOrders = "orders"
	topicRows   = "rows"
)

// order is a row of the business table, and what its message says.
type order struct {
	name       string // the same whenever the order is made again, and no other's
	topic      string
	body       []byte // JSON
	rawHeaders string // for a row that is not written by the library
}

// generated makes up n orders. Poison ones are spread evenly among them.
func generated(n, poison int, maxPayload int64) iter.Seq2[order, error] {
	return func(yield func(order, error) bool) {
		spoilt := 0
		for i := 1; i <= n; i++ {
			o := order{
				name:  fmt.Sprintf("%07d", i),
				topic: topicOrders,
				body:  fmt.Appendf(nil, `{"order":%d,"customer":"C-%03d","cents":%d}`, i, i%500, 100+i*37%9900),
			}
			if spoilt < poison && i >= (spoilt+1)*n/(poison+1) {
				o.spoil(spoilt, i, maxPayload)
				spoilt++
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

// spoil makes an order one that cannot be delivered, in one of three ways that
// occur in practice.
func (o *order) spoil(way, number int, maxPayload int64) {
	switch way % 3 {
	case 0: // a row that cannot be decoded
		o.rawHeaders = "tenant=acme"
	case 1: // a message larger than the server takes
		o.body = fmt.Appendf(nil, `{"order":%d,"note":"%s"}`, number, strings.Repeat("x", int(maxPayload)))
	case 2: // a topic that nobody has said where to send
		o.topic = "refunds"
	}
}
