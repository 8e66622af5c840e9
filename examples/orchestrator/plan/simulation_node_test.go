package plan_test

import (
	"fmt"
	"slices"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/plan"
	"github.com/steadyraft/raft/raftsim"
)

// node is a machine with its agent. It goes on running its tasks whatever becomes of the managers.
type node struct {
	w       *world
	id      cluster.NodeID
	life    int // of the agent
	session string
	known   bool          // it has registered
	fence   cluster.Fence // the highest that it has acted on; on its disk
	tasks   map[cluster.TaskID]*work
	away    time.Duration   // cut off from all managers until then
	frozen  time.Duration   // stands still until then
	manager int             // whom it asks
	heard   time.Duration   // by a leader, last
	host    *raftsim.Server // on the machine of a manager: nil on a worker's
}

// work is a task on its node: what is said of it, and whether it really runs.
type work struct {
	task   *cluster.Task
	status cluster.TaskStatus
	runs   bool
	stop   bool // is to end
	busy   bool // something is under way with it
}

func (n *node) start() {
	n.life++
	n.session, n.known = fmt.Sprintf("%s-%d", n.id, n.life), false
	for _, k := range n.tasks { // order-free: what the last agent had under way with them is over
		k.busy = false
	}
	n.beat(n.life)
	n.mishap(n.life)
}

// mishap is what goes wrong with a node now and then.
func (n *node) mishap(life int) {
	w := n.w
	w.After(w.upTo(25*time.Second), func() {
		if life != n.life || w.Healed() {
			return
		}
		switch w.Random().IntN(6) {
		case 0: // the agent crashes, and what runs goes on
			w.Logf(nil, "agent %s crashes", n.id)
			n.life++
			w.After(w.upTo(6*time.Second), n.start)
			return
		case 1: // the machine does
			w.Logf(nil, "node %s crashes", n.id)
			n.life++
			for _, k := range n.tasks { // order-free: each ends by itself
				if k.runs {
					k.runs = false
					k.status.Attempts++
				}
				if !k.status.State.Final() {
					k.status.State, k.status.Error = cluster.TaskStarting, "its node crashed"
				}
			}
			w.After(w.upTo(10*time.Second), n.start)
			return
		case 2:
			n.away = w.Now() + w.upTo(12*time.Second)
		case 3:
			n.frozen = w.Now() + w.upTo(8*time.Second)
		}
		n.mishap(life)
	})
}

// isAway reports that nobody hears the node. The machine of a manager that does not run is away as a whole.
func (n *node) isAway() bool {
	return n.host != nil && !n.host.Up() || !n.w.Healed() && n.w.Now() < n.away
}

// beat is a heartbeat, every second: registration first, then a report, and whatever the managers answer.
func (n *node) beat(life int) {
	w := n.w
	if life != n.life {
		return
	}
	if !w.Healed() && w.Now() < n.frozen {
		w.After(n.frozen-w.Now(), func() { n.beat(life) })
		return
	}
	n.ask(life)
	n.work()
	w.After(900*time.Millisecond+w.upTo(200*time.Millisecond), func() { n.beat(life) })
}

// ask sends one request to one manager. It may be lost on the way, there and back.
func (n *node) ask(life int) {
	w := n.w
	servers := w.Servers()
	if n.isAway() {
		return
	}
	s := servers[n.manager%len(servers)]
	if !s.Up() || w.Random().IntN(8) == 0 {
		n.manager++
	}
	if leader := s.Leader(); leader != "" { // it passes requests on
		for _, other := range servers {
			if other.ID() == leader {
				s = other
			}
		}
	} else {
		n.manager++
	}
	report := cluster.Report{Node: n.id, Session: n.session}
	for _, id := range slices.Sorted(keys(n.tasks)) {
		report.Tasks = append(report.Tasks, cluster.ReportedTask{ID: id, Status: n.tasks[id].status})
	}
	loads := n.loads()
	known := n.known
	s.On(w.upTo(20*time.Millisecond), func() {
		l := w.loops[s]
		if l == nil || !l.begun || n.host != nil && n.host != s && !l.hears(n.host.ID()) {
			return
		}
		state := stateOf(s)
		if r := state.Nodes[n.id]; !known || r == nil || r.Session != report.Session {
			n.register(life, s, l)
			return
		}
		l.heard[n.id] = clockOf(s)
		n.heard = w.Now()
		for id, percent := range loads { // order-free
			l.loads[id] = plan.Load{CPU: percent, At: clockOf(s)}
		}
		if state.Nodes[n.id].Status != cluster.NodeReady {
			l.wake()
		}
		if !report.News(state) {
			n.answer(life, s)
			return
		}
		c := cluster.Command{At: clockOf(s), Op: report}
		_ = s.Propose(encode(c), 0, func(any) { n.answer(life, s) }) // no room: the next heartbeat says it again
	})
}

func (n *node) register(life int, s *raftsim.Server, l *loop) {
	if life != n.life {
		return // it would take the node over from its own successor
	}
	role := cluster.RoleWorker
	if n.host != nil {
		role = cluster.RoleManager
	}
	op := cluster.RegisterNode{Node: n.id, Role: role, Session: n.session, Resources: cluster.Resources{NanoCPUs: 4 * cluster.OneCPU}}
	_ = s.Propose(encode(cluster.Command{At: clockOf(s), Op: op}), 0, func(any) {
		if life == n.life && stateOf(s).Nodes[n.id].Session == n.session {
			n.known = true
		}
		l.wake()
	})
}

// answer tells the node what a manager's state asks of it. It may be late, and come behind the word of a later leader.
func (n *node) answer(life int, s *raftsim.Server) {
	w, state := n.w, stateOf(s)
	fence, tasks := state.Fence(), state.TasksOn(n.id)
	delay := w.upTo(20 * time.Millisecond)
	if !w.Healed() && w.Random().IntN(10) == 0 {
		delay = w.upTo(5 * time.Second)
	}
	w.After(delay, func() {
		if life != n.life || n.isAway() || fence.Less(n.fence) {
			return
		}
		n.accept(fence, tasks)
	})
}

// accept makes the node run what it was told, and stop everything else.
func (n *node) accept(fence cluster.Fence, tasks []*cluster.Task) {
	n.fence = fence
	wanted := map[cluster.TaskID]bool{}
	for _, t := range tasks {
		wanted[t.ID] = true
		k := n.tasks[t.ID]
		if k == nil {
			k = &work{task: t, status: cluster.TaskStatus{State: cluster.TaskStarting, Attempts: t.Attempts}}
			if t.State == cluster.TaskRunning {
				k.status.Attempts++
			}
			n.tasks[t.ID] = k
			n.w.seen.Started++
		}
		k.stop = k.stop || t.Desired == cluster.DesiredShutdown
	}
	for id, k := range n.tasks { // order-free
		if !wanted[id] {
			k.stop = true
			if !k.runs {
				delete(n.tasks, id)
			}
		}
	}
	n.work()
	n.w.checkTruth()
}

// work moves every task on, a little later.
func (n *node) work() {
	for _, id := range slices.Sorted(keys(n.tasks)) {
		k := n.tasks[id]
		if k.busy || k.status.State.Final() {
			continue
		}
		delay := n.w.upTo(100 * time.Millisecond)
		switch {
		case k.stop:
			delay = n.w.upTo(2 * time.Second) // it takes its time to end
		case k.runs && !(n.w.fails && !n.w.Healed()):
			continue
		case k.runs:
			delay = n.w.upTo(40 * time.Second)
		}
		k.busy = true
		life := n.life
		n.w.After(delay, func() {
			if life == n.life {
				n.step(k)
				n.ask(n.life)
			}
		})
	}
}

// step is one thing that happens to a task.
func (n *node) step(k *work) {
	k.busy = false
	broken := k.task.Spec.Command[0] == "broken"
	switch {
	case k.status.State.Final():
	case k.stop:
		k.runs = false
		k.status.State = cluster.TaskShutdown
	case !k.runs && !broken:
		k.runs = true
		k.status.State, k.status.NotBefore = cluster.TaskRunning, time.Time{}
	case n.w.Healed() && !broken:
	default:
		n.w.seen.Failed++
		k.runs = false
		k.status.State, k.status.Error, k.status.ExitCode = cluster.TaskStarting, "exit code 1", 1
		if k.status.Attempts++; n.w.Random().IntN(2) == 0 {
			k.status.State = cluster.TaskRejected
		}
	}
	n.w.checkTruth()
	n.work()
}
