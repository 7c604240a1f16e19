package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"math"
)

// More reports whether the last Fetch returned a part of the rows that were in hand when a
// relay died ([TableConfig].MaxCrashes), so that a coordinator fetches again at once.
func (s *TableSource[T]) More() bool { return s.apart.more() }

func (s *TableSource[T]) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs && len(s.inHand) > 0
}

// fetch is one try of Fetch.
func (s *TableSource[T]) fetch(ctx context.Context, store tableStore, limit int) ([]T, error) {
	c := s.table.config
	fewest, most := 0, 0
	return fetchApart(&s.apart, apart[T]{
		busy: s.busy,
		find: func() (crashes int, err error) {
			fewest, most, err = s.findSuspects(ctx, store)
			switch {
			case err != nil || fewest == 0:
			case c.Strict:
				fewest = 0 // all rows, in their order
			case c.OrderKey != "":
				fewest = 1 // in their order, whatever their crashes
			default:
				most = fewest
			}
			return most, err
		},
		take: func(crashes int, alone bool) ([]T, error) {
			size := groupSize(limit, crashes)
			last := most
			if fewest < most {
				last = mostCrashes(c.MaxCrashes) - 1
			}
			rows, _, err := s.others(ctx, store, claim{limit: size, fewest: fewest, most: last, alone: alone && size == 1, behind: true})
			return rows, err
		},
		others: func() ([]T, int, error) { return s.others(ctx, store, claim{limit: limit}) },
	})
}

// others takes rows, and counts the crashes of leases that have run out.
func (s *TableSource[T]) others(ctx context.Context, store tableStore, c claim) (records []T, crashed int, err error) {
	records, err = s.readOver(ctx, store, c)
	for errors.Is(err, errRunOut) {
		var n int
		if n, err = s.bury(ctx, store.(crashCounter)); err != nil {
			break
		}
		if crashed += n; crashed > 0 {
			return nil, crashed, nil
		}
		records, err = s.readOver(ctx, store, c)
	}
	return records, crashed, err
}

func (s *TableSource[T]) bury(ctx context.Context, store crashCounter) (crashed int, err error) {
	t := s.table
	contact := s.apart.contact()
	if t.config.MaxCrashes < 0 {
		contact = 0
	}
	err = t.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		crashed, err = store.bury(ctx, conn, s.owner, t.lease, contact)
		return err
	})
	if err == nil && crashed > 0 {
		t.log.Warn("couriersql: a relay died with rows in hand, or lost its lease without a sign; the rows are handed out again in small groups, to find one that kills its process",
			"table", t.table, "rows", crashed)
	}
	return crashed, err
}

// findSuspects counts crashes, parks records that had too many, and returns the fewest and the
// most that others had.
func (s *TableSource[T]) findSuspects(ctx context.Context, store tableStore) (fewest, most int, err error) {
	t := s.table
	counter, counts := store.(crashCounter)
	if !counts {
		return 0, 0, nil
	}
	limit := mostCrashes(t.config.MaxCrashes)
	look := func() (more int, err error) {
		err = t.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
			fewest, most, more, err = counter.suspects(ctx, conn)
			return err
		})
		return more, err
	}
	more, err := look()
	if err == nil && fewest+more > 0 {
		if _, err = s.bury(ctx, counter); err == nil {
			more, err = look()
		}
	}
	if err != nil || more == 0 {
		s.held = 0
		return fewest, most, err
	}
	if t.config.DLQ != nil {
		s.parkCrashed(ctx, store, limit)
		_, err = look()
	} else if more != s.held {
		s.held = more
		t.log.Warn("couriersql: rows are held back, as each relay that had one of them in hand, alone, died: look for out of memory, os.Exit or a fatal error in what delivers them, and then delete their rows from the table of failures; TableConfig.DLQ would have them parked",
			"table", t.table, "rows", more, "failures", t.name)
	}
	return fewest, most, err
}

// parkCrashed parks records that had too many crashes. One for which that fails stays pending,
// and is not handed out.
func (s *TableSource[T]) parkCrashed(ctx context.Context, store tableStore, limit int) {
	t := s.table
	complain := func(err error) {
		t.log.Warn("couriersql: a record that kills its process could not be parked; it is not handed out, and it is tried again", "table", t.table, "error", err)
	}
	records, err := s.readOver(ctx, store, claim{limit: 100, fewest: limit, most: math.MaxInt32})
	if err != nil {
		complain(err)
		return
	}
	for _, record := range records {
		letter := crashedLetter(record, limit-aloneFrom, t.now())
		if err := t.config.DLQ.Send(ctx, letter); err != nil {
			complain(err)
			continue
		}
		if err := s.settle(ctx, toMark, []T{record}, nil); err != nil {
			complain(err)
			continue
		}
		t.log.Warn("couriersql: a record is parked, as each relay that had it in hand, alone, died: look for out of memory, os.Exit or a fatal error in what delivers it, before it is redriven",
			"table", t.table, "key", s.Identity(record), "crashes", limit-aloneFrom)
	}
	s.giveUp(ctx, store, records)
}

// giveUp ends the lease of records that were not handed out after all, and leaves their
// crashes.
func (s *TableSource[T]) giveUp(ctx context.Context, store tableStore, records []T) {
	s.mu.Lock()
	for _, record := range records {
		s.forget(s.Identity(record))
	}
	s.mu.Unlock()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = s.table.ask(last, func(ctx context.Context, conn *sql.Conn) error { // else with the next fetch
		return store.forget(ctx, conn, s.owner, s.known())
	})
}
