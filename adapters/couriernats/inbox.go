package couriernats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// inbox is where the answers to the messages of one call arrive. It is a
// subscription of the call's own, which ends with it: nothing of a message that
// is never answered is left behind, and no goroutine stands between the
// connection and the one who waits.
type inbox struct {
	conn    *nats.Conn
	sub     *nats.Subscription
	prefix  string           // of the reply subjects, which end in the number of a message
	stream  string           // the only one whose acks count, where it is named
	answers chan *nats.Msg   // has room for several to each message that waits: others may answer too
	broken  chan nats.Status // the connection broke, and what was on its way with it
	usual   []byte           // how an ack begins, up to its number
	reply   []byte           // the prefix, and room for a number
	sending nats.Msg         // the last one, whose room is used again
}

func openInbox(conn *nats.Conn, waiting int, stream string) (*inbox, error) {
	in := &inbox{conn: conn, prefix: conn.NewInbox() + ".", stream: stream, answers: make(chan *nats.Msg, max(64, 4*waiting))}
	in.broken = conn.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	in.reply = append(make([]byte, 0, len(in.prefix)+20), in.prefix...)
	var err error
	if in.sub, err = conn.ChanSubscribe(in.prefix+"*", in.answers); err != nil {
		conn.RemoveStatusListener(in.broken)
		return nil, fmt.Errorf("couriernats: subscribing to the acks: %w", err)
	}
	return in, nil
}

func (in *inbox) close() {
	_ = in.sub.Unsubscribe() // fails where the connection is closed
	in.conn.RemoveStatusListener(in.broken)
}

// send publishes a message whose answer is to be known by a number.
func (in *inbox) send(m *nats.Msg, number int) error {
	reply := string(strconv.AppendInt(in.reply, int64(number), 10))
	in.sending = nats.Msg{Subject: m.Subject, Reply: reply, Header: m.Header, Data: m.Data}
	return in.conn.PublishMsg(&in.sending) // which keeps nothing of it
}

// answer is what JetStream says of a message.
type answer struct {
	number    int // the message
	duplicate bool
	err       error  // nil for an ack
	stream    string // another than is expected, which refuses the message with err
}

// read takes a message apart that came to the inbox. It is not an answer when
// somebody else sent it: any subscriber to the subject can reply, and may be
// faster than the stream.
func (in *inbox) read(m *nats.Msg) (a answer, ok bool) {
	number, err := strconv.Atoi(m.Subject[len(in.prefix):])
	if err != nil {
		return answer{number: -1}, false
	}
	a.number = number
	// The server fills the number into a template: to decode each ack would be a
	// sixth of what a message costs.
	begin, numbered := beforeNumber(m.Data)
	if numbered && bytes.Equal(begin, in.usual) {
		return a, true
	}
	var said struct {
		Error *jetstream.APIError `json:"error"`
		jetstream.PubAck
	}
	switch {
	case len(m.Data) == 0 && m.Header.Get("Status") == "503":
		a.err = jetstream.ErrNoStreamResponse
		return a, true
	case json.Unmarshal(m.Data, &said) != nil:
		return a, false
	case said.Error != nil:
		a.err = said.Error
		if in.stream != "" && said.Stream != "" && said.Stream != in.stream {
			a.stream = said.Stream
			return a, false
		}
		return a, said.Error.ErrorCode != 0
	case said.Stream == "" || said.Sequence == 0 || in.stream != "" && said.Stream != in.stream:
		return a, false
	}
	a.duplicate = said.Duplicate
	if numbered && !said.Duplicate {
		in.usual = begin
	}
	return a, true
}

// beforeNumber cuts off the number that an object ends with, if it does and the
// number is one that a message of a stream can have. Of two that are the same up to
// there, both are acks or none.
func beforeNumber(object []byte) (begin []byte, ok bool) {
	const most = 19 // digits, of which every number fits
	end := len(object) - 1
	if end < 0 || object[end] != '}' {
		return nil, false
	}
	first := end
	for first > 0 && '0' <= object[first-1] && object[first-1] <= '9' {
		first--
	}
	return object[:first], 0 < first && first < end && end-first <= most && object[first] != '0'
}
