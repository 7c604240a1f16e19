package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// api serves items in pages of 25. It has a quota, fails now and then, and every hundredth
// item is bad.
type api struct {
	items int

	mu       sync.Mutex
	requests int
	status   int // of every answer, unless it is 0
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	switch {
	case a.status != 0:
		http.Error(w, "no", a.status)
		return
	case a.requests%7 == 0:
		w.Header().Set("Retry-After", time.Now().Add(3*time.Second).UTC().Format(http.TimeFormat))
		http.Error(w, "slow down", http.StatusTooManyRequests)
		return
	case a.requests%5 == 0:
		http.Error(w, "oops", http.StatusInternalServerError)
		return
	}
	var p page
	first, _ := strconv.Atoi(r.URL.Query().Get("cursor")) // 0 for the first page
	for id := first + 1; id <= min(first+25, a.items); id++ {
		price := id
		if id%100 == 0 {
			price = -1
		}
		p.Items = append(p.Items, item{id, fmt.Sprintf("item %d", id), price})
	}
	p.Next = strconv.Itoa(first + len(p.Items))
	_ = json.NewEncoder(w).Encode(p)
}
