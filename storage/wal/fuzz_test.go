package wal

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// smallLog makes a disk with a log of a few batches, and the model of it.
func smallLog(t testing.TB) (*vfs.Disk, model) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	_, err := w.Open(ctx, identity)
	require.NoError(t, err)
	var m model
	for _, b := range []raft.Batch{
		{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "n1"}, Entries: commands(1, 3, 1, 20)},
		{TruncateFrom: 3, Entries: []raft.Entry{entry(3, 2, raft.EntryConfiguration, []byte("c"))}},
		{Entries: []raft.Entry{entry(4, 2, raft.EntryCommand, make([]byte, 1500))}},
	} {
		require.NoError(t, w.Write(b))
		m = m.after(b)
	}
	require.NoError(t, w.Close())
	return disk, m
}

func fileContent(t testing.TB, disk *vfs.Disk, path string) []byte {
	info, err := disk.Stat(path)
	require.NoError(t, err)
	f, err := disk.Open(path)
	require.NoError(t, err)
	b := make([]byte, info.Size())
	_, err = f.ReadAt(b, 0)
	require.NoError(t, errors.Join(err, f.Close()))
	return b
}

// FuzzSegmentHeader: what decodes is encoded again to the same bytes.
func FuzzSegmentHeader(f *testing.F) {
	disk, _ := smallLog(f)
	f.Add(fileContent(f, disk, "/data/"+segmentName(1))[:pageSize])
	f.Add([]byte(segmentMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeSegmentHeader(b)
		if err != nil {
			return
		}
		again, err := decodeSegmentHeader(h.encode())
		require.NoError(t, err)
		require.Equal(t, h, again)
	})
}

// FuzzVote: what decodes is encoded again to the same bytes.
func FuzzVote(f *testing.F) {
	r := voteRecord{generation: 3, replica: 4, hardState: raft.HardState{CurrentTerm: 5, VotedFor: "n"}}
	f.Add(r.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeVote(b)
		if err != nil {
			return
		}
		again, err := decodeVote(r.encode())
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}

// FuzzBatch puts arbitrary bytes where a batch belongs. The checksums are made to match where a flag says so, to get past them.
func FuzzBatch(f *testing.F) {
	disk, _ := smallLog(f)
	b := fileContent(f, disk, "/data/"+segmentName(1))[segmentHeaderSize:]
	f.Add(b[:sectorSize], true)
	f.Add(b[:4*sectorSize], false)
	f.Fuzz(func(t *testing.T, b []byte, repair bool) {
		if repair && len(b) >= batchFixedSize {
			b = append([]byte(nil), b...)
			putCRC(b[batchHeaderCRC:], b[:batchHeaderCRC])
		}
		d := vfs.New(1)
		file, err := d.Create("segment")
		require.NoError(t, err)
		_, err = file.WriteAt(b, 0)
		require.NoError(t, err)
		r := &segmentReader{file: file, path: "segment", size: int64(len(b)), ahead: 1024}
		var tag segmentTag
		if len(b) >= batchFixedSize {
			copy(tag[:], b[8:])
		}
		h, got, v, err := r.batchAt(0, tag)
		require.NoError(t, err)
		if v.reason != "" {
			return
		}
		bytes := 0
		if err := decodeEntries(&h, got, func(e raft.Entry) { bytes += e.Size() }); err == nil {
			require.EqualValues(t, h.bodyLen, bytes)
		}
	})
}

func putCRC(to, of []byte) {
	crc := checksum(of)
	for i := range 4 {
		to[i] = byte(crc >> (8 * i))
	}
}

// FuzzOpenMutated overwrites a piece of one file of a log by anything. Open must refuse, or serve exactly what was acknowledged;
// the last batch alone may be taken for unfinished, and that only where the new bytes are zeros.
func FuzzOpenMutated(f *testing.F) {
	disk, m := smallLog(f)
	f.Add(false, uint16(segmentHeaderSize), []byte("xyz"))
	f.Add(false, uint16(segmentHeaderSize+1024), make([]byte, 512))
	f.Add(true, uint16(0), []byte{1})
	f.Fuzz(func(t *testing.T, vote bool, at uint16, data []byte) {
		path := "/data/" + segmentName(1)
		if vote {
			path = "/data/" + voteName
		}
		d := disk.Clone()
		info, err := d.Stat(path)
		require.NoError(t, err)
		data = data[:min(len(data), max(0, int(info.Size())-int(at)))]
		file, err := d.OpenWrite(path)
		require.NoError(t, err)
		_, err = file.WriteAt(data, int64(at))
		require.NoError(t, errors.Join(err, file.Close()))

		w := New("/data", smallOptions(d))
		rec, err := w.Open(ctx, identity)
		if err != nil {
			var damage *raft.CorruptionError
			require.ErrorAs(t, err, &damage)
			require.True(t, strings.HasPrefix(damage.Path, "/data/"))
			return
		}
		if rec.LastIndex == 3 {
			was, is := fileContent(t, disk, path), fileContent(t, d, path)
			lost := false
			for s := 0; s < len(was); s += sectorSize {
				lost = lost || (s >= len(is) || isZero(is[s:s+sectorSize])) && !isZero(was[s:s+sectorSize])
			}
			require.True(t, lost, "an acknowledged batch is gone although no sector looks unwritten")
			m := m
			m.entries = m.entries[:3]
			require.NoError(t, m.check(w, &rec))
		} else {
			require.NoError(t, m.check(w, &rec))
		}
		require.NoError(t, w.Close())
	})
}
