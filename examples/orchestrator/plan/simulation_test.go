package plan_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/raftsim"
)

var simulations = flag.Int("simulations", 50, "how many seeds TestOrchestratorSimulated tries")

// The whole orchestrator but for its processes, in the simulation of the library: managers crash, lose power, stand still, are cut off and
// deposed without knowing it; nodes crash, stand still and are cut off from the managers; tasks fail; users change what they want.
// Whatever happens:
//
//   - no two nodes ever run the same task, which is one slot and generation, and no task runs that a leader was told has ended;
//   - on nodes that have heard the last word there are no two wanted tasks of a slot, but for a moment in a move;
//   - commands of an old epoch change nothing, although they get into the log;
//   - tasks do not go back, and what has happened to them happens once;
//   - an update never has more slots on their way than it may, whatever leaders follow each other in the middle of it;
//   - the load keeps the number of replicas within its limits, and lowers it only after a minute in which fewer were enough throughout;
//   - a standby takes the place of one voter, which was down for as long as it has to be, and the votes are never fewer for that, nor is the
//     quorum lost by it;
//   - when everything is healed every service becomes what it should be, and then nothing is left to do.
func TestOrchestratorSimulated(t *testing.T) {
	seeds := *simulations
	if testing.Short() || raceDetector { // it is one goroutine, so that no race is to be expected
		seeds = min(seeds, 10)
	}
	var seen sights
	raftsim.Run(t, raftsim.Options{
		StateMachine: func() raft.StateMachine { return &machine{Machine: cluster.NewMachine()} },
		Workload:     names(), MinServers: 3, MaxServers: 5, MaxFaulty: 1, Seeds: seeds, Parallel: 1, FaultTime: 30 * time.Second, LiveTime: 5 * time.Minute,
		Embed: func() raftsim.Embedder { return &world{seen: &seen} },
	})
	t.Logf("%+v", seen)
	if seeds < 50 {
		return // too few to reach what is rare
	}
	require.Positive(t, seen.Stale, "commands of old epochs in the log")
	require.Positive(t, seen.Deposed, "loops that went on after their time")
	require.Positive(t, seen.Lost, "tasks of nodes that were down")
	require.Positive(t, seen.Updates, "updates")
	require.Positive(t, seen.Overlaps, "updates that more than one leader has led")
	require.Positive(t, seen.Rollbacks, "rollbacks")
	require.Positive(t, seen.Backoffs, "back-offs that more than one leader has waited for")
	require.Positive(t, seen.Grown, "services that have grown with their load")
	require.Positive(t, seen.Shrunk, "services that have shrunk with their load")
	require.Positive(t, seen.Replaced, "voters that a standby has replaced")
}

// sights counts what has been reached in all seeds, so that a test that reaches nothing does not pass.
type sights struct{ Epochs, Stale, Deposed, Lost, Updates, Overlaps, Rollbacks, Backoffs, Started, Failed, Grown, Shrunk, Replaced int }

// names is what the simulation's clients do: they make services, and look whether there is one of a name. Nothing else has such names, so
// that what they may see depends on them alone.
func names() *raftsim.Workload {
	type create string
	type look string
	return &raftsim.Workload{
		Clients: 2,
		Next: func(r *rand.Rand, _, n int) raftsim.Operation {
			name := fmt.Sprintf("client%d", r.IntN(4))
			if r.IntN(3) > 0 {
				return raftsim.Operation{Input: look(name)}
			}
			spec := service(name, 1+n%2)
			return raftsim.Operation{Input: create(name), Command: encode(cluster.Command{At: base, Op: cluster.CreateService{Spec: spec}})}
		},
		Read: func(sm raft.StateMachine, input any) any {
			return sm.(*machine).View().ServiceByName(string(input.(look))) != nil
		},
		Model: raftsim.Model{
			Init: func() any { return false },
			Key: func(input any) string {
				if c, ok := input.(create); ok {
					return string(c)
				}
				return string(input.(look))
			},
			Apply: func(state, input any) (output, next any) {
				if _, ok := input.(look); ok {
					return state, state
				}
				if state.(bool) {
					return cluster.Conflict, true
				}
				return cluster.OK, true
			},
			// The model knows no indexes, so of a result it says only the code. Two servers have to say all the same.
			EqualOutput: func(got, want any) bool {
				g, isResult := got.(cluster.Result)
				if code, ok := want.(cluster.Code); ok && isResult {
					return g.Code == code
				}
				return got == want
			},
		},
	}
}

// base is what every clock shows at the beginning.
var base = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func service(name string, replicas int) cluster.ServiceSpec {
	return cluster.ServiceSpec{Name: name, Replicas: replicas, Task: cluster.TaskSpec{
		Command: []string{"run"}, Restart: cluster.RestartPolicy{Condition: cluster.RestartAlways},
	}}
}

func encode(c cluster.Command) []byte {
	b, err := cluster.Encode(c)
	if err != nil {
		panic(err)
	}
	return b
}

// machine is the state machine, watched while it works.
type machine struct {
	*cluster.Machine
	watch  func(c cluster.Command, r cluster.Result, before, after *cluster.State) // nil: nobody has asked yet
	hashed *cluster.State
	hash   uint64
}

// Apply applies one command at a time, so that each can be looked at.
func (m *machine) Apply(entries []raft.Entry, results []any) error {
	for i := range entries {
		before := m.View()
		if err := m.Machine.Apply(entries[i:i+1], results[i:i+1]); err != nil {
			return err
		}
		c, err := cluster.Decode(entries[i].Data)
		if err != nil {
			return err
		}
		if m.watch != nil {
			m.watch(c, results[i].(cluster.Result), before, m.View())
		}
	}
	return nil
}

func (m *machine) Snapshot(ctx context.Context) (raft.SnapshotWriter, error) {
	return m.Machine.Snapshot(ctx)
}

func (m *machine) Restore(ctx context.Context, meta raft.SnapshotMeta, r io.Reader) error {
	return m.Machine.Restore(ctx, meta, r)
}

// StateHash compares states by their JSON; a state that was hashed before is not written again.
func (m *machine) StateHash() uint64 {
	if s := m.View(); s != m.hashed {
		h := fnv.New64a()
		if err := json.NewEncoder(h).Encode(s); err != nil {
			panic(err)
		}
		m.hashed, m.hash = s, h.Sum64()
	}
	return m.hash
}

// world is what surrounds the managers: their control loops, the nodes, and a user.
type world struct {
	*raftsim.Embedding
	seen            *sights
	loops           map[*raftsim.Server]*loop
	nodes           []*node
	fails           bool          // whether tasks fail
	bound           time.Duration // after which a lost voter is replaced
	electionTimeout time.Duration // by which it is judged who answers

	grown map[cluster.ServiceID]time.Time // by its load, last, by a leader's clock
	load  map[cluster.ServiceID]float64   // how much processor time its tasks want together, in percent of one

	// What is known of the log, from whichever server has applied it first.
	applied  raft.Index
	newest   *cluster.State
	lost     map[cluster.TaskID]bool // tasks that were given up with their nodes
	onTheWay map[cluster.ServiceID]*wave
	nextSpec int
}

const nodes = 4

func (w *world) Begin(e *raftsim.Embedding) {
	w.Embedding = e
	w.loops, w.lost, w.onTheWay = map[*raftsim.Server]*loop{}, map[cluster.TaskID]bool{}, map[cluster.ServiceID]*wave{}
	w.grown = map[cluster.ServiceID]time.Time{}
	w.newest = cluster.NewState()
	w.fails = w.Random().IntN(2) == 0
	w.bound = w.upTo(8 * time.Second)
	w.electionTimeout = 300*time.Millisecond + w.upTo(700*time.Millisecond)
	for i := range nodes {
		w.addNode(cluster.NodeID(fmt.Sprintf("w%d", i+1)), nil)
	}
	w.demands()
	e.After(2*time.Second, w.user)
}

func (w *world) upTo(d time.Duration) time.Duration {
	return time.Duration(w.Random().Int64N(int64(d) + 1))
}

func stateOf(s *raftsim.Server) *cluster.State { return s.StateMachine().(*machine).View() }

func clockOf(s *raftsim.Server) time.Time { return base.Add(s.Clock()) }

// addNode adds a machine: a manager's, if there is a host.
func (w *world) addNode(id cluster.NodeID, host *raftsim.Server) {
	n := &node{w: w, id: id, host: host, tasks: map[cluster.TaskID]*work{}}
	w.nodes = append(w.nodes, n)
	w.After(w.upTo(time.Second), n.start)
}

func (w *world) nodeOf(s *raftsim.Server) *node {
	i := slices.IndexFunc(w.nodes, func(n *node) bool { return n.host == s })
	if i < 0 {
		return nil
	}
	return w.nodes[i]
}

func (w *world) Started(s *raftsim.Server) {
	if w.nodeOf(s) == nil {
		w.addNode(cluster.NodeID(s.ID()), s)
	}
	s.StateMachine().(*machine).watch = w.watch
}

func keys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
