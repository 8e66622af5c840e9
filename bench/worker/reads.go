package worker

import (
	"context"
	"errors"
	"sync"
)

// Reads lets all reads that wait share one confirmation, for libraries that would confirm each by itself: a round begins when the
// one before has ended, and serves those that waited for its beginning.
type Reads struct {
	confirm func() error
	waiting chan chan error
	stop    chan struct{}
	stopped sync.WaitGroup
}

// NewReads is given what confirms that the state of this server is new enough for reads that began before the call.
func NewReads(confirm func() error) *Reads {
	r := &Reads{confirm: confirm, waiting: make(chan chan error, 4096), stop: make(chan struct{})}
	r.stopped.Go(r.loop)
	return r
}

// Read implements part of Node.
func (r *Reads) Read(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case r.waiting <- done:
	case <-r.stop:
		return errReadsClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-r.stop:
		return errReadsClosed
	}
}

var errReadsClosed = errors.New("closed")

// Close waits for the confirmation that is under way.
func (r *Reads) Close() {
	close(r.stop)
	r.stopped.Wait()
}

func (r *Reads) loop() {
	var batch []chan error
	for {
		batch = batch[:0]
		select {
		case done := <-r.waiting:
			batch = append(batch, done)
		case <-r.stop:
			return
		}
		for more := true; more; {
			select {
			case done := <-r.waiting:
				batch = append(batch, done)
			default:
				more = false
			}
		}
		err := r.confirm()
		for _, done := range batch {
			done <- err
		}
	}
}
