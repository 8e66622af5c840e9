package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"syscall"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

const (
	magic         = "raftsnap"
	formatVersion = 1
	formatSealed  = 2 // encrypted

	fixedHeaderSize = 20 // magic, version, chunk size, length of the description
	chunkHeaderSize = 8
	trailerSize     = 20
	checksumSize    = 4

	// maxDescription bounds what a header may claim: a configuration at all of its limits stays below it.
	maxDescription = 1 << 20

	defaultChunkBytes = 64 << 10
	minChunkBytes     = 16
	maxChunkBytes     = 1 << 20
)

const (
	suffix        = ".snapshot"
	tmpSuffix     = ".tmp"
	damagedSuffix = ".damaged" // behind the name of a snapshot that was set aside
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// fileName pads the index so that names sort like indices.
func fileName(index raft.Index) string { return fmt.Sprintf("%020d%s", uint64(index), suffix) }

// parseFileName is the inverse of fileName. Any other name is not ours.
func parseFileName(name string) (raft.Index, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n == 0 || fileName(raft.Index(n)) != name {
		return 0, false
	}
	return raft.Index(n), true
}

// isLeftover reports whether a name is one under which a sink writes before its Commit.
func isLeftover(name string) bool {
	rest, ok := strings.CutSuffix(name, tmpSuffix)
	if !ok {
		return false
	}
	final, number, ok := strings.Cut(rest, suffix+".")
	if !ok {
		return false
	}
	if _, err := strconv.ParseUint(number, 10, 64); err != nil {
		return false
	}
	_, ok = parseFileName(final + suffix)
	return ok
}

// encodeHeader returns the header of a file, and its checksum, from which all later checksums in the file are continued: a chunk
// or a trailer that belongs to another snapshot is then as wrong as a damaged one.
func encodeHeader(meta raft.SnapshotMeta, chunkBytes int, s *sealer) (header []byte, seed uint32) {
	b := make([]byte, 0, 256)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, s.version())
	b = binary.LittleEndian.AppendUint32(b, uint32(chunkBytes))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = s.appendHeader(b)
	description := len(b)
	b = meta.AppendBinary(b)
	b = append(b, make([]byte, s.overhead())...)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(b)-description))
	s.sealDescription(b, description)
	seed = crc32.Checksum(b, castagnoli)
	return binary.LittleEndian.AppendUint32(b, seed), seed
}

// chunkChecksum covers the position of a chunk as well as its bytes, so that chunks which changed places are found.
func chunkChecksum(seed uint32, number uint64, data []byte) uint32 {
	var position [12]byte
	binary.LittleEndian.PutUint64(position[:], number)
	binary.LittleEndian.PutUint32(position[8:], uint32(len(data)))
	return crc32.Update(crc32.Update(seed, castagnoli, position[:]), castagnoli, data)
}

// encodeTrailer ends a file. Its first word is where the length of a further chunk would be.
func encodeTrailer(seed uint32, size int64, content uint32, s *sealer) []byte {
	b := make([]byte, 0, s.trailerSize())
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = binary.LittleEndian.AppendUint32(b, content)
	b = s.appendTrailerTag(b)
	return binary.LittleEndian.AppendUint32(b, crc32.Update(seed, castagnoli, b))
}

// layout is what header, trailer and length of a file say, once they were found to agree.
type layout struct {
	meta       raft.SnapshotMeta // Size is set
	chunkBytes int
	start      int64  // of the first chunk
	seed       uint32 // the header's checksum
	content    uint32 // checksum of the whole content, as it is in the file
	sealer     *sealer
}

// readLayout verifies everything about a file except its content. Damage is a *raft.CorruptionError; that the keys are not those of the
// file, a *keyring.Error; other errors come from f.
func readLayout(f vfs.File, path string, index raft.Index, keys *keys) (layout, error) {
	damaged := func(offset int64, format string, args ...any) (layout, error) {
		return layout{}, corruption(path, offset, format, args...)
	}
	fileSize, err := f.Size()
	if err != nil {
		return layout{}, fmt.Errorf("size of %s: %w", path, err)
	}
	if fileSize < fixedHeaderSize+checksumSize+trailerSize {
		return damaged(fileSize, "only %d bytes long", fileSize)
	}
	fixed := make([]byte, fixedHeaderSize)
	if err := readFull(f, path, fixed, 0); err != nil {
		return layout{}, err
	}
	if string(fixed[:8]) != magic {
		return damaged(0, "not a snapshot file")
	}
	version := binary.LittleEndian.Uint32(fixed[8:])
	chunkBytes := binary.LittleEndian.Uint32(fixed[12:])
	description := int64(binary.LittleEndian.Uint32(fixed[16:]))
	if version != formatVersion && version != formatSealed {
		return damaged(8, "format version %d, want %d or %d: written by a newer release?", version, formatVersion, formatSealed)
	}
	from := int64(fixedHeaderSize)
	if version == formatSealed {
		from += sealedHeaderSize
	}
	start := from + description + checksumSize
	if description > maxDescription || start+trailerSize > fileSize {
		return damaged(16, "the description's length of %d bytes is impossible", description)
	}
	header := make([]byte, start)
	if err := readFull(f, path, header, 0); err != nil {
		return layout{}, err
	}
	seed := binary.LittleEndian.Uint32(header[start-checksumSize:])
	if crc32.Checksum(header[:start-checksumSize], castagnoli) != seed {
		return damaged(0, "header checksum does not match")
	}
	if chunkBytes < minChunkBytes || chunkBytes > maxChunkBytes {
		return damaged(12, "chunks of %d bytes, want %d to %d", chunkBytes, minChunkBytes, maxChunkBytes)
	}
	s, plain, err := keys.openHeader(path, header[:start-checksumSize], version, from)
	if err != nil {
		return layout{}, err
	}
	meta, err := raft.DecodeSnapshotMeta(plain)
	if err != nil {
		return damaged(from, "%v", err)
	}
	if err := meta.Validate(); err != nil {
		return damaged(from, "%v", err)
	}
	if meta.Index != index {
		return damaged(from, "describes index %d, but its name says %d", meta.Index, index)
	}

	end := fileSize - s.trailerSize()
	if end < start {
		return damaged(fileSize, "only %d bytes long", fileSize)
	}
	trailer := make([]byte, s.trailerSize())
	if err := readFull(f, path, trailer, end); err != nil {
		return layout{}, err
	}
	checked := trailer[:len(trailer)-checksumSize]
	if crc32.Update(seed, castagnoli, checked) != binary.LittleEndian.Uint32(trailer[len(checked):]) {
		return damaged(end, "trailer checksum does not match: cut off, or too long")
	}
	if err := s.verifyTrailer(checked); err != nil {
		return layout{}, tampered(path, end, "the trailer")
	}
	size := int64(binary.LittleEndian.Uint64(trailer[4:]))
	if size < 0 || size > end || start+encodedSize(size, int64(chunkBytes), s.overhead()) != end {
		return damaged(end, "the file's length of %d bytes does not fit a content of %d", fileSize, size)
	}
	if meta.Size >= 0 && meta.Size != size {
		return damaged(end, "content of %d bytes, but %d were announced", size, meta.Size)
	}
	content := binary.LittleEndian.Uint32(trailer[12:])
	if size == 0 && content != 0 {
		return damaged(end, "checksum of the whole content does not match") // there is no chunk with which a reader would find out
	}
	meta.Size = size
	return layout{meta: meta, chunkBytes: int(chunkBytes), start: start, seed: seed, content: content, sealer: s}, nil
}

// encodedSize is the length of all chunks of a content: every chunk but the last is full.
func encodedSize(size, chunkBytes, overhead int64) int64 {
	chunks := size / chunkBytes
	if size%chunkBytes != 0 {
		chunks++
	}
	return size + chunks*(chunkHeaderSize+overhead)
}

// readFull reads len(b) bytes; a file that ends before is damaged.
func readFull(f vfs.File, path string, b []byte, offset int64) error {
	n, err := f.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return corruption(path, offset+int64(n), "the file ends early")
	}
	if errors.Is(err, syscall.EIO) {
		return corruption(path, offset, "unreadable: %v", err) // a sector that the device itself gave up
	}
	return fmt.Errorf("read %s at byte %d: %w", path, offset, err)
}

func corruption(path string, offset int64, format string, args ...any) *raft.CorruptionError {
	return &raft.CorruptionError{
		Path:   path,
		Offset: offset,
		Reason: fmt.Sprintf(format, args...),
		Next:   "an older snapshot with the log behind it, or the leader's snapshot, takes its place when the server is started again",
	}
}
