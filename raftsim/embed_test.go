package raftsim_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/raftsim"
)

// auditor is a program around the bank: whoever leads looks into an account again and again, in its own term.
type auditor struct {
	*raftsim.Embedding
	seen *sightings
	done bool // it has looked after everything was healed
}

// sightings is what auditors of several seeds have seen together.
type sightings struct{ results, stale, starts, applied int }

func (a *auditor) Begin(e *raftsim.Embedding) { a.Embedding = e }
func (a *auditor) Started(*raftsim.Server)    { a.seen.starts++ }
func (a *auditor) Applied(s *raftsim.Server)  { a.seen.applied++ }
func (a *auditor) Led(s *raftsim.Server) {
	if term := s.Leads(); term != 0 {
		a.look(s, term)
	}
}

func (a *auditor) look(s *raftsim.Server, term raft.Term) {
	nothing, err := json.Marshal(transfer{})
	if err != nil {
		a.Fail("%v", err)
	}
	err = s.Propose(nothing, term, func(result any) {
		a.seen.results++
		a.done = a.Healed()
		if result != "done" {
			a.Fail("a transfer of nothing is %v", result)
		}
	})
	if errors.Is(err, raft.ErrStaleTerm) {
		a.seen.stale++
		if s.Leads() == term {
			a.Fail("%s leads term %d and is told that it is over", s.ID(), term)
		}
		return
	}
	if !a.done { // or the logs would never be equal
		s.On(100*time.Millisecond, func() { a.look(s, term) })
	}
}

func (a *auditor) Converged() error {
	if !a.done {
		return errors.New("nobody has looked since everything was healed")
	}
	return nil
}

// An embedder hears of every start, leader and application, and its commands are appended in the term that they are meant for or not at all.
func TestEmbedderLeadsAlong(t *testing.T) {
	var seen sightings
	raftsim.Run(t, raftsim.Options{
		StateMachine: newBank, Workload: transfers(), Seeds: 20, Parallel: 1,
		Embed: func() raftsim.Embedder { return &auditor{seen: &seen} },
	})
	require.Positive(t, seen.results)
	require.Positive(t, seen.stale)
	require.Positive(t, seen.applied)
	require.Greater(t, seen.starts, 20)
}
