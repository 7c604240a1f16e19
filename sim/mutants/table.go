package main

// mutant is a bug that is planted: a text of one file, which occurs in it exactly
// once, and what comes in its place.
type mutant struct {
	name, file string
	from, to   string
}

var mutants = []mutant{
	// Marks.
	{"a batch is marked whole when some of it failed", "poll_settle.go",
		"p.mark = b.ledger.In(ledger.Settled)\n", "p.mark = b.ledger.Records\n"},
	{"what a stop left is marked", "engine.go",
		"return !b.ledger.Noted() && !b.alert.Load() && int(b.next.Load()) >= b.units", "return !b.ledger.Noted()"},
	{"marks have the context that a stop ends", "poll.go",
		"return p.source.Mark(p.life.settle, p.mark)", "return p.source.Mark(p.life.stop, p.mark)"},
	{"a stream's marks have the context that a stop ends", "stream_calls.go",
		"return s.source.Mark(s.life.settle, j.records)", "return s.source.Mark(s.life.stop, j.records)"},
	{"a failed mark is forgotten", "poll_settle.go",
		"		p.phase = marking\n		return\n", "		p.phase = reporting\n		return\n"},
	{"a stream's failed mark is forgotten", "stream_settle.go",
		"	default:\n		s.line.putBack(j.records)\n", "	default:\n"},
	{"ordered marks do not wait for what is before", "stream_settle.go",
		"	l.slots[it.number-l.first].state = state\n", "	own := &l.slots[it.number-l.first]\n	if own.state = state; state == markable {\n		l.add(own.record)\n		own.state = gone\n	}\n"},

	// Verdicts.
	{"the verdicts of a batch are shifted by one", "batch.go",
		"			errs[f.Index] = sound(f.Err)\n", "			errs[(f.Index+1)%len(errs)] = sound(f.Err)\n"},
	{"a batch that failed as one counts as applied", "batch.go",
		"	for i := range errs {\n		errs[i] = err\n	}\n	return true\n", "	return true\n"},
	{"a panic settles its record", "engine.go",
		"		h.tellEnded(ctx, i, err)\n		h.note(ctx, i, err)\n		h.at++\n", "		h.tellEnded(ctx, i, err)\n		h.ledger.Settle(i)\n		h.at++\n"},
	{"a panic loses the records before it", "engine.go",
		"		if h.unsettled < h.at {\n			h.ledger.SettleRun(h.unsettled, h.at)\n		}\n		i, err", "		i, err"},
	{"what was not attempted counts as failed", "engine.go",
		"		b.ledger.Leave(i, err)\n", "		b.ledger.Fail(i, err)\n"},

	// Stops.
	{"a stop in mid-batch loses what was not begun", "poll_settle.go",
		"			default:\n				p.release = append(p.release, record)\n			}\n		}\n		if p.failer", "			}\n		}\n		if p.failer"},
	{"a stop does not wait for the work in flight", "lifecycle.go",
		"		case <-clock.After(drain):\n			l.cancelWork(ErrDrainTimeout)\n", "		case <-clock.After(0):\n			l.cancelWork(ErrDrainTimeout)\n"},
	{"a stop never ends the work in flight", "lifecycle.go",
		"			l.cancelWork(ErrDrainTimeout)\n", "			<-l.applied\n"},
	{"a stream fetches on after a stop", "stream.go",
		"!s.asking && !s.eof && !closing && !open", "!s.asking && !s.eof && !open"},
	{"a stop finds a stream's queue and drops it", "stream_settle.go",
		"	for _, it := range left {\n		s.giveBack(it, 0)\n	}\n", "	for _, it := range left {\n		s.line.leave(&it, gone)\n	}\n"},
	{"a retry sleeps through a stop", "retry.go",
		"	stop := r.passage.stop\n	for _, ctx := range", "	stop := context.Background()\n	for _, ctx := range"},
	{"a goroutine is left behind", "workers.go",
		"			if !ok {\n				return\n			}\n", "			if !ok {\n				select {}\n			}\n"},

	// The breaker.
	{"two probes at once", "internal/breaker/breaker.go",
		"if s.inflight >= p.Probes {", "if s.inflight > p.Probes {"},
	{"a stale result counts", "internal/breaker/breaker.go",
		"	if permit.Gen != s.Gen {\n		return true\n	}\n", ""},
	{"a breaker opens too late", "internal/breaker/breaker.go",
		"s.failures >= p.FailureThreshold", "s.failures > p.FailureThreshold"},
	{"a breaker is half-open too early", "internal/breaker/breaker.go",
		"		if now.Before(s.Until) {\n			return Permit{}, false, false\n		}\n		s.enter(HalfOpen)", "		s.enter(HalfOpen)"},
	{"a probe that was cancelled keeps its slot", "internal/breaker/breaker.go",
		"		s.inflight = max(0, s.inflight-1) // a permit", "		if outcome != Ignored {\n			s.inflight = max(0, s.inflight-1)\n		} // a permit"},
	{"the jitter passes the cap", "internal/breaker/breaker.go",
		"	open := p.MaxOpenFor\n	if d < float64(p.MaxOpenFor) {\n		open = time.Duration(d)\n	}\n", "	open := time.Duration(d)\n"},
	{"the first probe that succeeds closes", "internal/breaker/breaker.go",
		"s.good >= p.Successes {", "s.good >= 1 {"},
	{"an open breaker does not stop the fetches", "poll.go",
		"if g.closed && !p.once {", "if false {"},
	{"a busy loop while a breaker is open", "poll_settle.go",
		"	if p.halted.err != nil {\n		sleep(p.life.stop, p.config.clock, d)\n		return\n	}\n", "	if p.halted.err != nil {\n		return\n	}\n"},
	{"the attempts before an interruption are forgotten", "attempts.go",
		"			found = append(found, e.usage)\n", ""},
	{"a failed probe burns an attempt", "breaker.go",
		"Counted: counts && !permit.permit.Probe}", "Counted: counts}"},
	{"the next probe is the same record", "stream_hand.go",
		"		if !it.suspect() {\n", "		if true {\n"},

	// Retry and the queue.
	{"one attempt too many", "retry.go",
		"	if *used++; *used >= r.policy.MaxAttempts {", "	if *used++; *used > r.policy.MaxAttempts {"},
	{"a refusal burns an attempt", "retry.go",
		"		if *used += countedIn(err); *used == 0 {", "		if *used++; *used == 0 {"},
	{"a permanent error is tried again", "retry.go",
		"	case PermanentClass:\n		*used++\n		return r.giveUp(PermanentFailure, *used, err, nil)\n	}\n	if", "	}\n	if"},
	{"the refusal of the queue is swallowed", "dlq.go",
		"		d.guard.undo(behind)\n		return &ParkError{Err: letter.Error, Store: refusal}\n", "		d.guard.undo(behind)\n		return nil\n"},
	{"what was not attempted is parked", "dlq.go",
		"	return class == Retryable || class == PermanentClass\n", "	return class != Skipped\n"},

	// Order.
	{"a key goes on behind a failed record", "engine.go",
		"		b.gate.block(b.keys[i])\n", ""},
	{"records of a key are handed to two workers", "stream_hand.go",
		"!mine[it.key] && (l.out > 0 || l.held > 0) {\n", "!mine[it.key] && l.held > 0 {\n"},
	{"records behind a failed one of their key are not held", "stream_hand.go",
		"if l := s.lanes[key]; l != nil && l.out == 0 && l.held == 0 {", "if l := s.lanes[key]; l != nil && l.out == 0 {"},
	{"the key of a failed record is let go with the next fetch", "order.go",
		"		case !at.After(now):\n", "		default:\n"},

	// Leases, fan-out, memory.
	{"a lease that is lost is applied", "engine.go",
		"	case b.isLost(i):\n		return errLeaseLost\n	case b.keys == nil:", "	case b.keys == nil:"},
	{"nothing is renewed", "lease.go",
		"		l.renew()\n", ""},
	{"what was fetched ahead is dropped at a pause", "poll.go",
		"		p.release = append(p.release, r.records...)\n", ""},
	{"a fan-out is content with one branch", "fanout.go",
		"	if have < f.quorum {", "	if have < 1 {"},
	{"a fan-out forgets who has a record", "fanout_memory.go",
		"		done[i] = entry.has\n", "		done[i] = nil\n"},
	{"a stream has more in hand than it may", "stream.go",
		"want := min(s.limit-s.inHand, s.config.batchSize)", "want := s.config.batchSize"},

	// Operators.
	{"a redrive removes before it applies", "redrive.go",
		"	errs := r.apply(ctx, letters)\n", "	for _, letter := range letters {\n		_ = r.queue.Delete(ctx, letter.ID)\n	}\n	errs := r.apply(ctx, letters)\n"},
	{"a redrive removes what failed", "redrive.go",
		"			failed = append(failed, letter)\n", "			done = append(done, letter.ID)\n"},
	{"a redrive goes on behind a letter of the key that stays", "redrive.go",
		"		if letter.Key != \"\" {\n			r.held[letter.Key] = true\n		}\n	}\n", "	}\n"},
	{"a poller fetches on in a pause", "poll.go",
		"if resumed := p.control.paused(); resumed != nil && !p.once {", "if resumed := p.control.paused(); resumed != nil && false {"},
	{"a stream takes in during a pause what it had asked for", "stream.go",
		"		s.close(ErrPaused)\n", ""},
	{"a resume wakes nobody", "control.go",
		"		c.resumed = nil\n	}\n	c.mu.Unlock()\n	c.Wake()\n", "		c.resumed = nil\n	}\n	c.mu.Unlock()\n"},
	{"records that come with an error are dropped", "poll.go",
		"	n := len(p.records)\n	p.phase = cutting\n", "	if p.fetchErr != nil {\n		p.records = nil\n	}\n	n := len(p.records)\n	p.phase = cutting\n"},
	{"a queue is not asked which keys it has", "dlq_key.go",
		"		found, err := d.keys.ParkedKeys(ctx, keys)\n", "		found, err := d.keys.ParkedKeys(ctx, nil)\n"},
}
