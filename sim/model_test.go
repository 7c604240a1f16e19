package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
)

// shape is the source that a coordinator reads, and which coordinator that is.
type shape int

const (
	rereading shape = iota // polling: hands out what is not marked
	pruning                // likewise, and deletes what is marked
	limitless              // likewise, all at once
	leasing                // polling, with leases
	broker                 // streaming: hands out once until it is given back
	journal                // streaming: keeps a position, and takes nothing back
	channel                // streaming: a channel, into which each process gets what is not marked
)

var shapeNames = []string{"rereading", "pruning", "limitless", "leasing", "broker", "journal", "channel"}

// stack is the decorators around the destination.
type stack int

const (
	plain stack = iota
	retrying
	resilient // DLQ(Retry(Breaker))
	unbroken  // DLQ(Retry)
)

// settings are what the seed has drawn of the pipeline and its surroundings.
type settings struct {
	Source                     string
	shape                      shape
	Form                       string
	form                       form
	Named                      bool // the source tells what a record is called
	Records, Batch             int
	Workers, Portion, Prefetch int
	Keys                       int  // 0 asks for no order
	Blind                      bool // the source knows nothing of them, and hands out what is free
	Batches                    bool
	InOrder                    bool // they keep the order inside a call
	EndsCall                   bool // and end the call at the first that fails
	Beyond                     bool // fetches that lease return more than the limit
	Stack                      stack
	ByHand                     bool // the resilient stack is put together from its parts
	Hands                      int  // of an operator on its breaker
	Hosts                      int  // with a breaker of its own for each; 0 is one for all
	Attempts, Threshold        int
	Successes, Probes          int
	Rate                       float64
	OpenFor, MaxOpenFor        time.Duration
	Timeout                    time.Duration
	RetryDelay, ProbeTimeout   time.Duration // 0 is the default
	Budget                     bool          // of the retries of the first branch, a small one
	FanOut                     int           // 0 none, 1 with a branch that never fails, 2 with one that does, 3 and identities, 4 with one that parks
	Optional                   int           // 0 none, 1 a further branch that asks for each record later, 2 one that fails with a breaker for each key
	Remembers                  bool          // which branches have a record
	Shared                     bool          // the branches park in one queue
	Memory                     bool
	Capacity                   int
	KeyedQueue, Redriving      bool
	Ordered, Failing, Renewing bool
	Waking, Fixed, Yield       bool
	Busy                       bool          // a destination may ask for another time
	Watched                    bool          // what the coordinator tells is compared with what it does
	Pauses                     int           // by an operator
	Cron                       time.Duration // between one run and the next; 0 is a coordinator that goes on
	Fresh                      bool          // each run is another process
	Doomed                     bool          // there is poison in what the runs fetch
	Instances                  int
	Twins                      bool // two coordinators share the stack
	Interval, Flush, Drain     time.Duration
	Stall                      time.Duration
	Lease                      time.Duration
	Poison, Stubborn, Skipped  []int
	Foreign                    int // the record that is for a misconfigured pipeline of the handler's own, -1 if none is
	poison, stubborn, skipped  map[int]bool
	mayStay                    map[int]bool // records that need not be settled in the end
	stuckKeys                  map[int]bool // keys with a poison record
	healthyOnly                bool         // nothing but outages and poison can make a record fail
}

func (s *settings) streaming() bool { return s.shape >= broker }
func (s *settings) parks() bool     { return s.Stack >= resilient }
func (s *settings) breaks() bool    { return s.Stack == resilient }
func (s *settings) forgets() bool   { return s.FanOut == 2 || s.FanOut == 4 && !s.Remembers }

// draw draws the settings; fixed overrides some of them.
func draw(w *World, fixed func(s *settings)) settings {
	maybe := func(what string, p float64) bool { return w.Draw(what) < p }
	s := settings{
		shape:   []shape{rereading, pruning, limitless, leasing, leasing, broker, broker, journal}[w.Pick("shape", 8)],
		Records: 1 + w.Pick("records", 60), Batch: 1 + w.Pick("batch", 20), Workers: 1,
		Prefetch: -1, Batches: maybe("batches", 0.4), Stack: []stack{plain, retrying, resilient, resilient}[w.Pick("stack", 4)], Attempts: 2 + w.Pick("attempts", 5),
		Successes: 1, Probes: 1, MaxOpenFor: time.Minute,
		Budget:       w.Pick("a retry has a budget", 4) == 1,
		RetryDelay:   []time.Duration{0, 0, 10 * time.Millisecond, time.Second}[w.Pick("retry delay", 4)],
		ProbeTimeout: []time.Duration{0, 0, time.Second}[w.Pick("probe timeout", 3)],
		Capacity:     1 + w.Pick("capacity", 10), Memory: maybe("memory", 0.3), Fixed: maybe("fixed", 0.2), Yield: maybe("yield", 0.6),
		Interval: []time.Duration{100 * time.Millisecond, time.Second, 5 * time.Second, 30 * time.Second}[w.Pick("interval", 4)],
		Flush:    []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, time.Second}[w.Pick("flush", 3)],
		Drain:    []time.Duration{100 * time.Millisecond, time.Second, 5 * time.Second}[w.Pick("drain", 3)],
		Stall:    []time.Duration{time.Second, 4 * time.Second, 30 * time.Second}[w.Pick("stall", 3)],
		Lease:    []time.Duration{2 * time.Second, 2 * time.Second, 20 * time.Second}[w.Pick("lease", 3)], Instances: 1,
		form: []form{orders, orders, orders, versions, documents, documents}[w.Pick("form", 6)], Named: maybe("named", 0.3),
	}
	if s.Stack == retrying && maybe("parking", 0.4) {
		s.Stack = unbroken
	}
	if maybe("hosted", 0.35) {
		s.Hosts = 2 + w.Pick("hosts", 5)
	}
	if s.ByHand = maybe("by hand", 0.3); s.ByHand && maybe("hands", 0.7) {
		s.Hands = 1 + w.Pick("how many hands", 5)
		s.Hosts *= w.Pick("breakers of hosts", 2) // at which there is no hand
	}
	if s.shape == journal && maybe("channel", 0.5) {
		s.shape = channel
	}
	if maybe("large", 0.15) {
		s.Batch, s.Records = 20+w.Pick("large batch", 80), 60+w.Pick("many records", 60)
	}
	// Shorter than calls take, so that some of them outlast an open period.
	s.OpenFor = []time.Duration{20 * time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second}[w.Pick("open for about", 4)]
	s.OpenFor += time.Duration(w.Draw("open for") * float64(s.OpenFor))
	if maybe("capped", 0.3) {
		s.MaxOpenFor = s.OpenFor * 3 / 2
	}
	if maybe("workers", 0.7) {
		s.Workers = 1 + w.Pick("how many workers", 8)
	}
	if maybe("keyed", 0.4) {
		s.Keys, s.Blind = 1+w.Pick("keys", 12), maybe("blind", 0.7)
	}
	if maybe("portioned", 0.5) {
		s.Portion = 1 + w.Pick("portion", s.Batch)
	}
	if maybe("fan-out", 0.3) {
		if s.FanOut = 1 + w.Pick("fan-out kind", 3); s.parks() && maybe("both park", 0.4) {
			s.FanOut = 4
		}
		s.Shared = maybe("shared queue", 0.6)
		if maybe("optional branch", 0.4) {
			s.Optional = 1 + w.Pick("optional kind", 2)
		}
		s.Remembers = s.FanOut == 3 || s.FanOut == 4 && maybe("remembers", 0.5)
	}
	if maybe("timeout", 0.3) {
		s.Timeout = time.Duration(float64([]time.Duration{25 * time.Millisecond, 100 * time.Millisecond, time.Second}[w.Pick("timeout length", 3)]) * max(1, w.pace))
	}
	if maybe("two", 0.3) {
		s.Instances = 2
	}
	if maybe("prefetched", 0.4) {
		s.Prefetch = w.Pick("prefetch", 4)
	}
	s.Beyond = maybe("beyond", 0.2)
	s.Waking, s.Ordered = maybe("waking", 0.3), maybe("ordered", 0.3)
	s.Failing, s.Renewing = maybe("failing", 0.45), maybe("renewing", 0.6)
	s.Threshold = 2 + w.Pick("threshold", s.Attempts-1)
	if !s.Batches { // of which each is one success, however many records come
		s.Successes += w.Pick("successes", 3)
		s.Probes += w.Pick("probes", 2)
	}
	if maybe("rated", 0.2) {
		s.Rate = 0.2 + 0.8*w.Draw("rate")
	}
	if maybe("cron", 0.15) {
		s.Doomed = maybe("cron poison", 0.5)
		s.Cron, s.Fresh = []time.Duration{time.Second, 15 * time.Second, time.Minute}[w.Pick("every", 3)], maybe("fresh", 0.5)
	}
	s.InOrder, s.EndsCall = maybe("in order", 0.8), maybe("ends the call", 0.5)
	s.KeyedQueue, s.Busy = maybe("keyed queue", 0.3), maybe("busy", 0.5)
	s.Watched = maybe("watched", 0.3)
	s.Redriving = maybe("redriving", 0.3)
	s.Twins = maybe("twins", 0.2)
	if maybe("paused", 0.3) {
		s.Pauses = 1 + w.Pick("pauses", 3)
	}
	for n := range s.Records {
		u := uniform(hash(w.seed, forSwarm, digest("nature"), uint64(n)))
		switch {
		case u < 0.05 && s.parks():
			s.Poison = append(s.Poison, n)
		case u < 0.03 && len(s.Stubborn) < s.Batch-1:
			s.Stubborn = append(s.Stubborn, n)
		case u > 0.98:
			s.Skipped = append(s.Skipped, n)
		}
	}
	if s.Foreign = -1; maybe("foreign", 0.15) {
		s.Foreign = w.Pick("which is foreign", s.Records)
	}
	if fixed != nil {
		fixed(&s)
	}
	s.agree()
	return s
}

// agree takes back what makes no sense together.
func (s *settings) agree() {
	if s.shape == leasing && s.Keys > 0 {
		s.Prefetch = -1
	}
	if s.streaming() {
		s.Cron = 0
	}
	if s.Fresh = s.Fresh && s.Cron > 0; s.Cron > 0 {
		// A run takes a batch, and some runs take nothing.
		s.Cron = min(s.Cron, 20*time.Minute/time.Duration(5*(s.Records/s.Batch+1)))
		s.Twins, s.Prefetch, s.Waking, s.Pauses = false, -1, false, 0
		// A run knows nothing of those before, so that what fills a batch hides the others;
		// and in a new process not even which record was the probe of the one before. Each
		// poison record may cost an open period of the breaker for each healthy one.
		slow := s.breaks() && (s.Fresh || s.Records*(len(s.Poison)+1) > 30)
		if !s.Doomed || slow || s.Keys > 0 || len(s.Poison)+len(s.Stubborn) >= s.Batch-1 {
			s.Poison = nil
		}
	}
	if s.FanOut == 4 && !s.parks() {
		s.FanOut = 2
	}
	s.Remembers = s.Remembers && s.FanOut > 2 || s.FanOut == 3
	s.Shared = s.Shared && s.FanOut == 4
	s.ByHand = s.ByHand && s.breaks()
	if !s.breaks() {
		s.Hosts = 0
	}
	if !s.ByHand || s.Hosts > 0 {
		s.Hands = 0
	}
	s.Yield = s.Yield || s.Hosts > 0 || s.Budget // of two records that begin at one instant, either may be the probe of a host, or have the last retry
	s.Source, s.Form = shapeNames[s.shape], formNames[s.form]
	if s.shape < leasing {
		s.Failing, s.Renewing, s.Prefetch = false, false, -1
	}
	if s.shape != leasing && s.shape != broker || s.Keys > 0 {
		s.Instances = 1
	}
	s.Twins = s.Twins && (s.shape == leasing || s.shape == broker) && s.Keys == 0 && s.Instances == 1
	s.Watched = s.Watched && !s.Twins // of which each would have to be told from the other
	if s.shape >= journal {
		s.Failing, s.Renewing = false, false
	}
	s.Ordered = s.Ordered || s.shape == journal
	s.Blind = s.Blind && s.shape == leasing
	s.InOrder = s.InOrder && s.Batches && s.Keys > 0
	s.EndsCall = s.EndsCall && s.InOrder
	s.Beyond = s.Beyond && (s.shape == leasing || s.shape == broker)
	s.Ordered = s.Ordered && s.streaming()
	s.Failing = s.Failing && s.Keys == 0
	s.Renewing = s.Renewing && (s.shape == leasing || s.shape == broker)
	s.Waking = s.Waking && !s.streaming()
	switch {
	case s.Renewing:
	case s.Keys > 0:
		s.Lease = 10 * time.Minute // so that none runs out
	default:
		s.Lease = time.Minute
	}
	s.KeyedQueue = s.KeyedQueue && s.Keys > 0 && s.parks() && (s.FanOut == 0 || s.FanOut == 4)
	s.Redriving = s.KeyedQueue || s.Redriving && s.parks() // keys go on only when the queue is empty
	if s.Keys > 0 || s.streaming() {
		s.Stubborn = nil
	}
	if s.Keys > 0 || s.Batch == 1 || s.shape >= journal || s.Ordered || s.Records == 1 || len(s.Stubborn) >= s.Batch-1 || s.Redriving || s.Cron > 0 && s.breaks() && !s.Doomed { // where it may be in the way of others
		s.Foreign = -1
	}
	// Of two coordinators one may take all the healthy records, and leave the other
	// alone with the poison.
	// With ordered marks, all that is in hand may wait behind poison, and no room
	// be left for a record that tells it from an outage; least of all where its lease may
	// run out, so that it is in hand many times, and only its host's records tell.
	if !s.parks() || s.Instances > 1 || s.Twins || s.Ordered && (s.Prefetch == 0 || s.Keys > 0 || s.Batch < s.Records || s.Hosts > 0 && s.Renewing) {
		s.Poison = nil
	}
	// The breaker may have to close again within a minute, see Successes.
	s.Fixed = s.Fixed && (s.Interval < 30*time.Second || s.Successes == 1 && s.Records/s.Batch < 10)
	set := func(list []int) map[int]bool {
		m := map[int]bool{}
		for _, n := range list {
			m[n] = true
		}
		return m
	}
	if s.Hosts > 0 {
		// Nothing pauses the intake: what waits for its host's breaker is in hand, and where
		// that is all there may be, nothing comes that tells poison from an outage. Nor may
		// it come with the order of a key, or from a source that returns what it cannot name.
		if s.Keys > 0 || s.Cron > 0 || s.Prefetch == 0 || len(s.Poison) > s.Batch/2-1 {
			s.Poison = nil
		}
		if len(s.Poison) > 0 { // of whose host the others are few
			s.Named, s.Successes, s.Probes, s.Foreign = true, 1, 1, -1
		}
	}
	s.poison = set(s.Poison)
	// Where every key begins with a poison record none is left to tell them from
	// an outage (C-1): that blocks, and must. So does a source of nothing else.
	s.stuckKeys = map[int]bool{}
	for n := range s.poison {
		s.stuckKeys[n%max(1, s.Keys)] = true
	}
	if s.Keys > 0 && len(s.stuckKeys) >= min(s.Keys, s.Records) || len(s.Poison) == s.Records {
		s.Poison, s.poison = nil, nil
	}
	if s.Renewing && s.Keys > 0 && len(s.Poison) > 0 { // behind which each lease that runs out leaves a copy of all that waits, until the hand is full
		s.Named = true
	}
	s.stubborn, s.skipped = set(s.Stubborn), set(s.Skipped)
	if s.Blind && s.Keys > 0 { // what a fetch that a pause cancels has leased is handed out by nobody, and it passes over that
		s.Pauses = 0
	}
	s.mayStay = set(s.Stubborn)
	if s.Foreign >= 0 {
		s.mayStay[s.Foreign] = true
		s.Named = s.Named || s.Renewing // else it takes a place in hand more whenever its lease has run out
	}
	// Where it is given back over each pause besides, it is the first to be tried again,
	// and of the others one is delivered every few minutes: an hour is for ten of them.
	s.Named = s.Named || s.breaks() && s.shape == leasing && !s.Renewing && len(s.poison) > 0 && (s.Keys > 0 || s.Successes > 1 || s.Records > 10)
	// Without a name, a poison record that is another at each fetch cannot be told from
	// the others, nor how often it was tried. The others are delivered all the same, but
	// for those that follow it in the order of its key. So it is with runs of their own,
	// each of which meets it for the first time.
	if s.breaks() && (s.form != orders && !s.Named && !s.streaming() || s.Cron > 0) {
		for n := range s.poison {
			s.mayStay[n] = true
			for next := n + s.Keys; s.Keys > 0 && next < s.Records; next += s.Keys {
				s.mayStay[next] = true
			}
		}
	}
	if s.Foreign >= 0 {
		s.Stubborn = slices.DeleteFunc(s.Stubborn, func(n int) bool { return n == s.Foreign })
		delete(s.stubborn, s.Foreign)
		delete(s.poison, s.Foreign)
		delete(s.skipped, s.Foreign)
	}
}

// instances is how many pipelines there are at most, with the one that redrives.
const instances = 3

// row is what the world knows of one record.
type row struct {
	arrived, marked bool
	fed             bool // one of the further records, that are to come
	fetches         int
	applied, parked int
	second, aside   int                 // applied, and parked, by the second branch
	toldAside       [instances]*Process // who was told so
	told            [instances]*Process // which process of each instance was told that it is applied or parked
	sure            [instances]*Process // likewise, and it may not apply it again
	excuses         int                 // how often it may be applied again by a process that was told
	lessee          *Process            // who has it
	lostBy          *Process            // who was told that its lease is lost, and did not get it again
	given           int64               // when it came to who has it
	until           int64               // the end of its lease
	put             bool                // the source keeps it back by itself until then
	putAt           int64               // since then
	seized          bool                // somebody else got its lease
	leaving         bool                // it is being given back
	strayed         bool                // somebody else may be before or behind the others of its key
	calls           [instances]int      // attempts by the process that each instance is at
	outages         map[int64]bool      // of the destination that it met
	twice           bool                // a process had it as two records
	sent            int64               // when it went into the channel
}

// model is a source, a destination and a dead letter queue, with what is known of
// them and of the pipeline between them, and the contract that it has to keep.
type model struct {
	*World
	settings
	rows     []row
	left     int              // not marked yet, stubborn ones aside
	more     int              // the next of the further records
	good     []int64          // when an apply succeeded last, by host
	down     [][]window       // outages of a host alone
	position int              // of the journal: all before it are marked
	busy     map[string]*call // by key and branch
	behind   map[string]bool  // likewise: those of which a record was parked for its own sake
	lives    []*life          // by process

	// Of the type of the records, see pipe.
	pipe          any
	live, redrive func(ctx context.Context) error
	open          func() stream
	letters       func() []letter
}

// life is what the model knows of a process.
type life struct {
	m          *model
	p          *Process
	telling    sync.Mutex // over what is told at one instant: by retries, and breakers of several hosts
	losing     []int      // by a renewal that has not returned
	inHand     map[int]bool
	markFailed bool
	halted     atomic.Bool // by a breaker, since the last fetch
	renewAt    int64       // when the last renewal began
	fetches    int
	runs       int   // of its coordinators
	pass       []int // the records that were fetched, where it runs by and by
	running    []coordinator
	paused     bool
	pausedAt   int64
	wake       chan struct{}
	watcher    *watcher // nil where nobody watches
	at         int      // the journal's, where it reads
	line       stream   // the channel
	sent, done int      // records that went into it, and that came out and are marked

	switches  *courier.Breaker // where an operator can get at it
	*circuit                   // of the one breaker
	circuits  []*circuit       // of each host's, where each has its own; the first is that one
	permanent map[int]bool     // records whose last attempt failed for good
	tries     map[int]int      // how many attempts were made at those whose retries are to go on
	waits     waiting
}

// modelled sets the model up in a world.
func modelled(fixed func(s *settings)) func(w *World) {
	return func(w *World) { newModel(w, fixed) }
}

// newModel sets the model up, by settings that the seed draws and that fixed changes.
func newModel(w *World, fixed func(s *settings)) *model {
	m := &model{World: w, settings: draw(w, fixed), busy: map[string]*call{}, behind: map[string]bool{}}
	m.rows = make([]row, m.Records+extras)
	m.lay()
	m.tune()
	m.planHosts()
	w.Note("%+v", m.settings)
	w.early = true
	m.left, m.more = m.Records-len(m.mayStay), m.Records
	w.begins, w.dies, w.ends, w.comes, w.taken, w.replies = m.begin, m.die, m.end, m.come, m.take, m.answer
	w.Eventually("every record is settled", func() bool { return m.left == 0 })
	at := time.Duration(0)
	pace := []time.Duration{0, 0, 10 * time.Millisecond, time.Second}[w.Pick("arrivals", 4)]
	for n := range m.Records {
		at += time.Duration(2 * float64(pace) * uniform(hash(w.seed, forSwarm, digest("arrival"), uint64(n))))
		w.later(at, func() bool { return m.arrive(n) })
	}
	if len(m.Poison) > 0 {
		w.later(max(w.lengths, at)+time.Second, m.feed)
	}
	m.planPauses()
	m.planHands()
	for range m.Instances {
		w.Run(func(ctx context.Context) error { return m.live(ctx) })
	}
	if m.Redriving {
		w.Run(func(ctx context.Context) error { return m.redrive(ctx) })
		w.Eventually("no letter is left", func() bool { return len(m.letters()) == 0 })
	}
	return m
}

// tune fits the faults to the settings.
func (m *model) tune() {
	r := &m.rates
	if m.shape == leasing && m.Draw("fetch lost") < 0.2 {
		r[Fetch][Lost] = 0.2 * m.Draw("fetch lost rate")
	}
	if m.Keys > 0 {
		r[Fetch][Lost] = 0 // a key that waits ten minutes for a lease outlasts the records to come
	}
	if !m.Busy {
		r[Apply][Later], r[Batch][Later] = 0, 0
	}
	if m.Blind { // what it does not hear of, it cannot hand out in order
		r[Release], m.outages[0] = [faults]float64{}, nil
		m.endings = slices.DeleteFunc(m.endings, func(e ending) bool { return e.what == Step })
	}
	failing := r[Apply]
	failing[Slow], failing[Refused], failing[Later] = 0, 0, 0
	whole := r[Batch]
	whole[Slow], whole[Refused], whole[Later] = 0, 0, 0
	m.good = make([]int64, max(1, m.Hosts))
	m.healthyOnly = m.breaks() && m.Hands == 0 && failing == [faults]float64{} && (!m.Batches || whole == [faults]float64{}) && m.Timeout == 0
}

func (m *model) arrive(n int) (woke bool) {
	m.rows[n].arrived = true
	m.kick()
	for _, l := range m.lives {
		if l.line != nil && !l.p.ended {
			l.send(n)
			woke = true
		}
		if l.wake != nil && !l.p.ended {
			select {
			case l.wake <- struct{}{}:
			default:
			}
			woke = true
		}
	}
	return woke
}

// extras is how many more records come at most.
const extras = 4000

// feed has further healthy records come for as long as a poison record is pending:
// alone it cannot be told from an outage (C-1). It waits until those that it sent are
// applied, since records that come faster than they are taken are never all marked.
func (m *model) feed() (woke bool) {
	for n := range m.poison {
		if r := &m.rows[n]; m.mayStay[n] || r.marked && (!r.twice || m.left == 0) {
			continue
		}
		every, wanted := 5*time.Second, m.Successes+1
		switch {
		case m.shape >= journal: // which takes them as they come
			every, wanted = 40*time.Second, wanted*max(1, m.Keys)
		case !m.streaming():
			every += 2 * m.Interval
		}
		wanted *= max(1, m.Hosts)
		m.later(every, m.feed)
		for n := m.Records; n < m.more; n++ {
			if r := &m.rows[n]; r.fed && r.applied == 0 && !m.stuck(n) {
				return false
			}
		}
		for ; m.more < len(m.rows) && wanted > 0; m.more++ {
			if n := m.more; m.shape >= journal || !m.stuck(n) {
				m.rows[n].fed = true
				m.left++
				m.later(time.Duration(n), func() bool { return m.arrive(n) }) // one by one, for who waits goes on meanwhile
				wanted--
			}
		}
		break
	}
	return false
}

// stuck reports whether a record has the key of a poison one.
func (m *model) stuck(n int) bool { return m.Keys > 0 && m.stuckKeys[m.key(n)] }

// live is one process of the pipeline.
func (x *pipe[T]) live(ctx context.Context) error {
	p, m := processOf(ctx), x.model
	l := m.lives[p.number]
	applier := x.destination(l)
	retry := m.Retry(ctx, courier.RetryPolicy{MaxAttempts: m.Attempts, InitialDelay: m.RetryDelay, OnRetry: l.retriedIn(first)})
	// RunOnce and the branches of a fan-out give a record back that an empty budget refuses,
	// and its attempts begin anew.
	if m.Budget && m.Cron == 0 && m.FanOut == 0 {
		retry.Budget = courier.NewRetryBudget(courier.BudgetPolicy{Burst: 2, Floor: 0.5, Clock: &p.clock})
	}
	queue, policy := x.parks(l, first)
	timed := applier
	if m.Timeout > 0 {
		timed = courier.NewAttemptTimeoutApplier(applier, m.Timeout, &p.clock)
	}
	switch m.Stack {
	case retrying:
		applier = courier.NewRetryableApplier(timed, retry)
	case unbroken:
		applier = courier.NewDLQApplier(courier.NewRetryableApplier(timed, retry), queue, policy)
	case resilient:
		breaker := courier.BreakerPolicy{
			FailureThreshold: m.Threshold, Successes: m.Successes, Probes: m.Probes, OpenFor: m.OpenFor, MaxOpenFor: m.MaxOpenFor, ProbeTimeout: m.ProbeTimeout,
			Clock: &p.clock, Random: p.random, OnStateChange: l.breakerChanged,
		}
		if m.Rate > 0 {
			breaker.FailureRate, breaker.MinCalls = m.Rate, 5
		}
		if m.ByHand && m.Hosts > 0 {
			applier = courier.NewRetryableApplier(courier.NewKeyedCircuitBreakerApplier(timed, x.hostOf, breaker), retry)
			applier = courier.NewDLQApplier(applier, queue, policy)
		} else if m.ByHand {
			l.switches = courier.NewBreaker(breaker)
			applier = courier.NewRetryableApplier(courier.NewCircuitBreakerApplier(timed, l.switches), retry)
			applier = courier.NewDLQApplier(applier, queue, policy)
		} else {
			config := courier.ResilientConfig[T]{AttemptTimeout: m.Timeout, Clock: &p.clock, Retry: retry, Breaker: breaker, DLQ: queue, Parking: policy}
			if m.Hosts > 0 {
				config.BreakerKey = x.hostOf
			}
			applier, _ = courier.ResilientApplier(applier, &config)
		}
	}
	if m.FanOut > 0 {
		other := courier.ProcessFunc(x.count(l))
		if m.FanOut > 1 {
			other = &branch[T]{l}
			other = courier.NewRetryableApplier(other, m.Retry(ctx, courier.RetryPolicy{MaxAttempts: 2, OnRetry: l.retriedIn(second)}))
		}
		if m.FanOut == 4 {
			queue, policy := x.parks(l, second)
			other = courier.NewDLQApplier(other, queue, policy)
		}
		fan := courier.FanOutConfig[T]{Branches: []courier.Branch[T]{{Name: first, Applier: applier}, {Name: second, Applier: other}}}
		if m.Remembers {
			fan.Identity = func(r T) string { return names[r.number()] }
		}
		if m.Optional > 0 {
			fan.Branches = append(fan.Branches, courier.Branch[T]{Name: "third", Optional: true, Applier: x.refuses(p)})
			fan.OnBranchFailure = func(context.Context, T, string, error) {}
		}
		fan.Clone = x.clone
		applier = courier.NewFanOutFromConfig(fan)
	}
	opts := []courier.Option{
		courier.WithClock(&p.clock), courier.WithRandom(p.random), courier.WithLogger(slog.New(slog.DiscardHandler)),
		courier.WithBatchSize(m.Batch), courier.WithDrainTimeout(m.Drain), courier.WithStallAfter(m.Stall),
	}
	var watch courier.Observer
	if m.Yield {
		watch = m.Observe(ctx)
	}
	watch.Paused = func(_ context.Context, e courier.PauseEvent) {
		if e.Err != nil {
			l.halted.Store(true)
		}
		l.toldOf(e)
	}
	watch.Resumed = func(context.Context, courier.ResumeEvent) { l.waits.fullTold.Store(false) }
	opts = append(opts, courier.WithObserver(watch))
	if l.watcher != nil {
		opts = append(opts, courier.WithObserver(l.watcher.observer()))
	}
	if m.Keys > 0 {
		opts = append(opts, courier.WithOrderKey(x.keyOf))
	}
	if m.Portion > 0 && m.Batches {
		opts = append(opts, courier.WithApplyBatchSize(m.Portion))
	}
	if m.Prefetch >= 0 {
		opts = append(opts, courier.WithPrefetch(m.Prefetch))
	}
	if m.streaming() {
		opts = append(opts, courier.WithStreamWorkers(m.Workers), courier.WithFlushInterval(m.Flush))
		if m.Ordered {
			opts = append(opts, courier.WithOrderedMarks())
		}
		return x.start(ctx, l, func(s *source[T]) coordinator {
			return courier.NewStreamingCoordinator(s.capable(), applier, opts...)
		})
	}
	opts = append(opts, courier.WithWorkers(m.Workers), courier.WithInterval(m.Interval))
	if m.Fixed {
		opts = append(opts, courier.WithFixedInterval())
	}
	return x.start(ctx, l, func(s *source[T]) coordinator { return courier.NewPollingCoordinator(s.capable(), applier, opts...) })
}

// The names of the branches of a fan-out.
const (
	first  = "first"
	second = "second"
)

// refuses is a branch that takes nothing, for which nobody is to wait: it asks for each record
// later, or fails and has a breaker for each key.
func (x *pipe[T]) refuses(p *Process) courier.Applier[T] {
	if x.Optional == 1 {
		return courier.ProcessFunc(func(context.Context, T) error { return courier.Later(ErrInjected, time.Minute) })
	}
	dead := courier.ProcessFunc(func(context.Context, T) error { return ErrInjected })
	return courier.NewKeyedCircuitBreakerApplier(dead, x.keyOf, courier.BreakerPolicy{Clock: &p.clock, Random: p.random, FailureThreshold: 2})
}

// parks returns where a branch parks, and how.
func (x *pipe[T]) parks(l *life, branch string) (courier.DLQ[T], courier.DLQPolicy[T]) {
	policy := courier.DLQPolicy[T]{MaxParkRate: courier.AnyParkRate, OnPark: parkedBy[T](l), Clock: &l.p.clock}
	if x.FanOut > 0 {
		policy.Branch = branch
	}
	if x.KeyedQueue {
		policy.Key = x.keyOf
	}
	queue := x.queue
	if branch == second {
		queue = x.aside
	}
	lot := parkingLot[T]{queue, l, branch}
	if x.Memory {
		return &inMemory[T]{lot}, policy
	}
	return &lot, policy
}

func (m *model) key(n int) int { return n % max(1, m.Keys) }

func (m *model) keyName(n int) string { return strconv.Itoa(m.key(n)) }

func (x *pipe[T]) keyOf(record T) string { return x.keyName(record.number()) }

// begin, die and end are the ends of a process.
func (m *model) begin(p *Process) {
	l := &life{m: m, p: p, inHand: map[int]bool{}, permanent: map[int]bool{}, tries: map[int]int{}, at: m.position}
	for range max(1, m.Hosts) {
		l.circuits = append(l.circuits, &circuit{breaker: courier.BreakerClosed, generation: 1})
	}
	l.circuit = l.circuits[0]
	l.waits.of, l.waits.untried, l.waits.unbegun, l.waits.met, l.waits.lookedAt = map[int]*wait{}, map[int]string{}, map[int]time.Duration{}, map[int]bool{}, m.now.Load()
	if m.Waking {
		l.wake = make(chan struct{}, 1)
	}
	if m.Watched && !l.redrives() {
		l.watcher = &watcher{l: l}
	}
	m.lives = append(m.lives, l)
	if m.shape == channel && !l.redrives() {
		l.line = m.open()
	}
	for n := range m.rows {
		r := &m.rows[n]
		if r.calls[p.instance] = 0; l.line != nil && r.arrived && !r.marked {
			l.send(n)
		}
	}
}

func (m *model) die(p *Process) {
	for key, c := range m.busy {
		if c.p == p {
			delete(m.busy, key)
		}
	}
	m.cutOff(p)
}

// cutOff is a source that sees the connection of a process go, by which it leases.
func (m *model) cutOff(p *Process) {
	if m.shape != broker && !m.Blind {
		return
	}
	for n := range m.rows {
		if r := &m.rows[n]; r.lessee == p {
			r.lessee = nil
		}
	}
	m.kick()
}

// unheeded is for calls that are slow and take no notice of their context.
const unheeded = 2 * time.Second

func (m *model) end(p *Process) {
	l := m.lives[p.number]
	if p.dead {
		return
	}
	l.look(nil)
	troubled := m.rates[Mark] != [faults]float64{} || len(m.outages[0]) > 0 || m.script != nil || m.stepped > 0 || m.Drain < time.Second ||
		p.still > 0 && p.still >= p.stoppedAt || // it stood still beyond its time for marks
		m.streaming() && m.rates[Release][Hang]+m.rates[Fail][Hang] > 0 // which has one goroutine for these and for marks
	if took := time.Duration(m.now.Load() - p.stoppedAt); p.stopping && !l.redrives() && took > 2*m.Drain+unheeded {
		m.Fail("D8: process %d took %v to stop, with a drain timeout of %v", p.number, took, m.Drain)
	}
	switch {
	case p.err == nil:
	case m.shape >= journal && errors.Is(p.err, courier.ErrUnsettled):
	case !troubled:
		m.Fail("D8: process %d was stopped and returned %v", p.number, p.err)
	}
	if len(l.inHand) > 0 && (m.shape == leasing || m.shape == broker) && p.err == nil {
		m.Fail("D8: process %d was stopped and gave these not back: %v", p.number, numbers(l.inHand))
	}
	if l.watcher != nil && len(l.running) > 0 {
		l.watcher.end(l.running[0].Stats())
	}
	m.cutOff(p)
}

func numbers(set map[int]bool) string {
	var list []int
	for n := range names {
		if set[n] {
			list = append(list, n)
		}
	}
	return fmt.Sprint(list)
}
