// Package worker is the half of the benchmark that runs in a process of its own for each library: it starts a cluster, puts it
// under load, and prints what it measured. The program in the directory above builds one command for each library, starts them in
// turn and compares their answers.
package worker

import (
	"context"
	"errors"
	"time"
)

// Library is one consensus library, as the benchmark sees it.
type Library struct {
	Name    string
	Modules []string // whose versions are reported, as they are in go.mod
	Notes   string   // settings that differ from the library's defaults
	// Start starts one server. It returns without waiting for a leader.
	Start func(Options) (Node, error)
}

// Options is what a server is told. Every library gets the same.
type Options struct {
	ID        int      // 0 for the first server
	Addresses []string // of all servers, at which they listen
	Dir       string   // exists; it is empty, or holds what this server left there

	Listen        string // where this server listens, if others reach it elsewhere, by a proxy; "": at its address
	Join          bool   // the last server is no member yet: the cluster is of those before it
	SnapshotBytes int64  // of a state machine's snapshot; 0: no snapshot is ever taken
	AutoSnapshots bool   // the library takes them by itself, as often as it does by default
}

// Members is how many of Addresses the cluster begins with.
func (o Options) Members() int {
	if o.Join {
		return len(o.Addresses) - 1
	}
	return len(o.Addresses)
}

// The time-outs that every library is given.
const (
	HeartbeatInterval = 100 * time.Millisecond
	ElectionTimeout   = time.Second
)

// Node is one server of a cluster. Its methods may be called at the same time. State machines are trivial: they count.
type Node interface {
	// Propose returns once cmd is committed and applied on this node, which should be the leader. cmd may be used again after it.
	Propose(ctx context.Context, cmd []byte) error
	// Read returns once the state of this node is at least as new as every write acknowledged before the call.
	Read(ctx context.Context) error
	// IsLeader is cheap, and may be wrong for a moment.
	IsLeader() bool
	// Transfer makes another server the leader. It returns once that is under way.
	Transfer(ctx context.Context, to int) error
	// Applied returns how many commands the state machine has seen, and a checksum over them in their order.
	Applied() (count uint64, sum uint32)
	Close() error
}

// Snapshotter is a Node that takes a snapshot when it is told to, and then drops the log before it (but for a short tail).
type Snapshotter interface {
	Snapshot(ctx context.Context) error
}

// Grower is a Node that, while it leads, takes in a new server, which does not vote.
type Grower interface {
	Add(ctx context.Context, server int, address string) error
}

// Termed is a Node that tells its term.
type Termed interface {
	Term() uint64
}

// ErrNotSupported is returned for what a library cannot do. It is reported as such.
var ErrNotSupported = errors.New("not supported")
