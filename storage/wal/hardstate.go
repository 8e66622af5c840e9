package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/internal/seal"
	"github.com/steadyraft/raft/storage/vfs"
)

// The vote file holds term and vote a second time, apart from the log. It has two generations of two copies each, every copy in a
// page of its own, so that neither a torn write nor a single damaged page loses the newest one.
const (
	voteName      = "vote"
	voteMagic     = 0x31565253 // "SRV1"
	voteCopies    = 2
	voteFileSize  = 2 * voteCopies * pageSize
	voteFixedSize = 64
	voteFenceAt   = 320
	voteKeyAt     = 464 // key ID, then what names the key, then the authentication
	voteMACAt     = sectorSize - 4 - seal.MACSize
)

// voteRecord is one generation of the vote file.
type voteRecord struct {
	generation  uint64
	replica     raft.ReplicaID
	incarnation uint64
	segment     uint64 // the last segment when this was written: a log without it has lost it
	first       uint64 // the first segment that is still needed
	batch       uint64 // a batch that was durable before this was written: a log that ends before it has lost it
	hardState   raft.HardState
	fence       raft.EntryID

	keyID uint32 // 0: nothing but the checksum says that the record is ours
	check [seal.CheckSize]byte
}

// encode returns a sector. k is nil if there is no key to authenticate it with.
func (r *voteRecord) encode(k *seal.Key) []byte {
	b := make([]byte, sectorSize)
	le := binary.LittleEndian
	le.PutUint32(b[0:], voteMagic)
	le.PutUint32(b[4:], uint32(len(r.hardState.VotedFor)))
	le.PutUint64(b[8:], r.generation)
	le.PutUint64(b[16:], uint64(r.replica))
	le.PutUint64(b[24:], r.incarnation)
	le.PutUint64(b[32:], r.segment)
	le.PutUint64(b[40:], r.first)
	le.PutUint64(b[48:], r.batch)
	le.PutUint64(b[56:], uint64(r.hardState.CurrentTerm))
	copy(b[voteFixedSize:], r.hardState.VotedFor)
	putID(b[voteFenceAt:], r.fence)
	le.PutUint32(b[voteKeyAt:], r.keyID)
	copy(b[voteKeyAt+4:], r.check[:])
	if k != nil {
		mac := k.MAC(b[:voteMACAt])
		copy(b[voteMACAt:], mac[:])
	}
	le.PutUint32(b[sectorSize-4:], checksum(b[:sectorSize-4]))
	return b
}

func decodeVote(b []byte) (voteRecord, error) {
	le := binary.LittleEndian
	if len(b) < sectorSize {
		return voteRecord{}, errors.New("record is cut off")
	}
	b = b[:sectorSize]
	if le.Uint32(b[0:]) != voteMagic || checksum(b[:sectorSize-4]) != le.Uint32(b[sectorSize-4:]) {
		return voteRecord{}, errors.New("record checksum does not match")
	}
	n := int64(le.Uint32(b[4:]))
	if n > maxName {
		return voteRecord{}, fmt.Errorf("name of %d bytes: at most %d", n, maxName)
	}
	r := voteRecord{
		generation:  le.Uint64(b[8:]),
		replica:     raft.ReplicaID(le.Uint64(b[16:])),
		incarnation: le.Uint64(b[24:]),
		segment:     le.Uint64(b[32:]),
		first:       le.Uint64(b[40:]),
		batch:       le.Uint64(b[48:]),
		hardState: raft.HardState{
			CurrentTerm: raft.Term(le.Uint64(b[56:])),
			VotedFor:    raft.NodeID(b[voteFixedSize : voteFixedSize+n]),
		},
		fence: getID(b[voteFenceAt:]),
		keyID: le.Uint32(b[voteKeyAt:]),
	}
	copy(r.check[:], b[voteKeyAt+4:])
	return r, nil
}

// readVote returns the newest record of the vote file; found is false if there is no file, or none was ever written. newest says that no
// later one can have been lost: the generation before it is there, too, which a later one would have overwritten. damaged says what is
// wrong with records that were passed over.
func (w *WAL) readVote(path string) (rec voteRecord, found, newest bool, damaged error, err error) {
	f, err := w.fs.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return rec, false, false, nil, nil
	}
	if err != nil {
		return rec, false, false, nil, fmt.Errorf("open vote file: %w", err)
	}
	b := make([]byte, voteFileSize)
	n, err := f.ReadAt(b, 0)
	if closeErr := f.Close(); err == nil || err == io.EOF {
		err = closeErr
	}
	if err != nil {
		return rec, false, false, nil, fmt.Errorf("read vote file: %w", err)
	}
	b = b[:n]
	var generations []uint64
	var read []voteRecord
	var places []int64
	var errs []error
	for at := 0; at < voteFileSize; at += pageSize {
		page := b[min(at, len(b)):min(at+pageSize, len(b))]
		if isZero(page) {
			continue // never written
		}
		r, err := decodeVote(page)
		if err != nil {
			damaged = errors.Join(damaged, &raft.CorruptionError{Path: path, Offset: int64(at), Reason: err.Error()})
			continue
		}
		generations = append(generations, r.generation)
		read = append(read, r)
		places = append(places, int64(at))
		errs = append(errs, w.authenticateVote(path, int64(at), &r, page))
		if !found || r.generation > rec.generation {
			rec, found = r, true
		}
	}
	newest = found && (slices.Contains(generations, rec.generation-1) || rec.generation == 1 && damaged == nil)
	return rec, found, newest, damaged, judgeVotes(path, rec.generation, read, places, errs)
}

// openVote opens the vote file for writing, and makes it if it is missing. One that is too short is still worth what is left of it.
func (w *WAL) openVote() (vfs.File, error) {
	path := w.path(voteName)
	f, err := w.fs.OpenWrite(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	tmp := path + tmpSuffix
	if f, err = w.fs.Create(tmp); err != nil {
		return nil, err
	}
	_, err = f.WriteAt(make([]byte, voteFileSize), 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = w.fs.Rename(tmp, path)
	}
	if err == nil {
		err = w.fs.SyncDir(w.dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// writeVote makes a new generation durable. The one before stays readable until then. Only one call at a time.
func (w *WAL) writeVote() error {
	w.vote.generation++
	b := w.vote.encode(w.voteKey)
	at := int64(w.vote.generation%2) * voteCopies * pageSize
	for range voteCopies {
		if _, err := w.voteFile.WriteAt(b, at); err != nil {
			return fmt.Errorf("write term and vote: %w", err)
		}
		at += pageSize
	}
	if err := w.voteFile.Sync(); err != nil {
		return fmt.Errorf("sync term and vote: %w", err)
	}
	return nil
}

// mergeHardStates decides between the two places: the higher term; in the same term the vote that is there. Two different votes in
// one term mean that one of the files is not ours, or was changed.
func mergeHardStates(log, vote raft.HardState, path string) (raft.HardState, error) {
	switch {
	case vote.CurrentTerm < log.CurrentTerm, vote.CurrentTerm == log.CurrentTerm && vote.VotedFor == "":
		return log, nil
	case vote.CurrentTerm > log.CurrentTerm || log.VotedFor == "" || log.VotedFor == vote.VotedFor:
		return vote, nil
	}
	return raft.HardState{}, &raft.CorruptionError{
		Path: path,
		Reason: fmt.Sprintf("vote for %q in term %d, but the log says %q: this server could vote twice",
			vote.VotedFor, vote.CurrentTerm, log.VotedFor),
		Next: nextVerify,
	}
}
