package metrics

import (
	"strconv"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/steadyraft/raft"
)

// gauges are the states of a node that are one number.
var gauges = []struct {
	name, help string
	value      func(st *raft.Status) float64
}{
	{"can_commit", "1 if a command proposed on this node now would be committed.", func(st *raft.Status) float64 { return truth(st.CanCommit) }},
	{"leader_known", "1 if this node knows who leads.", func(st *raft.Status) float64 { return truth(st.Leader != "") }},
	{"term", "Current term.", func(st *raft.Status) float64 { return float64(st.Term) }},
	{"commit_index", "Index of the last entry known to be committed.", func(st *raft.Status) float64 { return float64(st.CommitIndex) }},
	{"applied_index", "Index of the last entry applied to the state machine.", func(st *raft.Status) float64 { return float64(st.AppliedIndex) }},
	{"durable_index", "Index of the last entry that is durable on this node.", func(st *raft.Status) float64 { return float64(st.DurableIndex) }},
	{"first_index", "Index of the first entry in the log.", func(st *raft.Status) float64 { return float64(st.FirstIndex) }},
	{"last_index", "Index of the last entry in the log.", func(st *raft.Status) float64 { return float64(st.LastIndex) }},
	{"snapshot_index", "Index of the last entry that the newest snapshot includes.", func(st *raft.Status) float64 { return float64(st.SnapshotIndex) }},
	{"configuration_index", "Index of the entry that the present configuration comes from.", func(st *raft.Status) float64 { return float64(st.ConfigurationIndex) }},
	{"voters", "Voters in the present configuration.", func(st *raft.Status) float64 { return float64(len(st.Configuration.Voters())) }},
	{"members", "Members of the present configuration, voters or not.", func(st *raft.Status) float64 { return float64(len(st.Configuration.Servers)) }},
	{"incarnation", "How often the data directory has been started.", func(st *raft.Status) float64 { return float64(st.Identity.Incarnation) }},
	{"uncommitted_bytes", "Bytes of entries in the log that are not committed.", func(st *raft.Status) float64 { return float64(st.UncommittedBytes) }},
	{"log_tail_bytes", "Bytes of entries kept in memory.", func(st *raft.Status) float64 { return float64(st.TailBytes) }},
	{"inbox_bytes", "Bytes of messages received and not processed.", func(st *raft.Status) float64 { return float64(st.InboxBytes) }},
	{"queued_proposals", "Proposals accepted and not appended.", func(st *raft.Status) float64 { return float64(st.Proposals) }},
	{"pending_proposals", "Proposals appended and not ended.", func(st *raft.Status) float64 { return float64(st.Pending) }},
	{"queued_writes", "Log writes that wait for the disk.", func(st *raft.Status) float64 { return float64(st.WriteQueue) }},
	{"damaged_entries", "Entries of the log that cannot be read here and are being fetched from other nodes.", func(st *raft.Status) float64 {
		n := raft.Index(0)
		for _, d := range st.Damaged {
			n += d.Last - d.First + 1
		}
		return float64(n)
	}},
	{"fenced", "1 if the log has lost its end and has not caught up with what it may have held.", func(st *raft.Status) float64 {
		return truth(st.Fence != raft.EntryID{})
	}},
	{"recovering", "1 if this node was elected and cannot take commands, because entries of its log are missing.", func(st *raft.Status) float64 { return truth(st.Recovering) }},
	{"damage_found_entries", "Entries that could not be read, since the start and at it.", func(st *raft.Status) float64 { return float64(st.Repair.Found) }},
	{"damage_repaired_entries", "Entries fetched from other nodes because they could not be read here, since the start.", func(st *raft.Status) float64 { return float64(st.Repair.Repaired) }},
	{"damage_discarded_entries", "Uncommitted entries cut off by this node as a leader because they could not be read, since the start.", func(st *raft.Status) float64 { return float64(st.Repair.Discarded) }},
	{"lost_logs", "Followers seen by this node as a leader that had lost entries which they had acknowledged, since the start.", func(st *raft.Status) float64 { return float64(st.Repair.LostLogs) }},
	{"queued_applies", "Batches that wait for the state machine.", func(st *raft.Status) float64 { return float64(st.ApplyQueue) }},
}

// peerGauges are what a leader knows about one other server.
var peerGauges = []struct {
	name, help string
	value      func(st *raft.Status, p *raft.PeerStatus) float64
}{
	{"peer_lag_entries", "Entries of the leader's log that the peer has not acknowledged.", func(st *raft.Status, p *raft.PeerStatus) float64 {
		return float64(st.LastIndex - min(p.MatchIndex, st.LastIndex))
	}},
	{"peer_inflight_bytes", "Bytes of entries sent to the peer and not acknowledged.", func(_ *raft.Status, p *raft.PeerStatus) float64 { return float64(p.InflightBytes) }},
	{"peer_last_heard_seconds", "Time since the leader last heard from the peer.", func(_ *raft.Status, p *raft.PeerStatus) float64 { return p.LastHeard.Seconds() }},
	{"peer_busy", "1 if the peer has no room for entries now.", func(_ *raft.Status, p *raft.PeerStatus) float64 { return truth(p.Busy) }},
}

// sets are states with a name: one series for each name, 1 for the present one.
var sets = []struct {
	name, label, help string
	values            []string
	value             func(st *raft.Status) string
}{
	{"role", "role", "1 for the role that this node has.", []string{"follower", "pre-candidate", "candidate", "leader"},
		func(st *raft.Status) string { return st.Role.String() }},
	{"state", "state", "1 for the state that this node is in.", []string{"running", "stopped", "failed"},
		func(st *raft.Status) string { return st.State }},
	{"storage_state", "state", "1 for the state that the storage is in.", storageStates,
		func(st *raft.Status) string { return storageStates[min(int(st.Storage), len(storageStates)-1)] }},
}

// storageStates names the values of raft.StorageState.
var storageStates = []string{raft.StorageOK: "ok", raft.StorageFull: "full", raft.StorageFailed: "failed"}

// peerStates are the values of raft.PeerStatus.State.
var peerStates = []string{"probe", "replicate", "snapshot"}

// statusDescs describes, in the order of the tables above, what is read from a raft.Status.
type statusDescs struct {
	gauges, peerGauges, sets []*prometheus.Desc
	peerState                *prometheus.Desc
}

func newStatusDescs(opts Options) statusDescs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, opts.ConstLabels)
	}
	d := statusDescs{peerState: desc("peer_state", "1 for the way in which the leader replicates to the peer.", "peer", "state")}
	for _, g := range gauges {
		d.gauges = append(d.gauges, desc(g.name, g.help))
	}
	for _, g := range peerGauges {
		d.peerGauges = append(d.peerGauges, desc(g.name, g.help, "peer"))
	}
	for _, s := range sets {
		d.sets = append(d.sets, desc(s.name, s.help, s.label))
	}
	return d
}

func (d *statusDescs) describe(ch chan<- *prometheus.Desc) {
	ch <- d.peerState
	for _, list := range [][]*prometheus.Desc{d.gauges, d.peerGauges, d.sets} {
		for _, desc := range list {
			ch <- desc
		}
	}
}

func (d *statusDescs) collect(ch chan<- prometheus.Metric, st *raft.Status) {
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	for i, g := range gauges {
		gauge(d.gauges[i], g.value(st))
	}
	for i, s := range sets {
		present := s.value(st)
		for _, v := range s.values {
			gauge(d.sets[i], truth(v == present), v)
		}
	}
	for i := range st.Peers[:min(len(st.Peers), raft.MaxServers)] {
		p := &st.Peers[i]
		peer := labelValue(string(p.ID))
		for i, g := range peerGauges {
			gauge(d.peerGauges[i], g.value(st, p), peer)
		}
		for _, v := range peerStates {
			gauge(d.peerState, truth(v == p.State), peer, v)
		}
	}
}

// Traffic is what a transport has exchanged with one peer since it was started.
type Traffic struct {
	Connected        bool
	SentMessages     uint64
	SentBytes        uint64
	ReceivedMessages uint64
	ReceivedBytes    uint64
	Dropped          uint64 // messages that found no room, or no connection
}

// trafficDescs describes what is read from a transport.
type trafficDescs struct {
	connected                                                         *prometheus.Desc
	sentMessages, sentBytes, receivedMessages, receivedBytes, dropped *prometheus.Desc
}

func newTrafficDescs(opts Options) trafficDescs {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "transport", name), help, []string{"peer"}, opts.ConstLabels)
	}
	return trafficDescs{
		connected:        desc("connected", "1 if there is a connection to the peer."),
		sentMessages:     desc("sent_messages_total", "Messages sent to the peer."),
		sentBytes:        desc("sent_bytes_total", "Bytes sent to the peer."),
		receivedMessages: desc("received_messages_total", "Messages received from the peer."),
		receivedBytes:    desc("received_bytes_total", "Bytes received from the peer."),
		dropped:          desc("dropped_messages_total", "Messages to the peer that were dropped for lack of room or of a connection."),
	}
}

func (d *trafficDescs) describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{d.connected, d.sentMessages, d.sentBytes, d.receivedMessages, d.receivedBytes, d.dropped} {
		ch <- desc
	}
}

func (d *trafficDescs) collect(ch chan<- prometheus.Metric, read func(add func(raft.NodeID, Traffic))) {
	seen := map[raft.NodeID]bool{}
	read(func(id raft.NodeID, t Traffic) {
		if seen[id] || len(seen) >= raft.MaxServers {
			return
		}
		seen[id] = true
		peer := labelValue(string(id))
		ch <- prometheus.MustNewConstMetric(d.connected, prometheus.GaugeValue, truth(t.Connected), peer)
		count := func(desc *prometheus.Desc, n uint64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), peer)
		}
		count(d.sentMessages, t.SentMessages)
		count(d.sentBytes, t.SentBytes)
		count(d.receivedMessages, t.ReceivedMessages)
		count(d.receivedBytes, t.ReceivedBytes)
		count(d.dropped, t.Dropped)
	})
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// labelValue makes any string one that Prometheus takes: it panics on labels that are not UTF-8, and an ID may be any bytes.
func labelValue(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strconv.QuoteToASCII(s)
}
