package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// A frame is one batch, in the log as on the wire: length of what follows the checksum, checksum, commit index, first index, number
// of commands, and each with its length before it. A frame without commands asks for a round: it is answered without a sync.
//
//	length uint32 | crc uint32 | commit uint64 | first uint64 | round uint64 | count uint32 | (length uint32 | command)*
const (
	prefixSize = 8
	headerSize = prefixSize + 28
)

// An answer carries the index up to which the follower's log is durable, and the last round that it has seen.
const answerSize = 16

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// server is one of the cluster.
type server struct {
	worker.Counter
	id       int
	log      *logFile
	listener net.Listener
	conns    []net.Conn // leader: to the followers; follower: from the leader

	mu      sync.Mutex
	wake    chan struct{} // capacity 1: there is something to replicate
	waiting []*request
	readers []*request
	free    []*request
	closed  bool
	err     error // why
	stopped sync.WaitGroup

	// The leader's progress, under mu.
	batches []*request // replicated, not committed, in the order of the log
	last    uint64     // index of the last command
	durable []uint64   // by server
	rounds  []uint64
	sorted  []uint64 // of acknowledged, to be used again
	commit  uint64
	round   uint64
	reading []*request // in the order of their rounds
}

type request struct {
	cmd   []byte
	round uint64
	done  chan error // capacity 1
}

func start(o worker.Options) (*server, error) {
	log, err := createLog(filepath.Join(o.Dir, "log"))
	if err != nil {
		return nil, err
	}
	n := len(o.Addresses)
	s := &server{id: o.ID, log: log, wake: make(chan struct{}, 1), durable: make([]uint64, n), rounds: make([]uint64, n)}
	if s.id != 0 {
		if s.listener, err = net.Listen("tcp", o.Addresses[s.id]); err != nil {
			return nil, err
		}
		s.stopped.Go(s.follow)
		return s, nil
	}
	s.stopped.Go(func() { s.lead(o.Addresses[1:]) })
	return s, nil
}

func (s *server) IsLeader() bool { return s.id == 0 }

func (s *server) Transfer(context.Context, int) error { return worker.ErrNotSupported }

func (s *server) Propose(_ context.Context, cmd []byte) error { return s.ask(&s.waiting, cmd) }

func (s *server) Read(context.Context) error { return s.ask(&s.readers, nil) }

func (s *server) ask(queue *[]*request, cmd []byte) error {
	s.mu.Lock()
	if s.closed {
		defer s.mu.Unlock()
		return s.err
	}
	var r *request
	if n := len(s.free); n > 0 {
		r, s.free = s.free[n-1], s.free[:n-1]
	} else {
		r = &request{done: make(chan error, 1)}
	}
	r.cmd = cmd
	*queue = append(*queue, r)
	s.mu.Unlock()
	s.ring()
	err := <-r.done
	s.mu.Lock()
	s.free = append(s.free, r)
	s.mu.Unlock()
	return err
}

// ring wakes the leader.
func (s *server) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// lead connects to the followers and replicates until Close.
func (s *server) lead(addresses []string) {
	for i, a := range addresses {
		c, err := dial(a)
		if err != nil {
			s.fail(err)
			return
		}
		if !s.keep(c) {
			return
		}
		s.stopped.Go(func() { s.receive(c, i+1) })
	}
	var frame []byte
	for range s.wake {
		var ok bool
		if frame, ok = s.collect(frame[:0]); !ok {
			return
		}
		if len(frame) == 0 {
			continue
		}
		for _, c := range s.conns {
			if _, err := c.Write(frame); err != nil {
				s.fail(err)
				return
			}
		}
		if _, _, count := parse(frame); count == 0 {
			continue
		}
		if err := s.log.append(frame); err != nil {
			s.fail(err)
			return
		}
		s.acknowledged(0, s.lastSent(), 0)
	}
}

// keep notes a connection, so that Close ends it. It reports false if the server is closed.
func (s *server) keep(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return false
	}
	s.conns = append(s.conns, c)
	return true
}

func dial(address string) (net.Conn, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil || time.Now().After(deadline) {
			return c, err
		}
	}
}

// maxBatch bounds a frame, as a log on disk does.
const maxBatch = 8 << 20

// collect frames all that waits. It reports false if the server is closed.
func (s *server) collect(frame []byte) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	n, size := 0, 0
	for n < len(s.waiting) && (n == 0 || size+len(s.waiting[n].cmd) <= maxBatch) {
		size += len(s.waiting[n].cmd)
		n++
	}
	// One round at a time: all that come meanwhile share the next one. A round for every few of them costs several times as much.
	round := len(s.readers) > 0 && len(s.reading) == 0
	if n == 0 && !round {
		return frame, true
	}
	if round {
		s.round++
		for _, r := range s.readers {
			r.round = s.round
		}
		s.reading = append(s.reading, s.readers...)
		s.readers = s.readers[:0]
	}
	frame = slices.Grow(frame, headerSize+size+4*n)[:headerSize]
	binary.LittleEndian.PutUint64(frame[8:], s.commit)
	binary.LittleEndian.PutUint64(frame[16:], s.last+1)
	binary.LittleEndian.PutUint64(frame[24:], s.round)
	binary.LittleEndian.PutUint32(frame[32:], uint32(n))
	for _, r := range s.waiting[:n] {
		frame = binary.LittleEndian.AppendUint32(frame, uint32(len(r.cmd)))
		frame = append(frame, r.cmd...)
	}
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-prefixSize))
	binary.LittleEndian.PutUint32(frame[4:], crc32.Checksum(frame[prefixSize:], castagnoli))
	s.batches = append(s.batches, s.waiting[:n]...)
	s.last += uint64(n)
	if n == len(s.waiting) {
		s.waiting = s.waiting[:0]
	} else { // what did not fit
		s.waiting = append(s.waiting[:0], s.waiting[n:]...)
		s.ring()
	}
	return frame, true
}

func (s *server) lastSent() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// receive reads a follower's answers.
func (s *server) receive(c net.Conn, from int) {
	var b [answerSize]byte
	for {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			s.fail(err)
			return
		}
		s.acknowledged(from, binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:]))
	}
}

// acknowledged commits what a majority has on disk, and answers the reads whose round a majority has seen.
func (s *server) acknowledged(from int, durable, round uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.durable[from], s.rounds[from] = max(s.durable[from], durable), max(s.rounds[from], round)
	majority := s.majority(s.durable)
	n := 0
	for s.commit < majority {
		s.commit++
		r := s.batches[n]
		n++
		s.Add(r.cmd)
		r.done <- nil
	}
	s.batches = append(s.batches[:0], s.batches[n:]...)
	s.rounds[0] = s.round // the leader's own
	seen, n := s.majority(s.rounds), 0
	for n < len(s.reading) && s.reading[n].round <= seen {
		s.reading[n].done <- nil
		n++
	}
	if n > 0 {
		s.reading = append(s.reading[:0], s.reading[n:]...)
		s.ring() // for those that wait for the next round
	}
}

// majority returns what more than half of the servers have reached.
func (s *server) majority(by []uint64) uint64 {
	s.sorted = append(s.sorted[:0], by...)
	slices.Sort(s.sorted)
	return s.sorted[(len(s.sorted)-1)/2]
}

// follow stores what the leader sends.
func (s *server) follow() {
	c, err := s.listener.Accept()
	if err != nil {
		s.fail(err)
		return
	}
	if !s.keep(c) {
		return
	}
	if err := s.store(c); err != nil {
		s.fail(err)
	}
}

// store writes all frames that have arrived by one write, syncs once and answers once.
func (s *server) store(c net.Conn) error {
	buf := make([]byte, 0, 1<<20)
	var answer [answerSize]byte
	for {
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, cap(buf))
		}
		n, err := c.Read(buf[len(buf):cap(buf)])
		if err == io.EOF { // the leader was closed
			return nil
		}
		if err != nil {
			return err
		}
		buf = buf[:len(buf)+n]
		whole, commands := 0, 0
		for {
			frame := wholeFrame(buf[whole:])
			if frame == nil {
				break
			}
			if crc32.Checksum(frame[prefixSize:], castagnoli) != binary.LittleEndian.Uint32(frame[4:]) {
				return errors.New("checksum of a frame")
			}
			first, round, count := parse(frame)
			if count > 0 && first != s.last+1 {
				return fmt.Errorf("frame begins at %d, want %d", first, s.last+1)
			}
			whole += len(frame)
			commands += count
			s.last += uint64(count)
			s.round = round
		}
		if whole == 0 {
			continue
		}
		if commands > 0 {
			if err := s.log.append(buf[:whole]); err != nil {
				return err
			}
		}
		binary.LittleEndian.PutUint64(answer[:], s.last)
		binary.LittleEndian.PutUint64(answer[8:], s.round)
		if _, err := c.Write(answer[:]); err != nil {
			return err
		}
		if commands > 0 {
			s.apply(buf[:whole])
		}
		buf = append(buf[:0], buf[whole:]...)
	}
}

// apply does not wait for the commit index: no leader is ever replaced, so what is stored will be committed.
func (s *server) apply(frames []byte) {
	for len(frames) > 0 {
		_, _, count := parse(frames)
		rest := frames[headerSize:]
		for range count {
			n := binary.LittleEndian.Uint32(rest)
			s.Add(rest[4 : 4+n])
			rest = rest[4+n:]
		}
		frames = rest
	}
}

// wholeFrame returns the first frame in b, or nil if it has not arrived yet.
func wholeFrame(b []byte) []byte {
	if len(b) < prefixSize {
		return nil
	}
	n := prefixSize + int(binary.LittleEndian.Uint32(b))
	if len(b) < n {
		return nil
	}
	return b[:n]
}

func parse(frame []byte) (first, round uint64, count int) {
	return binary.LittleEndian.Uint64(frame[16:]), binary.LittleEndian.Uint64(frame[24:]), int(binary.LittleEndian.Uint32(frame[32:]))
}

func (s *server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed, s.err = true, err
	for _, r := range slices.Concat(s.waiting, s.readers, s.batches, s.reading) {
		r.done <- err
	}
	s.waiting, s.readers, s.batches, s.reading = nil, nil, nil, nil // nobody is answered twice
	for _, c := range s.conns {
		c.Close()
	}
}

func (s *server) Close() error {
	s.fail(errClosed)
	if s.listener != nil {
		s.listener.Close()
	}
	s.ring()
	s.stopped.Wait()
	err := s.log.file.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != errClosed {
		err = errors.Join(s.err, err)
	}
	return err
}

var errClosed = errors.New("closed")

// logFile is a file full of zeros that is written in a circle, so that a sync never has metadata to write.
type logFile struct {
	file   *os.File
	offset int64
}

const logSize = 64 << 20

func createLog(path string) (*logFile, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, 1<<20)
	for range logSize / len(zeros) {
		if _, err := f.Write(zeros); err != nil {
			return nil, err
		}
	}
	return &logFile{file: f}, f.Sync()
}

func (l *logFile) append(b []byte) error {
	if l.offset+int64(len(b)) > logSize {
		l.offset = 0
	}
	if _, err := l.file.WriteAt(b, l.offset); err != nil {
		return err
	}
	l.offset += int64(len(b))
	return syscall.Fdatasync(int(l.file.Fd()))
}
