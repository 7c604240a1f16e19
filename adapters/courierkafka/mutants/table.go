package main

import "github.com/erfanmomeniii/courier/internal/plant"

// mutant is a bug that is planted, see [plant.Bug].
type mutant struct {
	name, file string
	from, to   string
}

func (m *mutant) bug() plant.Bug { return plant.Bug{File: m.file, From: m.from, To: m.to} }

const (
	group   = "adapters/courierkafka/group.go"
	rejoin  = "adapters/courierkafka/rejoin.go"
	last    = "adapters/courierkafka/last_commit.go"
	commit  = "adapters/courierkafka/commit.go"
	gone    = "adapters/courierkafka/gone.go"
	settled = "adapters/courierkafka/settled.go"
	source  = "adapters/courierkafka/source.go"
	windows = "window/window.go"
)

var mutants = []mutant{
	// Losses that other consumers have published.
	{"the position is counted, though offsets have gaps (wolverine#3162)", group,
		"next := kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset + 1}",
		"next := kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: a.committed.Offset + int64(a.window.Len()) + 1}"},
	{"an undecodable text says that all is settled (parallel-consumer#875)", settled,
		"		if !found || wrong != nil || wrongToo != nil || gap < 0 || length < 1 || gap > most || length > most || at > most {\n			return settled{}\n",
		"		if !found || wrong != nil || wrongToo != nil || gap < 0 || length < 1 || gap > most || length > most || at > most {\n			return settled{[]run{{committed, most}}, s.epoch}\n"},
	{"offset and text are read at two times (parallel-consumer#894)", settled,
		"len(fields) < 4 || fields[0] != settledFormat || fields[1] != strconv.FormatInt(committed, 10)",
		"len(fields) < 4 || fields[0] != settledFormat"},
	{"what is read and not begun counts as settled at a revoke (parallel-consumer#826)", group,
		"	at := a.window.Position().EpochOffset\n", "	at := a.window.Position().EpochOffset\n	if a.leaving {\n		at.Offset = a.read\n	}\n"},
	{"the end of the text is read after its beginning (astubbs/parallel-consumer#344)", group,
		"	return place{at, settledOf(a.window).with(a.done, a.read).text(at.Offset)}\n",
		"	s := settledOf(a.window).with(a.done, a.read)\n	if n := len(s.runs); n > 0 {\n		s.runs[n-1].end = max(s.runs[n-1].end, a.read)\n	}\n	return place{at, s.text(at.Offset)}\n"},
	{"what is settled during a commit counts as committed (parallel-consumer#664)", commit,
		"			a.committed = at\n", "			_, a.committed = at, g.place(a)\n"},
	{"a record that was in hand when its partition was lost is passed over later (parallel-consumer#909)", group,
		"			if a.done.has(r) {\n				a.window.Settle(ticket)\n				continue\n			}\n",
		"			old := partition{\"\\x00\" + r.Topic, r.Partition}\n			if a.done.has(r) || g.found[old].settled.has(r) {\n				a.window.Settle(ticket)\n				continue\n			}\n			g.found[old] = lastCommit{settled: settled{append(g.found[old].settled.runs, run{r.Offset, r.Offset + 1}), r.LeaderEpoch}}\n"},
	{"the highest settled offset is committed (franz-go#128)", windows,
		"	for w.first < w.next && w.at(w.first).settled {\n", "	for w.first <= uint64(t) {\n"},
	{"records are committed before they are applied (kafka-go#1179)", group,
		"			g.records[r] = &delivery{record: r, of: a, ticket: ticket, index: -1}\n",
		"			g.records[r] = &delivery{record: r, of: a, ticket: ticket, index: -1}\n			a.window.Settle(ticket)\n"},
	{"what waits in memory is lost at a revoke (connect#4010)", group,
		"		case d.of.leaving: // who has the partition next gets it\n", "		case d.of.leaving:\n			d.of.window.Settle(d.ticket)\n"},

	// Members that come and go.
	{"a partition is given back before its records are settled", group,
		"		if out == 0 {\n			return\n		}\n		if g.signal()", "		if out >= 0 {\n			return\n		}\n		if g.signal()"},
	{"nothing is committed when a partition is given back", group,
		"	err := g.commitLast(client)\n", "	var err error\n"},
	{"what was given back is handed out of a partition that leaves", group,
		"		if d.of.leaving && d.index >= 0 {\n", "		if false {\n"},
	{"marks of a lost partition settle the next assignment", group,
		"	for _, d := range g.records {\n		if d.of == a {\n			g.forget(d)\n		}\n	}\n	if a.paused {", "	if a.paused {"},
	{"a partition that was lost is committed when the member hears of it", group,
		"	g.losses.Add(uint64(len(gone)))\n", "	g.losses.Add(uint64(len(gone)))\n	g.mu.Unlock()\n	_ = g.commitLast(client)\n	g.mu.Lock()\n"},
	{"a partition that was lost is committed by a commit that waited", commit,
		"		if a.gone {\n			return errFenced\n		}\n", ""},
	{"a member that was expelled commits as another one what it had (franz-go#689)", commit,
		"	if request.MemberID != g.member {\n		return kerr.RebalanceInProgress\n	}\n", ""},
	{"a member that was expelled commits at the revoke", group,
		"	if member != g.member { // the group", "	if member != g.member && false { // the group"},
	{"the coordinator is not told of a revoke", group,
		"		case d.of.leaving:\n			d.listed = g.renewal\n			lost.Add(i, errRevoked)\n", ""},
	{"a revoke waits for records that the coordinator has let go of", group,
		"				g.notRenewed(given[len(given)-3])\n", "				_ = given\n"},
	{"records count as let go of that the coordinator has just been asked about", group,
		"	if g.renewal == since {\n", "	if g.renewal >= since {\n"},
	{"a partition that is assigned again settles what it had before", group,
		"				g.fence(client, old)\n", "				_ = old\n"},
	{"a poll under way brings records of an assignment before", group,
		"	g.awaitPoll()\n	for topic, numbers := range added {", "	for topic, numbers := range added {"},
	{"a pause outlives the assignment", group,
		"	if a.paused { // a pause outlives an assignment\n", "	if false {\n"},
	{"a member that was expelled repeats its last commit in vain", commit,
		"		if err == nil || isExpelled(err) {\n", "		if err == nil {\n"},

	// A member that keeps partitions though the group had expelled it.
	{"a poll under way brings records of before", group,
		"		if a == nil || a.leaving || a.unknown {", "		if a == nil || a.leaving {"},
	{"a poll under way waits for records beyond the last commit", rejoin,
		"		g.polling.cancel()\n", "		_ = g.polling\n"},
	{"marks of before settle what it reads then", rejoin,
		"		g.fence(client, old)\n", ""},
	{"it does not count as a loss", rejoin,
		"	g.losses.Add(uint64(len(kept)))\n", ""},
	{"it goes on where the client is", rejoin,
		"	client.SetOffsets(from)", "	_ = from"},
	{"it goes on where it was, not where the last commit says", rejoin,
		"		if next.Offset < 0 {\n", "		if a.from.Offset >= 0 {\n"},
	{"it goes on after the records of its first poll, which are dropped", group,
		"			a.from = positionOf(f.Records[0])\n", "			_ = a.from\n"},
	{"it goes on anywhere if nothing was committed", rejoin,
		"			next = a.from\n", "			_ = a.from\n"},
	{"it forgets what the last commit says beyond the offset", rejoin,
		"a.unknown, g.found[p] = false, commits[p]\n", "a.unknown, g.found[p] = false, lastCommit{EpochOffset: commits[p].EpochOffset}\n"},
	{"it reads though it could not ask", source,
		"	case err != nil:\n		return nil, err\n	}\n	return s.client.PollRecords", "	}\n	return s.client.PollRecords"},
	{"it asks for the last commit of one partition of a topic", last,
		"numbers[p.topic] = append(numbers[p.topic], p.number)", "numbers[p.topic] = []int32{p.number}"},
	{"an error for a partition says that nothing was committed", last,
		"				err = errors.Join(err, kerr.ErrorForCode(p.ErrorCode))\n				continue\n", "				_ = errors.Join(err, kerr.ErrorForCode(p.ErrorCode))\n"},
	{"a partition without an answer has no commit", last,
		"		if _, ok := commits[p]; !ok && err == nil {\n", "		if _, ok := commits[p]; !ok && err != nil {\n"},
	{"the leader epoch of the last commit is forgotten", last,
		"kgo.EpochOffset{Epoch: p.LeaderEpoch, Offset: p.Offset}", "kgo.EpochOffset{Epoch: -1, Offset: p.Offset}"},
	{"the text of the last commit is forgotten", last,
		"			if p.Metadata != nil {\n", "			if p.Metadata == nil {\n				p.Metadata = new(string)\n"},

	// Marks and commits.
	{"a failed commit counts as committed", commit,
		"		case err != nil:\n			first = err\n		case !answered:", "		case err != nil:\n			a.committed, first = at, err\n		case !answered:"},
	{"a failed commit is no error", commit,
		"	if err == nil || err == errTooLong {\n		return err\n	}\n	return &commitError{err}\n", "	if err == errTooLong {\n		return err\n	}\n	return nil\n"},
	{"a partition without an answer counts as committed", commit,
		"		case !answered:\n			first = errNoCommitAnswer\n", "		case !answered:\n			a.committed = at\n"},
	{"a commit without what is gone is an error", commit,
		"		for err == errFenced || err == errTooLong {", "		for err == errTooLong {"},
	{"two commits are under way at a time", commit,
		"		err := g.send(client)\n		for", "		<-g.sending\n		err := g.send(client)\n		g.sending <- struct{}{}\n		for"},
	{"what is settled beyond the offset is committed with the next offset", commit,
		"		if now == a.committed {\n", "		if now.EpochOffset == a.committed.EpochOffset {\n"},
	{"what a commit before says of records that are not read is forgotten", group,
		"settledOf(a.window).with(a.done, a.read).text(at.Offset)", "settledOf(a.window).text(at.Offset)"},
	{"a text has the leader epoch of its first record", settled,
		"		s.epoch = max(s.epoch, p.Epoch)\n", "		if s.epoch < 0 {\n			s.epoch = p.Epoch\n		}\n"},
	{"a group that begins at the end commits nothing before its first mark", group,
		"			if found && last.Offset >= 0 || startsAtStart(client) {\n", "			if found || last.Offset >= 0 {\n"},
	{"the records of a group that begins at the end are handed out though its place was not committed", source,
		"				s.group.release(records, 0)\n				return nil, cmp.Or(err, failed)\n", "				return records, cmp.Or(err, failed)\n"},
	{"a topic that is gone has every mark fail", commit,
		"			if !g.missed(client, a) {\n", "			if true {\n"},
	{"a topic is taken for gone though a broker has not heard of it yet", gone,
		"time.Since(a.missing) >= patience", "time.Since(a.missing) >= 0"},
	{"a topic that was created again is not consumed", gone,
		"		client.AddConsumeTopics(topic)\n", ""},
	{"records that were deleted before they were read are passed over in silence", group,
		"expected >= 0 && expected < end && err == nil {", "expected >= 0 && expected > end && err == nil {"},
	{"the same between two members", group,
		"				expected = last.Offset\n", "				expected = begin.Offset\n"},
	{"what is settled beyond the offset is not committed", commit,
		"				t.Partitions[j].Metadata = text\n", "				_ = text\n"},
	{"a record that is given back is settled", group,
		"			d.of.out--\n			d.due = due\n", "			d.of.out--\n			d.of.window.Settle(d.ticket)\n			d.due = due\n"},
	{"a record that is given back is handed out at once", group,
		"	due := time.Now().Add(after)\n", "	due := time.Now()\n	_ = after\n"},
	{"a full window pauses nothing", group,
		"if !a.paused && a.window.Len() >= g.config.maxWindow {", "if !a.paused && a.window.Len() < 0 {"},
	{"a pause outlives the full window", group,
		"		if a.window.Settle(d.ticket); a.paused && a.window.Len() <= g.config.maxWindow/2 {\n", "		if a.window.Settle(d.ticket); false {\n"},
	{"runs that another leader wrote count as settled", settled,
		"	if r.LeaderEpoch > s.epoch {\n		return false\n	}\n", ""},
	{"a text is longer than brokers take", settled,
		"		if b.Len()+len(next) > settledMost {\n			break\n		}\n", ""},
	{"the mark of a record is forgotten", source,
		"	s.group.settle(s.client, records)\n", "	s.group.settle(s.client, records[1:])\n"},
}
