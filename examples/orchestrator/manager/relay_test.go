package manager

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// A manager that was removed, and does not know it yet, passes on what a node says and is refused. The node must not believe that it is
// the one that was removed: it would stop its tasks.
func TestRemovalOfTheManagerInBetweenIsNotTheNodes(t *testing.T) {
	worker := caller{Identity: pki.Identity{Node: "w1"}}
	require.ErrorIs(t, relayed(removedNode("w1"), worker), agent.ErrRemoved)
	err := relayed(removedNode("m2"), worker)
	require.NotErrorIs(t, err, agent.ErrRemoved)
	require.Equal(t, api.CodeUnavailable, api.ErrorOf(err).Code, "another manager is asked")
	other := errors.New("other")
	require.Equal(t, other, relayed(other, worker))
}
