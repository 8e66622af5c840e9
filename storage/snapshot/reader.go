package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"

	"github.com/steadyraft/raft/storage/vfs"
)

// reader hands out the content of one snapshot, chunk by chunk, each verified before its first byte is seen.
type reader struct {
	f       vfs.File // nil after Close
	path    string
	layout  layout
	damaged func(error) // told once

	buf     []byte // one chunk with its header
	ready   []byte // verified content not yet handed out; lies in buf
	offset  int64  // of the next chunk
	left    int64  // content from the next chunk on
	chunks  uint64 // read
	content uint32 // checksum of the chunks read
	err     error  // final
}

func newReader(f vfs.File, path string, l layout) *reader {
	room := min(int64(l.chunkBytes), l.meta.Size)
	return &reader{f: f, path: path, layout: l, offset: l.start, left: l.meta.Size, buf: make([]byte, chunkHeaderSize+room+l.sealer.overhead())}
}

// Read hands out verified content. It returns io.EOF when all of it was.
func (r *reader) Read(p []byte) (int, error) {
	if r.f == nil {
		return 0, fs.ErrClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.ready) == 0 && r.err == nil {
		if r.err = r.next(); isDamage(r.err) {
			r.damaged(r.err)
		}
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	return n, nil
}

// next reads and verifies one chunk.
func (r *reader) next() error {
	if r.left == 0 {
		return io.EOF
	}
	want := min(int64(r.layout.chunkBytes), r.left)
	b := r.buf[:chunkHeaderSize+want+r.layout.sealer.overhead()]
	if err := readFull(r.f, r.path, b, r.offset); err != nil {
		return err
	}
	data := b[chunkHeaderSize:]
	if length := binary.LittleEndian.Uint32(b); int64(length) != want {
		return corruption(r.path, r.offset, "chunk %d is %d bytes long, want %d", r.chunks, length, want)
	}
	if chunkChecksum(r.layout.seed, r.chunks, data) != binary.LittleEndian.Uint32(b[4:]) {
		return corruption(r.path, r.offset, "checksum of chunk %d does not match", r.chunks)
	}
	content := crc32.Update(r.content, castagnoli, data)
	if r.left == want && content != r.layout.content {
		// Said before the last chunk is handed out: a reader that stops there has not seen the whole of a wrong snapshot.
		return corruption(r.path, r.offset, "checksum of the whole content does not match")
	}
	if data, err := r.layout.sealer.openChunk(data, r.chunks, r.left == want); err != nil {
		return tampered(r.path, r.offset, fmt.Sprintf("chunk %d", r.chunks))
	} else {
		r.ready = data
	}
	r.content = content
	r.offset += int64(len(b))
	r.left -= want
	r.chunks++
	return nil
}

// Rewind implements [raft.Rewinder]. Everything is verified again.
func (r *reader) Rewind() error {
	if r.f == nil {
		return fs.ErrClosed
	}
	r.ready, r.err = nil, nil
	r.offset, r.left, r.chunks, r.content = r.layout.start, r.layout.meta.Size, 0, 0
	return nil
}

// Close releases the file.
func (r *reader) Close() error {
	if r.f == nil {
		return errors.New("snapshot reader is closed already")
	}
	f := r.f
	r.f, r.buf, r.ready = nil, nil, nil
	return f.Close()
}
