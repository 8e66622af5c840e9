package wal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/internal/seal"
	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/snapshot"
	"github.com/steadyraft/raft/storage/vfs"
)

// What is sealed under one derived key.
const (
	useBatch  seal.Use = iota // numbered by its offset in the segment
	useHeader                 // likewise
	useFooter                 // numbered at random: it may be written again, and then say something else
)

// What keys are derived for.
const (
	segmentInfo = "steady raft segment 1"
	voteInfo    = "steady raft vote 1"
)

// nextTampered is what to do when somebody has changed files who knows the format.
const nextTampered = "do not start the server, keep a copy of the directory, and find out who can write to it; if the other servers have a leader, give " +
	"this server an empty data directory on a machine that you trust and add it to the cluster under a new ID"

// sealer encrypts and decrypts the batches of one segment. It serves one goroutine.
type sealer struct {
	key     *seal.Key
	scratch seal.Scratch
	header  []byte // authenticated with a batch that is being read
	plain   []byte // the batch, decrypted
}

// again returns another sealer for the same segment, with a buffer of the pool.
func (s *sealer) again(buffers *sync.Pool) *sealer {
	other := &sealer{key: s.key}
	if buf, ok := buffers.Get().(*[]byte); ok {
		other.plain = *buf
	}
	return other
}

func (s *sealer) release(buffers *sync.Pool) {
	if cap(s.plain) <= maxKeptBuffer {
		buffers.Put(&s.plain)
	}
}

// seal encrypts the body of a batch that lies in b as it will be on disk, but for the checksums, and authenticates its header twice: alone,
// so that it can be believed when the body is damaged, and with the body. The number in the nonce is the batch's offset: each is written at
// most once in the life of a segment, since an error is final for the process, and the next one begins a segment of its own.
func (s *sealer) seal(h *batchHeader, b []byte) {
	h.keyID = s.key.ID
	h.encode(b)
	end := batchFixedSize + h.words()
	s.key.Seal(&s.scratch, uint64(h.offset), useHeader, b[end-seal.Overhead:end], b[:end-seal.Overhead])
	s.key.Seal(&s.scratch, uint64(h.offset), useBatch, b[h.headerLen:h.size()], b[:end])
}

// headerOf returns what was authenticated of a header: fixed part and words, without the checksums.
func (s *sealer) headerOf(h *batchHeader, b []byte) []byte {
	s.header = append(s.header[:0], b[:batchFixedSize+h.words()]...)
	clear(s.header[batchTableCRC:][:4])
	clear(s.header[batchHeaderCRC:][:4])
	return s.header
}

// isAuthentic reports whether the header of a batch is. b has at least its first sector.
func (s *sealer) isAuthentic(h *batchHeader, b []byte) bool {
	if h.keyID != s.key.ID || len(b) < batchFixedSize+h.words() {
		return false
	}
	header := s.headerOf(h, b)
	n := len(header) - seal.Overhead
	_, err := s.key.Open(&s.scratch, nil, uint64(h.offset), useHeader, header[n:], header[:n])
	return err == nil
}

// open decrypts a batch. The result has the header, too, and is valid until the next call; b stays as it is on disk.
func (s *sealer) open(h *batchHeader, b []byte) ([]byte, error) {
	header := s.headerOf(h, b)
	if n := int(h.size()); cap(s.plain) < n {
		s.plain = make([]byte, max(n, min(2*cap(s.plain), maxKeptBuffer)))
	}
	s.plain = s.plain[:h.size()]
	copy(s.plain, b[:h.headerLen])
	_, err := s.key.Open(&s.scratch, s.plain[h.headerLen:h.headerLen], uint64(h.offset), useBatch, b[h.headerLen:h.size()], header)
	return s.plain[:h.size()-h.overhead()], err
}

const (
	sealedFooterMagic = 0x32465253 // "SRF2"
	sealedFooterFixed = 16
)

// sealFooter encrypts a footer as a whole: it repeats configurations, and Open believes it in place of the segment.
func (s *sealer) sealFooter(plain []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, sealedFooterFixed+len(plain)+seal.Overhead, sealedFooterFixed+len(plain)+seal.Overhead+4)
	number := randomUint64()
	le.PutUint32(b, sealedFooterMagic)
	le.PutUint32(b[4:], uint32(len(b)+4))
	le.PutUint64(b[8:], number)
	copy(b[sealedFooterFixed:], plain)
	s.key.Seal(&s.scratch, number, useFooter, b[sealedFooterFixed:], b[:sealedFooterFixed])
	return le.AppendUint32(b, checksum(b))
}

// openFooter decrypts a footer. Without an error and without bytes, there is no intact one.
func (s *sealer) openFooter(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	const least = sealedFooterFixed + seal.Overhead + 4
	if len(b) < least {
		return nil, nil
	}
	n := int64(le.Uint32(b[4:]))
	if n < least || n > int64(len(b)) || checksum(b[:n-4]) != le.Uint32(b[n-4:]) {
		return nil, nil
	}
	return s.key.Open(&s.scratch, nil, le.Uint64(b[8:]), useFooter, b[sealedFooterFixed:n-4], b[:sealedFooterFixed])
}

// encryptedWith makes a header that of an encrypted batch, unless the ID is 0.
func (h *batchHeader) encryptedWith(id uint32) {
	h.keyID = id
	h.bodyLen += h.overhead()
}

// impossibleError says that a header with the right checksum cannot have been written by us.
type impossibleError struct{ reason string }

func (e *impossibleError) Error() string { return e.reason }

func impossible(format string, args ...any) error {
	return &impossibleError{fmt.Sprintf(format, args...)}
}

// refuseTampered says that somebody has written to a file. It is never damage that a server puts up with: neither is it cut off as
// unfinished, nor fetched again from the others, before somebody has had a look.
func refuseTampered(path string, offset int64, reason string) error {
	return &RefusalError{Tampered, &raft.CorruptionError{Path: path, Offset: offset, Reason: reason, Next: nextTampered, Tampered: true}}
}

// judgeTampering makes a finding of damage one of tampering, if that is what it is.
func judgeTampering(f *Finding, damage *raft.CorruptionError) {
	if damage != nil && damage.Tampered {
		f.Verdict, f.Next = Tampered, damage.Next
	}
}

// forgedHeader returns an error if the header of a batch in an encrypted segment is impossible although its checksum is right.
func (r *segmentReader) forgedHeader(offset int64, err error) error {
	if forged := (*impossibleError)(nil); r.sealer != nil && errors.As(err, &forged) {
		return refuseTampered(r.path, offset, "the header's checksum is right, but "+forged.reason)
	}
	return nil
}

// isAuthentic reports whether the header of a batch whose checksum is right is what was written there. Without encryption nothing
// speaks against it.
func (r *segmentReader) isAuthentic(h *batchHeader, b []byte) bool {
	if r.sealer == nil {
		return h.keyID == 0
	}
	return r.sealer.isAuthentic(h, b)
}

// judgeForgery decides about a header that is not authentic although the checksum of its fixed part is right. Vote, fence and tag have
// another checksum: if that is wrong, they may have rotted, and nothing is known of the batch. b is the batch, as far as it is there.
func (r *segmentReader) judgeForgery(h batchHeader, b []byte) (batchHeader, []byte, verdict, error) {
	switch {
	case r.sealer == nil:
		return h, nil, corrupted(fmt.Sprintf("batch %d is encrypted, and its segment is not", h.seq)), nil
	case h.keyID == r.sealer.key.ID && (len(b) < h.headerLen || checksum(b[batchFixedSize:h.headerLen]) != h.tableCRC):
		return h, nil, corrupted(fmt.Sprintf("the header of batch %d is damaged", h.seq)), nil
	}
	return h, nil, verdict{}, refuseTampered(r.path, h.offset, fmt.Sprintf("the checksums in the header of batch %d are right, but this server did "+
		"not write it", h.seq))
}

// unseal decrypts a batch with an authentic header, that was verified with the verdict v.
func (r *segmentReader) unseal(h batchHeader, b []byte, v verdict) (batchHeader, []byte, verdict, error) {
	switch {
	case v.forged:
		return h, nil, v, refuseTampered(r.path, h.offset, fmt.Sprintf("batch %d: %s", h.seq, v.reason))
	case v.reason != "" && !v.page:
		return h, b, v, nil
	}
	plain, err := r.sealer.open(&h, b)
	padded := isZero(b[h.size():])
	switch {
	case v.reason != "" && !padded: // the tag says nothing about what is behind it
		return h, b, v, nil
	case err == nil && !padded:
		return h, nil, v, refuseTampered(r.path, h.offset, fmt.Sprintf("batch %d is authentic, but not what is behind it", h.seq))
	case v.reason != "" && err == nil:
		return h, nil, v, refuseTampered(r.path, h.offset, fmt.Sprintf("batch %d is authentic, but its page checksums are not", h.seq))
	case v.reason != "":
		return h, b, v, nil
	case err != nil:
		return h, nil, v, refuseTampered(r.path, h.offset, fmt.Sprintf("all checksums of batch %d are right, but this server did not write it", h.seq))
	}
	return h, plain, v, nil
}

// randomUint64 is the default of Options.Random: with encryption, that tags are never used twice keeps the keys apart.
func randomUint64() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it does not return errors
	return binary.LittleEndian.Uint64(b[:])
}

// currentKey asks the ring for the key of the next file. The key that was used last does as well, if the ring does not answer: a
// server should not stop for a key file that is out of reach for a moment.
func (w *WAL) currentKey() (err error) {
	if w.opts.Keys == nil {
		return nil
	}
	id, key, err := w.opts.Keys.Current()
	if err == nil && id == 0 {
		err = errors.New("the ring's current key has the ID 0, which means that nothing is encrypted")
	}
	switch {
	case err == nil:
		w.keyID, w.key = id, key
	case w.keyID == 0:
		return fmt.Errorf("current key: %w", err)
	default:
		w.log.Error("the ring does not tell its current key; the one before is used", "key", w.keyID, "error", err)
	}
	return nil
}

// encrypt makes the header that of an encrypted segment, if there are keys, and returns with what to seal it.
func (w *WAL) encrypt(h *segmentHeader) (*sealer, error) {
	if err := w.currentKey(); err != nil || w.keyID == 0 {
		return nil, err
	}
	h.keyID = w.keyID
	k, err := deriveSegment(h, w.key)
	if err != nil {
		return nil, err
	}
	h.check = k.Check()
	return &sealer{key: k}, nil
}

func deriveSegment(h *segmentHeader, key [keyring.KeySize]byte) (*seal.Key, error) {
	return seal.Derive(h.keyID, key, h.tag[:], segmentInfo, h.identity.Cluster, string(h.identity.Node))
}

// find returns the key of a file.
func (w *WAL) find(path string, id uint32) (key [keyring.KeySize]byte, err error) {
	switch {
	case w.opts.Keys == nil:
		err = keyring.ErrNoKeys
	case id == 0:
		err = keyring.ErrClear
	default:
		key, err = w.opts.Keys.Key(id)
	}
	if err != nil {
		return key, &keyring.Error{Path: path, ID: id, Err: err}
	}
	return key, nil
}

// mayBeClear reports whether a file that is not encrypted is as it should be.
func (w *WAL) mayBeClear() bool { return w.opts.Keys == nil || w.opts.EncryptExisting }

// authenticated returns where the part of the header ends that the authentication covers; end is where all of it ends.
func (h *segmentHeader) authenticated(end int) int {
	if h.keyID == 0 {
		return end
	}
	return max(end-seal.MACSize, segmentFixedSize)
}

// authenticateHeader checks a copy of a segment's header, whose checksum is right, and returns the segment's sealer.
func (w *WAL) authenticateHeader(path string, at int64, h *segmentHeader, page []byte) (*sealer, error) {
	if h.keyID == 0 && w.mayBeClear() {
		return nil, nil
	}
	key, err := w.find(path, h.keyID)
	if err != nil {
		return nil, err
	}
	k, err := deriveSegment(h, key)
	if err != nil {
		return nil, err
	}
	end := int(binary.LittleEndian.Uint32(page[12:]))
	switch at0 := h.authenticated(end); {
	case k.Verify(page[:at0], page[at0:end]):
		return &sealer{key: k}, nil
	case k.Check() != h.check:
		return nil, &keyring.Error{Path: path, ID: h.keyID, Err: keyring.ErrWrong}
	}
	return nil, forged(path, at, "segment header")
}

func forged(path string, at int64, what string) error {
	return refuseTampered(path, at, fmt.Sprintf("the %s's checksum is right, but this server did not write it", what))
}

// authentic decides between copies of the same thing, of which those that are not damaged were checked with the results errs: each a sealer
// or an error. If one copy is authentic, then another one that is not was changed on purpose, whatever it says; if none is, the first
// one's error is as good as any.
func authentic(path, what string, at []int64, errs []error) error {
	good, bad := false, -1
	for i, err := range errs {
		if err == nil {
			good = true
		} else if bad < 0 {
			bad = i
		}
	}
	switch {
	case bad < 0:
		return nil
	case good:
		return forged(path, at[bad], what)
	}
	return errs[bad]
}

// authenticateVote checks a record of the vote file, whose checksum is right.
func (w *WAL) authenticateVote(path string, at int64, r *voteRecord, page []byte) error {
	if r.keyID == 0 && w.mayBeClear() {
		return nil
	}
	key, err := w.find(path, r.keyID)
	if err != nil {
		return err
	}
	k, err := seal.Derive(r.keyID, key, nil, voteInfo)
	switch {
	case err != nil:
		return err
	case k.Verify(page[:voteMACAt], page[voteMACAt:][:seal.MACSize]):
		return nil
	case k.Check() != r.check:
		return &keyring.Error{Path: path, ID: r.keyID, Err: keyring.ErrWrong}
	}
	return forged(path, at, "record of term and vote")
}

// judgeVotes decides what becomes of records that are not authentic. Of an older generation only those matter that were forged for certain:
// its key may have been taken off the ring.
func judgeVotes(path string, newest uint64, records []voteRecord, at []int64, errs []error) error {
	var places []int64
	var results []error
	for i := range records {
		if records[i].generation == newest {
			places = append(places, at[i])
			results = append(results, errs[i])
		}
	}
	if err := authentic(path, "record of term and vote", places, results); err != nil {
		return err
	}
	for i := range records {
		twin := false // the other copy, which is authentic
		for j := range records {
			twin = twin || records[j].generation == records[i].generation && errs[j] == nil
		}
		if damage := (*raft.CorruptionError)(nil); errs[i] != nil && (twin || errors.As(errs[i], &damage)) {
			return forged(path, at[i], "record of term and vote")
		}
	}
	return nil
}

// readVotes returns the records of a vote file whose checksums are right.
func readVotes(fsys vfs.FS, path string) ([]voteRecord, error) {
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := make([]byte, voteFileSize)
	n, err := f.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read vote file: %w", err)
	}
	var all []voteRecord
	for at := 0; at+pageSize <= n; at += pageSize {
		if r, err := decodeVote(b[at:]); err == nil {
			all = append(all, r)
		}
	}
	return all, nil
}

// rekeyVote makes the key of the newest segment that of the vote file. changed says that it had another one.
func (w *WAL) rekeyVote() (changed bool, err error) {
	if w.keyID == 0 || w.voteKey != nil && w.voteKey.ID == w.keyID {
		return false, nil
	}
	if w.voteKey, err = seal.Derive(w.keyID, w.key, nil, voteInfo); err != nil {
		return false, err
	}
	changed = w.vote.keyID != w.keyID && w.vote.generation > 0
	w.vote.keyID, w.vote.check = w.keyID, w.voteKey.Check()
	return changed, nil
}

// authenticCopies checks the copies of a segment's header.
func authenticCopies(path string, b []byte, authenticate func(at int64, h *segmentHeader, page []byte) error) error {
	var at, impossible []int64
	var errs []error
	encrypted := false
	for copyAt := int64(0); copyAt+pageSize <= int64(len(b)); copyAt += pageSize {
		h, err := decodeSegmentHeader(b[copyAt:])
		var forged *impossibleError
		switch {
		case err == nil:
			at = append(at, copyAt)
			errs = append(errs, authenticate(copyAt, &h, b[copyAt:]))
			encrypted = encrypted || h.keyID != 0
		case errors.As(err, &forged):
			impossible = append(impossible, copyAt)
		}
	}
	err := authentic(path, "segment header", at, errs)
	if err == nil && encrypted && len(impossible) > 0 {
		return forged(path, impossible[0], "segment header")
	}
	return err
}

// InspectOption changes how Inspect, Dump, PlanRecovery and Recover read a directory.
type InspectOption func(*Options)

// WithKeys gives the keys of an encrypted directory. What is not encrypted in it is read all the same, and told of in the report's key IDs.
func WithKeys(ring keyring.Ring) InspectOption {
	return func(o *Options) { o.Keys, o.EncryptExisting = ring, true }
}

// snapshotOptions are those of the snapshot store, with what the log knows.
func (w *WAL) snapshotOptions() snapshot.Options {
	opts := w.opts.Snapshots
	if opts.Keys == nil {
		opts.Keys, opts.EncryptExisting = w.opts.Keys, w.opts.EncryptExisting
	}
	if opts.Owner == 0 {
		opts.Owner = w.identity.Replica
	}
	return opts
}

// checkSnapshotKeys refuses a directory whose snapshots do not go with the keys, before anything is written.
func (w *WAL) checkSnapshotKeys() error {
	if err := snapshot.CheckKeys(w.fs, w.snapshotsDir(), w.snapshotOptions()); err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	return nil
}

// KeyUses tells how many files need which key.
type KeyUses struct {
	ID        uint32 `json:"key"` // 0: not encrypted
	Segments  int    `json:"segments"`
	Votes     int    `json:"votes"` // records of term and vote
	Snapshots int    `json:"snapshots"`
}

// KeyUse tells which keys the files in dir are encrypted with, by rising IDs, so that one that is no longer needed can be taken off the
// ring. It needs no keys, believes what is in the files, and changes nothing; it may be called while a server runs in the directory.
// A segment whose header is damaged is an error: what it needs is not known.
func KeyUse(fsys vfs.FS, dir string) ([]KeyUses, error) {
	uses, err := keyUse(fsys, dir, false)
	if err != nil {
		return nil, fmt.Errorf("keys in use: %w", err)
	}
	return uses, nil
}

func keyUse(fsys vfs.FS, dir string, skipDamaged bool) ([]KeyUses, error) {
	w := New(dir, Options{FS: fsys})
	uses := map[uint32]*KeyUses{}
	use := func(id uint32) *KeyUses {
		if uses[id] == nil {
			uses[id] = &KeyUses{ID: id}
		}
		return uses[id]
	}
	votes, err := readVotes(fsys, w.path(voteName))
	if err != nil {
		return nil, err
	}
	first := uint64(0)
	for _, r := range votes {
		use(r.keyID).Votes++
		first = max(first, r.first)
	}
	names, err := fsys.List(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		seq, ok := parseSegmentName(name)
		if !ok || seq < first {
			continue
		}
		f, err := fsys.Open(w.path(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // compacted meanwhile
		}
		if err != nil {
			return nil, err
		}
		h, _, err := readAuthenticHeader(f, w.path(name), func(int64, *segmentHeader, []byte) error { return nil })
		err = errors.Join(err, f.Close())
		if damage := (*raft.CorruptionError)(nil); skipDamaged && errors.As(err, &damage) {
			continue
		}
		if err != nil {
			return nil, err
		}
		use(h.keyID).Segments++
	}
	snapshots, err := snapshot.KeyIDs(fsys, w.snapshotsDir())
	if err != nil {
		return nil, err
	}
	for id, n := range snapshots {
		use(id).Snapshots = n
	}
	var all []KeyUses
	for _, id := range slices.Sorted(maps.Keys(uses)) {
		all = append(all, *uses[id])
	}
	return all, nil
}
