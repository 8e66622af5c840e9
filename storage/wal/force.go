package wal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/snapshot"
	"github.com/steadyraft/raft/storage/vfs"
)

// Recovery describes a forced recovery: one server that has survived founds a new cluster with what it has, alone. Others join it
// afterwards, with empty directories and new IDs; docs/raftctl.md says why.
type Recovery struct {
	Directory   string           `json:"directory"`
	Node        raft.NodeID      `json:"node"`
	Replica     raft.ReplicaID   `json:"replica"`
	Cluster     string           `json:"cluster"`       // to which the directory belonged when this was planned
	HardState   raft.HardState   `json:"hard_state"`    // now
	Last        raft.EntryID     `json:"last"`          // entry that is kept: nothing behind it survives
	GivenUp     raft.EntryID     `json:"given_up"`      // the last entry of the log, if it is given up from a damaged one on; else zero
	Snapshot    raft.EntryID     `json:"snapshot"`      // up to here everything is known to have been committed
	InForce     *ConfigurationAt `json:"in_force"`      // the newest configuration now; nil: none is known
	Entry       ConfigurationAt  `json:"configuration"` // what is to be written behind Last
	batches     uint64           // to notice that a server has run meanwhile
	incarnation uint64
}

// termLeap is how far the new cluster's terms lie above the last one that the survivor knows. The lost servers may have had leaders in
// later terms, who gave these out as epochs: what is fenced by them must not see one of them again.
const termLeap = 1 << 20

// ErrDamaged says that a directory is too damaged to go on from it; Inspect says where.
var ErrDamaged = errors.New("the directory is damaged")

// PlanRecovery says what [Recover] would do with the directory of a stopped server, and changes nothing. cluster is the new cluster's
// ID, which must not have been used before. address is the server's in the new cluster; "" keeps the one that it has.
//
// Errors are those of Inspect, [ErrDamaged], and whatever makes the recovery impossible.
func PlanRecovery(ctx context.Context, fsys vfs.FS, dir, cluster, address string, opts ...InspectOption) (Recovery, error) {
	in, err := beginInspection(ctx, fsys, dir, fsys.LockShared, opts)
	if err != nil {
		return Recovery{}, err
	}
	plan, err := in.plan(ctx, cluster, address)
	return plan, errors.Join(err, in.end())
}

func (in *inspection) plan(ctx context.Context, cluster, address string) (Recovery, error) {
	if err := in.verifySnapshots(ctx); err != nil {
		return Recovery{}, err
	}
	r := &in.report
	switch {
	case in.startSnapshot().Index < r.Compacted.Index: // nobody else has what is missing in front of the log
		return Recovery{}, fmt.Errorf("recover %s: %w: the log begins behind %v, and there is no snapshot of what was in front of it; "+
			"recover another survivor, or restore a copy", r.Directory, ErrDamaged, r.Compacted)
	case r.Verdict.Worse(Fenced) && !in.onlyAlone():
		return Recovery{}, fmt.Errorf("recover %s: %w: raftctl verify says where; recover another survivor, or restore a copy",
			r.Directory, ErrDamaged)
	case r.Replica == 0 || r.Node == "":
		return Recovery{}, fmt.Errorf("recover %s: nothing says which server it belongs to: its log is gone, or there never was one", r.Directory)
	case r.Last.Index == 0 && in.startSnapshot().Index == 0:
		return Recovery{}, fmt.Errorf("recover %s: it is blank: there is nothing to recover", r.Directory)
	case cluster == r.Cluster:
		return Recovery{}, fmt.Errorf("recover %s: %q is the ID of its present cluster: if an earlier recovery gave it, that one is done; "+
			"if not, the lost servers might come back in it: choose an ID that was never used", r.Directory, cluster)
	case in.wasIn(cluster):
		return Recovery{}, fmt.Errorf("recover %s: %q was the ID of its cluster before, in which lost servers might come back: "+
			"choose an ID that was never used", r.Directory, cluster)
	}
	if in.r.isAlone && !in.behindLog() {
		r.Newest = r.Last
	}
	plan := Recovery{
		Directory: r.Directory, Node: r.Node, Replica: r.Replica, Cluster: r.Cluster, HardState: r.HardState,
		Last: r.Newest, Snapshot: in.startSnapshot(), batches: r.Batches, incarnation: r.Incarnation,
	}
	configurations := r.Configurations
	if in.behindLog() {
		configurations = nil
	} else if lost := in.r.damaged; len(lost) > 0 { // what is behind it is of no use without it
		plan.GivenUp = plan.Last
		term, _ := in.w.index.termAt(lost[0].first - 1)
		plan.Last = raft.EntryID{Term: term, Index: lost[0].first - 1}
		configurations = slices.DeleteFunc(slices.Clone(configurations), func(c ConfigurationAt) bool { return c.Index > plan.Last.Index })
	}
	if plan.Snapshot.Index > 0 {
		meta := &r.Snapshots[in.startNumber()].Meta
		// The term of the entry is not kept with a snapshot, and nobody asks for it.
		plan.InForce = &ConfigurationAt{raft.EntryID{Index: meta.ConfigurationIndex}, meta.Configuration}
	}
	for i := range configurations {
		if configurations[i].Index > plan.Snapshot.Index {
			plan.InForce = &configurations[i]
		}
	}

	self := raft.Server{ID: r.Node, Address: address, Replica: r.Replica}
	conf := raft.Configuration{ClusterID: cluster}
	if old := plan.InForce; old != nil {
		before, _ := old.Configuration.Server(r.Node)
		self.Priority = before.Priority
		if address == "" {
			self.Address = before.Address
		}
		conf.LeaderLeases = old.Configuration.LeaderLeases
	}
	conf.Removed = in.formerMembers()
	if self.Address == "" {
		return Recovery{}, fmt.Errorf("recover %s: no configuration says at which address server %q is reached; say it", r.Directory, r.Node)
	}
	conf.Servers = []raft.Server{self}
	if err := conf.Validate(); err != nil {
		return Recovery{}, fmt.Errorf("recover %s: %w", r.Directory, err)
	}
	plan.Entry = ConfigurationAt{
		raft.EntryID{Term: max(r.HardState.CurrentTerm, r.Last.Term, plan.Last.Term) + termLeap, Index: plan.Last.Index + 1}, conf,
	}
	return plan, nil
}

// onlyAlone reports that nothing but the want of another server keeps this one from starting: recovery is what it needs.
func (in *inspection) onlyAlone() bool {
	if !in.r.isAlone {
		return false
	}
	damaged := 0
	for _, f := range in.report.Findings {
		if f.Verdict.Worse(Fenced) {
			damaged++
		}
	}
	return damaged == 1
}

// wasIn reports whether anything here is left of an earlier cluster of that ID. Its servers may still have their directories: after a
// second recovery that gives back the ID that a first one took, both clusters would go by the same name.
func (in *inspection) wasIn(cluster string) bool {
	r := &in.report
	return slices.ContainsFunc(in.r.files, func(seq uint64) bool { return in.r.headers[seq].identity.Cluster == cluster }) ||
		slices.ContainsFunc(r.Configurations, func(c ConfigurationAt) bool { return c.Configuration.ClusterID == cluster }) ||
		slices.ContainsFunc(r.Snapshots, func(v snapshot.Verified) bool { return v.Meta.Configuration.ClusterID == cluster })
}

// formerMembers lists all servers that ever were members as far as is known here, but for this one: as if they were removed now. Their IDs
// must not come back. A new member gets the old snapshot and the old log first, and until the new configuration reaches it, believes
// in the one that is there: if it had the ID of an old voter, and another one, too, then the two would be a majority of three, could
// elect one of them without this server, and overwrite what it has committed meanwhile.
func (in *inspection) formerMembers() []raft.NodeID {
	var ids []raft.NodeID
	see := func(id raft.NodeID) {
		if id != in.report.Node && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	seeAll := func(c *raft.Configuration) {
		for _, id := range c.Removed {
			see(id)
		}
		for i := range c.Servers {
			see(c.Servers[i].ID)
		}
	}
	for i := len(in.report.Snapshots) - 1; i >= 0; i-- {
		seeAll(&in.report.Snapshots[i].Meta.Configuration)
	}
	for i := range in.report.Configurations {
		seeAll(&in.report.Configurations[i].Configuration)
	}
	return ids[max(0, len(ids)-raft.MaxTombstones):]
}

// startNumber returns the number of the snapshot that a server would start from, -1 if there is none.
func (in *inspection) startNumber() int {
	for i := range in.report.Snapshots {
		if in.report.Snapshots[i].Described() {
			return i
		}
	}
	return -1
}

func (in *inspection) startSnapshot() raft.EntryID {
	if i := in.startNumber(); i >= 0 {
		return in.report.Snapshots[i].Meta.ID()
	}
	return raft.EntryID{}
}

// behindLog reports whether the snapshot replaces the log, as it does for a server that starts: it was received right before a crash,
// and the log does not hold its last entry.
func (in *inspection) behindLog() bool {
	id := in.startSnapshot()
	term, ok := in.w.index.termAt(id.Index)
	return id.Index > 0 && (!ok || term != id.Term)
}

// Recover carries out a plan: it writes the new configuration behind the log, in a new term, in a segment that makes the directory one of
// the new cluster. It takes effect as a whole or not at all, by the renaming of one file, whenever a crash comes. Nothing that is in the
// directory is removed or overwritten; but there is no way back other than a copy made before.
//
// Errors are those of PlanRecovery; what is in the directory must still be what was planned for.
func Recover(ctx context.Context, fsys vfs.FS, plan Recovery, opts ...InspectOption) error {
	in, err := beginInspection(ctx, fsys, plan.Directory, fsys.Lock, opts)
	if err != nil {
		return err
	}
	self := plan.Entry.Configuration.Servers[0]
	now, err := in.plan(ctx, plan.Entry.Configuration.ClusterID, self.Address)
	if err == nil && (now.batches != plan.batches || now.incarnation != plan.incarnation || now.Entry.EntryID != plan.Entry.EntryID) {
		err = fmt.Errorf("recover %s: a server has run in the directory since this was planned; nothing was changed", plan.Directory)
	}
	if err == nil {
		err = in.found(&now)
	}
	return errors.Join(err, in.end())
}

// found writes the segment with which the new cluster begins.
func (in *inspection) found(plan *Recovery) (err error) {
	w := in.w
	if err := in.r.secureTail(); err != nil {
		return fmt.Errorf("recover %s: %w", plan.Directory, err)
	}
	entry, err := configurationEntry(&plan.Entry)
	if err != nil {
		return fmt.Errorf("recover %s: %w", plan.Directory, err)
	}
	batch := raft.Batch{HardState: &raft.HardState{CurrentTerm: plan.Entry.Term}, Entries: []raft.Entry{entry}}
	if in.behindLog() {
		// What a server does at its start, which then finds it done.
		batch.Snapshot = &in.report.Snapshots[in.startNumber()].Meta
		if err := w.fs.SyncDir(w.snapshotsDir()); err != nil {
			return fmt.Errorf("recover %s: %w", plan.Directory, err)
		}
	}
	if plan.Last.Index < w.index.last.Index && batch.Snapshot == nil {
		batch.TruncateFrom = plan.Last.Index + 1
	}
	if w.fence != (raft.EntryID{}) {
		batch.Fence = &raft.EntryID{}
	}
	h, _, err := w.header(&batch)
	if err != nil {
		return fmt.Errorf("recover %s: %w", plan.Directory, err)
	}
	w.identity.Cluster = plan.Entry.Configuration.ClusterID
	if err := w.currentKey(); err != nil {
		return fmt.Errorf("recover %s: %w", plan.Directory, err)
	}
	h.encryptedWith(w.keyID)
	headerLen, _ := headerSize(h.words(), h.bodyLen)
	size := roundUp(segmentHeaderSize+int64(headerLen)+h.bodyLen+sectorSize, pageSize)
	segment := w.nextSegment(in.r.files[len(in.r.files)-1]+1, size)
	sealer, err := w.encrypt(&segment)
	if err != nil {
		return fmt.Errorf("recover %s: %w", plan.Directory, err)
	}
	h.tag, h.offset = segment.tag, segmentHeaderSize
	h.seq, h.syncedThrough = w.lastBatch+1, w.lastBatch
	h.prevChain, h.before = w.chain, w.before

	b := make([]byte, size)
	copy(b, segment.encode(sealer))
	copy(b[pageSize:], b[:pageSize])
	copy(b[segmentHeaderSize:], encodeBatch(nil, &h, batch.Entries, nil, sealer))
	if err := in.publish(segmentName(segment.seq), b); err != nil {
		return fmt.Errorf("recover %s: %w", plan.Directory, err)
	}
	return nil
}

// publish makes a file durable, and then gives it its name. The temporary one is that of the next spare, which takes its place if a crash
// leaves it behind.
func (in *inspection) publish(name string, b []byte) (err error) {
	w := in.w
	if _, err := w.fs.Stat(w.path(name)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s exists already", w.path(name)), err)
	}
	tmp := w.path(spareName + tmpSuffix)
	f, err := w.fs.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, w.fs.Remove(tmp))
	}
	if err := w.fs.Rename(tmp, w.path(name)); err != nil {
		return err
	}
	return w.fs.SyncDir(w.dir)
}

// configurationEntry makes an entry as a leader would have appended it; the table is in the documentation of raft.EntryHeaderSize.
func configurationEntry(c *ConfigurationAt) (raft.Entry, error) {
	le := binary.LittleEndian
	b := make([]byte, raft.EntryHeaderSize)
	b = c.Configuration.AppendBinary(b)
	le.PutUint32(b, uint32(len(b)-raft.EntryHeaderSize))
	b[6] = byte(raft.EntryConfiguration)
	le.PutUint64(b[8:], uint64(c.Term))
	le.PutUint64(b[16:], uint64(c.Index))
	le.PutUint32(b[24:], checksum(b[raft.EntryHeaderSize:]))
	le.PutUint32(b[28:], checksum(b[:28]))
	e, _, err := raft.DecodeEntry(b)
	return e, err
}
