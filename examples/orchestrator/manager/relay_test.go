package manager

import (
	"context"
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

// A leader may apply a registration later than the manager that has answered the agent, and the agent's first heartbeat comes in between.
// The session that the leader still knows, of the agent before or of none, must not make it say that the new agent is superseded.
func TestHeartbeatMayComeBeforeItsRegistrationIsApplied(t *testing.T) {
	registered := func(session string) *cluster.State {
		s := cluster.NewState()
		s.Nodes["m2"] = &cluster.Node{ID: "m2", Session: session}
		return s
	}
	for _, before := range []*cluster.State{registered(""), registered("a"), cluster.NewState()} {
		state := before
		view := func() *cluster.State { return state }
		late := func(context.Context) error {
			state = registered("b")
			return nil
		}
		deposed := errors.New("deposed")
		_, err := stateKnowing(t.Context(), "m2", "b", view, func(context.Context) error { return deposed })
		require.ErrorIs(t, err, deposed, "who cannot tell says nothing about the agent")
		known, err := stateKnowing(t.Context(), "m2", "b", view, late)
		require.NoError(t, err)
		require.Equal(t, "b", known.Nodes["m2"].Session)
		_, err = stateKnowing(t.Context(), "m2", "a", view, late)
		require.ErrorIs(t, err, agent.ErrSuperseded)
	}
}
