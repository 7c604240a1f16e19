package couriernats

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// NewMsg makes the message of an outbox row. The id is the row's own: unique
// among all that go to the subject, and the same at each attempt. The message id
// by which the server recognises a second delivery is made of the subject and the
// id, because a stream looks for it among the messages of all its subjects: a row
// that a fan-out sends to two of them is two messages. [RecordID] is how a consumer
// gets the id back. The header maps are carried over, a key in a later one
// replacing the same key in an earlier one; white space around a value is lost on
// the way. The payload is not copied.
//
// It is an error, and so a permanent one of the record, when
//   - the id is empty or has white space around it, which would be lost and
//     make two ids the same;
//   - a key is not one that HTTP would take for the name of a header;
//   - a value, or the id, holds a line break, which would start a new header;
//   - a key begins with "Nats-", in any case: those are instructions to the
//     server, such as to purge the subject, and not for a row's data to give;
//   - the key is "KV-Operation", which deletes a key of a bucket;
//   - the key is "Status" and the payload is empty, which consumers take for
//     a word of the server.
//
// Make the [nats.Msg] by hand where such a header is wanted.
func NewMsg(subject, id string, payload []byte, headers ...map[string]string) (*nats.Msg, error) {
	if err := validID(id); err != nil {
		return nil, fmt.Errorf("message id %q for %q: %w", clip(id), clip(subject), err)
	}
	made := &struct { // at once, with the one value that most messages have
		nats.Msg
		id [1]string
	}{nats.Msg{Subject: subject, Data: payload}, [1]string{subject + " " + id}}
	m := &made.Msg
	m.Header = nats.Header{jetstream.MsgIDHeader: made.id[:]}
	for _, carried := range headers {
		for key, value := range carried {
			if err := validHeader(key, value, payload); err != nil {
				return nil, fmt.Errorf("header %q for %q (message id %q): %w", clip(key), clip(subject), clip(id), err)
			}
			m.Header.Set(key, value)
		}
	}
	return m, nil
}

// RecordID returns the id that [NewMsg] was given, from the header of the message
// that it made: what follows the first space of the message id. A message id that
// holds none is returned as it is, and "" where there is none.
func RecordID(header nats.Header) string {
	id := header.Get(jetstream.MsgIDHeader)
	if _, own, ok := strings.Cut(id, " "); ok { // no subject holds a space
		return own
	}
	return id
}

var errLineBreak = errors.New("the value holds a line break")

func breaksLine(s string) bool {
	return strings.IndexByte(s, '\n') >= 0 || strings.IndexByte(s, '\r') >= 0
}

func validID(id string) error {
	switch {
	case id == "":
		return errors.New("it is empty, so that the server could not tell a second delivery")
	case strings.TrimSpace(id) != id:
		return errors.New("it has white space around it, which would be lost")
	case breaksLine(id):
		return errLineBreak
	}
	return nil
}

func validHeader(key, value string, payload []byte) error {
	const reserved = "Nats-"
	switch {
	case key == "" || strings.ContainsFunc(key, unfitForKey):
		return errors.New("the key may hold letters, digits and !#$%&'*+-.^_`|~ only")
	case len(key) >= len(reserved) && strings.EqualFold(key[:len(reserved)], reserved):
		return errors.New("keys that begin with Nats- are instructions to the server")
	case strings.EqualFold(key, "KV-Operation"):
		return errors.New("it is an instruction to the readers of a bucket")
	case key == "Status" && len(payload) == 0:
		return errors.New("with an empty payload, consumers take a Status for one of the server's")
	case breaksLine(value):
		return errLineBreak
	}
	return nil
}

func unfitForKey(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune(`"()/,:;<=>?@[\]{}`, r)
}

// maxSubject keeps the line of protocol that a subject is part of below the 4,096
// bytes that servers take by default, with room for what consumers and other
// clients add to it. A longer line is not refused: the server ends the connection.
const maxSubject = 2000

// validSubject is stricter than the client, which looks for white space only:
// the server would take an empty token or a wildcard for part of a name that
// no consumer can ask for.
func validSubject(subject string) error {
	switch {
	case subject == "":
		return badSubject("it is empty")
	case len(subject) > maxSubject:
		return badSubject(fmt.Sprintf("it has %d bytes, and %d are the most", len(subject), maxSubject))
	case !utf8.ValidString(subject):
		return badSubject("it is not valid UTF-8")
	case strings.ContainsFunc(subject, unfitForSubject):
		return badSubject("it holds white space or a control character")
	}
	for token := range strings.SplitSeq(subject, ".") {
		switch token {
		case "":
			return badSubject("a token between its dots is empty")
		case "*", ">":
			return badSubject("it holds a wildcard")
		}
	}
	return nil
}

// reserved reports whether a subject begins with a name that the servers or the
// client keep for themselves: a message to it is an order, or somebody's answer.
func (c *config) reserved(subject string) bool {
	first, _, _ := strings.Cut(subject, ".")
	switch {
	case strings.HasPrefix(first, "$"), first == "_INBOX", first == "_R_", first == "_GR_", within(subject, c.inboxes):
		return !slices.ContainsFunc(c.allowed, func(prefix string) bool { return within(subject, prefix) })
	}
	return false
}

// within reports whether a subject begins with the tokens of a prefix.
func within(subject, prefix string) bool {
	rest, ok := strings.CutPrefix(subject, prefix)
	return ok && prefix != "" && (rest == "" || rest[0] == '.')
}

func unfitForSubject(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }

func badSubject(problem string) error { return fmt.Errorf("%w: %s", nats.ErrBadSubject, problem) }

// maxHeader is the most that a stream stores of a message's header.
const maxHeader = 1<<16 - 1

// validHeaders looks at what NewMsg need not have made, and returns how many bytes it
// has on its way, at most. The client would turn a line break into spaces, which is
// to change the data, and the server would refuse a large header only once it has it.
func validHeaders(header nats.Header) (size int, err error) {
	if len(header) == 0 {
		return 0, nil
	}
	size = len("NATS/1.0\r\n\r\n")
	for key, values := range header {
		for _, value := range values {
			if breaksLine(value) {
				return 0, fmt.Errorf("header %q: %w", clip(key), errLineBreak)
			}
			size += len(key) + len(": \r\n") + len(value)
		}
	}
	if size > maxHeader {
		return 0, fmt.Errorf("%w: it has %d bytes, and a stream takes %d", errHeaderTooLarge, size, maxHeader)
	}
	return size, nil
}
