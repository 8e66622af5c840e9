package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Suffrage says whether a server's vote and its acknowledgements are counted. The numbers are on disk and never change.
type Suffrage uint8

// The kinds of members. 2 is reserved for witnesses.
const (
	Voter    Suffrage = 0
	NonVoter Suffrage = 1 // a learner: receives the log, is never counted, never leads (dissertation §4.2.1)
)

// String names the suffrage.
func (s Suffrage) String() string {
	switch s {
	case Voter:
		return "voter"
	case NonVoter:
		return "non-voter"
	default:
		return fmt.Sprintf("suffrage %d", uint8(s))
	}
}

// MarshalText makes a suffrage readable in JSON.
func (s Suffrage) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Server is one member of a [Configuration].
type Server struct {
	ID       NodeID    `json:"id"`
	Address  string    `json:"address"` // where the transport reaches it; may change without changing who it is
	Suffrage Suffrage  `json:"suffrage"`
	Priority uint8     `json:"priority,omitempty"` // higher ones campaign first; it never blocks a lower one for long
	Replica  ReplicaID `json:"replica,omitempty"`  // 0 until the leader has heard from it; then only this data directory is counted

	// The two below are set in a joint configuration only (§6).
	Outgoing bool `json:"outgoing,omitempty"` // counted as a voter of the old half
	Leaving  bool `json:"leaving,omitempty"`  // no member of the new half; dropped when the joint configuration is left
}

// Configuration is the cluster's membership, as stored in configuration entries and snapshots. It takes effect as soon as it is
// appended (§6). It decides who is counted, never who is heard.
type Configuration struct {
	ClusterID string   `json:"cluster"` // chosen once, at bootstrap
	Servers   []Server `json:"servers"` // sorted by ID

	// Removed holds the IDs of former members, oldest first, at most MaxTombstones. They are refused, and cannot be added again.
	Removed []NodeID `json:"removed,omitempty"`

	// LeaderLeases is reserved for lease reads. Where it is set, no voter acts on a suspicion: a lease holder counts on being left
	// alone for a full election timeout.
	LeaderLeases bool `json:"leader_leases,omitempty"`
}

// Limits of a configuration.
const (
	MaxServers       = 255
	MaxTombstones    = 1024
	maxNameLength    = 255
	maxAddressLength = 1024
)

// Server returns the member with that ID.
func (c *Configuration) Server(id NodeID) (Server, bool) {
	for i := range c.Servers {
		if c.Servers[i].ID == id {
			return c.Servers[i], true
		}
	}
	return Server{}, false
}

// Joint reports whether two majorities are in force: that of the old voters and that of the new ones (§6).
func (c *Configuration) Joint() bool {
	for i := range c.Servers {
		if c.Servers[i].Outgoing {
			return true
		}
	}
	return false
}

// votesNew and votesOld say in which halves a server is counted. Outside of a joint configuration there is only the new half.
func (s *Server) votesNew() bool { return s.Suffrage == Voter && !s.Leaving }
func (s *Server) votesOld() bool { return s.Outgoing }

// IsVoter reports whether id is counted in any half of the configuration.
func (c *Configuration) IsVoter(id NodeID) bool {
	s, ok := c.Server(id)
	return ok && (s.votesNew() || s.votesOld())
}

// Voters returns the IDs counted in the new half (outside of a joint configuration: in the only one).
func (c *Configuration) Voters() []NodeID {
	var ids []NodeID
	for i := range c.Servers {
		if c.Servers[i].votesNew() {
			ids = append(ids, c.Servers[i].ID)
		}
	}
	return ids
}

// IsRemoved reports whether id once was a member and was removed.
func (c *Configuration) IsRemoved(id NodeID) bool { return slices.Contains(c.Removed, id) }

// Clone returns a copy that shares no memory with c.
func (c *Configuration) Clone() Configuration {
	d := *c
	d.Servers = slices.Clone(c.Servers)
	d.Removed = slices.Clone(c.Removed)
	return d
}

// sortServers brings the servers into the canonical order.
func (c *Configuration) sortServers() {
	slices.SortFunc(c.Servers, func(a, b Server) int { return strings.Compare(string(a.ID), string(b.ID)) })
}

// Validate reports everything that is wrong with the configuration, at once.
func (c *Configuration) Validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.ClusterID == "" || len(c.ClusterID) > maxNameLength {
		add("cluster ID %q: want 1 to %d bytes", c.ClusterID, maxNameLength)
	}
	if len(c.Servers) > MaxServers {
		add("%d servers: at most %d", len(c.Servers), MaxServers)
	}
	if len(c.Removed) > MaxTombstones {
		add("%d removed servers remembered: at most %d", len(c.Removed), MaxTombstones)
	}
	voters := 0
	for i := range c.Servers {
		s := &c.Servers[i]
		if s.ID == "" || len(s.ID) > maxNameLength {
			add("server %d: ID %q: want 1 to %d bytes", i, s.ID, maxNameLength)
		}
		if len(s.Address) > maxAddressLength {
			add("server %q: address longer than %d bytes", s.ID, maxAddressLength)
		}
		if s.Suffrage > NonVoter {
			add("server %q: unknown %v", s.ID, s.Suffrage)
		}
		if i > 0 && c.Servers[i-1].ID >= s.ID {
			add("servers %q and %q: not sorted by ID, or the ID is used twice", c.Servers[i-1].ID, s.ID)
		}
		if c.IsRemoved(s.ID) {
			add("server %q: its ID belonged to a removed server; choose a new one", s.ID)
		}
		if s.votesNew() {
			voters++
		}
	}
	if voters == 0 {
		add("no voter: at least one is needed")
	}
	return errors.Join(problems...)
}

const configurationFormat = 1

// AppendBinary appends the canonical encoding: equal configurations have equal bytes.
func (c *Configuration) AppendBinary(b []byte) []byte {
	b = append(b, configurationFormat)
	b = appendString(b, c.ClusterID)
	b = binary.AppendUvarint(b, uint64(len(c.Servers)))
	for i := range c.Servers {
		s := &c.Servers[i]
		b = appendString(b, string(s.ID))
		b = appendString(b, s.Address)
		b = append(b, byte(s.Suffrage), s.Priority, bit(s.Outgoing, 0)|bit(s.Leaving, 1))
		b = binary.LittleEndian.AppendUint64(b, uint64(s.Replica))
	}
	b = binary.AppendUvarint(b, uint64(len(c.Removed)))
	for _, id := range c.Removed {
		b = appendString(b, string(id))
	}
	return append(b, bit(c.LeaderLeases, 0))
}

// DecodeConfiguration reads what AppendBinary wrote, and nothing else.
func DecodeConfiguration(b []byte) (Configuration, error) {
	var c Configuration
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != configurationFormat {
		return c, fmt.Errorf("decode configuration: format %d, want %d: written by a newer release?", v, configurationFormat)
	}
	c.ClusterID = d.string(maxNameLength)
	for n := d.count(MaxServers); n > 0 && d.err == nil; n-- {
		s := Server{ID: NodeID(d.string(maxNameLength)), Address: d.string(maxAddressLength)}
		s.Suffrage, s.Priority = Suffrage(d.byte()), d.byte()
		flags := d.byte()
		s.Outgoing, s.Leaving = flags&1 != 0, flags&2 != 0
		s.Replica = ReplicaID(d.uint64())
		c.Servers = append(c.Servers, s)
	}
	for n := d.count(MaxTombstones); n > 0 && d.err == nil; n-- {
		c.Removed = append(c.Removed, NodeID(d.string(maxNameLength)))
	}
	c.LeaderLeases = d.byte() != 0
	if d.err == nil && len(d.b) > 0 {
		d.err = fmt.Errorf("%d bytes too many", len(d.b))
	}
	if d.err != nil {
		return Configuration{}, fmt.Errorf("decode configuration: %w", d.err)
	}
	return c, nil
}

// SnapshotMeta says what a snapshot stands for (§7).
type SnapshotMeta struct {
	Index              Index         `json:"index"` // the paper's lastIncludedIndex
	Term               Term          `json:"term"`  // the paper's lastIncludedTerm
	Configuration      Configuration `json:"configuration"`
	ConfigurationIndex Index         `json:"configuration_index"` // of the entry that Configuration comes from; at most Index
	Size               int64         `json:"size"`                // of the content, in bytes; -1 while it is being written
}

// ID names the last entry that the snapshot includes.
func (m *SnapshotMeta) ID() EntryID { return EntryID{Term: m.Term, Index: m.Index} }

// Validate reports why the description is impossible.
func (m *SnapshotMeta) Validate() error {
	if m.Index == 0 || m.Index > maxIndex || m.Term == 0 || m.ConfigurationIndex > m.Index {
		return fmt.Errorf("snapshot %v with the configuration of index %d: impossible position", m.ID(), m.ConfigurationIndex)
	}
	if err := m.Configuration.Validate(); err != nil {
		return fmt.Errorf("snapshot %v: %w", m.ID(), err)
	}
	return nil
}

// AppendBinary appends the encoding that snapshot headers and transports use.
func (m *SnapshotMeta) AppendBinary(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Index))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Term))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.ConfigurationIndex))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Size))
	return m.Configuration.AppendBinary(b)
}

// DecodeSnapshotMeta reads what AppendBinary wrote, and nothing else.
func DecodeSnapshotMeta(b []byte) (SnapshotMeta, error) {
	d := decoder{b: b}
	m := SnapshotMeta{Index: Index(d.uint64()), Term: Term(d.uint64()), ConfigurationIndex: Index(d.uint64()), Size: int64(d.uint64())}
	if d.err != nil {
		return SnapshotMeta{}, fmt.Errorf("decode snapshot description: %w", d.err)
	}
	var err error
	if m.Configuration, err = DecodeConfiguration(d.b); err != nil {
		return SnapshotMeta{}, fmt.Errorf("decode snapshot description: %w", err)
	}
	return m, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func bit(on bool, n uint) byte {
	if on {
		return 1 << n
	}
	return 0
}

// decoder reads a bounded encoding; after its first error it returns zeros.
type decoder struct {
	b   []byte
	err error
}

var errCutOff = errors.New("cut off")

func (d *decoder) take(n int) []byte {
	if d.err != nil || n > len(d.b) {
		if d.err == nil {
			d.err = errCutOff
		}
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) byte() byte {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if p := d.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// count reads a length and refuses more than limit, so that no input makes us allocate more than it holds.
func (d *decoder) count(limit int) int {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	switch {
	case n <= 0:
		d.err = errCutOff
		return 0
	case v > uint64(limit):
		d.err = fmt.Errorf("length %d exceeds %d", v, limit)
		return 0
	}
	d.b = d.b[n:]
	return int(v)
}

func (d *decoder) string(limit int) string { return string(d.take(d.count(limit))) }
