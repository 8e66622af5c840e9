package snapshot

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/internal/seal"
	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/vfs"
)

// sealedHeaderSize is how much longer the fixed part of an encrypted file's header is.
const sealedHeaderSize = 4 + seal.CheckSize + 8 + seal.SaltSize

const sealInfo = "steady raft snapshot 1"

// What is sealed under the key of one file.
const (
	useChunk       seal.Use = 1 + iota // numbered from 0
	useLastChunk                       // likewise
	useDescription                     // once
	useTrailer                         // once
)

// keys is what a store knows about encryption.
type keys struct {
	ring      keyring.Ring // nil: files are not encrypted
	mayBeOpen bool         // files without encryption are read
	owner     raft.ReplicaID
}

func newKeys(opts Options) *keys {
	return &keys{ring: opts.Keys, mayBeOpen: opts.Keys == nil || opts.EncryptExisting, owner: opts.Owner}
}

// sealer encrypts or decrypts one file. It serves one goroutine. A nil one leaves everything as it is.
type sealer struct {
	key     *seal.Key
	owner   raft.ReplicaID
	salt    [seal.SaltSize]byte
	scratch seal.Scratch
}

// sealer returns one for a new file, under the current key; nil if files are not encrypted.
func (k *keys) sealer() (*sealer, error) {
	if k.ring == nil {
		return nil, nil
	}
	id, key, err := k.ring.Current()
	if err == nil && id == 0 {
		err = errors.New("its ID is 0, which means that nothing is encrypted")
	}
	if err != nil {
		return nil, fmt.Errorf("current key: %w", err)
	}
	s := &sealer{owner: k.owner}
	_, _ = rand.Read(s.salt[:]) // it does not return errors
	s.key, err = seal.Derive(id, key, s.salt[:], sealInfo)
	return s, err
}

func (s *sealer) version() uint32 {
	if s == nil {
		return formatVersion
	}
	return formatSealed
}

func (s *sealer) overhead() int64 {
	if s == nil {
		return 0
	}
	return seal.Overhead
}

func (s *sealer) trailerSize() int64 { return trailerSize + s.overhead() }

// appendHeader appends what only an encrypted file has.
func (s *sealer) appendHeader(b []byte) []byte {
	if s == nil {
		return b
	}
	check := s.key.Check()
	b = binary.LittleEndian.AppendUint32(b, s.key.ID)
	b = append(b, check[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.owner))
	return append(b, s.salt[:]...)
}

// sealDescription encrypts a header from the description on.
func (s *sealer) sealDescription(header []byte, from int) {
	if s != nil {
		s.key.Seal(&s.scratch, 0, useDescription, header[from:], header[:from])
	}
}

// sealChunk encrypts what is in b from a place on, and appends the tag, for which there is room.
func (s *sealer) sealChunk(b []byte, from int, number uint64, last bool) []byte {
	if s == nil {
		return b
	}
	b = b[:len(b)+seal.Overhead]
	s.key.Seal(&s.scratch, number, chunkUse(last), b[from:], nil)
	return b
}

func chunkUse(last bool) seal.Use {
	if last {
		return useLastChunk
	}
	return useChunk
}

// openChunk decrypts a chunk in its place.
func (s *sealer) openChunk(b []byte, number uint64, last bool) ([]byte, error) {
	if s == nil {
		return b, nil
	}
	return s.key.Open(&s.scratch, b[:0], number, chunkUse(last), b, nil)
}

// appendTrailerTag authenticates the trailer so far.
func (s *sealer) appendTrailerTag(b []byte) []byte {
	if s == nil {
		return b
	}
	var tag [seal.Overhead]byte
	s.key.Seal(&s.scratch, 0, useTrailer, tag[:], b)
	return append(b, tag[:]...)
}

// verifyTrailer checks a trailer with its tag.
func (s *sealer) verifyTrailer(b []byte) error {
	if s == nil {
		return nil
	}
	n := len(b) - seal.Overhead
	_, err := s.key.Open(&s.scratch, nil, 0, useTrailer, b[n:], b[:n])
	return err
}

// openHeader checks that a header, whose checksum is right, goes with the keys, and returns the file's sealer (nil if it is not
// encrypted) and its description, which begins at from.
func (k *keys) openHeader(path string, header []byte, version uint32, from int64) (*sealer, []byte, error) {
	if version == formatVersion && k.mayBeOpen {
		return nil, header[from:], nil
	}
	var h sealedHeader
	if version == formatSealed {
		h = readSealedHeader(header)
	}
	s, err := k.find(path, &h)
	if err != nil {
		return nil, nil, err
	}
	sealed := header[from:]
	plain, err := s.key.Open(&s.scratch, nil, 0, useDescription, sealed, header[:from])
	switch {
	case err == nil && k.owner != 0 && h.owner != k.owner:
		return nil, nil, tampered(path, fixedHeaderSize, fmt.Sprintf("it is a snapshot of replica %x, and this is replica %x: the header", h.owner, k.owner))
	case err == nil:
		return s, plain, nil
	case s.key.Check() != h.check:
		return nil, nil, &keyring.Error{Path: path, ID: h.keyID, Err: keyring.ErrWrong}
	}
	return nil, nil, tampered(path, fixedHeaderSize, "the header")
}

// sealedHeader is what only an encrypted file has.
type sealedHeader struct {
	keyID uint32 // 0: not encrypted
	check [seal.CheckSize]byte
	owner raft.ReplicaID
	salt  [seal.SaltSize]byte
}

// readSealedHeader reads it from a header that is long enough.
func readSealedHeader(header []byte) (h sealedHeader) {
	b := header[fixedHeaderSize:]
	h.keyID = binary.LittleEndian.Uint32(b)
	b = b[4+copy(h.check[:], b[4:]):]
	h.owner = raft.ReplicaID(binary.LittleEndian.Uint64(b))
	copy(h.salt[:], b[8:])
	return h
}

// find returns a sealer for an existing file.
func (k *keys) find(path string, h *sealedHeader) (*sealer, error) {
	var key [keyring.KeySize]byte
	var err error
	switch {
	case k.ring == nil:
		err = keyring.ErrNoKeys
	case h.keyID == 0:
		err = keyring.ErrClear
	default:
		key, err = k.ring.Key(h.keyID)
	}
	if err != nil {
		return nil, &keyring.Error{Path: path, ID: h.keyID, Err: err}
	}
	s := &sealer{owner: h.owner, salt: h.salt}
	s.key, err = seal.Derive(h.keyID, key, s.salt[:], sealInfo)
	return s, err
}

func tampered(path string, offset int64, what string) error {
	return &raft.CorruptionError{
		Path: path, Offset: offset, Tampered: true,
		Reason: what + " has the right checksums, and was not written by this server",
		Next: "find out who can write to the directory; an older snapshot with the log behind it, or the leader's snapshot, can take its " +
			"place",
	}
}

// CheckKeys says whether the keys go with every snapshot in dir, by a *keyring.Error for the newest one of which they do not. It reads
// only headers and changes nothing. Damage is not its business.
func CheckKeys(fsys vfs.FS, dir string, opts Options) error {
	s := &Store{fs: fsys, dir: dir, keys: newKeys(opts)}
	indices, err := s.list()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, index := range indices {
		var mismatch *keyring.Error
		if _, err := s.read(index); errors.As(err, &mismatch) {
			return err
		}
	}
	return nil
}

// read verifies all but the content of a file.
func (s *Store) read(index raft.Index) (l layout, err error) {
	path := s.path(index)
	f, err := s.fs.Open(path)
	if err != nil {
		return l, fmt.Errorf("open snapshot at index %d: %w", index, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readLayout(f, path, index, s.keys)
}

// KeyIDs counts the snapshots in dir by the key that they are encrypted with, 0 for those that are not. It needs no keys. Files whose
// header is damaged are not counted.
func KeyIDs(fsys vfs.FS, dir string) (map[uint32]int, error) {
	s := &Store{fs: fsys, dir: dir}
	counts := map[uint32]int{}
	indices, err := s.list()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, index := range indices {
		id, ok, err := s.keyID(index)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // dropped meanwhile
			return nil, err
		}
		if ok {
			counts[id]++
		}
	}
	return counts, nil
}

// keyID reads the key ID out of a header; ok says that it looks like one.
func (s *Store) keyID(index raft.Index) (id uint32, ok bool, err error) {
	f, err := s.fs.Open(s.path(index))
	if err != nil {
		return 0, false, fmt.Errorf("open snapshot at index %d: %w", index, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := make([]byte, fixedHeaderSize+sealedHeaderSize)
	if err := readFull(f, s.path(index), b, 0); err != nil {
		if isDamage(err) {
			err = nil
		}
		return 0, false, err
	}
	if string(b[:8]) != magic {
		return 0, false, nil
	}
	if binary.LittleEndian.Uint32(b[8:]) != formatSealed {
		return 0, true, nil
	}
	return readSealedHeader(b).keyID, true, nil
}
