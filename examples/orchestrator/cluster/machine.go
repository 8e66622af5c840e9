package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/steadyraft/raft"
)

// Machine is the state machine that the managers replicate. Make it with NewMachine.
type Machine struct {
	present atomic.Pointer[published]
}

// published is a state together with the signal that it has been replaced.
type published struct {
	state    *State
	replaced chan struct{}
}

// NewMachine returns an empty state machine.
func NewMachine() *Machine {
	m := &Machine{}
	m.present.Store(&published{state: NewState(), replaced: make(chan struct{})})
	return m
}

// View returns the present state. It never changes and never blocks.
func (m *Machine) View() *State { return m.present.Load().state }

// Watch returns the present state and a channel that is closed as soon as there is a newer one.
func (m *Machine) Watch() (*State, <-chan struct{}) {
	p := m.present.Load()
	return p.state, p.replaced
}

func (m *Machine) publish(s *State) {
	old := m.present.Swap(&published{state: s, replaced: make(chan struct{})})
	close(old.replaced)
}

// Apply carries out commands on a draft and publishes it as a whole. Every result is a [Result]. The only error is an unknown
// kind of command, see [ErrUnknownKind]; then the state is as it was.
func (m *Machine) Apply(entries []raft.Entry, results []any) error {
	d := newDraft(m.View())
	for i := range entries {
		r, err := d.apply(&entries[i])
		if err != nil {
			return fmt.Errorf("apply entry %v: %w", entries[i].ID(), err)
		}
		results[i] = r
	}
	m.publish(d.s)
	return nil
}

func (d *draft) apply(e *raft.Entry) (Result, error) {
	d.index, d.s.Index = e.Index, e.Index
	c, err := Decode(e.Data)
	if errors.Is(err, ErrUnknownKind) {
		return Result{}, err
	}
	if err != nil { // every release reads it alike, so a refusal is safe
		return refuse(Invalid, "%v", err), nil
	}
	d.epoch, d.at = c.Epoch, c.At

	// A deposed leader may still be proposing: its commands can come late, but never after those of a newer epoch have begun.
	_, starts := c.Op.(StartEpoch)
	if epoch := d.s.Cluster.Epoch; c.Op.fenced() && (c.Epoch < epoch || c.Epoch > epoch && !starts) {
		return refuse(Stale, "%s of epoch %d: the present epoch is %d", c.Op.kind(), c.Epoch, epoch), nil
	}
	return c.Op.apply(d), nil
}

// snapshotFormat is the version of the JSON written by a snapshot.
const snapshotFormat = 1

type snapshotFile struct {
	Format int    `json:"format"`
	State  *State `json:"state"`
}

// Snapshot returns the present state. States are immutable, so nothing is copied.
func (m *Machine) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	return snapshotWriter{m.View()}, nil
}

type snapshotWriter struct{ state *State }

// WriteTo writes the state as JSON.
func (w snapshotWriter) WriteTo(_ context.Context, out io.Writer) error {
	return json.NewEncoder(out).Encode(snapshotFile{Format: snapshotFormat, State: w.state})
}

// Close has nothing to release.
func (snapshotWriter) Close() {}

// Restore replaces the state by a snapshot's, if that is sound.
func (m *Machine) Restore(_ context.Context, _ raft.SnapshotMeta, r io.Reader) error {
	f := snapshotFile{State: NewState()}
	if err := json.NewDecoder(r).Decode(&f); err != nil {
		return fmt.Errorf("restore cluster state: %w", err)
	}
	if f.Format != snapshotFormat {
		return fmt.Errorf("restore cluster state: format %d, want %d", f.Format, snapshotFormat)
	}
	if err := f.State.check(); err != nil {
		return fmt.Errorf("restore cluster state: %w", err)
	}
	m.publish(f.State)
	return nil
}

// check returns what no sequence of commands could have made, so that the rest of the program need not expect it.
func (s *State) check() error {
	if s == nil || s.Nodes == nil || s.Services == nil || s.Tasks == nil {
		return errors.New("a part is missing")
	}
	for _, id := range sortedKeys(s.Nodes) {
		if n := s.Nodes[id]; n == nil || n.ID != id || s.Cluster.IsRemoved(id) {
			return fmt.Errorf("node %q is not itself, or was removed", id)
		}
	}
	for _, id := range sortedKeys(s.Services) {
		if sv := s.Services[id]; sv == nil || sv.ID != id || len(sv.Slots) < sv.Spec.Replicas ||
			sv.LastVersion != 0 && sv.LastVersion < max(sv.Version, sv.PreviousVersion) {
			return fmt.Errorf("service %q is not sound", id)
		}
	}
	for _, id := range sortedKeys(s.Tasks) {
		t := s.Tasks[id]
		if t == nil || t.ID != id || t.ID != NewTaskID(t.Service, t.Slot, t.Generation) || !t.State.Valid() {
			return fmt.Errorf("task %q is not sound", id)
		}
		sv := s.Services[t.Service]
		if sv == nil || t.Slot < 1 || t.Slot > len(sv.Slots) || t.Generation > sv.Slots[t.Slot-1].Generation {
			return fmt.Errorf("task %q has no slot", id)
		}
	}
	return nil
}
