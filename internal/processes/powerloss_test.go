//go:build unix

package processes

import (
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/internal/loopdevice"
)

// onDevices founds a cluster of three, each with its data on a file system of its own.
func onDevices(t *testing.T, size int64, options ...string) (*fleet, map[*member]*loopdevice.Device) {
	var devices []*loopdevice.Device
	var dirs []string
	for i := range 3 {
		devices = append(devices, loopdevice.New(t, size, options...))
		dirs = append(dirs, filepath.Join(devices[i].Dir(), "data"))
	}
	f := newFleet(t, 3, dirs...)
	on := map[*member]*loopdevice.Device{}
	for i, m := range f.members {
		on[m] = devices[i]
	}
	return f, on
}

// TestPowerLossOfMembersLosesNothing cuts the real file systems of one to three members off from their devices, at the same moment and
// under load, as a loss of power does; kills the processes, mounts the file systems again from what is on the devices, and starts the
// members. Nothing that was acknowledged is lost. SAFETY §2: all servers lose power at once
func TestPowerLossOfMembersLosesNothing(t *testing.T) {
	f, device := onDevices(t, 48<<20)
	f.startAll()
	c := f.startClients(8, 0)
	c.progress(10)
	r := rand.New(rand.NewPCG(*seed, 3))
	cycles, cut, all := max(3, *killCycles/5), 0, 0
	for range cycles {
		c.progress(1 + r.IntN(100))
		perm := r.Perm(len(f.members))
		victims := make([]*member, 1+r.IntN(3))
		for i := range victims {
			victims[i] = f.members[perm[i]]
		}
		if len(victims) == 3 {
			all++
		}
		var down sync.WaitGroup
		errs := make([]error, len(victims))
		for i, m := range victims {
			journal := r.IntN(2) == 0
			down.Go(func() { errs[i] = device[m].Cut(journal) })
			cut++
		}
		down.Wait()
		pause(t.Context(), upTo(r, 20*time.Millisecond)) // what they do meanwhile must not count
		for i, m := range victims {
			require.NoError(t, errs[i])
			m.process().kill()
			require.NoError(t, device[m].Remount())
			f.start(m)
		}
		f.awaitReady(victims...)
	}
	t.Logf("%d losses of power, of %d members, of all three %d times", cycles, cut, all)
	c.progress(10)
	c.check()
	f.stop(f.members...)
}

// TestLeaderWithABrokenDiskHandsOver cuts the leader's real file system off. Its process lives and says that its node has failed, another
// member leads before anybody had to time out, and commands go on. SAFETY §2: sync error
func TestLeaderWithABrokenDiskHandsOver(t *testing.T) {
	f, device := onDevices(t, 24<<20)
	f.startAll()
	c := f.startClients(4, 0)
	c.progress(50)
	leader := f.leader()
	before, err := leader.status()
	require.NoError(t, err)
	require.NoError(t, device[leader].Cut(false))
	var st status
	f.eventually("its node fails", func() bool {
		st, err = leader.status()
		require.NoError(t, err, "the process lives")
		return st.State == "failed"
	})
	require.Contains(t, st.Failure, "input/output error")
	require.False(t, st.CanCommit)
	rep, err := leader.ask(request{Op: "add", Value: "to a broken disk"})
	require.NoError(t, err)
	require.NotEmpty(t, rep.Err)
	require.False(t, rep.Maybe, "it was not even tried: %s", rep.Err)
	c.progress(100)
	successor := f.leader()
	require.NotEqual(t, leader.ID, successor.ID)
	after, err := successor.status()
	require.NoError(t, err)
	t.Logf("term %d after term %d", after.Term, before.Term)
	require.Contains(t, successor.said(16<<10), "leadership transfer", "it was asked to lead")

	leader.process().kill()
	require.NoError(t, device[leader].Remount())
	f.start(leader)
	f.awaitReady(leader)
	c.check()
	f.stop(f.members...)
}
