//go:build unix

package processes

import (
	"flag"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	killCycles = flag.Int("cycles", 8, "how often TestKilledMembersLoseNothing kills one to three members")
	seed       = flag.Uint64("seed", 1, "of the moments and the victims, as far as they are left to chance")
)

// endedBy reports whether a process was ended by that signal.
func (p *process) endedBy(sig syscall.Signal) bool {
	st, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && st.Signaled() && st.Signal() == sig
}

// TestKilledMembersLoseNothing kills one to three of the three members of a cluster under load, again and again, at random moments, with
// SIGKILL, and starts them again; some are stopped with SIGSTOP meanwhile, leaders among them, and go on later in a world that has
// moved. Nothing that was acknowledged is lost, or is there twice, or in another order.
func TestKilledMembersLoseNothing(t *testing.T) {
	f := newFleet(t, 3)
	f.startAll()
	c := f.startClients(8, 0)
	c.progress(10)
	r := rand.New(rand.NewPCG(*seed, 2))
	killed, early, stopped, all := 0, 0, 0, 0
	for range *killCycles {
		perm := r.Perm(len(f.members))
		victims := make([]*member, 1+r.IntN(3))
		for i := range victims {
			victims[i] = f.members[perm[i]]
		}
		var frozen *process
		if r.IntN(3) == 0 {
			frozen = f.members[r.IntN(len(f.members))].process()
			require.NoError(t, frozen.cmd.Process.Signal(syscall.SIGSTOP))
			stopped++
			pause(t.Context(), upTo(r, 2*electionTimeout))
		}
		pause(t.Context(), upTo(r, 150*time.Millisecond))
		for _, m := range victims {
			p := m.process()
			require.NoError(t, p.cmd.Process.Kill(), "it runs")
			select {
			case <-p.ready:
			default:
				early++
			}
			killed++
		}
		if len(victims) == len(f.members) {
			all++
		}
		for _, m := range victims {
			p := m.process()
			<-p.ended
			require.True(t, p.endedBy(syscall.SIGKILL), "%s has ended by itself: %v\n%s", m.ID, p.err, m.said(2<<10))
		}
		pause(t.Context(), upTo(r, 100*time.Millisecond))
		for _, m := range victims {
			f.start(m)
		}
		if frozen != nil {
			select {
			case <-frozen.ended: // one of the victims
			default:
				require.NoError(t, frozen.cmd.Process.Signal(syscall.SIGCONT))
			}
		}
		if r.IntN(4) > 0 { // otherwise the next ones come in the middle of their recovery
			c.progress(1)
		}
	}
	f.awaitReady(f.members...)
	t.Logf("%d cycles: %d members killed, %d of them before they were ready, all three %d times; %d members stopped for a while",
		*killCycles, killed, early, all, stopped)
	c.check()
	f.stop(f.members...)
}
