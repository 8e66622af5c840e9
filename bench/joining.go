package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// How a new server gets what the others have.
const (
	byEntries  = "entries"  // the whole log
	bySnapshot = "snapshot" // and the entries behind it
)

// CatchUp is what it costs to take in a new server while clients propose.
type CatchUp struct {
	Library       string        `json:"library"`
	How           string        `json:"how"`
	SnapshotBytes int64         `json:"snapshot_bytes,omitempty"`
	Commands      uint64        `json:"commands"`             // in the log before
	Take          time.Duration `json:"take_ns,omitempty"`    // to take the snapshot; no load meanwhile
	Arrived       time.Duration `json:"arrived_ns,omitempty"` // from asking the leader until the snapshot was restored
	All           time.Duration `json:"all_ns"`               // and until the new server had applied everything
	Without       worker.Sample `json:"without"`              // the same load before
	During        worker.Sample `json:"during"`               // from asking the leader until the new server had everything
}

// What is in the log, and who proposes meanwhile.
const (
	entriesBefore   = 300_000 // byEntries
	snapshotBefore  = 30_000  // bySnapshot: more than any library keeps behind one, and more than one segment of raft-wal, which
	snapshotCommand = 4 << 10 // still finds dropped entries in the segment that it writes to
	snapshotBytes   = 1 << 30
	joiningClients  = 16
	joiningLimit    = 90 * time.Second
	joiningBaseline = 3 * time.Second
)

func (d *driver) catchUp(ctx context.Context, lib, how string) (c CatchUp, err error) {
	c = CatchUp{Library: lib, How: how}
	before := worker.Fill{Commands: uint64(d.scaled(entriesBefore)), Size: 256, Clients: 256, Limit: time.Minute}
	if how == bySnapshot {
		before.Commands, before.Size, c.SnapshotBytes = snapshotBefore, snapshotCommand, d.snapshotBytes()
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	addresses, err := freeAddresses(4)
	if err != nil {
		return c, err
	}
	var jobs []worker.Job
	for i := range 3 {
		jobs = append(jobs, worker.Job{Addresses: addresses[:3], Server: i + 1, SnapshotBytes: c.SnapshotBytes})
	}
	p, err := d.startProcesses(ctx, lib, jobs)
	if err != nil {
		return c, err
	}
	defer p.close()
	if c.Commands, err = p.fill(ctx, before); err != nil {
		return c, err
	}
	if c.Commands < before.Commands {
		return c, fmt.Errorf("only %d of %d commands within %v", c.Commands, before.Commands, before.Limit)
	}
	if how == bySnapshot {
		if c.Take, err = p.do(ctx, p.leader, worker.Command{Snapshot: true}); err != nil {
			return c, err
		}
	}
	syscall.Sync() // what was written so far must not fall on what is measured
	load := worker.Point{Kind: worker.Propose, Size: 256, Clients: joiningClients, Warmup: d.warmup, Time: d.shorter(joiningBaseline)}
	if c.Without, err = p.measure(ctx, load); err != nil {
		return c, err
	}
	if err := p.start(ctx, worker.Job{Addresses: addresses, Server: 4, Join: true, SnapshotBytes: c.SnapshotBytes}); err != nil {
		return c, err
	}
	if _, err := p.wait(ctx, func(e event) bool { return e.server == 4 && e.About != nil }); err != nil {
		return c, err
	}
	load.Warmup, load.Time = 0, joiningLimit
	end, err := p.load(load)
	if err != nil {
		return c, err
	}
	if err := p.join(ctx, &c, addresses[3]); err != nil {
		return c, err
	}
	if c.During, err = end(ctx, true); err != nil {
		return c, err
	}
	return c, p.agree(ctx, 1, 2, 3, 4)
}

// snapshotBytes is smaller in a quick run.
func (d *driver) snapshotBytes() int64 {
	if d.quick {
		return int64(d.scaled(snapshotBytes / 8))
	}
	return int64(d.scaled(snapshotBytes))
}

// join takes in the fourth server and waits until it has applied all that the leader had a moment ago: under load, nobody ever has
// everything.
func (p *processes) join(ctx context.Context, c *CatchUp, address string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, joiningLimit-5*time.Second, errors.New("the new server has not caught up"))
	defer cancel()
	began := time.Now()
	if _, err := p.do(ctx, p.leader, worker.Command{Add: &worker.Add{Server: 4, Address: address}}); err != nil {
		return err
	}
	var behind uint64 // what the leader had applied at the last look
	for {
		at, err := p.progress(ctx, 4)
		if err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		now := time.Since(began)
		if at.Restored > 0 && c.Arrived == 0 {
			c.Arrived = now
		}
		if behind > 0 && at.Applied >= behind {
			c.All = now
			switch {
			case c.How == bySnapshot && at.Restored == 0:
				return errors.New("the new server got entries, not the snapshot")
			case c.How == byEntries && at.Restored > 0:
				return errors.New("the new server got a snapshot, not entries")
			}
			return nil
		}
		leader, err := p.progress(ctx, p.leader)
		if err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		behind = leader.Applied
		time.Sleep(10 * time.Millisecond)
	}
}
