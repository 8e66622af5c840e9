//go:build unix

package processes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// hog takes all the room that there is on a file system, and whatever becomes free there, until it ends.
type hog struct {
	path string
	end  context.CancelFunc
	done sync.WaitGroup
	full atomic.Bool // it has met the end once
	err  error
}

func startHog(t *testing.T, dir string) *hog {
	ctx, cancel := context.WithCancel(context.Background())
	h := &hog{path: filepath.Join(dir, "hog"), end: cancel}
	h.done.Go(func() { h.err = h.run(ctx) })
	t.Cleanup(func() { _ = h.stop() }) // it may have ended
	return h
}

func (h *hog) run(ctx context.Context) error {
	f, err := os.Create(h.path)
	if err != nil {
		return err
	}
	for err == nil && ctx.Err() == nil {
		for size := 1 << 20; size >= 4<<10 && ctx.Err() == nil; { // down to the last block
			if _, err = f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
				size, err = size/2, nil
			}
			if err != nil {
				break
			}
		}
		h.full.Store(err == nil)
		pause(ctx, 2*time.Millisecond)
	}
	return errors.Join(err, f.Close())
}

// stop gives all of it back.
func (h *hog) stop() error {
	h.end()
	h.done.Wait()
	if err := os.Remove(h.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(h.err, err)
	}
	return h.err
}

func (f *fleet) awaitStatus(members []*member, what string, ok func(status) bool) {
	f.t.Helper()
	for _, m := range members {
		f.eventually(fmt.Sprint(m.ID, " ", what), func() bool {
			st, err := m.status()
			return err == nil && ok(st)
		})
	}
}

func hasRoom(st status) bool { return st.Storage == "ok" }

// TestFullFileSystems fills up the real file systems of members under load (ext4 on loop devices), down to the last block, and frees them
// again: that of a follower, that of the leader, and all three. Commands are refused with a typed error; votes, reads, heartbeats, changes
// of the leader and of the configuration go on; and all goes on by itself once there is room. SAFETY §2, disk
func TestFullFileSystems(t *testing.T) {
	f, _ := onDevices(t, 24<<20)
	f.startAll()
	c := f.startClients(6, 300)
	c.progress(100)
	fill := func(members ...*member) (free func()) {
		var hogs []*hog
		for _, m := range members {
			hogs = append(hogs, startHog(t, filepath.Dir(m.Dir)))
		}
		f.eventually("one is full", func() bool { // who is refused no command does not find out
			for _, m := range members {
				if st, err := m.status(); err == nil && st.Storage == "full" {
					return true
				}
			}
			return false
		})
		return func() {
			for _, h := range hogs {
				require.NoError(t, h.stop())
			}
			for _, m := range members {
				select {
				case <-m.process().ended: // it was refused
				default:
					f.awaitStatus(members, "has room", hasRoom)
				}
			}
		}
	}
	asked := func(m *member, op, value string) {
		t.Helper()
		f.eventually(fmt.Sprintf("%s at %s", op, m.ID), func() bool {
			rep, err := m.ask(request{Op: op, Value: value, Limit: 5 * time.Second})
			if err == nil && rep.Err != "" {
				t.Logf("%s at %s: %s", op, m.ID, rep.Err)
			}
			return err == nil && rep.Err == ""
		})
	}

	// A follower. The others are a majority and go on; the leader is told to wait.
	leader := f.leader()
	follower := f.others(leader)[0]
	free := fill(follower)
	c.progress(200)
	f.eventually("the full follower is busy", func() bool {
		st, err := f.leader().status()
		require.NoError(t, err)
		for _, p := range st.Peers {
			if p.ID == follower.ID {
				return p.Busy
			}
		}
		return false
	})
	// A start needs a segment. If none was made before, it is refused, and says why.
	follower.process().kill()
	p := f.start(follower)
	select {
	case <-p.ready:
		t.Log("a start on the full file system found a segment")
	case <-p.ended:
		require.Contains(t, follower.said(2<<10), raft.ErrStorageFull.Error())
		t.Log("a start on the full file system was refused")
		free()
		f.start(follower)
		f.awaitReady(follower)
	}
	free()
	c.progress(200)

	// The leader.
	leader = f.leader()
	_, _, refused, _ := c.counts()
	free = fill(leader)
	f.eventually("commands are refused", func() bool { _, _, now, _ := c.counts(); return now > refused+20 })
	st, err := leader.status()
	require.NoError(t, err)
	term := st.Term
	asked(leader, "read", "")
	asked(leader, "configure", string(leader.ID))
	pause(t.Context(), 5*electionTimeout)
	st, err = leader.status()
	require.NoError(t, err)
	require.Equal(t, term, st.Term, "heartbeats go on")
	require.Equal(t, "leader", st.Role)
	asked(leader, "lead", string(f.others(leader)[1].ID)) // who has room
	c.progress(50)
	free()
	c.progress(200)

	// All, while no command is under way, so that nobody lacks one: votes and the no-ops of new leaders have room, and so have
	// configurations. Commands are refused once a leader needs its next segment.
	c.hold(true)
	f.eventually("all are equal", func() bool {
		st, err := f.leader().status()
		if err != nil || len(st.Peers) != 2 {
			return false
		}
		for _, p := range st.Peers {
			if p.MatchIndex != st.LastIndex {
				return false
			}
		}
		return true
	})
	var hogs []*hog
	for _, m := range f.members {
		hogs = append(hogs, startHog(t, filepath.Dir(m.Dir)))
	}
	for _, h := range hogs {
		f.eventually("no room is left", h.full.Load)
	}
	for i := range 6 {
		leader = f.leader()
		asked(leader, "read", "")
		asked(leader, "configure", string(leader.ID))
		next := f.others(leader)[i%2]
		asked(leader, "lead", string(next.ID))
		f.eventually("it leads", func() bool {
			st, err := next.status()
			return err == nil && st.Role == "leader"
		})
		asked(next, "read", "")
	}
	c.hold(false)
	acked, _, _, _ := c.counts()
	f.eventually("nothing is acknowledged any more", func() bool {
		before := acked
		pause(t.Context(), 2*electionTimeout)
		acked, _, _, _ = c.counts()
		return acked == before
	})
	for _, h := range hogs {
		require.NoError(t, h.stop())
	}
	c.progress(200)
	c.check()
	f.stop(f.members...)
}
