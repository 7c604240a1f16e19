package main

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// The test binary is the relay too.
func TestMain(m *testing.M) {
	if text := os.Getenv(relayVariable); text != "" {
		os.Exit(runRelay(context.Background(), text))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(pgtest.Exit))
}

func TestKilledRelays(t *testing.T) {
	for name, args := range map[string][]string{"sharing": nil, "strict": {"-strict"}} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args = append(args, "-pg", pgtest.Shared(t).DSN, "-n", "3000", "-kills", "3", "-batch", "50")
			require.Zero(t, run(t.Context(), args, &stdout, &stderr), "%s\n%s", &stdout, &stderr)
			require.Regexp(t, `All 3,000 orders arrived( in order)?\. 3 relays were killed; \d+ deliveries were repeated, of at most 150`, stdout.String())
			require.Contains(t, stdout.String(), "relay-6")
		})
	}
}

func TestAServerOfItsOwn(t *testing.T) {
	t.Setenv(pgtest.DSNVariable, "")
	var stdout, stderr bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"-n", "500", "-kills", "1", "-relays", "2"}, &stdout, &stderr), "%s\n%s", &stdout, &stderr)
	require.Contains(t, stderr.String(), "started a private server")
}

func TestVerdict(t *testing.T) {
	book := func(strict bool, ids ...string) *board {
		b := newBoard(options{orders: 2, kills: 1, batch: 1, strict: strict})
		b.started("r")
		for _, id := range ids {
			b.note("r", id)
		}
		return b
	}
	var out bytes.Buffer
	require.NoError(t, book(false, "b", "a", "a").verdict(&out, 0))
	require.ErrorIs(t, book(false, "a").verdict(&out, 0), errVerdict)
	require.ErrorIs(t, book(false, "a", "b").verdict(&out, 1), errVerdict)
	require.ErrorIs(t, book(false, "a", "b", "a", "b").verdict(&out, 0), errVerdict)
	require.ErrorIs(t, book(true, "b", "a").verdict(&out, 0), errVerdict)
}

func TestBadInput(t *testing.T) {
	for want, args := range map[string][]string{
		"-n 0: pass 1 or more":    {"-n", "0"},
		"unexpected argument":     {"x"},
		"-kills 9: pass 0":        {"-n", "5", "-kills", "9"},
		"not defined: -x":         {"-x"},
		"failed to connect":       {"-pg", "host=" + t.TempDir()},
		"-relays -1: pass 1 or m": {"-relays", "-1"},
	} {
		var stdout, stderr bytes.Buffer
		require.Equal(t, exitCannotRun, run(t.Context(), args, &stdout, &stderr))
		require.Contains(t, stderr.String(), want)
	}
	var stdout, stderr bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"-h"}, &stdout, &stderr))
	require.Contains(t, stdout.String(), "-strict")
}
