package courierttest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	delayWord      = "delay"
	retryAfterWord = "retry-after"
	laterWord      = "later"
)

// durationWords begin the effects that have a duration.
var durationWords = []string{delayWord, retryAfterWord, laterWord}

// String is the text form of a fault, such as "error if every 3".
func (f Fault) String() string {
	if f.When == nil {
		return string(f.Effect)
	}
	return string(f.Effect) + " if " + f.When.String()
}

// String is the text form of the list, which [Parse] reads.
func (f Faults) String() string {
	texts := make([]string, len(f))
	for i, fault := range f {
		texts[i] = fault.String()
	}
	return strings.Join(texts, "; ")
}

// MarshalText returns the text form.
func (f Faults) MarshalText() ([]byte, error) { return []byte(f.String()), f.Validate() }

// UnmarshalText is [Parse].
func (f *Faults) UnmarshalText(text []byte) (err error) {
	*f, err = Parse(string(text))
	return err
}

// Parse reads the text form of a list of faults, separated by semicolons or
// line breaks:
//
//	error if every 3
//	delay 2s if call 1..10; lost if record "order 7" and attempt 1
//	panic if chance 0.01 seed 7 or call 100..
//	permanent if not (record "a" or record "b")
//	error if during 1m0s..5m0s
//
// The effects are ok, error, permanent, skip, lost, panic, goexit, hang, whole,
// delay, retry-after and later, the last three with a duration; see [Effect]. An
// effect without a condition always happens. The result of Parse has the same
// text form.
func Parse(text string) (Faults, error) {
	p := &parser{text: text}
	var faults Faults
	for {
		for p.take(";") || p.take("\n") {
		}
		if p.word() == "" {
			return faults, nil
		}
		fault, err := p.fault()
		if err != nil {
			return nil, fmt.Errorf("courierttest: faults %q, at %q: %w", text, p.text, err)
		}
		faults = append(faults, fault)
	}
}

// MustParse is [Parse] for texts that are known to be valid: it panics if they are not.
func MustParse(text string) Faults {
	faults, err := Parse(text)
	if err != nil {
		panic(err)
	}
	return faults
}

// parser reads from the front of its text.
type parser struct{ text string }

// word returns the next word without taking it: a quoted string, a bracket, a
// separator, or what stands before the next of these or a space. "" is the end.
func (p *parser) word() string {
	p.text = strings.TrimLeft(p.text, " \t\r")
	if quoted, err := strconv.QuotedPrefix(p.text); err == nil {
		return quoted
	}
	for i, r := range p.text {
		if unicode.IsSpace(r) || strings.ContainsRune(`();"`, r) {
			return p.text[:max(i, utf8.RuneLen(r))]
		}
	}
	return p.text
}

func (p *parser) next() string {
	word := p.word()
	p.text = p.text[len(word):]
	return word
}

// take takes the next word if it is the given one.
func (p *parser) take(word string) bool {
	if p.word() != word {
		return false
	}
	p.next()
	return true
}

func (p *parser) fault() (fault Fault, err error) {
	text := p.next()
	if slices.Contains(durationWords, text) {
		text += " " + p.next()
	}
	if fault.Effect, err = parseEffect(text); err != nil {
		return fault, err
	}
	if p.take("if") {
		if fault.When, err = p.any(); err != nil {
			return fault, err
		}
	}
	switch end := p.word(); end {
	case "", ";", "\n":
		return fault, nil
	default:
		return fault, fmt.Errorf("%q is not expected here", end)
	}
}

// any reads conditions with "or" between them, all those with "and".
func (p *parser) any() (Condition, error) {
	return p.list("or", p.all, func(list []Condition) Condition { return or(flat(orRank, list)) })
}

func (p *parser) all() (Condition, error) {
	return p.list("and", p.one, func(list []Condition) Condition { return and(flat(andRank, list)) })
}

func (p *parser) list(word string, part func() (Condition, error), join func([]Condition) Condition) (Condition, error) {
	var list []Condition
	for {
		c, err := part()
		if err != nil {
			return nil, err
		}
		list = append(list, c)
		if !p.take(word) {
			break
		}
	}
	if len(list) == 1 {
		return list[0], nil
	}
	return join(list), nil
}

// one reads a condition without "and" and "or", or one in brackets.
func (p *parser) one() (Condition, error) {
	if p.take("(") {
		c, err := p.any()
		if err == nil && !p.take(")") {
			err = fmt.Errorf("a bracket is not closed")
		}
		return c, err
	}
	if p.take("not") {
		c, err := p.one()
		return not{c}, err
	}
	c, err := p.atom()
	if err == nil {
		err = c.validate()
	}
	return c, err
}

func (p *parser) atom() (Condition, error) {
	switch word := p.next(); word {
	case "call":
		first, last, err := parseSpan(p.next())
		return calls{first, last}, err
	case "attempt":
		first, last, err := parseSpan(p.next())
		return attempts{first, last}, err
	case "every":
		n, err := strconv.Atoi(p.next())
		return every{n}, err
	case "record":
		name, err := strconv.Unquote(p.next())
		if err != nil {
			err = fmt.Errorf("the name of a record stands in quotes: %w", err)
		}
		return record{name}, err
	case "chance":
		probability, err := strconv.ParseFloat(p.next(), 64)
		if err != nil {
			return nil, err
		}
		if !p.take("seed") {
			return nil, fmt.Errorf("a chance has a seed, as in: chance 0.1 seed 7")
		}
		seed, err := strconv.ParseUint(p.next(), 10, 64)
		return chance{probability, seed}, err
	case "during":
		from, to, _ := strings.Cut(p.next(), "..")
		first, err := time.ParseDuration(from)
		if err != nil {
			return nil, err
		}
		last, err := time.ParseDuration(to)
		return during{first, last}, err
	default:
		return nil, fmt.Errorf("%q is no condition: want call, attempt, every, record, chance, during, not or a bracket", word)
	}
}

// parseSpan reads "3", "3..5" or "3..".
func parseSpan(text string) (first, last int, err error) {
	from, to, open := strings.Cut(text, "..")
	if first, err = strconv.Atoi(from); err != nil {
		return 0, 0, err
	}
	switch {
	case !open:
		return first, first, nil
	case to == "":
		return first, 0, nil
	}
	last, err = strconv.Atoi(to)
	if err == nil && last == 0 {
		err = fmt.Errorf("a span that ends at 0 is none: one without an end is %q", span(first, 0))
	}
	return first, last, err
}

func parseEffect(text string) (Effect, error) {
	switch e := Effect(text); e {
	case OK, Error, Permanent, Skip, Lost, Panic, Goexit, Hang, Whole:
		return e, nil
	}
	for _, word := range durationWords {
		if d, ok := durationOf(Effect(text), word); ok && d >= 0 {
			return Effect(word + " " + d.String()), nil
		}
	}
	return "", fmt.Errorf("%q is no effect: want ok, error, permanent, skip, lost, panic, goexit, hang, whole, or delay, retry-after or later with a duration", text)
}

// durationOf returns the duration of an effect that has one.
func durationOf(e Effect, word string) (time.Duration, bool) {
	text, ok := strings.CutPrefix(string(e), word+" ")
	if !ok {
		return 0, false
	}
	d, err := time.ParseDuration(text)
	return d, err == nil
}
