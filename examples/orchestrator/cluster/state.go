package cluster

import (
	"cmp"
	"crypto/subtle"
	"maps"
	"slices"
	"time"

	"github.com/steadyraft/raft"
)

// Cluster is what belongs to no node and no service.
type Cluster struct {
	Epoch   raft.Term `json:"epoch"`    // the term of the newest leader that has begun to schedule
	EpochAt time.Time `json:"epoch_at"` // when it began, by its own clock
	// Tokens say who may join, at most one for each role.
	Tokens map[Role]Token `json:"tokens,omitempty"`
	// Removed names the nodes that were removed, until their certificates have expired for certain. They are refused everywhere, and
	// their names are not used again meanwhile.
	Removed map[NodeID]time.Time `json:"removed,omitempty"`
	// CA says whose certificates are believed. It is empty until the CA that the cluster was founded with is rotated for the first time.
	CA Authority `json:"ca,omitzero"`
}

// Token is what the managers know of a join token: enough to recognise it, not enough to use it.
type Token struct {
	SecretHash string    `json:"secret_hash"` // pki.SecretHash
	CreatedAt  time.Time `json:"created_at"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"` // zero: never
}

// WrongToken is what is said to a node whose secret opens nothing. It does not say why: that would help with guessing.
const WrongToken = "the join token is wrong, was rotated, or has expired; `orchestrator token --rotate` on a manager makes a new one"

// IsRemoved reports that a node was removed from the cluster.
func (c *Cluster) IsRemoved(id NodeID) bool {
	_, removed := c.Removed[id]
	return removed
}

// TokenRole returns the role that a secret lets a node join with; false if it opens nothing at that time.
func (c *Cluster) TokenRole(secretHash string, at time.Time) (Role, bool) {
	for _, role := range []Role{RoleManager, RoleWorker} {
		t, ok := c.Tokens[role]
		if ok && subtle.ConstantTimeCompare([]byte(t.SecretHash), []byte(secretHash)) == 1 && (t.ExpiresAt.IsZero() || at.Before(t.ExpiresAt)) {
			return role, true
		}
	}
	return "", false
}

// State is everything that the managers agree on, after the command at Index. A State that [Machine.View] returned never
// changes, and neither does anything that it points to: read it from anywhere, without a lock, and change nothing.
type State struct {
	Index    raft.Index             `json:"index"`
	Cluster  Cluster                `json:"cluster"`
	Nodes    map[NodeID]*Node       `json:"nodes"`
	Services map[ServiceID]*Service `json:"services"`
	Tasks    map[TaskID]*Task       `json:"tasks"`
	Events   []Event                `json:"events"` // the newest MaxEvents, oldest first
}

// NewState is the state before the first command.
func NewState() *State {
	return &State{Nodes: map[NodeID]*Node{}, Services: map[ServiceID]*Service{}, Tasks: map[TaskID]*Task{}}
}

// Fence tags what is told to a node from this state.
func (s *State) Fence() Fence { return Fence{Epoch: s.Cluster.Epoch, Index: s.Index} }

// SortedNodes returns the nodes by ID.
func (s *State) SortedNodes() []*Node { return sorted(s.Nodes) }

// SortedServices returns the services by ID.
func (s *State) SortedServices() []*Service { return sorted(s.Services) }

func sortedKeys[K ~string, V any](m map[K]*V) []K { return slices.Sorted(maps.Keys(m)) }

func sorted[K ~string, V any](m map[K]*V) []*V {
	out := make([]*V, 0, len(m))
	for _, k := range sortedKeys(m) {
		out = append(out, m[k])
	}
	return out
}

// ServiceByName finds a service that is not being removed; nil if there is none.
func (s *State) ServiceByName(name string) *Service {
	for _, sv := range s.Services { // order-free: such a name is unique
		if sv.Spec.Name == name && !sv.Removing {
			return sv
		}
	}
	return nil
}

// TasksOf returns the tasks of a service by slot and generation.
func (s *State) TasksOf(id ServiceID) []*Task {
	return s.tasks(func(t *Task) bool { return t.Service == id })
}

// TasksOn returns the tasks that a node has to look after: all those that are not final, by service, slot and generation. The
// node runs those that are wanted, stops the others, and stops whatever else it finds running.
func (s *State) TasksOn(id NodeID) []*Task {
	return s.tasks(func(t *Task) bool { return t.Node == id && t.Live() })
}

func (s *State) tasks(want func(*Task) bool) []*Task {
	var out []*Task
	for _, t := range s.Tasks { // order-free: sorted below
		if want(t) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, CompareTasks)
	return out
}

// CompareTasks orders tasks by service, slot and generation.
func CompareTasks(a, b *Task) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Generation, b.Generation))
}

// draft is a State under construction: it shares everything with the state before until it is changed, and is thrown away or
// published whole.
type draft struct {
	s     *State
	index raft.Index
	epoch raft.Term // of the command under way
	at    time.Time // of the command under way
	// which of the maps are already copies of our own
	ownNodes, ownServices, ownTasks bool
	reserved                        map[NodeID]Resources // nil until it is needed; see reservedOn
}

func newDraft(base *State) *draft {
	s := *base
	return &draft{s: &s}
}

func (d *draft) putNode(n Node) {
	if !d.ownNodes {
		d.s.Nodes, d.ownNodes = maps.Clone(d.s.Nodes), true
	}
	d.s.Nodes[n.ID] = &n
}

func (d *draft) deleteNode(id NodeID) {
	if !d.ownNodes {
		d.s.Nodes, d.ownNodes = maps.Clone(d.s.Nodes), true
	}
	delete(d.s.Nodes, id)
}

func (d *draft) ownServiceMap() {
	if !d.ownServices {
		d.s.Services, d.ownServices = maps.Clone(d.s.Services), true
	}
}

func (d *draft) putService(sv Service) {
	d.ownServiceMap()
	d.s.Services[sv.ID] = &sv
}

func (d *draft) deleteService(id ServiceID) {
	d.ownServiceMap()
	delete(d.s.Services, id)
}

func (d *draft) ownTaskMap() {
	if !d.ownTasks {
		d.s.Tasks, d.ownTasks = maps.Clone(d.s.Tasks), true
	}
}

func (d *draft) putTask(t Task) {
	d.ownTaskMap()
	d.moved(d.s.Tasks[t.ID], &t)
	d.s.Tasks[t.ID] = &t
}

func (d *draft) deleteTask(id TaskID) {
	d.ownTaskMap()
	d.moved(d.s.Tasks[id], nil)
	delete(d.s.Tasks, id)
}

// event appends to the ring. States share one growing array: a reader never looks behind its own length, and there is only one
// line of states that appends.
func (d *draft) event(kind, subject, message string) {
	seq := uint64(1)
	if n := len(d.s.Events); n > 0 {
		seq = d.s.Events[n-1].Seq + 1
	}
	e := Event{Seq: seq, Index: d.index, At: d.at, Kind: kind, Subject: subject, Message: message}
	d.s.Events = append(d.s.Events, e)
	if over := len(d.s.Events) - MaxEvents; over > 0 {
		d.s.Events = d.s.Events[over:]
	}
}
