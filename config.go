package raft

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Config configures a [Node]. The zero value of an optional field means its default, so only the four required fields have to be
// set. A Config is copied by [NewNode]; later changes have no effect.
type Config struct {
	ID           NodeID       // required; who this server is, as in the cluster's [Configuration]
	ClusterID    string       // needed only on a blank directory, to join that cluster; otherwise it must match, if given
	StateMachine StateMachine // required; the node is its only caller
	Storage      Storage      // required; the node opens and closes it
	Transport    Transport    // required; the node starts and closes it

	Logger  *slog.Logger // default: discard. A handler that blocks holds up the node: let it not wait for the disk that the node reports on
	Metrics Metrics      // default: none

	// Core holds the knobs of the protocol. ID is filled in; a Seed of zero is replaced by a random one.
	Core CoreConfig

	MaxCommandBytes  int // 8 MiB; a longer command is refused with ErrTooLarge
	MaxInboxBytes    int // 64 MiB; messages received and not yet processed, but at least one. Above it they are dropped, as on a network
	MaxProposalBytes int // 64 MiB; proposals accepted and not yet appended. Above it they are refused with ErrOverloaded

	SnapshotEntries uint64 // 100,000; applied entries after which a snapshot is taken by itself
	SnapshotBytes   int64  // 256 MiB; the same by the entries' size

	LeaderWorkGrace   time.Duration // 10 s; how long the function given to WhileLeader may ignore its cancellation
	DisableForwarding bool          // a follower refuses proposals and reads with *NotLeaderError instead of passing them on
}

// Defaults of a Config.
const (
	defaultMaxCommandBytes  = 8 << 20
	defaultMaxInboxBytes    = 64 << 20
	defaultMaxProposalBytes = 64 << 20
	defaultSnapshotEntries  = 100_000
	defaultSnapshotBytes    = 256 << 20
	defaultLeaderWorkGrace  = 10 * time.Second

	// The node needs some of the core's knobs, for its own waits and bounds.
	defaultHeartbeatInterval   = 100 * time.Millisecond
	defaultElectionTimeout     = time.Second
	defaultMaxUncommittedBytes = 64 << 20
	defaultMaxUnappliedBytes   = 64 << 20
)

// Validate reports everything that is wrong with the configuration, at once.
func (c *Config) Validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.ID == "" || len(c.ID) > maxNameLength {
		add("ID %q: want 1 to %d bytes", c.ID, maxNameLength)
	}
	if len(c.ClusterID) > maxNameLength {
		add("ClusterID: longer than %d bytes", maxNameLength)
	}
	if c.StateMachine == nil {
		add("StateMachine: required")
	}
	if c.Storage == nil {
		add("Storage: required")
	}
	if c.Transport == nil {
		add("Transport: required")
	}
	if c.Core.ID != "" && c.Core.ID != c.ID {
		add("Core.ID %q: leave it empty, it is filled in with ID %q", c.Core.ID, c.ID)
	}
	negative := func(name string, v int64) {
		if v < 0 {
			add("%s %d: negative", name, v)
		}
	}
	negative("MaxCommandBytes", int64(c.MaxCommandBytes))
	negative("MaxInboxBytes", int64(c.MaxInboxBytes))
	negative("MaxProposalBytes", int64(c.MaxProposalBytes))
	negative("SnapshotBytes", c.SnapshotBytes)
	negative("LeaderWorkGrace", int64(c.LeaderWorkGrace))
	negative("Core.HeartbeatInterval", int64(c.Core.HeartbeatInterval))
	negative("Core.ElectionTimeout", int64(c.Core.ElectionTimeout))
	negative("Core.DiskDeadline", int64(c.Core.DiskDeadline))
	negative("Core.MaxBatchBytes", int64(c.Core.MaxBatchBytes))
	negative("Core.MaxInflightBytes", int64(c.Core.MaxInflightBytes))
	negative("Core.MaxInflightMessages", int64(c.Core.MaxInflightMessages))
	negative("Core.MaxUncommittedBytes", int64(c.Core.MaxUncommittedBytes))
	negative("Core.MaxUnappliedBytes", int64(c.Core.MaxUnappliedBytes))
	negative("Core.MaxTailBytes", int64(c.Core.MaxTailBytes))
	negative("Core.CatchUpBytesPerSecond", int64(c.Core.CatchUpBytesPerSecond))
	if len(problems) > 0 {
		return fmt.Errorf("configuration: %w", errors.Join(problems...))
	}

	// The rest compares values, so the defaults have to be in place.
	d := c.withDefaults()
	if d.MaxCommandBytes > MaxEntrySize {
		add("MaxCommandBytes %d: an entry holds at most %d", d.MaxCommandBytes, MaxEntrySize)
	}
	if d.MaxProposalBytes < d.MaxCommandBytes+EntryHeaderSize {
		add("MaxProposalBytes %d: one command of MaxCommandBytes %d does not fit", d.MaxProposalBytes, d.MaxCommandBytes)
	}
	if d.MaxInboxBytes < d.MaxCommandBytes+EntryHeaderSize+messageOverhead {
		add("MaxInboxBytes %d: one command of MaxCommandBytes %d does not fit", d.MaxInboxBytes, d.MaxCommandBytes)
	}
	if d.Core.ElectionTimeout < 2*d.Core.HeartbeatInterval {
		add("Core.ElectionTimeout %v: want at least two heartbeat intervals (%v), or one lost heartbeat deposes a leader",
			d.Core.ElectionTimeout, d.Core.HeartbeatInterval)
	}
	if len(problems) > 0 {
		return fmt.Errorf("configuration: %w", errors.Join(problems...))
	}
	return nil
}

// withDefaults returns a copy in which every optional field has a value.
func (c *Config) withDefaults() Config {
	d := *c
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Metrics == nil {
		d.Metrics = noMetrics{}
	}
	d.MaxCommandBytes = orDefault(d.MaxCommandBytes, defaultMaxCommandBytes)
	d.MaxInboxBytes = orDefault(d.MaxInboxBytes, defaultMaxInboxBytes)
	d.MaxProposalBytes = orDefault(d.MaxProposalBytes, defaultMaxProposalBytes)
	d.SnapshotEntries = orDefault(d.SnapshotEntries, defaultSnapshotEntries)
	d.SnapshotBytes = orDefault(d.SnapshotBytes, defaultSnapshotBytes)
	d.LeaderWorkGrace = orDefault(d.LeaderWorkGrace, defaultLeaderWorkGrace)
	d.Core.ID = d.ID
	d.Core.HeartbeatInterval = orDefault(d.Core.HeartbeatInterval, defaultHeartbeatInterval)
	d.Core.ElectionTimeout = orDefault(d.Core.ElectionTimeout, defaultElectionTimeout)
	d.Core.MaxUncommittedBytes = orDefault(d.Core.MaxUncommittedBytes, defaultMaxUncommittedBytes)
	d.Core.MaxUnappliedBytes = orDefault(d.Core.MaxUnappliedBytes, defaultMaxUnappliedBytes)
	return d
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// noMetrics is what a node without Config.Metrics reports to.
type noMetrics struct{}

func (noMetrics) ObserveWrite(time.Duration, int, int) {}
func (noMetrics) ObserveCommit(time.Duration)          {}
func (noMetrics) ObserveApply(time.Duration, int)      {}
func (noMetrics) Election(string)                      {}
func (noMetrics) Refused(string)                       {}
