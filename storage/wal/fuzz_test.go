package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/vfs"
)

// smallLog makes a disk with a log of a few batches, and the model of it. keys may be nil.
func smallLog(t testing.TB, keys keyring.Ring) (*vfs.Disk, model) {
	disk := vfs.New(1)
	opts := smallOptions(disk)
	opts.Keys = keys
	w := New("/data", opts)
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

// records are pieces of a log in which every kind of record is, as they lie on the disk.
type records struct {
	headers [][]byte
	batches [][]byte
	votes   [][]byte
	footers [][]byte
	sealer  *sealer // of the segment with the batches; nil: nothing is encrypted
}

// allRecords makes them. Whoever fuzzes them does so in several processes: they must be the same in each.
func allRecords(f *testing.F, keys keyring.Ring) (r records) {
	disk := newImageFS(nil)
	opts := smallOptions(disk)
	opts.Keys, opts.MinSegmentBytes = keys, 64<<10
	w := New("/data", opts)
	open := func() {
		_, err := w.Open(ctx, identity)
		require.NoError(f, err)
	}
	open()
	r.sealer = w.active.sealer
	path := w.active.path
	write := func(b raft.Batch) {
		from := w.active.end
		require.NoError(f, w.Write(b))
		r.batches = append(r.batches, bytes.Clone(disk.files[path].data[from:w.active.end]))
	}
	meta := func(index raft.Index, term raft.Term) *raft.SnapshotMeta {
		return &raft.SnapshotMeta{Index: index, Term: term}
	}
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "n1"}})
	write(raft.Batch{Entries: commands(1, 5, 1, 20)})
	write(raft.Batch{Entries: append(commands(6, 20, 1, 900), commands(26, 2, 2, 10)...)}) // several pages, and terms
	write(raft.Batch{TruncateFrom: 27, Entries: []raft.Entry{entry(27, 3, raft.EntryConfiguration, members("c", "n1", "n2")), entry(28, 3, raft.EntryNoOp, nil)}})
	write(raft.Batch{TruncateFrom: 28})
	write(raft.Batch{Repairs: commands(2, 2, 1, 20)})
	write(raft.Batch{Entries: commands(28, 1, 3, 5), Repairs: commands(1, 1, 1, 20)})
	write(raft.Batch{Snapshot: meta(4, 1)}) // keeps what is behind it
	write(raft.Batch{Snapshot: meta(40, 4), Entries: commands(41, 1, 4, 5)})
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 5}, Fence: &raft.EntryID{Term: raft.MaxTerm}})
	write(raft.Batch{Entries: []raft.Entry{entry(42, 5, raft.EntryConfiguration, members("c", "n1", "n2", "n3"))}})
	end := w.active.end
	require.NoError(f, w.Idle())
	r.batches = append(r.batches, bytes.Clone(disk.files[path].data[end:w.active.end]))
	for range 2 {
		require.NoError(f, w.Close())
		open()
		for more := true; more; { // cuts the segment before to size
			var err error
			more, err = w.Prepare()
			require.NoError(f, err)
		}
	}
	require.NoError(f, w.Write(raft.Batch{Fence: &raft.EntryID{}}))
	require.NoError(f, w.Close())
	for _, name := range slices.Sorted(maps.Keys(disk.files)) {
		file := disk.files[name]
		switch _, isSegment := parseSegmentName(filepath.Base(name)); {
		case isSegment:
			r.headers = append(r.headers, file.data[:pageSize])
			for at := segmentHeaderSize; at < len(file.data); at += pageSize {
				if magic := binary.LittleEndian.Uint32(file.data[at:]); magic == footerMagic || magic == sealedFooterMagic {
					r.footers = append(r.footers, file.data[at:])
				}
			}
		case filepath.Base(name) == voteName:
			for at := 0; at < voteFileSize; at += pageSize {
				r.votes = append(r.votes, file.data[at:at+sectorSize])
			}
		}
	}
	flags, repairs := uint16(0), 0
	for _, b := range r.batches {
		h, err := decodeBatchHeader(b)
		require.NoError(f, err)
		flags, repairs = flags|h.flags, repairs+h.repairs
	}
	require.EqualValues(f, knownFlags, flags)
	require.NotZero(f, repairs)
	for name, n := range map[string]int{"headers": len(r.headers), "votes": len(r.votes), "footers": len(r.footers)} {
		require.NotZero(f, n, name)
	}
	return r
}

// FuzzSegmentHeader: what decodes is encoded again to the same bytes.
func FuzzSegmentHeader(f *testing.F) {
	encrypted := allRecords(f, ring(1))
	for _, b := range slices.Concat(allRecords(f, nil).headers, encrypted.headers) {
		f.Add(b)
	}
	f.Add([]byte(segmentMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeSegmentHeader(b)
		if err != nil {
			return
		}
		s := encrypted.sealer
		if h.keyID == 0 {
			s = nil
		}
		again, err := decodeSegmentHeader(h.encode(s))
		require.NoError(t, err)
		require.Equal(t, h, again)
	})
}

// FuzzVote: what decodes is encoded again to the same bytes.
func FuzzVote(f *testing.F) {
	for _, b := range slices.Concat(allRecords(f, nil).votes, allRecords(f, ring(1)).votes) {
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeVote(b)
		if err != nil {
			return
		}
		again, err := decodeVote(r.encode(nil))
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}

// FuzzFooter: what decodes is encoded again to the same bytes. The checksum is made to match where a flag says so.
func FuzzFooter(f *testing.F) {
	clear, encrypted := allRecords(f, nil), allRecords(f, ring(1))
	for _, b := range clear.footers {
		f.Add(b, true, false)
	}
	for _, b := range encrypted.footers {
		f.Add(b, false, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, repair, sealed bool) {
		b = bytes.Clone(b)
		if len(b) >= 8 {
			if n := int64(binary.LittleEndian.Uint32(b[4:])); repair && n >= 4 && n <= int64(len(b)) {
				putCRC(b[n-4:], b[:n-4])
			}
		}
		if sealed {
			var err error
			if b, err = encrypted.sealer.openFooter(b); err != nil {
				return
			}
		}
		footer, err := decodeFooter(b)
		if err != nil {
			return
		}
		again, err := decodeFooter(footer.encode())
		require.NoError(t, err)
		require.Equal(t, footer, again)
	})
}

// FuzzBatch puts arbitrary bytes where they claim to belong, in a segment with a key or without. The checksums are made to match where a flag
// says so, to get past them.
func FuzzBatch(f *testing.F) {
	encrypted := allRecords(f, ring(1))
	for _, b := range allRecords(f, nil).batches {
		f.Add(b, false, false)
		f.Add(b, true, false)
	}
	for _, b := range encrypted.batches {
		f.Add(b, false, true)
		f.Add(b, true, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, repair, sealed bool) {
		b = bytes.Clone(b)
		at, tag := int64(segmentHeaderSize), segmentTag{}
		if len(b) >= batchFixedSize {
			if repair {
				putCRC(b[batchHeaderCRC:], b[:batchHeaderCRC])
			}
			copy(tag[:], b[8:])
			at = int64(binary.LittleEndian.Uint64(b[32:]) % (64 << 10))
		}
		file, err := newImageFS(nil).Create("segment")
		require.NoError(t, err)
		_, err = file.WriteAt(b, at)
		require.NoError(t, err)
		r := &segmentReader{file: file, path: "segment", size: at + int64(len(b)), ahead: 1024}
		if sealed {
			r.sealer = encrypted.sealer
		}
		h, got, v, err := r.batchAt(at, tag)
		if damage := (*raft.CorruptionError)(nil); errors.As(err, &damage) && damage.Tampered {
			return
		}
		require.NoError(t, err)
		if v.reason != "" {
			return
		}
		bytes := int64(0)
		if err := decodeEntries(&h, got, func(e raft.Entry) { bytes += int64(e.Size()) }, func(e raft.Entry) { bytes += int64(e.Size()) }); err == nil {
			require.Equal(t, h.bodyLen-h.overhead(), bytes)
		}
	})
}

func putCRC(to, of []byte) {
	crc := checksum(of)
	for i := range 4 {
		to[i] = byte(crc >> (8 * i))
	}
}

// FuzzOpenMutated overwrites a piece of one file of a log by anything. Open must refuse, or serve exactly what was acknowledged but for what
// it calls damaged, or be fenced; the last batch alone may be taken for unfinished, and that only where the new bytes are zeros.
func FuzzOpenMutated(f *testing.F) {
	clear, m := smallLog(f, nil)
	encrypted, _ := smallLog(f, ring(1))
	for _, sealed := range []bool{false, true} {
		f.Add(sealed, false, uint16(segmentHeaderSize), []byte("xyz"))
		f.Add(sealed, false, uint16(segmentHeaderSize+512+batchFixedSize), []byte("a page record"))
		f.Add(sealed, false, uint16(segmentHeaderSize+1024), make([]byte, 512))
		f.Add(sealed, false, uint16(0), make([]byte, pageSize))
		f.Add(sealed, false, uint16(0), make([]byte, segmentHeaderSize+sectorSize))
		f.Add(sealed, true, uint16(0), []byte{1})
		f.Add(sealed, true, uint16(2*pageSize), make([]byte, 2*pageSize))
	}
	f.Fuzz(func(t *testing.T, sealed, vote bool, at uint16, data []byte) {
		disk, keys := clear, keyring.Ring(nil)
		if sealed {
			disk, keys = encrypted, ring(1)
		}
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

		opts := smallOptions(d)
		opts.Keys = keys
		w := New("/data", opts)
		rec, err := w.Open(ctx, identity)
		if err != nil {
			var damage *raft.CorruptionError
			require.ErrorAs(t, err, &damage)
			require.True(t, strings.HasPrefix(damage.Path, "/data/"))
			return
		}
		if len(rec.Damaged) > 0 || rec.Fence != (raft.EntryID{}) {
			_, err = m.checkDamaged(w, &rec, false)
			require.NoError(t, err)
		} else if rec.LastIndex == 3 {
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
