package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/erfanmomeniii/courier"
)

type item struct {
	ID    int    `json:"id"`
	Name  string `json:"name"`
	Price int    `json:"price"`
}

// page is an answer of the API. Next is the cursor of the page after it. On the last page it
// is the cursor from which new items can be read later, or that of the page itself, or empty:
// then new items are added to that page.
type page struct {
	Items []item `json:"items"`
	Next  string `json:"next"`
}

// entry is an item that was read.
type entry struct {
	item
	number int    // of the entries that this process has read
	cursor string // of its page
}

// feed is a source: the pages of an API.
type feed struct {
	client *http.Client
	url    string
	save   func(ctx context.Context, cursor string) error

	saved string  // the cursor that is stored
	next  string  // the cursor of the page to read next
	seen  int     // how many of its items were read
	read  int     // entries
	held  []entry // read and not marked, oldest first
}

// Fetch returns the first entries that are not marked, and reads more pages if there are
// too few. An error comes with the entries that are there.
func (f *feed) Fetch(ctx context.Context, limit int) (_ []entry, err error) {
	for len(f.held) < limit {
		var p page
		if p, err = f.get(ctx, f.next); err != nil {
			break
		}
		for _, it := range p.Items[min(f.seen, len(p.Items)):] {
			f.read++
			f.held = append(f.held, entry{it, f.read, f.next})
		}
		f.seen = len(p.Items)
		if p.Next == "" || p.Next == f.next { // the last page, to which items may be added
			break
		}
		f.next, f.seen = p.Next, 0
	}
	return slices.Clone(f.held[:min(limit, len(f.held))]), err
}

// Mark stores the cursor of the page that has the first entry that is not marked.
func (f *feed) Mark(ctx context.Context, done []entry) error {
	marked := make(map[int]bool)
	for _, e := range done {
		marked[e.number] = true
	}
	left := slices.DeleteFunc(slices.Clone(f.held), func(e entry) bool { return marked[e.number] })
	cursor := f.next
	if len(left) > 0 {
		cursor = left[0].cursor
	}
	if cursor != f.saved {
		if err := f.save(ctx, cursor); err != nil {
			return err // nothing has changed: Mark is called again with the same entries
		}
	}
	f.saved, f.held = cursor, left
	return nil
}

// Identity names an entry. Two versions of an item are two entries.
func (f *feed) Identity(e entry) string { return fmt.Sprintf("item %d (entry %d)", e.ID, e.number) }

// get reads a page.
func (f *feed) get(ctx context.Context, cursor string) (p page, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+"?cursor="+url.QueryEscape(cursor), nil)
	if err != nil {
		return page{}, err
	}
	answer, err := f.client.Do(request)
	if err != nil {
		return page{}, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return page{}, courier.RetryAfter(&statusError{answer.StatusCode}, retryAfter(answer.Header))
	}
	err = json.NewDecoder(answer.Body).Decode(&p)
	return p, err
}

// statusError is an answer that is no page.
type statusError struct{ code int }

func (e *statusError) Error() string {
	return fmt.Sprintf("the API answered %d %s", e.code, http.StatusText(e.code))
}

// retryAfter reads a Retry-After header, which has seconds or a date. It is 0 without one.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return time.Until(at)
	}
	return 0
}
