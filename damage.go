package raft

import (
	"context"
	"errors"
	"time"
)

// damageIn takes from an error of Storage.Entries which entries cannot be read, the first of them being lo.
func damageIn(err error, lo Index) (Damage, bool) {
	var corrupt *CorruptionError
	if !errors.As(err, &corrupt) {
		return Damage{}, false
	}
	d := corrupt.Damage
	if d == (Damage{}) {
		d = Damage{First: lo, Last: lo}
	}
	return d, true
}

// How often the applier looks whether what it could not read has been repaired, and how often it says so again if not.
const (
	repairRetry  = 20 * time.Millisecond
	repairRepeat = 50 // retries
)

// awaitRepair tells the core what cannot be read, and waits for a moment. It reports whether a snapshot takes the place of the entries.
func (a *applier) awaitRepair(ctx context.Context, damage Damage, cause error) (skip bool) {
	if a.unread != damage || a.retries >= repairRepeat {
		a.unread, a.retries = damage, 0
		a.n.log.Error("entries to be applied cannot be read; they are fetched from the other servers", "first", damage.First, "last", damage.Last, "error", cause)
		a.n.inbox.report(func(now time.Duration) { a.n.core.Damaged(now, damage) })
	}
	a.retries++
	timer := time.NewTimer(repairRetry)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.queue {
		if a.queue[i].Restore != nil {
			return true
		}
	}
	return false
}

// RepairStatus says what this node has to do with entries that cannot be read.
type RepairStatus struct {
	Found     uint64  `json:"found"`     // entries, since the start and at it
	Repaired  uint64  `json:"repaired"`  // fetched from other servers
	Discarded uint64  `json:"discarded"` // cut off by this server as a leader, because they were not committed
	LostLogs  uint64  `json:"lost_logs"` // followers seen by this server as a leader that had lost what they had acknowledged
	Missing   EntryID `json:"missing"`   // which this server could not find when it was elected last; zero: none
	Asked     []Asked `json:"asked,omitempty"`
}

// reportDamage logs what the storage could not read when it was opened.
func (n *Node) reportDamage(rec *Recovered) {
	for _, d := range rec.Damaged {
		n.repairs.Found += uint64(d.Last - d.First + 1)
		n.log.Error("entries of the log cannot be read; they are fetched from the other servers", "first", d.First, "last", d.Last,
			"may be configurations", d.MayConfigure)
	}
	if rec.Snapshot.Index < rec.Compacted.Index {
		n.log.Error("the log begins behind a snapshot that cannot be read any more: this server waits for one of another server",
			"log begins behind", rec.Compacted.String(), "older snapshot", rec.Snapshot.Index)
	}
	if rec.Fence != (EntryID{}) {
		n.log.Error("the log has lost its end: until it has caught up with a leader this server does not campaign, and votes for no shorter log",
			"fence", rec.Fence.String(), "last index", rec.LastIndex)
	}
}

// damageEvent logs and counts what the core says about damage.
func (n *Node) damageEvent(e Event) {
	r := &n.repairs
	switch e := e.(type) {
	case DamageFound:
		r.Found += uint64(e.Damage.Last - e.Damage.First + 1)
		n.log.Error("entries of the log cannot be read any more; they are fetched from the other servers", "first", e.Damage.First, "last", e.Damage.Last)
		n.snapshots.begin(true) // what has been applied is not needed any more once a snapshot includes it
	case EntriesRepaired:
		r.Repaired += uint64(e.Count)
		r.Missing, r.Asked = EntryID{}, nil
		n.log.Info("damaged entries repaired", "first", e.First.String(), "last", e.Last.String(), "entries", e.Count, "from", string(e.From))
	case EntriesDiscarded:
		r.Discarded += uint64(e.Last.Index - e.First.Index + 1)
		r.Missing, r.Asked = EntryID{}, nil
		n.log.Warn("end of the log discarded: it could not be read, and was never committed", "first", e.First.String(), "last", e.Last.String())
	case RecoveryStuck:
		r.Missing, r.Asked = e.Entry, e.Asked
		n.log.Error("this server cannot lead: an entry that may be committed was not found anywhere; start the servers that are down, or recover the cluster by hand",
			"entry", e.Entry.String(), "asked", e.Asked)
	case FenceLifted:
		n.log.Info("the log has caught up with all that may have been lost of it", "fence", e.Fence.String())
	case LostLog:
		r.LostLogs++
		n.log.Error("a follower has lost entries that it had acknowledged: look at its disk", "peer", string(e.Peer), "acknowledged", e.Remembered, "has", e.Has)
	}
}
