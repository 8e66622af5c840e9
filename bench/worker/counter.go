package worker

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"sync/atomic"
)

// Counter is the state of every library's state machine: how many commands there were, and a checksum over them in their order,
// so that servers can be compared. One goroutine adds.
type Counter struct {
	count    atomic.Uint64
	sum      atomic.Uint32
	restored atomic.Uint64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Add applies a command.
func (c *Counter) Add(cmd []byte) {
	c.sum.Store(crc32.Update(c.sum.Load(), castagnoli, cmd))
	c.count.Add(1)
}

// Applied implements part of Node.
func (c *Counter) Applied() (count uint64, sum uint32) { return c.count.Load(), c.sum.Load() }

// Restored returns how many snapshots this state was replaced by.
func (c *Counter) Restored() uint64 { return c.restored.Load() }

// View is a state at one moment. Its snapshot is padded to a size, as if there were a large state.
type View struct {
	count uint64
	sum   uint32
	size  int64
}

const (
	viewHeader = 12
	viewPiece  = 256 << 10
)

// View takes the present state. The goroutine that adds calls it.
func (c *Counter) View(size int64) View { return View{c.count.Load(), c.sum.Load(), size} }

// WriteTo writes the snapshot.
func (v View) WriteTo(w io.Writer) (int64, error) {
	head := binary.LittleEndian.AppendUint64(nil, v.count)
	head = binary.LittleEndian.AppendUint32(head, v.sum)
	n, err := w.Write(head)
	written := int64(n)
	piece := make([]byte, viewPiece)
	random := rand.NewChaCha8([32]byte{1}) // not zeros, so that nothing can compress them
	_, _ = random.Read(piece)              // it never fails
	for err == nil && written < v.size {
		n, err = w.Write(piece[:min(viewPiece, v.size-written)])
		written += int64(n)
	}
	return written, err
}

// Restore replaces the state by that of a snapshot, which it reads to its end. The goroutine that adds calls it.
func (c *Counter) Restore(r io.Reader) error {
	var head [viewHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	c.count.Store(binary.LittleEndian.Uint64(head[:]))
	c.sum.Store(binary.LittleEndian.Uint32(head[8:]))
	c.restored.Add(1)
	return nil
}
