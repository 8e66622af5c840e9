//go:build unix

package processes

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/wal"
)

// TestDamageAndKillsTogether kills one to three members of a cluster under load, again and again, and flips a bit in the log of one of them
// while it is down: anywhere in what its log holds, in a member whose log is whole. Others are killed while it repairs itself. Nothing
// that was acknowledged is lost: an intact copy of everything is on the others. SAFETY §2, disk: bit flip anywhere
func TestDamageAndKillsTogether(t *testing.T) {
	f := newFleet(t, 3)
	f.startAll()
	c := f.startClients(6, 100)
	c.progress(100)
	r := rand.New(rand.NewPCG(*seed, 5))
	var damaged *member // until it has repaired itself
	whole := func(m *member) bool {
		st, err := m.status()
		return err == nil && st.State == "running" && st.Commit > 0 && len(st.Damaged) == 0 && st.Fence == raft.EntryID{}
	}
	cycles, flips := max(6, *killCycles/2), 0
	verdicts := map[wal.Verdict]int{}
	for range cycles {
		perm := r.Perm(len(f.members))
		victims := make([]*member, 1+r.IntN(3))
		for i := range victims {
			victims[i] = f.members[perm[i]]
		}
		pause(t.Context(), upTo(r, 200*time.Millisecond))
		if damaged != nil && whole(damaged) {
			damaged = nil
		}
		for _, m := range victims {
			m.process().kill()
		}
		if damaged == nil {
			m := victims[0]
			files, places := f.segments(m)
			if len(files) > 0 {
				k := r.IntN(len(files))
				if r.IntN(2) == 0 {
					k = len(files) - 1
				}
				at := places[k][r.IntN(len(places[k]))]
				if r.IntN(2) == 0 {
					at = places[k][len(places[k])-1] // what was acknowledged last
				}
				info, err := os.Stat(files[k])
				require.NoError(t, err)
				f.flip(files[k], max(0, min(int(info.Size())-1, at+r.IntN(300)-150)), uint(r.IntN(8)))
				verdicts[f.inspect(m).Verdict]++
				damaged = m
				flips++
			}
		}
		for _, m := range victims {
			f.start(m)
		}
		f.awaitReady(victims...)
		if r.IntN(3) > 0 {
			c.progress(1)
		}
	}
	f.eventually("all logs are whole", func() bool {
		for _, m := range f.members {
			if !whole(m) {
				return false
			}
		}
		return true
	})
	t.Logf("%d cycles, %d bits flipped: %v", cycles, flips, verdicts)
	c.check()
	f.stop(f.members...)
}
