package metrics_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/metrics"
)

// node stands for a raft.Node.
type node raft.Status

func (n *node) Status() raft.Status { return raft.Status(*n) }

func leader() *node {
	return &node{
		CoreStatus: raft.CoreStatus{
			ID: "a", Role: raft.Leader, Term: 7, Leader: "a", CommitIndex: 90, AppliedIndex: 80, DurableIndex: 95, FirstIndex: 10,
			LastIndex: 100, SnapshotIndex: 12, UncommittedBytes: 1000, TailBytes: 2000, CanCommit: true, Storage: raft.StorageFull,
			Configuration:      raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "a"}, {ID: "b"}, {ID: "l", Suffrage: raft.NonVoter}}},
			ConfigurationIndex: 3,
			Peers: []raft.PeerStatus{
				{ID: "b", State: "replicate", MatchIndex: 98, InflightBytes: 300, LastHeard: 20 * time.Millisecond},
				{ID: "l", State: "snapshot", Busy: true},
			},
		},
		State: "running", Identity: raft.Identity{Incarnation: 4},
		InboxBytes: 1, Proposals: 2, Pending: 3, WriteQueue: 4, ApplyQueue: 5,
	}
}

func register(t *testing.T, m *metrics.Metrics) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry() // checks that what is collected was described
	require.NoError(t, reg.Register(m))
	return reg
}

// values gathers all series as name{label="value",...} = number; of histograms the number of samples.
func values(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	got := map[string]float64{}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			var labels []string
			for _, l := range s.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			series := f.GetName() + "{" + strings.Join(labels, ",") + "}"
			switch {
			case s.Gauge != nil:
				got[series] = s.GetGauge().GetValue()
			case s.Counter != nil:
				got[series] = s.GetCounter().GetValue()
			default:
				got[series] = float64(s.GetHistogram().GetSampleCount())
			}
		}
	}
	return got
}

func watched() *metrics.Metrics {
	m := metrics.New(metrics.Options{})
	m.Watch(leader())
	m.WatchTransport(func(add func(raft.NodeID, metrics.Traffic)) {
		add("b", metrics.Traffic{Connected: true, SentMessages: 1, SentBytes: 2, ReceivedMessages: 3, ReceivedBytes: 4, Dropped: 5})
		add("l", metrics.Traffic{})
	})
	return m
}

func TestNamesFollowTheConventions(t *testing.T) {
	problems, err := testutil.GatherAndLint(register(t, watched()))
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestScrapeShowsTheStatus(t *testing.T) {
	got := values(t, register(t, watched()))
	for series, want := range map[string]float64{
		`raft_role{role="leader"}`:                             1,
		`raft_role{role="follower"}`:                           0,
		`raft_state{state="running"}`:                          1,
		`raft_state{state="failed"}`:                           0,
		`raft_storage_state{state="full"}`:                     1,
		`raft_storage_state{state="ok"}`:                       0,
		`raft_can_commit{}`:                                    1,
		`raft_leader_known{}`:                                  1,
		`raft_term{}`:                                          7,
		`raft_commit_index{}`:                                  90,
		`raft_applied_index{}`:                                 80,
		`raft_durable_index{}`:                                 95,
		`raft_first_index{}`:                                   10,
		`raft_last_index{}`:                                    100,
		`raft_snapshot_index{}`:                                12,
		`raft_configuration_index{}`:                           3,
		`raft_voters{}`:                                        2,
		`raft_members{}`:                                       3,
		`raft_incarnation{}`:                                   4,
		`raft_uncommitted_bytes{}`:                             1000,
		`raft_log_tail_bytes{}`:                                2000,
		`raft_inbox_bytes{}`:                                   1,
		`raft_queued_proposals{}`:                              2,
		`raft_pending_proposals{}`:                             3,
		`raft_queued_writes{}`:                                 4,
		`raft_queued_applies{}`:                                5,
		`raft_peer_lag_entries{peer="b"}`:                      2,
		`raft_peer_lag_entries{peer="l"}`:                      100,
		`raft_peer_inflight_bytes{peer="b"}`:                   300,
		`raft_peer_last_heard_seconds{peer="b"}`:               0.02,
		`raft_peer_busy{peer="b"}`:                             0,
		`raft_peer_busy{peer="l"}`:                             1,
		`raft_peer_state{peer="b",state="replicate"}`:          1,
		`raft_peer_state{peer="b",state="snapshot"}`:           0,
		`raft_peer_state{peer="l",state="snapshot"}`:           1,
		`raft_transport_connected{peer="b"}`:                   1,
		`raft_transport_connected{peer="l"}`:                   0,
		`raft_transport_sent_messages_total{peer="b"}`:         1,
		`raft_transport_sent_bytes_total{peer="b"}`:            2,
		`raft_transport_received_messages_total{peer="b"}`:     3,
		`raft_transport_received_bytes_total{peer="b"}`:        4,
		`raft_transport_dropped_messages_total{peer="b"}`:      5,
		`raft_elections_total{reason="election timeout"}`:      0,
		`raft_refused_inputs_total{reason="impossible reply"}`: 0,
	} {
		value, ok := got[series]
		assert.True(t, ok, "%s is missing", series)
		assert.InDelta(t, want, value, 1e-9, series)
	}
}

func TestMeasurementsAreCounted(t *testing.T) {
	m := metrics.New(metrics.Options{ConstLabels: prometheus.Labels{"group": "g"}})
	reg := register(t, m)
	m.ObserveWrite(time.Millisecond, 3, 400)
	m.ObserveWrite(time.Millisecond, 1, 100)
	m.ObserveCommit(time.Millisecond)
	m.ObserveApply(time.Millisecond, 4)
	m.Election("election timeout")
	m.Refused("frame checksum")
	m.Refused("frame checksum")
	got := values(t, reg)
	for series, want := range map[string]float64{
		`raft_write_duration_seconds{group="g"}`:                         2,
		`raft_written_entries_total{group="g"}`:                          4,
		`raft_written_bytes_total{group="g"}`:                            500,
		`raft_commit_duration_seconds{group="g"}`:                        1,
		`raft_apply_duration_seconds{group="g"}`:                         1,
		`raft_applied_entries_total{group="g"}`:                          4,
		`raft_elections_total{group="g",reason="election timeout"}`:      1,
		`raft_refused_inputs_total{group="g",reason="frame checksum"}`:   2,
		`raft_refused_inputs_total{group="g",reason="impossible reply"}`: 0,
	} {
		value, ok := got[series]
		assert.True(t, ok, "%s is missing", series)
		assert.InDelta(t, want, value, 1e-9, series)
	}
	assert.NotContains(t, got, `raft_term{group="g"}`, "nothing is watched yet")
}

func TestSeriesAreBounded(t *testing.T) {
	m := metrics.New(metrics.Options{})
	reg := register(t, m)
	n := leader()
	for i := range 1000 {
		m.Election(fmt.Sprint("invented ", i))
		m.Refused(fmt.Sprint("invented ", i))
		n.Peers = append(n.Peers, raft.PeerStatus{ID: raft.NodeID(fmt.Sprint("peer ", i))})
	}
	m.Watch(n)
	m.WatchTransport(func(add func(raft.NodeID, metrics.Traffic)) {
		for i := range 1000 {
			add(raft.NodeID(fmt.Sprint("peer ", i)), metrics.Traffic{})
			add(raft.NodeID(fmt.Sprint("peer ", i)), metrics.Traffic{})
		}
	})
	count := func(name string) int {
		families, err := reg.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == name {
				return len(f.GetMetric())
			}
		}
		return 0
	}
	require.Equal(t, 64, count("raft_elections_total"))
	require.Equal(t, 64, count("raft_refused_inputs_total"))
	require.Equal(t, raft.MaxServers, count("raft_peer_busy"))
	require.Equal(t, raft.MaxServers, count("raft_transport_connected"))
	require.EqualValues(t, 1000-(63-3), values(t, reg)[`raft_elections_total{reason="other"}`])
}

// An ID may be any bytes; a scrape must not panic on them.
func TestNamesThatAreNotText(t *testing.T) {
	m := metrics.New(metrics.Options{})
	reg := register(t, m)
	n := leader()
	n.Peers = []raft.PeerStatus{{ID: "\xff"}, {ID: "\xfe"}}
	m.Watch(n)
	m.Refused("\xff")
	require.Contains(t, values(t, reg), `raft_peer_busy{peer="\"\\xff\""}`)
}

func TestWatchCanEnd(t *testing.T) {
	m := watched()
	reg := register(t, m)
	require.Contains(t, values(t, reg), `raft_term{}`)
	m.Watch(nil)
	m.WatchTransport(nil)
	got := values(t, reg)
	require.NotContains(t, got, `raft_term{}`)
	require.NotContains(t, got, `raft_transport_connected{peer="b"}`)
}

func TestMeasuringWhileScraping(t *testing.T) {
	m := watched()
	reg := register(t, m)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 50 {
				m.ObserveWrite(time.Microsecond, 1, 1)
				m.Election("election timeout")
				m.Watch(leader())
				_, err := reg.Gather()
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 150, values(t, reg)[`raft_written_entries_total{}`])
}
