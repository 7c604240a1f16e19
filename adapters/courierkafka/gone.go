package courierkafka

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// missed reports whether an assignment whose topic the brokers do not know is no longer one. A
// broker may not have heard yet of a topic that was just made, so they have to say it for a while.
func (g *group) missed(client *kgo.Client, a *assignment) bool {
	const patience = 5 * time.Second
	if !a.gone && time.Since(a.missing) >= patience {
		g.dropTopic(client, a.topic)
	}
	return a.gone
}

// dropTopic lets go of a topic that was deleted, so that the others go on, and tells of it.
func (g *group) dropTopic(client *kgo.Client, topic string) {
	for p, a := range g.partitions {
		if p.topic == topic {
			g.fence(client, a)
		}
	}
	g.tell(&goneError{topic})
	// The client takes no other topic of that name for it unless it has forgotten it. That may
	// wait for brokers, and for callbacks.
	go func() {
		client.PurgeTopicsFromConsuming(topic)
		client.AddConsumeTopics(topic)
	}()
}
