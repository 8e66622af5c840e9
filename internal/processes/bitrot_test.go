//go:build unix

package processes

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
	"github.com/steadyraft/raft/storage/wal"
)

// part is where a bit is flipped.
type part int

const (
	fullSegment part = iota // in a command of it
	lastCommand
	lastHeader // of the batch that holds the last command
)

// values finds those of the clients in a file of the log.
var values = regexp.MustCompile(`\d+-\d+ \.+`)

// segments lists the files of a stopped member's log that hold values, in order, each with the places of these.
func (f *fleet) segments(m *member) (files []string, places [][]int) {
	f.t.Helper()
	report := f.inspect(m)
	for _, s := range report.Segments {
		path := s.File
		if !filepath.IsAbs(path) {
			path = filepath.Join(m.Dir, path)
		}
		b, err := os.ReadFile(path)
		require.NoError(f.t, err)
		var at []int
		for _, place := range values.FindAllIndex(b[:max(s.End, 0)], -1) {
			at = append(at, place[0])
		}
		if len(at) > 0 {
			files, places = append(files, path), append(places, at)
		}
	}
	return files, places
}

func (f *fleet) inspect(m *member) wal.Report {
	f.t.Helper()
	report, err := wal.Inspect(f.t.Context(), vfs.OS{}, m.Dir)
	require.NoError(f.t, err, "%s", m.ID)
	return report
}

// flip inverts one bit of a file.
func (f *fleet) flip(path string, at int, bit uint) {
	f.t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(f.t, err)
	b := make([]byte, 1)
	_, err = file.ReadAt(b, int64(at))
	require.NoError(f.t, err)
	b[0] ^= 1 << bit
	_, err = file.WriteAt(b, int64(at))
	require.NoError(f.t, err)
	require.NoError(f.t, file.Close())
}

// log returns what a stopped member's log holds, from its first entry on.
func (f *fleet) log(m *member) (entries []raft.Entry) {
	f.t.Helper()
	require.NoError(f.t, wal.Dump(f.t.Context(), vfs.OS{}, m.Dir, 0, 0, func(*wal.Report) error { return nil }, func(e raft.Entry) error {
		entries = append(entries, e.Clone())
		return nil
	}))
	return entries
}

// TestFlippedBitIsRepairedWhileClientsGoOn kills one member of a cluster under load, flips one bit in its log, in a command of a full
// segment, in the last command that it has, or where it says what its last batch holds, and starts it again: a follower, and one that led. Clients go on all the time. The member
// finds what is damaged, gets exactly that from the others by itself, and in the end all logs and all states are the same.
// SAFETY inv 22, 23, 24
func TestFlippedBitIsRepairedWhileClientsGoOn(t *testing.T) {
	f := newFleet(t, 3)
	for _, m := range f.members {
		m.SnapshotEntries = 1 << 30 // or a snapshot would soon take the place of what is damaged
	}
	f.startAll()
	c := f.startClients(6, 200)
	c.progress(500)
	r := rand.New(rand.NewPCG(*seed, 4))
	for _, tt := range []struct {
		what   string
		led    bool
		where  part
		expect wal.Verdict
	}{
		{"in a full segment of a follower", false, fullSegment, wal.Corrupt},
		{"in a full segment of the leader", true, fullSegment, wal.Corrupt},
		{"in the last command of a follower", false, lastCommand, wal.Corrupt},
		{"in the last command of the leader", true, lastCommand, wal.Corrupt},
		{"in the last batch's header of a follower", false, lastHeader, wal.Fenced},
		{"in the last batch's header of the leader", true, lastHeader, wal.Fenced},
	} {
		c.progress(300)
		before, _, _, _ := c.counts()
		victim := f.leader()
		if !tt.led {
			victim = f.others(victim)[r.IntN(2)]
		}
		victim.process().kill()
		files, places := f.segments(victim)
		require.GreaterOrEqual(t, len(files), 2, "%s has filled one", victim.ID)
		k := len(files) - 1
		at := places[k][len(places[k])-1]
		within := 100
		switch tt.where {
		case fullSegment:
			k = r.IntN(k)
			at = places[k][r.IntN(len(places[k]))]
		case lastHeader:
			b, err := os.ReadFile(files[k])
			require.NoError(t, err)
			at, within = bytes.LastIndex(b[:at], []byte("SRB1")), 32
			require.Positive(t, at)
		}
		f.flip(files[k], at+r.IntN(within), uint(r.IntN(8)))
		report := f.inspect(victim)
		require.Equal(t, tt.expect, report.Verdict, "%s: %+v", tt.what, report.Findings)

		f.start(victim)
		f.awaitReady(victim)
		c.progress(100)
		var st status
		f.eventually(tt.what+": repaired", func() bool {
			var err error
			st, err = victim.status()
			found := tt.where != fullSegment || st.Repair.Found > 0 // what the log does not miss when it opens is found once it is read
			return err == nil && st.State == "running" && found && len(st.Damaged) == 0 && st.Fence == raft.EntryID{} && st.Commit >= report.Last.Index
		})
		if tt.where == fullSegment { // what a killed leader alone had at its end may have been replaced by its successor's entry instead
			require.Equal(t, st.Repair.Found, st.Repair.Repaired, tt.what)
		}
		now, _, _, _ := c.counts()
		t.Logf("%s (%s): %s, damaged %v, fence %v; %d found and %d repaired; %d commands acknowledged meanwhile", tt.what, victim.ID,
			report.Verdict, report.Damaged, report.Fence, st.Repair.Found, st.Repair.Repaired, now-before)
	}
	c.check()
	f.stop(f.members...)
	first := map[raft.Index]raft.Entry{} // of one index, as the first member has it that does: a snapshot may have taken its place elsewhere
	compared := 0
	for _, m := range f.members {
		report := f.inspect(m)
		require.Empty(t, report.Damaged)
		require.Zero(t, report.Fence)
		for _, e := range f.log(m) {
			other, there := first[e.Index]
			if !there {
				first[e.Index] = e
				continue
			}
			require.True(t, slices.Equal(other.Frame(), e.Frame()), "entry %v at %s, and %v at another", e.ID(), m.ID, other.ID())
			compared++
		}
	}
	require.Greater(t, compared, 1000)

	// The damaged bytes are still there, in files that the next snapshots make superfluous.
	for _, m := range f.members {
		m.SnapshotEntries, m.TrailingEntries = 50, 1
		f.start(m)
	}
	f.awaitReady(f.members...)
	c = f.startClients(1, 200)
	c.progress(1000)
	c.stop()
	f.stop(f.members...)
	for _, m := range f.members {
		report := f.inspect(m)
		require.Equal(t, wal.Clean, report.Verdict, "%s: %+v", m.ID, report.Findings)
	}
}
