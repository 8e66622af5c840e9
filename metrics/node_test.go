package metrics_test

import (
	"context"
	"io"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/metrics"
	storage "github.com/steadyraft/raft/storage/memory"
	transport "github.com/steadyraft/raft/transport/memory"
)

// null is a state machine without a state, and its own snapshot.
type null struct{}

func (null) Apply([]raft.Entry, []any) error                             { return nil }
func (null) Snapshot(context.Context) (raft.SnapshotWriter, error)       { return null{}, nil }
func (null) Restore(context.Context, raft.SnapshotMeta, io.Reader) error { return nil }
func (null) WriteTo(context.Context, io.Writer) error                    { return nil }
func (null) Close()                                                      {}

func TestRunningNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		st := storage.New()
		conf := raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "a", Address: "a"}}}
		require.NoError(t, raft.Bootstrap(ctx, st, "a", conf))
		m := metrics.New(metrics.Options{})
		node, err := raft.NewNode(raft.Config{
			ID: "a", StateMachine: null{}, Storage: st, Transport: transport.NewNetwork().Transport("a"), Metrics: m,
		})
		require.NoError(t, err)
		require.NoError(t, node.Start(ctx))
		m.Watch(node)
		const commands = 10
		for range commands {
			_, err := node.Propose(ctx, []byte("command"))
			require.NoError(t, err)
		}
		synctest.Wait() // the last caller may have its answer before its commit is counted
		reg := register(t, m)
		got := values(t, reg)
		for series, want := range map[string]float64{
			`raft_state{state="running"}`:                      1,
			`raft_role{role="leader"}`:                         1,
			`raft_storage_state{state="ok"}`:                   1,
			`raft_can_commit{}`:                                1,
			`raft_voters{}`:                                    1,
			`raft_applied_index{}`:                             commands + 2, // the configuration and the no-op come first
			`raft_commit_duration_seconds{}`:                   commands,
			`raft_apply_duration_seconds{}`:                    commands,
			`raft_applied_entries_total{}`:                     commands,
			`raft_written_entries_total{}`:                     commands + 1, // the configuration was written by Bootstrap
			`raft_refused_inputs_total{reason="term too far"}`: 0,
		} {
			value, ok := got[series]
			assert.True(t, ok, "%s is missing", series)
			assert.InDelta(t, want, value, 0, series)
		}
		assert.Positive(t, got[`raft_elections_total{reason="election timeout"}`])
		require.NoError(t, node.Stop(ctx))
		require.InDelta(t, 1, values(t, reg)[`raft_state{state="stopped"}`], 0)
	})
}
