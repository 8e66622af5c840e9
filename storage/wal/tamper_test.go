package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/keyring"
)

// repairChecksums makes the checksums of a sector's worth of header match: what somebody does who knows the format.
func repairChecksums(path string, data []byte, at int64) {
	le := binary.LittleEndian
	switch {
	case strings.HasSuffix(path, voteName):
		page := data[at/pageSize*pageSize:]
		le.PutUint32(page[sectorSize-4:], checksum(page[:sectorSize-4]))
	case at < segmentHeaderSize:
		page := data[at/pageSize*pageSize:][:pageSize]
		if end := int(le.Uint32(page[12:])); end >= segmentFixedSize && end <= pageSize-4 {
			le.PutUint32(page[end:], checksum(page[:end]))
		}
	default: // the batch around it: walk from the first
		for from := int64(segmentHeaderSize); from+sectorSize <= int64(len(data)); {
			b := data[from:]
			if le.Uint32(b) != batchMagic {
				return
			}
			size := roundUp(int64(le.Uint32(b[4:]))+int64(le.Uint64(b[40:])), sectorSize)
			if size <= 0 || size > int64(len(b)) {
				size = int64(len(b))
			}
			if at < from+size {
				repairBatch(b[:size])
				return
			}
			from += size
		}
	}
}

func wordsOf(b []byte) int {
	h := batchHeader{
		flags: binary.LittleEndian.Uint16(b[48:]), voteLen: int(binary.LittleEndian.Uint16(b[50:])), keyID: binary.LittleEndian.Uint32(b[176:]),
	}
	return h.words()
}

func repairBatch(b []byte) {
	le := binary.LittleEndian
	header, words := int(le.Uint32(b[4:])), wordsOf(b)
	if header > batchFixedSize+words && header <= len(b) {
		table := b[batchFixedSize+words : header]
		for p := 0; p*pageSize < len(b) && (p+1)*pageRecordSize < len(table); p++ {
			crc, used := pageChecksum(b, p, header)
			le.PutUint32(table[p*pageRecordSize:], crc)
			table[p*pageRecordSize+4] = used
		}
		le.PutUint32(b[batchTableCRC:], checksum(b[batchFixedSize:header]))
	}
	le.PutUint32(b[batchHeaderCRC:], checksum(b[:batchHeaderCRC]))
}

// Bits are flipped, and then all checksums made to match. Rot is damage, and forgery is tampering, wherever it is not plainly both: a
// sector that no longer looks like a batch, or claims to lie elsewhere. Never does Open or Entries give out anything that was not written.
func TestRotAndForgeryAreToldApart(t *testing.T) {
	disk := newImageFS(nil)
	opts := encryptedOptions(disk, ring(1))
	w := New("/data", opts)
	mustOpen(t, w)
	var m model
	write := func(b raft.Batch) {
		require.NoError(t, w.Write(b))
		m = m.after(b)
	}
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "n1"}, Entries: commands(1, 3, 1, 20)})
	write(raft.Batch{Entries: commands(4, 1, 1, 5000)})
	first, idleAt := w.active.path, w.active.end
	require.NoError(t, w.Idle())
	reopen(t, w)
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 2, VotedFor: "n2"}, Entries: commands(5, 2, 2, 600)})
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 3}, Entries: commands(7, 2, 3, 30)})
	ends := map[string]int64{"/data/vote": voteFileSize, w.segments[0].path: w.segments[0].end, w.active.path: w.active.end}
	require.NoError(t, w.Close())
	img := disk.image()

	skip := 5
	if !*proof {
		skip = 37
	}
	counts := map[string]map[string]int{"rot": {}, "forgery": {}}
	try := func(kind, path string, data []byte) (outcome string) {
		t.Helper()
		changed := maps.Clone(img)
		changed[path] = data
		opts := opts
		opts.FS = newImageFS(changed)
		w := New("/data", opts)
		rec, err := w.Open(ctx, identity)
		var damage *raft.CorruptionError
		switch {
		case err == nil && m.check(w, &rec) == nil:
			require.NoError(t, w.Close())
			outcome = "all there"
		case err == nil:
			_, err := m.checkDamaged(w, &rec, true)
			require.NoError(t, errors.Join(err, w.Close()))
			outcome = "damaged"
		case errors.As(err, &damage) && damage.Tampered:
			outcome = "tampered"
		case errors.As(err, &damage):
			outcome = "damaged"
		default:
			require.NoError(t, err)
		}
		counts[kind][outcome]++
		return outcome
	}
	for path, end := range ends {
		for bit := 0; bit < int(end)*8; bit += skip {
			at := int64(bit / 8)
			data := bytes.Clone(img[path])
			data[at] ^= 1 << (bit % 8)
			what := fmt.Sprintf("bit %d of byte %d of %s", bit%8, at, filepath.Base(path))
			outcome := try("rot", path, data)
			switch {
			case strings.HasSuffix(path, voteName), at < segmentHeaderSize, at >= idleAt && at < idleAt+sectorSize && path == first:
				require.Equal(t, "all there", outcome, what)
			default:
				require.Equal(t, "damaged", outcome, what)
			}

			repairChecksums(path, data, at)
			unread := bytes.Equal(data, img[path]) // a checksum, which is right again
			outcome = try("forgery", path, data)
			switch {
			case unread:
				require.Equal(t, "all there", outcome, what)
			case strings.HasSuffix(path, voteName):
				page := at % pageSize
				if page >= sectorSize || page < 4 || isZero(img[path][at/pageSize*pageSize:][:pageSize]) || lengthOfName(page) {
					require.NotEqual(t, "damaged", outcome, what) // nothing is read there, or it is no record any more: there is a copy
				} else {
					require.Equal(t, "tampered", outcome, what)
				}
			case at < segmentHeaderSize:
				if page := at % pageSize; page >= headerEnd(img[path]) || page < 16 || isNameLength(img[path], page) {
					require.NotEqual(t, "damaged", outcome, what) // likewise: no header, or impossible lengths
				} else {
					require.Equal(t, "tampered", outcome, what)
				}
			case inBatch(img[path], at, func(o int64) bool {
				return o < 24 || o >= 32 && o < 48 || o == 50 || o == 51 || o >= 188 && o < 192
			}):
				require.NotEqual(t, "all there", outcome, what) // no batch, of elsewhere, or of another length: what is summed where is open
			default:
				require.Equal(t, "tampered", outcome, what)
			}
		}
	}
	require.Greater(t, counts["forgery"]["tampered"], 30)
	t.Logf("bits flipped, and then the checksums made to match:%s", table(counts))
}

func lengthOfName(at int64) bool { return at >= 4 && at < 8 }

// headerEnd is where a segment's header ends, its checksum included.
func headerEnd(data []byte) int64 { return int64(binary.LittleEndian.Uint32(data[12:])) + 4 }

// isNameLength reports whether one of the lengths in front of the names in a segment's header stands there.
func isNameLength(data []byte, at int64) bool {
	place := int64(segmentFixedSize)
	for range 3 {
		if at == place || at == place+1 {
			return true
		}
		place += 2 + int64(binary.LittleEndian.Uint16(data[place:]))
	}
	return false
}

// inBatch reports whether a byte of a segment lies at an offset from the start of its batch for which f holds.
func inBatch(data []byte, at int64, f func(offset int64) bool) bool {
	for from := int64(segmentHeaderSize); ; {
		b := data[from:]
		size := roundUp(int64(binary.LittleEndian.Uint32(b[4:]))+int64(binary.LittleEndian.Uint64(b[40:])), sectorSize)
		if at < from+size {
			return f(at - from)
		}
		from += size
	}
}

// Whole batches, headers and votes are put where they do not belong, with the tags and checksums that belong there.
func TestForeignPiecesAreNotAuthentic(t *testing.T) {
	server := func(id raft.NodeID) (image, string) {
		disk := newImageFS(nil)
		w := New("/data", encryptedOptions(disk, ring(1)))
		_, err := w.Open(ctx, raft.Identity{Cluster: "c", Node: id})
		require.NoError(t, err)
		for i := range raft.Index(3) {
			require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "a"}, Entries: commands(1+i, 1, 1, 300)}))
		}
		path := w.active.path
		require.NoError(t, w.Close())
		return disk.image(), path
	}
	ours, path := server("n1")
	theirs, _ := server("n1")
	batch := int64(2 * sectorSize)
	refused := func(t *testing.T, img image, change func(data []byte)) {
		t.Helper()
		img = maps.Clone(img)
		img[path] = bytes.Clone(img[path])
		change(img[path])
		_, err := New("/data", encryptedOptions(newImageFS(img), ring(1))).Open(ctx, identity)
		var damage *raft.CorruptionError
		require.ErrorAs(t, err, &damage)
		require.True(t, damage.Tampered, "%v", damage)
		require.Contains(t, err.Error(), "tampered with")
		require.NotEmpty(t, damage.Next)
	}
	t.Run("batch of another segment with the same key", func(t *testing.T) {
		refused(t, ours, func(data []byte) {
			b := data[segmentHeaderSize+batch:][:batch]
			tag := bytes.Clone(b[8:24])
			copy(b, theirs[path][segmentHeaderSize+batch:])
			copy(b[8:], tag)
			repairBatch(b)
		})
	})
	t.Run("batch of another place", func(t *testing.T) {
		refused(t, ours, func(data []byte) {
			b := data[segmentHeaderSize+batch:][:batch]
			own := bytes.Clone(b[24:40]) // sequence number and offset
			copy(b, data[segmentHeaderSize:])
			copy(b[24:], own)
			repairBatch(b)
		})
	})
	t.Run("batch that is said not to be encrypted", func(t *testing.T) {
		refused(t, ours, func(data []byte) {
			h := batchHeader{seq: 4, offset: segmentHeaderSize + 3*batch, syncedThrough: 3, flags: flagHardState,
				hardState: raft.HardState{CurrentTerm: 9, VotedFor: "evil"}, prev: raft.EntryID{Term: 1, Index: 3}, last: raft.EntryID{Term: 1, Index: 3},
				prevChain: binary.LittleEndian.Uint32(data[segmentHeaderSize+2*batch+batchHeaderCRC:]),
				before:    span{raft.EntryID{Term: 1, Index: 3}, raft.EntryID{Term: 1, Index: 3}},
			}
			copy(h.tag[:], data[16:])
			copy(data[h.offset:], encodeBatch(nil, &h, nil, nil, nil))
		})
	})
	t.Run("page record", func(t *testing.T) { // and only the checksums above it
		refused(t, ours, func(data []byte) {
			b := data[segmentHeaderSize+batch:][:batch]
			header := int(binary.LittleEndian.Uint32(b[4:]))
			b[batchFixedSize+wordsOf(b)+4] ^= 1
			binary.LittleEndian.PutUint32(b[batchTableCRC:], checksum(b[batchFixedSize:header]))
			binary.LittleEndian.PutUint32(b[batchHeaderCRC:], checksum(b[:batchHeaderCRC]))
		})
	})
	t.Run("header of a batch, changed", func(t *testing.T) {
		for _, at := range []int{49, 60, 64, 96, 178, 183} { // flags that mean nothing, synced through, term, entry before, key ID, reserved
			refused(t, ours, func(data []byte) {
				b := data[segmentHeaderSize+batch:][:batch]
				b[at] ^= 1
				repairBatch(b)
			})
		}
	})
	// A damaged batch is believed what its header says, and that must not be a way around its tag.
	t.Run("header of a batch, changed, and a page broken", func(t *testing.T) {
		for _, at := range []int{60, 64, 96, batchFixedSize} { // synced through, term, entry before, vote
			refused(t, ours, func(data []byte) {
				b := data[segmentHeaderSize+batch:][:batch]
				b[at] ^= 1
				repairBatch(b)
				b[batch/2] ^= 1
			})
		}
	})
	t.Run("frames in the clear in a broken page", func(t *testing.T) {
		img := maps.Clone(ours)
		img[path] = bytes.Clone(img[path])
		b := img[path][segmentHeaderSize+batch:][:batch]
		forged := entry(2, 1, raft.EntryCommand, bytes.Repeat([]byte("evil"), 75))
		copy(b[binary.LittleEndian.Uint32(b[4:]):], forged.Frame())
		w := New("/data", encryptedOptions(newImageFS(img), ring(1)))
		rec := mustOpen(t, w)
		require.Equal(t, []raft.Damage{{First: 2, Last: 2}}, rec.Damaged)
		_, err := w.Entries(2, 3, 1000)
		var damage *raft.CorruptionError
		require.ErrorAs(t, err, &damage)
		require.False(t, damage.Tampered, "a page checksum is wrong")
		require.NoError(t, w.Write(raft.Batch{Repairs: commands(2, 1, 1, 300)}))
		requireEntries(t, w, slices.Concat(commands(1, 1, 1, 300), commands(2, 1, 1, 300), commands(3, 1, 1, 300)))
		require.NoError(t, w.Close())
	})
	t.Run("padding", func(t *testing.T) {
		refused(t, ours, func(data []byte) {
			b := data[segmentHeaderSize+batch:][:batch]
			b[batch-1] ^= 1
			repairBatch(b)
		})
	})
	t.Run("header of a segment, one copy or both", func(t *testing.T) {
		for _, at := range []int64{20, 48, 64, 160, 175, segmentFixedSize + 2} { // tag, incarnation, end before, term, key ID, cluster
			for _, both := range []bool{false, true} {
				if both && (at < 32 || at > 170) {
					continue // then the key is another one, or seems to be
				}
				refused(t, ours, func(data []byte) {
					data[at] ^= 1
					repairChecksums(path, data, at)
					if both {
						copy(data[pageSize:], data[:pageSize])
					}
				})
			}
		}
	})
	t.Run("record of term and vote, one copy or both", func(t *testing.T) {
		for _, both := range []bool{false, true} {
			img := maps.Clone(ours)
			data := bytes.Clone(img["/data/vote"])
			newest := int64(0)
			for at := int64(0); at < voteFileSize; at += pageSize {
				if binary.LittleEndian.Uint64(data[at+8:]) > binary.LittleEndian.Uint64(data[newest+8:]) {
					newest = at
				}
			}
			data[newest+56]++ // the term
			repairChecksums("vote", data, newest)
			if both {
				copy(data[newest+pageSize:], data[newest:newest+pageSize])
			}
			img["/data/vote"] = data
			_, err := New("/data", encryptedOptions(newImageFS(img), ring(1))).Open(ctx, identity)
			var damage *raft.CorruptionError
			require.ErrorAs(t, err, &damage)
			require.True(t, damage.Tampered, "%v", damage)
		}
	})
	t.Run("header that is said not to be encrypted", func(t *testing.T) {
		img := maps.Clone(ours)
		clear := newImageFS(nil)
		w := New("/data", smallOptions(clear))
		mustOpen(t, w)
		require.NoError(t, w.Close())
		img[path] = clear.image()[path]
		_, err := New("/data", encryptedOptions(newImageFS(img), ring(1))).Open(ctx, identity)
		require.ErrorIs(t, err, keyring.ErrClear)
	})
	t.Run("vote of another server", func(t *testing.T) {
		img := maps.Clone(ours)
		img["/data/vote"] = theirs["/data/vote"]
		_, err := New("/data", encryptedOptions(newImageFS(img), ring(1))).Open(ctx, identity)
		var damage *raft.CorruptionError
		require.ErrorAs(t, err, &damage) // it names its replica
	})
}

// Inspect tells rot from forgery as Open does.
func TestInspectTellsForgery(t *testing.T) {
	disk := newImageFS(nil)
	secretServer(t, encryptedOptions(disk, ring(1)))
	img := disk.image()
	_, err := Inspect(ctx, newImageFS(img), "/data")
	require.ErrorIs(t, err, keyring.ErrNoKeys)
	r, err := Inspect(ctx, newImageFS(img), "/data", WithKeys(ring(1)))
	require.NoError(t, err)
	require.Equal(t, Clean, r.Verdict, "%+v", r.Findings)
	require.Equal(t, []KeyUses{{ID: 1, Segments: len(r.Segments), Votes: 4, Snapshots: 2}}, r.Keys)

	path := r.Segments[1].File
	for _, c := range []struct {
		repair bool
		want   Verdict
	}{{false, Degraded}, {true, Tampered}} {
		changed := maps.Clone(img)
		changed[path] = bytes.Clone(img[path])
		changed[path][segmentHeaderSize+600] ^= 1
		if c.repair {
			repairChecksums(path, changed[path], segmentHeaderSize+600)
		}
		r, err := Inspect(ctx, newImageFS(changed), "/data", WithKeys(ring(1)))
		require.NoError(t, err)
		require.Equal(t, c.want, r.Verdict)
		require.Equal(t, c.want, r.Findings[0].Verdict)
		require.Equal(t, path, r.Findings[0].File)
		require.EqualValues(t, segmentHeaderSize, r.Findings[0].Offset)
		require.NotEmpty(t, r.Findings[0].Next)
		w := New("/data", encryptedOptions(newImageFS(changed), ring(1)))
		_, err = w.Open(ctx, identity)
		if !c.repair { // the snapshots have what is lost
			require.NoError(t, err)
			require.NoError(t, w.Close())
			continue
		}
		require.Equal(t, r.Refusal.Error(), err.Error())
		_, err = PlanRecovery(ctx, newImageFS(changed), "/data", "new", "h:1", WithKeys(ring(1)))
		require.ErrorIs(t, err, ErrDamaged)
	}
	snapshot := r.Snapshots[0].Path
	changed := maps.Clone(img)
	changed[snapshot] = bytes.Clone(img[snapshot])
	changed[snapshot][100] ^= 1
	r, err = Inspect(ctx, newImageFS(changed), "/data", WithKeys(ring(1)))
	require.NoError(t, err)
	require.Equal(t, Degraded, r.Verdict)
}

// A footer is believed in place of a segment, so it is encrypted and authenticated like one. A rotten one, and one in the clear, are none.
func TestForgedFootersAreNotBelieved(t *testing.T) {
	disk := newImageFS(nil)
	opts := encryptedOptions(disk, ring(1))
	opts.VerifyAtOpen = false
	w := New("/data", opts)
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1}, Entries: []raft.Entry{
		entry(1, 1, raft.EntryConfiguration, secretMembers.AppendBinary(nil)),
	}}))
	require.NoError(t, w.Write(raft.Batch{Entries: commands(2, 3, 1, 500)}))
	path, end, seg := w.active.path, w.active.end, w.active
	reopen(t, w)
	_, err := w.Prepare() // tidies up
	require.NoError(t, err)
	require.NoError(t, w.Close())
	img := disk.image()
	at := footerAt(end)
	require.Greater(t, int64(len(img[path])), at)
	require.EqualValues(t, sealedFooterMagic, binary.LittleEndian.Uint32(img[path][at:]))
	open := func(change func(b []byte) []byte) (raft.Recovered, error) {
		changed := maps.Clone(img)
		changed[path] = append(bytes.Clone(img[path][:at]), change(bytes.Clone(img[path][at:]))...)
		opts.FS = newImageFS(changed)
		w := New("/data", opts)
		rec, err := w.Open(ctx, identity)
		if err == nil {
			err = w.Close()
		}
		return rec, err
	}
	_, err = open(func(b []byte) []byte { b[100] ^= 1; return b })
	require.NoError(t, err, "the segment is read")
	for _, place := range []int{9, 100} {
		_, err = open(func(b []byte) []byte {
			n := binary.LittleEndian.Uint32(b[4:])
			b[place] ^= 1
			putCRC(b[n-4:], b[:n-4])
			return b
		})
		var damage *raft.CorruptionError
		require.ErrorAs(t, err, &damage)
		require.True(t, damage.Tampered)
		require.Equal(t, at, damage.Offset)
	}
	rec, err := open(func([]byte) []byte {
		f := footer{
			tag: seg.tag, seq: seg.seq, end: end, baseBatch: seg.baseBatch, baseChain: seg.baseChain, lastBatch: 2, chain: 0,
			last: raft.EntryID{Term: 1, Index: 4},
		}
		f.chain = binary.LittleEndian.Uint32(img[path][segmentHeaderSize:][batchHeaderCRC:])
		b := f.encode()
		return append(b, make([]byte, roundUp(int64(len(b)), sectorSize)-int64(len(b)))...)
	})
	require.NoError(t, err)
	require.EqualValues(t, 4, rec.LastIndex)
	require.Len(t, rec.Configurations, 1, "read from the segment")
}
