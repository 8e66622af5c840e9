// Package metrics shows a node to Prometheus.
//
//	m := metrics.New(metrics.Options{})
//	node, err := raft.NewNode(raft.Config{Metrics: m, ...})
//	m.Watch(node)
//	prometheus.MustRegister(m)
//
// What takes time is measured as it happens: durable writes, commits, applies. What is a state is read when Prometheus asks:
// role, term, positions in the log, queues, and on a leader how far every follower is behind. The figure to alert on is
// raft_can_commit: 0 on the leader, or a cluster without any leader, means that nobody can write.
//
// The number of series is bounded: labels are the roles and states of this library, reasons (at most 64 of a kind), and the IDs
// of peers (at most raft.MaxServers).
package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/steadyraft/raft"
)

// Options configures [New]. The zero value of a field means its default.
type Options struct {
	// ConstLabels are added to every series. Two nodes in one process need different ones to share a registry. Default: none.
	ConstLabels prometheus.Labels
}

// Node is what [Metrics.Watch] reads from; *raft.Node is one.
type Node interface {
	Status() raft.Status
}

// Metrics implements [raft.Metrics] and [prometheus.Collector]. Its methods may be called at the same time.
type Metrics struct {
	write, commit, apply prometheus.Histogram
	writtenEntries       prometheus.Counter
	writtenBytes         prometheus.Counter
	appliedEntries       prometheus.Counter
	elections, refused   *reasonCounter
	status               statusDescs
	traffic              trafficDescs

	mu          sync.Mutex
	node        Node
	readTraffic func(add func(peer raft.NodeID, t Traffic))
}

var (
	_ raft.Metrics         = (*Metrics)(nil)
	_ prometheus.Collector = (*Metrics)(nil)
)

// namespace begins every name.
const namespace = "raft"

// latencyBuckets reach from a write into a battery-backed cache to a disk that makes a leader step down.
var latencyBuckets = prometheus.ExponentialBuckets(50e-6, 2, 18) // 50 µs to 6.5 s

// New makes the metrics of one node. The caller registers it.
func New(opts Options) *Metrics {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: name, Help: help, ConstLabels: opts.ConstLabels, Buckets: latencyBuckets,
		})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: name, Help: help, ConstLabels: opts.ConstLabels,
		})
	}
	m := &Metrics{
		write:          histogram("write_duration_seconds", "Time from the start of a log write until it was durable."),
		commit:         histogram("commit_duration_seconds", "Time from the proposal of a command on this node until it was committed, one sample per batch."),
		apply:          histogram("apply_duration_seconds", "Time the state machine took for one call of Apply."),
		writtenEntries: counter("written_entries_total", "Entries written to the log."),
		writtenBytes:   counter("written_bytes_total", "Bytes of entries written to the log."),
		appliedEntries: counter("applied_entries_total", "Entries handed to the state machine."),
		elections:      newReasonCounter(opts, "elections_total", "Elections begun by this node, by reason."),
		refused:        newReasonCounter(opts, "refused_inputs_total", "Inputs from peers that were refused, by reason."),
		status:         newStatusDescs(opts),
		traffic:        newTrafficDescs(opts),
	}
	// A series that appears together with its first event hides that event from rate().
	for _, r := range []raft.Reason{raft.ReasonTimeout, raft.ReasonSuspicion, raft.ReasonTransfer} {
		m.elections.add(r.String(), 0)
	}
	for r := raft.WrongRecipient; r <= raft.UnexpectedMessage; r++ {
		m.refused.add(r.String(), 0)
	}
	return m
}

// Watch makes every scrape read the state of n, instead of the node watched before; nil ends that.
func (m *Metrics) Watch(n Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node = n
}

// WatchTransport makes every scrape read what a transport has carried; nil ends that. read calls add once for every peer, and
// must not block. With transport/tcp:
//
//	m.WatchTransport(func(add func(raft.NodeID, metrics.Traffic)) {
//		for id, p := range tr.Stats().Peers {
//			add(id, metrics.Traffic{Connected: p.Connected, SentBytes: p.SentBytes, ReceivedBytes: p.ReceivedBytes})
//		}
//	})
func (m *Metrics) WatchTransport(read func(add func(peer raft.NodeID, t Traffic))) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.readTraffic = read
}

// ObserveWrite implements raft.Metrics.
func (m *Metrics) ObserveWrite(d time.Duration, entries, bytes int) {
	m.write.Observe(d.Seconds())
	m.writtenEntries.Add(float64(entries))
	m.writtenBytes.Add(float64(bytes))
}

// ObserveCommit implements raft.Metrics.
func (m *Metrics) ObserveCommit(d time.Duration) { m.commit.Observe(d.Seconds()) }

// ObserveApply implements raft.Metrics.
func (m *Metrics) ObserveApply(d time.Duration, entries int) {
	m.apply.Observe(d.Seconds())
	m.appliedEntries.Add(float64(entries))
}

// Election implements raft.Metrics.
func (m *Metrics) Election(reason string) { m.elections.add(reason, 1) }

// Refused implements raft.Metrics.
func (m *Metrics) Refused(reason string) { m.refused.add(reason, 1) }

// measured lists what is collected as it is.
func (m *Metrics) measured() []prometheus.Collector {
	return []prometheus.Collector{
		m.write, m.commit, m.apply, m.writtenEntries, m.writtenBytes, m.appliedEntries, m.elections.vec, m.refused.vec,
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.measured() {
		c.Describe(ch)
	}
	m.status.describe(ch)
	m.traffic.describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.measured() {
		c.Collect(ch)
	}
	m.mu.Lock()
	node, readTraffic := m.node, m.readTraffic
	m.mu.Unlock()
	if node != nil {
		st := node.Status()
		m.status.collect(ch, &st)
	}
	if readTraffic != nil {
		m.traffic.collect(ch, readTraffic)
	}
}

// maxReasons bounds the label values of one counter, whatever strings arrive.
const maxReasons = 64

// otherReason stands for those above the bound.
const otherReason = "other"

// reasonCounter counts by reason.
type reasonCounter struct {
	vec   *prometheus.CounterVec
	mu    sync.Mutex
	known map[string]prometheus.Counter
}

func newReasonCounter(opts Options, name, help string) *reasonCounter {
	return &reasonCounter{
		known: map[string]prometheus.Counter{},
		vec: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: name, Help: help, ConstLabels: opts.ConstLabels,
		}, []string{"reason"}),
	}
}

func (c *reasonCounter) add(reason string, n float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[reason] == nil && len(c.known) >= maxReasons-1 {
		reason = otherReason
	}
	if c.known[reason] == nil {
		c.known[reason] = c.vec.WithLabelValues(labelValue(reason))
	}
	c.known[reason].Add(n)
}
