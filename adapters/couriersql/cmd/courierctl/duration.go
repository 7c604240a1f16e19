package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// duration is a time of 0 or more, with days where they are whole: 7d, 1d12h.
type duration time.Duration

// Set implements flag.Value.
func (d *duration) Set(text string) error {
	before, rest, hasDays := strings.Cut(text, "d")
	if !hasDays {
		before, rest = "0", text
	}
	days, err := strconv.ParseUint(before, 10, 32)
	var more time.Duration
	if err == nil && (rest != "" || !hasDays) {
		more, err = time.ParseDuration(rest)
	}
	if err != nil || strings.ContainsAny(rest, "+-") || days > uint64((math.MaxInt64-more)/day) {
		return errors.New("want a time without a sign, such as 7d, 1d12h or 90s")
	}
	*d = duration(time.Duration(days)*day + more)
	return nil
}

// String implements flag.Value.
func (d *duration) String() string { return inDays(time.Duration(*d)) }

func inDays(d time.Duration) string {
	days, rest := d/day, d%day
	switch {
	case days == 0:
		return d.String()
	case rest == 0:
		return fmt.Sprintf("%dd", days)
	}
	return fmt.Sprintf("%dd%v", days, rest)
}
