package courierkafka

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier/window"
)

// settled is the offsets of a partition that are settled beyond the committed one. It goes
// into the metadata of the commit, so that the next member does not deliver these records
// again.
type settled struct {
	runs  []run
	epoch int32 // the latest leader epoch of these records
}

// run is offsets without a gap, from the first to the one before end.
type run struct{ first, end int64 }

// settledOf returns what is settled in a window beyond its position.
func settledOf(w *window.Window[position]) (s settled) {
	s.epoch = -1
	for p := range w.Beyond() {
		offset := p.Offset - 1
		s.epoch = max(s.epoch, p.Epoch)
		if n := len(s.runs); n > 0 && s.runs[n-1].end == offset {
			s.runs[n-1].end++
		} else {
			s.runs = append(s.runs, run{offset, offset + 1})
		}
	}
	return s
}

// with adds what a commit before says of records that are not read yet. Those that another
// broker has led since then may be others by now.
func (s settled) with(before settled, read int64) settled {
	if s.epoch > before.epoch {
		return s
	}
	for _, r := range before.runs {
		if r.end <= read {
			continue
		}
		r.first = max(r.first, read)
		if n := len(s.runs); n > 0 && s.runs[n-1].end == r.first {
			s.runs[n-1].end = r.end
		} else {
			s.runs = append(s.runs, r)
		}
		s.epoch = before.epoch
	}
	return s
}

// has reports whether a record is settled. A record that was written after another broker
// became the leader may have the offset of one that got lost then.
func (s settled) has(r *kgo.Record) bool {
	if r.LeaderEpoch > s.epoch {
		return false
	}
	i := sort.Search(len(s.runs), func(i int) bool { return s.runs[i].end > r.Offset })
	return i < len(s.runs) && s.runs[i].first <= r.Offset
}

const (
	settledFormat = "courier/1"
	settledMost   = 3500 // bytes: brokers take 4096 (offset.metadata.max.bytes)
)

// text writes the runs as gaps and lengths, counted from the committed offset: as many as
// there is room for. Nothing is "".
func (s settled) text(committed int64) string {
	if len(s.runs) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %d", settledFormat, committed, s.epoch)
	at := committed
	for _, r := range s.runs {
		next := fmt.Sprintf(" %d+%d", r.first-at, r.end-r.first)
		if b.Len()+len(next) > settledMost {
			break
		}
		b.WriteString(next)
		at = r.end
	}
	return b.String()
}

// parseSettled reads the text of a commit. One that is another program's, was written for
// another offset, or is damaged says nothing: then records are delivered again.
func parseSettled(text string, committed int64) (s settled) {
	fields := strings.Split(text, " ")
	if len(fields) < 4 || fields[0] != settledFormat || fields[1] != strconv.FormatInt(committed, 10) {
		return settled{}
	}
	epoch, err := strconv.ParseInt(fields[2], 10, 32)
	if err != nil {
		return settled{}
	}
	s.epoch = int32(epoch)
	at := committed
	const most = 1 << 50 // no sum of these is too large
	for _, field := range fields[3:] {
		before, after, found := strings.Cut(field, "+")
		gap, wrong := strconv.ParseInt(before, 10, 64)
		length, wrongToo := strconv.ParseInt(after, 10, 64)
		if !found || wrong != nil || wrongToo != nil || gap < 0 || length < 1 || gap > most || length > most || at > most {
			return settled{}
		}
		s.runs = append(s.runs, run{at + gap, at + gap + length})
		at += gap + length
	}
	return s
}
