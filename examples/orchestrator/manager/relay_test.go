package manager

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
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

// Who passes a request on answers for what it says: the leader sees only the certificate of the manager in between.
func TestWhatIsPassedOnIsCheckedBefore(t *testing.T) {
	as := func(node cluster.NodeID, role cluster.Role, relays bool) caller {
		return caller{Identity: pki.Identity{Node: node, Role: role}, relays: relays}
	}
	worker, boss := as("w1", cluster.RoleWorker, false), as("m1", cluster.RoleManager, false)
	for _, test := range []struct {
		caller     caller
		path, body string
		allowed    bool
	}{
		{worker, api.PathHeartbeat, `{"node":"w1"}`, true},
		{worker, api.PathHeartbeat, `{"node":"w2"}`, false},
		{boss, api.PathHeartbeat, `{"node":"w1"}`, false},
		{as("m1", cluster.RoleManager, true), api.PathHeartbeat, `{"node":"w1"}`, true},
		{as("w1", cluster.RoleWorker, true), api.PathHeartbeat, `{"node":"w2"}`, false}, // anybody can say that he passes something on
		{worker, api.PathRemove, `{"node":"w1"}`, true},
		{worker, api.PathRemove, `{"node":"w2"}`, false},
		{boss, api.PathRemove, `{"node":"w2"}`, true},
		{boss, api.PathEnter, `{"member":{"id":"m1"}}`, true},
		{boss, api.PathEnter, `{"member":{"id":"m2"}}`, false},
		{boss, api.PathEnter, `nonsense`, false},
		{boss, api.PathVote, `{"node":"m2"}`, true},
	} {
		err := mayRelay(test.caller, test.path, []byte(test.body))
		require.Equal(t, test.allowed, err == nil, "%+v %s %s: %v", test.caller, test.path, test.body, err)
	}
}
