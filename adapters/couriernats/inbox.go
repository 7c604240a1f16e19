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
	answers chan *nats.Msg   // has room for one to each message that waits, and as many late ones
	broken  chan nats.Status // the connection broke, and what was on its way with it
	usual   []byte           // how an ack begins, up to its number
}

func openInbox(conn *nats.Conn, waiting int) (*inbox, error) {
	in := &inbox{conn: conn, prefix: conn.NewInbox() + ".", answers: make(chan *nats.Msg, 2*waiting)}
	in.broken = conn.StatusChanged(nats.RECONNECTING, nats.CLOSED)
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
	return in.conn.PublishMsg(&nats.Msg{
		Subject: m.Subject,
		Reply:   in.prefix + strconv.Itoa(number),
		Header:  m.Header,
		Data:    m.Data,
	})
}

// read returns which message is answered, and the error that the answer is, nil
// for an ack.
func (in *inbox) read(m *nats.Msg) (number int, duplicate bool, err error) {
	number, err = strconv.Atoi(m.Subject[len(in.prefix):])
	if err != nil {
		return -1, false, nil
	}
	// The server fills the number into a template: to decode each ack would be a
	// sixth of what a message costs.
	begin, numbered := beforeNumber(m.Data)
	if numbered && bytes.Equal(begin, in.usual) {
		return number, false, nil
	}
	var answer struct {
		Error *jetstream.APIError `json:"error"`
		jetstream.PubAck
	}
	switch {
	case len(m.Data) == 0 && m.Header.Get("Status") == "503":
		return number, false, jetstream.ErrNoStreamResponse
	case json.Unmarshal(m.Data, &answer) != nil:
		return number, false, jetstream.ErrInvalidJSAck
	case answer.Error != nil:
		return number, false, answer.Error
	case answer.Stream == "":
		return number, false, jetstream.ErrInvalidJSAck
	}
	if numbered && !answer.Duplicate {
		in.usual = begin
	}
	return number, answer.Duplicate, nil
}

// beforeNumber cuts off the number that an object ends with, if it does. Of two
// that are the same up to there, both are acks or none.
func beforeNumber(object []byte) (begin []byte, ok bool) {
	open, closed := bytes.CutSuffix(object, []byte("}"))
	begin = bytes.TrimRight(open, "0123456789")
	return begin, closed && 0 < len(begin) && len(begin) < len(open)
}
