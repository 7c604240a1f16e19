package courierttest

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

// conditions draws conditions of all kinds.
func conditions(depth int) *rapid.Generator[Condition] {
	return rapid.Custom(func(t *rapid.T) Condition {
		span := func() (first, last int) {
			first = rapid.IntRange(1, 20).Draw(t, "first")
			return first, rapid.SampledFrom([]int{0, first, first + 3}).Draw(t, "last")
		}
		kinds := 6
		if depth > 0 {
			kinds = 9
		}
		part := func() Condition { return conditions(depth-1).Draw(t, "part") }
		switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
		case 0:
			return Calls(span())
		case 1:
			return Attempts(span())
		case 2:
			return Every(rapid.IntRange(1, 9).Draw(t, "n"))
		case 3:
			return OnRecord(rapid.String().Draw(t, "name"))
		case 4:
			return Chance(rapid.Float64Range(0, 1).Draw(t, "p"), rapid.Uint64().Draw(t, "seed"))
		case 5:
			from := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "from"))
			return During(from, from+time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "length")))
		case 6:
			return And(part(), part(), part())
		case 7:
			return Or(part(), part())
		default:
			return Not(part())
		}
	})
}

func faultLists() *rapid.Generator[Faults] {
	return rapid.Custom(func(t *rapid.T) (faults Faults) {
		for range rapid.IntRange(0, 4).Draw(t, "faults") {
			d := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "duration"))
			f := Fault{Effect: rapid.SampledFrom([]Effect{OK, Error, Permanent, Skip, Lost, Panic, Goexit, Hang, Whole, Delay(d), RetryAfter(d), Later(d)}).Draw(t, "effect")}
			if rapid.Bool().Draw(t, "conditional") {
				f.When = conditions(3).Draw(t, "condition")
			}
			faults = append(faults, f)
		}
		return faults
	})
}

func TestFaultsHaveATextForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		faults := faultLists().Draw(t, "faults")
		require.NoError(t, faults.Validate())
		parsed, err := Parse(faults.String())
		require.NoError(t, err)
		require.Equal(t, faults, parsed)
		require.Equal(t, faults.String(), parsed.String())
	})
}

func TestAnyTextIsReadOrRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SampledFrom([]string{"error", "if", "call", "1..3", "..", "every", "not", "(", ")", "and", "or", ";", "record", `"a"`, `"`, "chance", "0.5", "seed", "7", "delay", "1s", "during", "1s..2s", "\n", "é", ""})
		text := ""
		for range rapid.IntRange(0, 12).Draw(t, "words") {
			text += words.Draw(t, "word") + rapid.SampledFrom([]string{"", " "}).Draw(t, "space")
		}
		if faults, err := Parse(text); err == nil {
			require.NoError(t, faults.Validate())
			again, err := Parse(faults.String())
			require.NoError(t, err)
			require.Equal(t, faults, again)
		}
	})
}

func TestTextsThatAreNoFaults(t *testing.T) {
	for _, text := range []string{
		"boom", "error when call 1", "error if", "error if call", "error if call 0", "error if call 3..2", "error if call 3..0", "error if call x",
		"error if every 0", "error if every -1", "error if record a", "error if chance 0.1", "error if chance 2 seed 1", "error if chance NaN seed 1",
		"error if chance 0.5 seed -1", "error if chance x seed 1", "error if during 2s..1s", "error if during 1s", "error if during x..1s", "error if (call 1", "error if call 1)", "error if not",
		"delay", "delay soon", "delay -1s", "retry-after", "later", "later on", "later -1s", "error if call 1 and", "error if call 1 or", "error error", "delay 1s 2s",
	} {
		_, err := Parse(text)
		require.Error(t, err, text)
		require.ErrorContains(t, err, strconv.Quote(text))
	}
	require.Panics(t, func() { MustParse("boom") })
}

func TestFaultsGoIntoFlagsAndFiles(t *testing.T) {
	var faults Faults
	set := flag.NewFlagSet("", flag.ContinueOnError)
	set.TextVar(&faults, "faults", Faults{}, "")
	require.NoError(t, set.Parse([]string{"-faults", "error if every 3; lost"}))
	require.Equal(t, Faults{{Error, Every(3)}, {Lost, nil}}, faults)
	stored, err := json.Marshal(faults)
	require.NoError(t, err)
	require.Equal(t, `"error if every 3; lost"`, string(stored))
	_, err = json.Marshal(Faults{{Effect: "boom"}})
	require.Error(t, err)
}

func TestConditions(t *testing.T) {
	for text, want := range map[string]string{
		`error`:                                       "123456",
		`error if call 2`:                             "2",
		`error if call 5..`:                           "56",
		`error if call 2..3`:                          "23",
		`error if every 3`:                            "36",
		`error if record "a"`:                         "135",
		`error if attempt 2`:                          "34",
		`error if record "b" and attempt 2..`:         "46",
		`error if record "b" or call 1 and every 1`:   "1246",
		`error if (record "b" or call 1) and every 2`: "246",
		`error if not (record "b" or call 1)`:         "35",
		`error if not record "b" and not call 1`:      "35",
		`error if during 20s..40s`:                    "34",
		`error if chance 0 seed 1`:                    "",
		`error if chance 1 seed 1`:                    "123456",
		`ok if call 1..3; error`:                      "456",
		`delay 1s; error if call 6`:                   "6",
	} {
		t.Run(text, func(t *testing.T) {
			var i Injector
			i.Set(MustParse(text)...)
			got := ""
			for n := range 6 {
				verdicts, err := i.next(time.Unix(int64(n)*10, 0), []string{"a", "b"}[n%2])
				require.NoError(t, err)
				if verdicts[0].effect == Error {
					got += strconv.Itoa(n + 1)
				}
			}
			require.Equal(t, want, got)
		})
	}
}

// A draw belongs to the record and the attempt, whoever comes first.
func TestChanceDoesNotDependOnTheOrder(t *testing.T) {
	verdictsOf := func(names ...string) map[string]Effect {
		var i Injector
		i.Set(Fault{Error, Chance(0.5, 7)})
		verdicts := make(map[string]Effect)
		for _, name := range names {
			v, _ := i.next(time.Time{}, name)
			verdicts[name] = v[0].effect
		}
		return verdicts
	}
	require.Equal(t, verdictsOf("a", "b", "c", "d", "e"), verdictsOf("e", "c", "a", "d", "b"))
	failed := 0
	var i Injector
	i.Set(Fault{Error, Chance(0.3, 1)})
	for n := range 2000 {
		if v, _ := i.next(time.Time{}, strconv.Itoa(n)); v[0].effect == Error {
			failed++
		}
	}
	require.InDelta(t, 600, failed, 80)
}

func TestEffects(t *testing.T) {
	apply := func(t *testing.T, effect Effect) (applied int, err error) {
		t.Helper()
		var r Recorder[string]
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = r.Applier(Script(effect)).Apply(ctx, "a")
		return len(r.Records(Applied, Unacked)), err
	}
	synctest.Test(t, func(t *testing.T) {
		for effect, want := range map[Effect]struct {
			class   courier.ErrorClass
			applied int
		}{
			Error:                 {courier.ClassRetryable, 0},
			Whole:                 {courier.ClassRetryable, 0},
			Permanent:             {courier.ClassPermanent, 0},
			Skip:                  {courier.ClassSkipped, 0},
			Lost:                  {courier.ClassRetryable, 1},
			Hang:                  {courier.ClassRetryable, 0},
			RetryAfter(time.Hour): {courier.ClassRetryable, 0},
			Later(time.Hour):      {courier.ClassNotAttempted, 0},
		} {
			applied, err := apply(t, effect)
			require.ErrorIs(t, err, ErrInjected, effect)
			require.Equal(t, want.class, courier.Classify(context.Background(), err), effect)
			require.Equal(t, want.applied, applied, effect)
			var injected *InjectedError
			require.ErrorAs(t, err, &injected)
			require.Equal(t, InjectedError{effect, "a", 1}, *injected)
		}
		_, err := apply(t, Hang)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		before := time.Now()
		applied, err := apply(t, Delay(400*time.Millisecond))
		require.NoError(t, err)
		require.Equal(t, 1, applied)
		require.Equal(t, 400*time.Millisecond, time.Since(before))
		applied, err = apply(t, Delay(time.Hour))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, applied)
	})

	// A panic and a Goexit, as a coordinator sees them.
	for effect, goexit := range map[Effect]bool{Panic: false, Goexit: true} {
		var r Recorder[string]
		c := courier.NewPollingCoordinator(r.Source("a", "b"), r.Applier(Script(effect)), quiet)
		err := c.RunOnce(t.Context())
		var p *courier.PanicError
		require.ErrorAs(t, err, &p)
		require.Equal(t, goexit, p.Goexit())
		require.Equal(t, !goexit, errors.Is(err, ErrInjected))
		require.Equal(t, []string{"b"}, r.Names(Marked))
		require.Equal(t, []string{"a"}, r.Names(Failed))
	}
}

func TestFaultsThatMakeNoSenseAreAConfigError(t *testing.T) {
	for _, faults := range []Faults{
		{{Effect: "boom"}}, {{Error, Every(0)}}, {{Error, Calls(0, 1)}}, {{Error, Not(Chance(2, 1))}}, {{Error, And(Every(1), nil)}}, {{Effect: Delay(-1)}}, {{Error, Or(OnRecord("a"), During(1, 1))}},
	} {
		var r Recorder[string]
		source := r.Source("a")
		require.ErrorIs(t, courier.NewPollingCoordinator(source, r.Applier(faults)).RunOnce(t.Context()), courier.ErrConfig)
		source.MarkFaults.Set(faults...)
		require.ErrorIs(t, courier.NewPollingCoordinator(source, r.Applier(nil)).RunOnce(t.Context()), courier.ErrConfig)
		queue := r.DLQ(0)
		queue.SendFaults.Set(faults...)
		require.ErrorIs(t, queue.Validate(), courier.ErrConfig)
		require.ErrorIs(t, queue.Send(t.Context(), courier.DeadLetter[string]{}), courier.ErrConfig)
		require.ErrorIs(t, r.Applier(faults).Apply(t.Context(), "a"), courier.ErrConfig)
		require.Empty(t, r.Records(Fetched))
	}
}
