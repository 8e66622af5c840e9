package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// syncBytes is how much is written between two syncs. One sync of a large snapshot at its end would make the log's own syncs, on
// the same disk, wait until all of it was written back.
const syncBytes = 8 << 20

var (
	errEnded   = errors.New("snapshot was committed or aborted before")
	errTooLong = errors.New("more content than was announced")
)

// sink writes one snapshot. It serves one goroutine at a time.
type sink struct {
	store    *Store
	meta     raft.SnapshotMeta // Size as known at Create
	path     string
	f        vfs.File // nil after the end
	chunk    []byte   // room for a chunk's header, then its content so far
	full     int      // length of chunk when it can take no more
	sealer   *sealer  // nil: not encrypted
	seed     uint32
	content  uint32 // checksum of all chunks written
	chunks   uint64 // written
	size     int64  // of all content taken
	unsynced int
	err      error // the first one; final
}

func newSink(s *Store, meta raft.SnapshotMeta, path string, f vfs.File, seal *sealer) *sink {
	header, seed := encodeHeader(meta, s.chunkBytes, seal)
	k := &sink{store: s, meta: meta, path: path, f: f, seed: seed, full: chunkHeaderSize + s.chunkBytes, sealer: seal}
	k.chunk = make([]byte, chunkHeaderSize, int64(k.full)+seal.overhead())
	k.write(header)
	return k
}

// Write takes content. After an error the snapshot can only be aborted.
func (k *sink) Write(p []byte) (int, error) {
	if k.f == nil {
		return 0, errEnded
	}
	// Content beyond the announced size is not even stored: a peer cannot fill our disk with it.
	if k.err == nil && k.meta.Size >= 0 && int64(len(p)) > k.meta.Size-k.size {
		k.fail(fmt.Errorf("%w: %d bytes", errTooLong, k.meta.Size))
	}
	n := 0
	for len(p) > 0 && k.err == nil {
		if len(k.chunk) == k.full { // not before: the last chunk is written as such
			if k.flush(false); k.err != nil {
				break
			}
		}
		m := min(k.full-len(k.chunk), len(p))
		k.chunk = append(k.chunk, p[:m]...)
		p = p[m:]
		n += m
		k.size += int64(m)
	}
	return n, k.err
}

// flush writes the chunk that was gathered, if there is any.
func (k *sink) flush(last bool) {
	length := len(k.chunk) - chunkHeaderSize
	if length == 0 || k.err != nil {
		return
	}
	k.chunk = k.sealer.sealChunk(k.chunk, chunkHeaderSize, k.chunks, last)
	data := k.chunk[chunkHeaderSize:]
	binary.LittleEndian.PutUint32(k.chunk[0:], uint32(length))
	binary.LittleEndian.PutUint32(k.chunk[4:], chunkChecksum(k.seed, k.chunks, data))
	k.content = crc32.Update(k.content, castagnoli, data)
	k.chunks++
	k.write(k.chunk)
	k.chunk = k.chunk[:chunkHeaderSize]
}

func (k *sink) write(b []byte) {
	if k.err != nil {
		return
	}
	if _, err := k.f.Write(b); err != nil {
		k.fail(err)
		return
	}
	if k.unsynced += len(b); k.unsynced >= syncBytes {
		k.sync()
	}
}

func (k *sink) sync() {
	if k.err != nil {
		return
	}
	k.unsynced = 0
	if err := k.f.Sync(); err != nil {
		k.fail(fmt.Errorf("sync: %w", err))
	}
}

func (k *sink) fail(err error) {
	k.err = fmt.Errorf("write snapshot %v: %w", k.meta.ID(), typed(err))
}

// Commit makes the snapshot durable and visible, and drops those older than the two newest intact ones; if it is itself older
// than those, it is dropped at once. After an error nothing of it will be seen, and Abort is not needed.
func (k *sink) Commit() (raft.SnapshotMeta, error) {
	if k.f == nil {
		return raft.SnapshotMeta{}, errEnded
	}
	if k.err == nil && k.meta.Size >= 0 && k.size != k.meta.Size {
		k.fail(fmt.Errorf("content of %d bytes, but %d were announced", k.size, k.meta.Size))
	}
	k.flush(true)
	k.write(encodeTrailer(k.seed, k.size, k.content, k.sealer))
	k.sync()
	if k.err != nil {
		return raft.SnapshotMeta{}, errors.Join(k.err, k.Abort())
	}
	f := k.f
	k.f = nil
	if err := f.Close(); err != nil {
		k.fail(err)
		return raft.SnapshotMeta{}, errors.Join(k.err, k.remove())
	}
	if err := k.store.publish(k.path, k.meta.Index); err != nil {
		return raft.SnapshotMeta{}, err
	}
	k.meta.Size = k.size
	return k.meta, nil
}

// Abort removes what was written. What cannot be removed now is removed by the next New.
func (k *sink) Abort() error {
	if k.f == nil {
		return errEnded
	}
	f := k.f
	k.f = nil
	return errors.Join(f.Close(), k.remove())
}

func (k *sink) remove() error {
	if err := k.store.fs.Remove(k.path); err != nil {
		return fmt.Errorf("remove unfinished snapshot: %w", err)
	}
	return nil
}

// typed lets callers recognise a full disk without knowing the operating system.
func typed(err error) error {
	if vfs.IsFull(err) && !errors.Is(err, raft.ErrStorageFull) {
		return fmt.Errorf("%w: %w", raft.ErrStorageFull, err)
	}
	return err
}
