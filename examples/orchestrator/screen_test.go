package main

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The null device looks like a terminal.
func TestColoursAreForTerminalsThatWantThem(t *testing.T) {
	device, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer device.Close()
	for _, test := range []struct {
		term, noColour     string
		terminal, coloured bool
	}{
		{"xterm", "", true, true}, {"xterm", "1", true, false}, {"dumb", "", false, false},
	} {
		t.Setenv("TERM", test.term)
		t.Setenv("NO_COLOR", test.noColour)
		s := newScreen(device)
		require.Equal(t, test.terminal, s.terminal)
		require.Equal(t, test.coloured, s.coloured("32", "yes") != "yes")
	}
	t.Setenv("NO_COLOR", "")
	require.Equal(t, "yes", newScreen(&bytes.Buffer{}).coloured("32", "yes"))
}
