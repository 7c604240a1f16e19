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
	commit  = "adapters/courierkafka/commit.go"
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
		"			old := partition{\"\\x00\" + r.Topic, r.Partition}\n			if a.done.has(r) || g.found[old].has(r) {\n				a.window.Settle(ticket)\n				continue\n			}\n			g.found[old] = settled{append(g.found[old].runs, run{r.Offset, r.Offset + 1}), r.LeaderEpoch}\n"},
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

	// Marks and commits.
	{"a failed commit counts as committed", commit,
		"		case err != nil:\n			first = err\n		case !answered:", "		case err != nil:\n			a.committed, first = at, err\n		case !answered:"},
	{"a failed commit is no error", commit,
		"	if err == nil || err == errTooLong {\n		return err\n	}\n	return &commitError{err}\n", "	if err == errTooLong {\n		return err\n	}\n	return nil\n"},
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
