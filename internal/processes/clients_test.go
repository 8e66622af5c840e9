package processes

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
)

// clients are at work on a fleet: each adds values that nobody else adds, one after the other, and reads. What they are told is kept,
// and compared with the states of all members in the end.
type clients struct {
	f      *fleet
	cancel context.CancelFunc
	ends   sync.WaitGroup
	held   atomic.Bool

	mu      sync.Mutex
	acked   map[string]int // the position of every value that was acknowledged
	refused map[string]string
	unknown map[string]bool
	full    int // refused for want of room
	last    int // the greatest position that was acknowledged
	reads   []observation
	lies    []string
}

// observation is what a read has seen: the list was n long then, with that hash.
type observation struct {
	n    int
	hash uint64
}

// startClients lets n clients work until stop. size is the length of the values; 0: short.
func (f *fleet) startClients(n, size int) *clients {
	ctx, cancel := context.WithCancel(context.Background())
	c := &clients{f: f, cancel: cancel, acked: map[string]int{}, refused: map[string]string{}, unknown: map[string]bool{}}
	for i := range n {
		c.ends.Go(func() { c.run(ctx, i, size) })
	}
	f.t.Cleanup(c.stop)
	return c
}

func (c *clients) stop() {
	c.cancel()
	c.ends.Wait()
}

// hold lets the clients rest, or go on.
func (c *clients) hold(on bool) { c.held.Store(on) }

func (c *clients) run(ctx context.Context, number, size int) {
	r := rand.New(rand.NewPCG(uint64(number), 1))
	m := c.f.members[number%len(c.f.members)]
	for i := 0; ctx.Err() == nil; i++ {
		if c.held.Load() {
			pause(ctx, 5*time.Millisecond)
			continue
		}
		var err error
		if r.IntN(10) == 0 {
			err = c.read(m)
		} else {
			value := fmt.Sprintf("%d-%d ", number, i)
			err = c.add(m, value+filler(size-len(value)))
		}
		if err != nil {
			m = c.f.members[r.IntN(len(c.f.members))]
			pause(ctx, upTo(r, 20*time.Millisecond))
		}
	}
}

func filler(n int) string {
	if n <= 0 {
		return ""
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = '.'
	}
	return string(b)
}

// add adds a value through a member, and keeps what that says.
func (c *clients) add(m *member, value string) error {
	c.mu.Lock()
	before := c.last
	c.mu.Unlock()
	rep, err := m.ask(request{Op: "add", Value: value, Limit: 5 * time.Second})
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil || rep.Maybe:
		c.unknown[value] = true
	case rep.Err != "":
		c.refused[value] = rep.Err
		if rep.Full {
			c.full++
		}
	default:
		c.acked[value] = rep.At
		if rep.At <= before {
			c.lies = append(c.lies, fmt.Sprintf("%.20q got position %d, when %d had been given away before it was proposed", value, rep.At, before))
		}
		c.last = max(c.last, rep.At)
	}
	if err == nil && rep.Err != "" {
		err = fmt.Errorf("%s", rep.Err)
	}
	return err
}

// read reads through a member. It must see all that was acknowledged before it began.
func (c *clients) read(m *member) error {
	c.mu.Lock()
	before := c.last
	c.mu.Unlock()
	rep, err := m.ask(request{Op: "read", Limit: 5 * time.Second})
	if err != nil {
		return err
	}
	if rep.Err != "" {
		return fmt.Errorf("%s", rep.Err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if rep.N < before {
		c.lies = append(c.lies, fmt.Sprintf("a read at %s saw %d values, when %d had been acknowledged before it", m.ID, rep.N, before))
	}
	c.reads = append(c.reads, observation{rep.N, rep.Hash})
	return nil
}

// counts returns how many commands were acknowledged, refused (of them for want of room) and left uncertain so far.
func (c *clients) counts() (acked, refused, full, unknown int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.acked), len(c.refused), c.full, len(c.unknown)
}

// progress waits until n more commands were acknowledged.
func (c *clients) progress(n int) {
	c.f.t.Helper()
	before, _, _, _ := c.counts()
	c.f.eventually("commands are acknowledged", func() bool {
		now, _, _, _ := c.counts()
		return now >= before+n
	})
}

// check stops the clients, waits until all members have the same state, and compares it with all that the clients were told: every
// acknowledged value is there, at its position, nothing is there twice, nothing is there that was refused, or that nobody has added,
// and every read saw a state on the way to this one. SAFETY inv 7, 9, 13, 14, 16
func (c *clients) check() {
	t := c.f.t
	t.Helper()
	c.stop()
	const mark = "the end"
	c.f.eventually("a last value", func() bool {
		for _, m := range c.f.members {
			if c.add(m, mark+fmt.Sprint(len(c.unknown)+len(c.refused))) == nil {
				return true
			}
		}
		return false
	})
	require.Empty(t, c.lies)
	var state []string
	for i, m := range c.f.members {
		var rep reply
		c.f.eventually("all values are at "+string(m.ID), func() bool {
			var err error
			if rep, err = m.ask(request{Op: "read"}); err != nil || rep.Err != "" || rep.N < c.last {
				return false
			}
			rep, err = m.ask(request{Op: "dump"})
			return err == nil
		})
		if i == 0 {
			state = rep.Values
		}
		require.Equal(t, len(state), len(rep.Values), "%s and %s", c.f.members[0].ID, m.ID)
		for k := range state {
			require.Equal(t, state[k], rep.Values[k], "position %d at %s and at %s", k+1, c.f.members[0].ID, m.ID)
		}
	}
	hashes := make([]uint64, 1, len(state)+1)
	seen := map[string]int{}
	tookEffect := 0
	for i, value := range state {
		hashes = append(hashes, chain(hashes[i], value))
		require.Zero(t, seen[value], "%.20q is there twice, at %d and %d", value, seen[value], i+1)
		seen[value] = i + 1
		_, acked := c.acked[value]
		require.Empty(t, c.refused[value], "%.20q was refused and is there, at %d", value, i+1)
		require.True(t, acked || c.unknown[value], "%.20q is there, at %d, and nobody has added it", value, i+1)
		if c.unknown[value] {
			tookEffect++
		}
	}
	for value, at := range c.acked {
		require.Equal(t, at, seen[value], "%.20q was acknowledged", value)
	}
	for _, o := range c.reads {
		require.LessOrEqual(t, o.n, len(state))
		require.Equal(t, hashes[o.n], o.hash, "a read saw another list of %d values", o.n)
	}
	t.Logf("%d commands acknowledged, %d refused (%d of them for want of room), %d uncertain (%d of them took effect), %d reads",
		len(c.acked), len(c.refused), c.full, len(c.unknown), tookEffect, len(c.reads))
}
