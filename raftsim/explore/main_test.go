package explore

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

func TestCommand(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"one world", []string{"-world", "replace"}, 0, "the bound is exhausted"},
		{"a bound on states", []string{"-world", "promote", "-states", "100"}, 0, "the bound is not exhausted"},
		{"a bound on time", []string{"-world", "four", "-for", "1ms"}, 0, "the bound is not exhausted"},
		{"a list", []string{"-list", "-large"}, 0, "two terms of three"},
		{"no such world", []string{"-world", "atlantis"}, 2, "there is no world"},
		{"an argument", []string{"everything"}, 2, "flags only"},
		{"no such flag", []string{"-nonsense"}, 2, "not defined"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, complaints bytes.Buffer
			require.Equal(t, tt.code, command(t.Context(), tt.args, &out, &complaints))
			require.Contains(t, out.String()+complaints.String(), tt.says)
		})
	}
}

// Worlds are explored at the same time and reported in their order, and what was seen in all of them is added up.
func TestCommandInOrder(t *testing.T) {
	var out, complaints bytes.Buffer
	require.Equal(t, 0, command(t.Context(), []string{"-states", "500", "-j", "3"}, &out, &complaints))
	at := 0
	for _, w := range Small() {
		next := strings.Index(out.String()[at:], heading(&w))
		require.GreaterOrEqual(t, next, 0, "%s, behind %d bytes of\n%s", w.Name, at, out.String())
		at += next
	}
	require.Regexp(t, `no promise was broken in \d+ worlds, 0 of them exhausted: \d+ states, \d+ steps, .* states/s, \d+ bytes kept for a state`, out.String()[at:])
	require.Regexp(t, `events: deliver [1-9]\d*, duplicate [1-9]`, out.String()[at:])
	require.Empty(t, complaints.String())
}

// An interrupt ends the exploration; what was seen by then is reported.
func TestCommandInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	var out bytes.Buffer
	complaints := interrupting{interrupt: interrupt}
	require.Equal(t, 0, command(ctx, []string{"-world", "three terms of two", "-every", "2000"}, &out, &complaints))
	require.True(t, complaints.told)
	require.Contains(t, out.String(), "the bound is not exhausted")
	require.Regexp(t, `in 1 worlds, 0 of them exhausted: [2-9]\d{3} states`, out.String())
}

// interrupting interrupts as soon as anything is written.
type interrupting struct {
	interrupt func()
	told      bool
}

func (w *interrupting) Write(b []byte) (int, error) {
	w.interrupt()
	w.told = true
	return len(b), nil
}

// The time is shared: a world gets what is left, divided by the worlds that wait for it.
func TestShareOfTime(t *testing.T) {
	tr := tour{worlds: make([]World, 4), parallel: 2, ends: time.Now().Add(time.Hour)}
	for i, want := range []time.Duration{30 * time.Minute, 40 * time.Minute, time.Hour, time.Hour} {
		k, share := tr.next()
		require.Equal(t, i, k)
		require.InDelta(t, want.Minutes(), share.Minutes(), 1)
	}
	k, _ := tr.next()
	require.Equal(t, -1, k)
}

// Bounds that make no sense are refused, with all reasons at once.
func TestWorldValidate(t *testing.T) {
	for _, w := range append(Small(), Large()...) {
		require.NoError(t, w.Validate())
		require.NotEmpty(t, w.Covers)
	}
	bad := World{Name: "bad", Voters: 5, Terms: 0, PreVote: true, Reads: 9, Crashes: -1}
	err := bad.Validate()
	for _, part := range []string{"5 voters", "0 terms", "pre-votes", "9 reads", "budget -1"} {
		require.ErrorContains(t, err, part)
	}
	_, err = Run(t.Context(), bad, Options{})
	require.Error(t, err)

	bad = World{Voters: 2, Terms: 1, Start: []string{"timeout", "settle", "timeout c", "dance a"}, Changes: changes(promote("x"), raft.Change{IfIndex: 1})}
	err = bad.Validate()
	for _, part := range []string{`start "timeout"`, `start "settle"`, `start "timeout c"`, `start "dance a"`, `names "x"`, "only Promote"} {
		require.ErrorContains(t, err, part)
	}
	_, err = Run(t.Context(), World{Name: "impossible", Voters: 2, Terms: 1, Start: []string{"propose a"}}, Options{})
	require.ErrorContains(t, err, `start of world "impossible": propose a: nothing happens`)
}
