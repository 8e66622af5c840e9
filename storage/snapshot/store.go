// Package snapshot keeps a server's snapshots as files (§7), one file per snapshot, in a directory of their own.
//
// A snapshot is written under a temporary name, synced, renamed, and the directory synced: under its final name a file is always
// whole. The two newest intact snapshots are kept, so that one is left when the other turns out to be damaged. Content is never
// held in memory beyond one chunk, and no byte of it is handed out before its checksum was verified.
//
// Damage to header, trailer or length is seen at once, and an older snapshot is offered. Content is only read when it is wanted: a file that
// is damaged there is set aside then, under its name with ".damaged" behind it, so that the next start does without it. It is removed
// together with the snapshots of its time.
//
// # Format
//
// All numbers are little-endian, all checksums are CRC32C. The file of the snapshot at index 42 is called
// 00000000000000000042.snapshot.
//
//	header   8 bytes  "raftsnap"
//	         uint32   format version, 1
//	         uint32   bytes of content in a chunk
//	         uint32   length of the description
//	         ...      the description, raft.SnapshotMeta.AppendBinary; its Size is -1 if it was not known beforehand
//	         uint32   checksum of all before
//	chunk    uint32   length of the content in it; all chunks but the last are full, none is empty
//	         uint32   checksum of {uint64 chunk number from 0, uint32 length, content}
//	         ...      content
//	trailer  uint32   0, in the place of a chunk's length
//	         uint64   length of the whole content
//	         uint32   checksum of the whole content
//	         uint32   checksum of the trailer
//
// The checksums of chunks and trailer are continued from the header's, so that bytes of another snapshot do not pass for this
// one's. The length of a file follows from the length of its content; bytes behind the trailer are damage.
//
// An encrypted file has format version 2. Behind the length of the description, which counts the tag in, stand
//
//	uint32   key ID
//	8 bytes  what names the key: derived with the salt
//	uint64   replica that the snapshot belongs to
//	16 bytes salt: random
//
// and description and every chunk are ciphertext with a tag of 16 bytes behind it, by which a chunk is longer than its length says. The
// trailer has a tag of 16 bytes in front of its checksum. Checksums are those of the ciphertext: bytes whose checksum is wrong have
// rotted, and those whose tag alone is wrong were written by somebody who does not have the key. The cipher is AES-256-GCM, the key is
// derived by HKDF-SHA256 from that on the ring and the salt, and thus used for this file only. The nonce is a uint64, one byte that says
// what for, and three zeros: 1 for a chunk and 2 for the last one, with the chunk's number, 3 for the description, 4 for the trailer. So
// chunks cannot change places, and the file cannot be cut off. All before the description is authenticated with it, and all of the
// trailer with its tag. What stays readable: the index, by the file's name; lengths, key ID and replica.
package snapshot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/vfs"
)

// kept is how many intact snapshots survive a Commit.
const kept = 2

// Options configures a [Store]. The zero value of a field means its default.
type Options struct {
	Logger *slog.Logger // default: discard; told about damaged and leftover files

	// ChunkBytes is how much content one checksum covers: 64 KiB; at least 16, at most 1 MiB. Existing files keep theirs.
	ChunkBytes int

	// Keys encrypts snapshots. nil: they are not. Files that do not go with it are not used: [CheckKeys] tells beforehand.
	Keys keyring.Ring
	// EncryptExisting has files that are not encrypted read although there are keys.
	EncryptExisting bool
	// Owner is the replica that the directory belongs to; 0: unknown. An encrypted snapshot of another one is refused.
	Owner raft.ReplicaID
}

// Store implements [raft.SnapshotStore] over a directory. Its methods may be called at the same time.
type Store struct {
	fs         vfs.FS
	dir        string
	log        *slog.Logger
	chunkBytes int
	keys       *keys

	mu    sync.Mutex // guards the set of files under their final names, and what follows
	sinks uint64     // counts Create, so that every temporary name is used once
	files map[raft.Index]*file
}

// file is what the store remembers about one file. A file that takes the place of another is a new one: what a reader of the old
// one still finds out does not concern it.
type file struct {
	unusable error // nil, or why nothing may be built on it
}

var _ raft.SnapshotStore = (*Store)(nil)

// New opens the store in dir, makes the directory if it is missing, and removes what unfinished snapshots left behind. The caller
// makes sure that no other store uses the directory.
func New(fsys vfs.FS, dir string, opts Options) (*Store, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.ChunkBytes == 0 {
		opts.ChunkBytes = defaultChunkBytes
	}
	if opts.ChunkBytes < minChunkBytes || opts.ChunkBytes > maxChunkBytes {
		return nil, fmt.Errorf("snapshot store %s: ChunkBytes %d, want %d to %d", dir, opts.ChunkBytes, minChunkBytes, maxChunkBytes)
	}
	s := &Store{fs: fsys, dir: dir, log: opts.Logger, chunkBytes: opts.ChunkBytes, keys: newKeys(opts), files: map[raft.Index]*file{}}
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("make snapshot directory: %w", err)
	}
	// A directory whose own entry is lost in a crash takes its snapshots along.
	if err := fsys.SyncDir(filepath.Dir(dir)); err != nil {
		return nil, fmt.Errorf("sync parent of snapshot directory %s: %w", dir, err)
	}
	names, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	for _, name := range names {
		if !isLeftover(name) {
			continue
		}
		if err := fsys.Remove(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("remove unfinished snapshot: %w", err)
		}
		s.log.Info("removed an unfinished snapshot", "dir", dir, "file", name)
	}
	// The process before may have died between renaming a snapshot and syncing the directory. We see its file now and the core
	// builds on it; without this a power failure could still take it away, after the log before it was given up.
	if err := fsys.SyncDir(dir); err != nil {
		return nil, fmt.Errorf("sync snapshot directory %s: %w", dir, err)
	}
	return s, nil
}

// Create begins a snapshot. Size -1 in meta means that the length of the content is not known yet; otherwise more or fewer bytes
// are refused. It fails if meta is impossible. Errors wrap raft.ErrStorageFull where they mean that.
func (s *Store) Create(meta raft.SnapshotMeta) (raft.SnapshotSink, error) {
	if err := meta.Validate(); err != nil {
		return nil, fmt.Errorf("create snapshot: %w", err)
	}
	if meta.Size < -1 {
		return nil, fmt.Errorf("create snapshot %v: size %d is impossible", meta.ID(), meta.Size)
	}
	seal, err := s.keys.sealer()
	if err != nil {
		return nil, fmt.Errorf("create snapshot %v: %w", meta.ID(), err)
	}
	s.mu.Lock()
	s.sinks++
	number := s.sinks
	s.mu.Unlock()

	path := filepath.Join(s.dir, fmt.Sprintf("%s.%d%s", fileName(meta.Index), number, tmpSuffix))
	f, err := s.fs.Create(path)
	if err != nil {
		return nil, fmt.Errorf("create snapshot %v: %w", meta.ID(), typed(err))
	}
	meta.Configuration = meta.Configuration.Clone()
	k := newSink(s, meta, path, f, seal)
	if k.err != nil {
		return nil, errors.Join(k.err, k.Abort())
	}
	return k, nil
}

// Latest describes the newest snapshot whose header, trailer and length are intact, and whose content has not been found damaged
// by a reader. Index 0: there is none.
func (s *Store) Latest() (raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	indices, err := s.list()
	if err != nil {
		return raft.SnapshotMeta{}, err
	}
	for _, index := range indices {
		meta, err := s.inspect(index)
		if err == nil {
			return meta, nil
		}
		if s.unusable(index) == nil {
			return raft.SnapshotMeta{}, err // not damage: an older snapshot would only hide the trouble
		}
	}
	return raft.SnapshotMeta{}, nil
}

// Open reads the snapshot at index. The reader goes on to work when the snapshot is dropped meanwhile. It returns io.EOF only
// after the whole content was verified, and *raft.CorruptionError in place of bytes that are not what was written; Latest does
// not offer such a snapshot again. Without such a snapshot, the error wraps fs.ErrNotExist. The caller closes the reader, which
// serves one goroutine at a time.
func (s *Store) Open(index raft.Index) (raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, l, err := s.openFile(index)
	if err != nil {
		return raft.SnapshotMeta{}, nil, err
	}
	r := newReader(f, s.path(index), l)
	known := s.file(index)
	r.damaged = func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.giveUp(known, index, err)
		s.setAside(known, index)
	}
	return l.meta, r, nil
}

// openFile opens the file of a usable snapshot and verifies all but its content. The caller holds mu.
func (s *Store) openFile(index raft.Index) (vfs.File, layout, error) {
	if err := s.unusable(index); err != nil {
		return nil, layout{}, err
	}
	path := s.path(index)
	f, err := s.fs.Open(path)
	if err != nil {
		return nil, layout{}, fmt.Errorf("open snapshot at index %d: %w", index, err)
	}
	l, err := readLayout(f, path, index, s.keys)
	if err != nil {
		if isDamage(err) {
			s.giveUp(s.file(index), index, err)
		}
		return nil, layout{}, errors.Join(err, f.Close())
	}
	return f, l, nil
}

// inspect describes a usable snapshot, or says what is wrong with it. The caller holds mu.
func (s *Store) inspect(index raft.Index) (raft.SnapshotMeta, error) {
	f, l, err := s.openFile(index)
	if err != nil {
		return raft.SnapshotMeta{}, err
	}
	if err := f.Close(); err != nil {
		return raft.SnapshotMeta{}, fmt.Errorf("close snapshot at index %d: %w", index, err)
	}
	return l.meta, nil
}

// publish makes a synced temporary file the snapshot at index, durably, and drops those that are not needed any more.
func (s *Store) publish(tmp string, index raft.Index) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fs.Rename(tmp, s.path(index)); err != nil {
		return errors.Join(fmt.Errorf("rename snapshot at index %d: %w", index, typed(err)), s.fs.Remove(tmp))
	}
	delete(s.files, index)
	if err := s.fs.SyncDir(s.dir); err != nil {
		// Whether the name survives a crash is unknown, so nothing may be built on this snapshot.
		err = fmt.Errorf("sync directory of snapshot at index %d: %w", index, typed(err))
		s.giveUp(s.file(index), index, err)
		return err
	}
	s.prune()
	return nil
}

// prune removes everything older than the newest intact snapshots. A damaged one among them stays, for the operator to look at,
// until enough intact ones have followed. Whatever cannot be removed now, or comes back because the power failed, is tried again
// after the next Commit: the new snapshot is good all the same. The caller holds mu.
func (s *Store) prune() {
	indices, err := s.list()
	if err != nil {
		s.log.Warn("old snapshots are not removed", "dir", s.dir, "err", err)
		return
	}
	intact, oldest := 0, raft.Index(0)
	for _, index := range indices {
		if intact < kept {
			if _, err := s.inspect(index); err == nil {
				intact, oldest = intact+1, index
			}
			continue
		}
		s.remove(index, "")
	}
	if intact < kept {
		return
	}
	aside, err := s.listNamed(damagedSuffix)
	if err != nil {
		s.log.Warn("old snapshots that are damaged are not removed", "dir", s.dir, "err", err)
		return
	}
	for _, index := range aside {
		if index < oldest {
			s.remove(index, damagedSuffix)
		}
	}
}

func (s *Store) remove(index raft.Index, aside string) {
	if err := s.fs.Remove(s.path(index) + aside); err != nil {
		s.log.Warn("an old snapshot is not removed", "dir", s.dir, "index", index, "err", err)
		return
	}
	delete(s.files, index)
}

// list returns the indices of all snapshot files, newest first.
func (s *Store) list() ([]raft.Index, error) { return s.listNamed("") }

// listNamed lists snapshots with something behind their names.
func (s *Store) listNamed(aside string) ([]raft.Index, error) {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var indices []raft.Index
	for _, name := range names {
		name, named := strings.CutSuffix(name, aside)
		if index, ok := parseFileName(name); ok && named {
			indices = append(indices, index)
		}
	}
	slices.Sort(indices)
	slices.Reverse(indices)
	return indices, nil
}

// unusable says why the file at index must not be offered, or nil. The caller holds mu.
func (s *Store) unusable(index raft.Index) error {
	if known := s.files[index]; known != nil {
		return known.unusable
	}
	return nil
}

// file returns what is remembered about the file at index, which exists: otherwise asking for any index would fill the memory.
// The caller holds mu.
func (s *Store) file(index raft.Index) *file {
	known := s.files[index]
	if known == nil {
		known = &file{}
		s.files[index] = known
	}
	return known
}

// giveUp remembers that a file must not be offered again, and logs that once. The caller holds mu.
func (s *Store) giveUp(known *file, index raft.Index, err error) {
	if known.unusable != nil {
		return
	}
	known.unusable = err
	s.log.Error("a snapshot will not be used", "index", index, "err", err)
}

// setAside gives a file whose content is damaged another name. Otherwise each start would take it for a good one, until it has to be
// restored. The caller holds mu.
func (s *Store) setAside(known *file, index raft.Index) {
	if s.files[index] != known {
		return // another one has taken its place, or it is gone
	}
	path := s.path(index)
	err := s.fs.Rename(path, path+damagedSuffix)
	if err == nil {
		err = s.fs.SyncDir(s.dir)
	}
	if err != nil { // it is as good as before: this process does not use it, and the next one finds out again
		s.log.Warn("a damaged snapshot is not set aside", "path", path, "err", err)
	}
}

func (s *Store) path(index raft.Index) string { return filepath.Join(s.dir, fileName(index)) }

func isDamage(err error) bool {
	var damage *raft.CorruptionError
	return errors.As(err, &damage)
}

// Newest describes what Latest would offer of the store in dir, and changes nothing. The caller makes sure that no store uses the
// directory, which need not exist.
func Newest(fsys vfs.FS, dir string, opts Options) (raft.SnapshotMeta, error) {
	s := &Store{fs: fsys, dir: dir, keys: newKeys(opts), log: slog.New(slog.DiscardHandler), files: map[raft.Index]*file{}}
	meta, err := s.Latest()
	if errors.Is(err, fs.ErrNotExist) {
		return raft.SnapshotMeta{}, nil
	}
	return meta, err
}
