package main

import (
	"bytes"
	"encoding/xml"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDraw_IsWellFormed(t *testing.T) {
	t.Parallel()
	plan := append([]section(nil), small...)
	plan[0].title = "Passes of <1000> & more"
	svg, err := draw(tabulate(plan, read(t, output)))
	require.NoError(t, err)
	require.Contains(t, string(svg), "Passes of &lt;1000&gt; &amp; more")
	for d := xml.NewDecoder(bytes.NewReader(svg)); err != io.EOF; _, err = d.Token() {
		require.NoError(t, err)
	}
}

func TestLayOut_DrawsWhatIsToBePlotted(t *testing.T) {
	t.Parallel()
	c := layOut(tabulate(small, read(t, output)))
	require.Len(t, c.Heads, 1)
	require.Len(t, c.Bars, 2)
	loop, courier := c.Bars[0], c.Bars[1]
	require.Less(t, loop.Width, courier.Width)
	require.Less(t, courier.Goal-barsFrom, courier.Width, "a bar that misses its goal goes beyond it")
	require.False(t, courier.Met)
	require.Equal(t, "8.0 ns 4.00×", courier.Cost+" "+courier.Ratio)
	require.Zero(t, loop.Goal)
}

func TestScale_HasRoomForEveryBar(t *testing.T) {
	t.Parallel()
	s := scaleOf(&table{parts: []part{
		{section: section{plot: true}, lines: []line{{value: 0.4}, {value: 12_000}}},
		{lines: []line{{value: 1e9}}}, // is not drawn
	}})
	require.Equal(t, scale{-1, 5}, s)
	require.InDelta(t, barsFrom, s.at(0.1), 1e-9)
	require.InDelta(t, barsTo, s.at(1e5), 1e-9)
}
