package couriernats_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

func ExampleNewSink() {
	url, stop := localServer()
	defer stop()
	conn, err := nats.Connect(url, couriernats.ConnOptions()...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	if err != nil {
		log.Fatal(err)
	}

	type row struct {
		ID, Topic string
		Payload   []byte
		Headers   map[string]string
	}
	sink := couriernats.NewSink(js, func(r row) (*nats.Msg, error) {
		return couriernats.NewMsg(r.Topic, r.ID, r.Payload, r.Headers)
	})
	defer sink.Close()
	applier := courier.WithRetry[row](sink)

	placed := row{ID: "42", Topic: "orders.placed", Payload: []byte(`{"total":7}`), Headers: map[string]string{"Tenant": "acme"}}
	for range 2 { // the second delivery is told apart by its id
		if err := applier.Apply(ctx, placed); err != nil {
			log.Fatal(err)
		}
	}

	m, err := stream.GetMsg(ctx, 1)
	if err != nil {
		log.Fatal(err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(m.Subject, couriernats.RecordID(m.Header), string(m.Data), m.Header.Get("Tenant"))
	fmt.Println("stored:", info.State.Msgs, "repeated:", sink.Duplicates())
	// Output:
	// orders.placed 42 {"total":7} acme
	// stored: 1 repeated: 1
}

// A sink whose credentials are read anew whenever the client has closed its
// connection for good.
func ExampleWithConnect() {
	url, stop := localServer()
	defer stop()
	connect := func(context.Context) (*nats.Conn, error) {
		return nats.Connect(url, append(couriernats.ConnOptions(), nats.Token(os.Getenv("NATS_TOKEN")))...)
	}
	conn, err := connect(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		log.Fatal(err)
	}
	sink := couriernats.NewSink(js, func(id string) (*nats.Msg, error) {
		return couriernats.NewMsg("orders.placed", id, nil)
	}, couriernats.WithConnect(connect))
	defer sink.Close() // closes a connection that connect made for it

	fmt.Println(sink.Validate())
	conn.Close() // by the program: that is no reason to connect again
	fmt.Println(errors.Is(sink.Apply(context.Background(), "42"), couriernats.ErrClosed))
	// Output:
	// <nil>
	// true
}

// localServer starts a server in this process.
func localServer() (url string, stop func()) {
	dir, err := os.MkdirTemp("", "couriernats")
	if err != nil {
		log.Fatal(err)
	}
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		log.Fatal("the server did not start")
	}
	return s.ClientURL(), func() {
		s.Shutdown()
		s.WaitForShutdown()
		os.RemoveAll(dir)
	}
}
