package worker

import (
	"hash/crc32"
	"sync/atomic"
)

// Counter is the state of every library's state machine: how many commands there were, and a checksum over them in their order,
// so that servers can be compared. One goroutine adds.
type Counter struct {
	count atomic.Uint64
	sum   atomic.Uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Add applies a command.
func (c *Counter) Add(cmd []byte) {
	c.sum.Store(crc32.Update(c.sum.Load(), castagnoli, cmd))
	c.count.Add(1)
}

// Applied implements part of Node.
func (c *Counter) Applied() (count uint64, sum uint32) { return c.count.Load(), c.sum.Load() }
