package explore

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/steadyraft/raft"
	"github.com/stretchr/testify/require"
)

var (
	large  = flag.Duration("large", 0, "explore each of the large worlds for so long")
	only   = flag.String("world", "", "explore only the world of this name")
	ways   = flag.String("ways", "", "write the way to a deepest state of each small world into this directory, as scripts")
	states = flag.Int("states", 0, "stop each world after so many states")
)

// smallStates bounds a small world, so that one which has grown fails soon.
func smallStates(asked int) int {
	switch {
	case asked != 0:
		return asked
	case raceDetector:
		return 10_000
	}
	return 1_000_000
}

// Every small world is exhausted, and nothing in it breaks a promise. Together they have more than a million states, and every kind of
// event and message occurs in them: a world in which something can never happen shows nothing about it.
func TestSmallWorlds(t *testing.T) {
	all := newTotal()
	defer func() {
		if *only != "" || *states != 0 || t.Failed() {
			return
		}
		t.Logf("%d states, %d steps; events %v; messages delivered %v; %v", all.States, all.Steps, all.Events, all.Messages, all.Seen)
		for _, name := range Kinds() {
			require.Positive(t, all.Events[name], name)
		}
		for _, name := range MessageKinds() {
			require.Positive(t, all.Messages[name], name)
		}
		for _, name := range []string{"read confirmed", "commit in a joint configuration"} {
			require.Positive(t, all.Seen[name], name)
		}
		if !raceDetector {
			require.GreaterOrEqual(t, all.States, 1_000_000)
		}
	}()
	for _, w := range Small() {
		t.Run(w.Name, func(t *testing.T) {
			if *only != "" && *only != w.Name {
				t.Skip("another world was asked for")
			}
			r, err := Run(context.Background(), w, Options{MaxStates: smallStates(*states)})
			require.NoError(t, err)
			if r.Violation != nil {
				t.Fatalf("violation %v\n%s", r.Violation, r.Violation.Script)
			}
			require.True(t, r.Exhausted || raceDetector, "%d states and no end", r.States)
			all.add(&r)
			require.Greater(t, r.States, 100)
			if *ways != "" && r.Exhausted {
				name := "explored-" + strings.ReplaceAll(w.Name, " ", "-") + ".txt"
				require.NoError(t, os.WriteFile(filepath.Join(*ways, name), []byte(r.Way), 0o644))
			}
			t.Logf("%v: %d states, %d steps, depth %d, exhausted: %v, %v", &w, r.States, r.Steps, r.Depth, r.Exhausted, r.Took.Round(time.Millisecond))
		})
	}
}

// The large worlds are explored as far as the time given allows.
func TestLargeWorlds(t *testing.T) {
	if *large == 0 {
		t.Skip("no -large")
	}
	for _, w := range Large() {
		t.Run(w.Name, func(t *testing.T) {
			if *only != "" && *only != w.Name {
				t.Skip("another world was asked for")
			}
			ctx, cancel := context.WithTimeout(context.Background(), *large)
			defer cancel()
			r, err := Run(ctx, w, Options{MaxStates: *states})
			if err != nil {
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			if r.Violation != nil {
				t.Fatalf("violation %v\n%s", r.Violation, r.Violation.Script)
			}
			t.Logf("%v: %d states, %d steps, depth %d, exhausted: %v, %v", &w, r.States, r.Steps, r.Depth, r.Exhausted, r.Took.Round(time.Millisecond))
		})
	}
}

// A server that takes every refused vote for a vote is caught, and one of the shortest ways to it is printed.
func TestViolationIsReported(t *testing.T) {
	w := World{Name: "liars", Covers: "votes that nobody gave", Voters: 3, Terms: 1}
	r, err := Run(t.Context(), w, Options{inject: func(m *raft.Message) {
		if _, ok := m.Body.(raft.RequestVoteReply); ok {
			m.Body = raft.RequestVoteReply{Granted: true}
		}
	}})
	require.NoError(t, err)
	require.NotNil(t, r.Violation)
	require.ErrorContains(t, r.Violation, "leads in term 2 with the votes of 1 of 3 voters")
	require.Equal(t, 4, r.Violation.Depth) // two timeouts, a request that is refused, and the refusal
	require.Contains(t, r.Violation.Script, "cluster a b c\nknob pre-vote=0 check-quorum=0 trailing=1\nstart\ntimeout ")
	require.Contains(t, r.Violation.Script, "RequestVoteReply")
	require.False(t, r.Exhausted)
}

// What the servers are called makes no difference: without exchanging them there are more states, but no deeper ones.
func TestRenaming(t *testing.T) {
	w := World{Voters: 3, Terms: 1}
	alike, err := Run(t.Context(), w, Options{})
	require.NoError(t, err)
	require.True(t, alike.Exhausted)

	x := newExplorer(w, Options{})
	x.renamings, x.names = x.renamings[:1], x.names[:1]
	require.NoError(t, x.run(t.Context(), time.Now()))
	require.Equal(t, alike.Depth, x.res.Depth)
	require.Greater(t, x.res.States, 5*alike.States)
	require.LessOrEqual(t, x.res.States, 6*alike.States)
}
