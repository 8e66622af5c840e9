package wire

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// restamp gives an entry its place in the log. Only a leader does that, inside the core, so the test writes the header itself.
func restamp(t testing.TB, e raft.Entry, term raft.Term, index raft.Index) raft.Entry {
	frame := e.Frame()
	binary.LittleEndian.PutUint64(frame[8:], uint64(term))
	binary.LittleEndian.PutUint64(frame[16:], uint64(index))
	binary.LittleEndian.PutUint32(frame[28:], crc32.Checksum(frame[:28], castagnoli))
	e, _, err := raft.DecodeEntry(frame)
	require.NoError(t, err)
	return e
}
