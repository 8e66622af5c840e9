package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/publish"
)

// Registration is what an agent says first: who it is, and that every earlier process of this node is gone.
type Registration struct {
	Node      cluster.NodeID    `json:"node"`
	Session   string            `json:"session"` // new for every start of the agent
	Address   string            `json:"address"`
	Role      cluster.Role      `json:"role"`
	Resources cluster.Resources `json:"resources,omitzero"`
}

// Heartbeat says that the node lives, and how its tasks are.
type Heartbeat struct {
	Node     cluster.NodeID             `json:"node"`
	Session  string                     `json:"session"`
	Fence    cluster.Fence              `json:"fence"` // the highest one that the node has accepted
	Tasks    []cluster.ReportedTask     `json:"tasks,omitempty"`
	Loads    map[cluster.TaskID]float64 `json:"loads,omitempty"` // percent of one processor that each task uses, as far as that is known
	CA       CAReport                   `json:"ca,omitzero"`
	Problems []string                   `json:"problems,omitempty"` // what an operator should know now, e.g. a published port in use
}

// WatchRequest asks for the assignments once they are newer than Known.
type WatchRequest struct {
	Node    cluster.NodeID `json:"node"`
	Session string         `json:"session"`
	Known   cluster.Fence  `json:"known"`
}

// Assignments is all that a node is told, as of one index of the log. It is always the whole, never a change.
type Assignments struct {
	Fence    cluster.Fence   `json:"fence"` // State.Fence of the state that the rest was read from
	Tasks    []*cluster.Task `json:"tasks"` // State.TasksOn: what to run, and what to stop; whatever else runs is to be stopped
	Services publish.Table   `json:"services"`
	Managers []string        `json:"managers,omitempty"` // addresses; empty leaves the agent with those that it knows
	Trust    *Trust          `json:"trust,omitempty"`    // nil: as it is
	// Output is what somebody wants to read now. It belongs to no fence, and is forgotten with the answer that carries it.
	Output []OutputRequest `json:"output,omitempty"`
}

// Trust says whose certificates a node is to believe, and by whom its own is to be signed.
type Trust struct {
	Bundle  []byte `json:"bundle"`  // certificates of CAs, PEM
	Signing string `json:"signing"` // digest of the one that signs
}

// CAReport is what a node says about the CAs: all by their digests.
type CAReport struct {
	Trusts []string `json:"trusts,omitempty"`
	Keys   []string `json:"keys,omitempty"`   // of which it has the key
	Issuer string   `json:"issuer,omitempty"` // of its own certificate
}

// Errors of a Managers implementation that mean more than "try another one".
var (
	// ErrSuperseded: another process has registered as this node since. The agent ends, and leaves the tasks to the other one.
	ErrSuperseded = errors.New("another agent has registered as this node since")
	// ErrRemoved: the node was removed from the cluster, for ever. The agent stops its tasks and ends.
	ErrRemoved = errors.New("this node was removed from the cluster; to use the machine again, join under a new name with an empty data directory")
	// ErrUnknownNode: the managers do not know the node, so it registers again.
	ErrUnknownNode = errors.New("the managers do not know this node")
)

// Managers is how an agent talks to one manager. Whether that manager answers from its own state or asks the leader is its own affair:
// the fence in the answer tells the agent what to think of it. All methods may be called from several goroutines. If it has a method Close(),
// that is called when the agent does not need it any more.
type Managers interface {
	// Register commits the registration before it returns.
	Register(ctx context.Context, r Registration) error
	// Heartbeat reports to the leader and returns what is wanted now.
	Heartbeat(ctx context.Context, h Heartbeat) (Assignments, error)
	// Watch returns as soon as there is something newer than w.Known that concerns the node, at the latest after some seconds.
	Watch(ctx context.Context, w WatchRequest) (Assignments, error)
}

// pool tries one manager after the other, beginning with the one that answered last.
type pool struct {
	dial    func(address string) Managers
	timeout time.Duration // of one attempt

	mu        sync.Mutex
	addresses []string // the last one that answered is the first
	clients   map[string]Managers
}

func newPool(dial func(string) Managers, addresses []string, timeout time.Duration) *pool {
	p := &pool{dial: dial, timeout: timeout, clients: make(map[string]Managers)}
	p.setAddresses(addresses)
	return p
}

// setAddresses replaces the addresses. An empty list is ignored: an agent that knows no manager would never learn of one again.
func (p *pool) setAddresses(addresses []string) {
	if len(addresses) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var kept []string
	for _, a := range p.addresses {
		if slices.Contains(addresses, a) {
			kept = append(kept, a)
		} else {
			closeClient(p.clients[a])
			delete(p.clients, a)
		}
	}
	for _, a := range addresses {
		if !slices.Contains(kept, a) {
			kept = append(kept, a)
			p.clients[a] = p.dial(a)
		}
	}
	p.addresses = kept
}

// each calls f with one manager after the other until one answers. A manager that refuses this node for good is not contradicted by
// asking the next.
func (p *pool) each(ctx context.Context, timeout time.Duration, f func(context.Context, Managers) error) error {
	p.mu.Lock()
	addresses := slices.Clone(p.addresses)
	p.mu.Unlock()
	err := errors.New("no manager is known")
	for _, address := range addresses {
		p.mu.Lock()
		client := p.clients[address]
		p.mu.Unlock()
		if client == nil {
			continue // it has left meanwhile
		}
		attempt, cancel := context.WithTimeout(ctx, timeout)
		err = f(attempt, client)
		cancel()
		switch {
		case err == nil:
			p.prefer(address)
			return nil
		case errors.Is(err, ErrSuperseded), errors.Is(err, ErrUnknownNode), errors.Is(err, ErrRemoved):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
		err = fmt.Errorf("manager %s: %w", address, err)
	}
	return err
}

// close ends the connections of all clients. Without it a manager that is stopped would wait for them.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, client := range p.clients { // order-free
		closeClient(client)
	}
}

func closeClient(m Managers) {
	if c, ok := m.(interface{ Close() }); ok {
		c.Close()
	}
}

func (p *pool) known() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.addresses)
}

func (p *pool) prefer(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.addresses, address); i > 0 {
		p.addresses = slices.Insert(slices.Delete(p.addresses, i, i+1), 0, address)
	}
}
