package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// transport carries messages over one connection to each peer. A frame is a length of four bytes and a message.
type transport struct {
	self     uint64
	receive  func(*raftpb.Message)
	listener net.Listener
	peers    []*peer // by ID - 1; nil: this server

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

type peer struct {
	t       *transport
	address string
	wake    chan struct{}

	mu      sync.Mutex
	waiting []*raftpb.Message
}

// maxWaiting bounds what waits for a peer that does not answer. The library sends again what is dropped.
const maxWaiting = 4096

func listen(id int, addresses []string, receive func(*raftpb.Message)) (*transport, error) {
	l, err := net.Listen("tcp", addresses[id])
	if err != nil {
		return nil, err
	}
	t := &transport{self: uint64(id + 1), receive: receive, listener: l, conns: map[net.Conn]bool{}}
	for i, a := range addresses {
		if i == id {
			t.peers = append(t.peers, nil)
			continue
		}
		t.peers = append(t.peers, &peer{t: t, address: a, wake: make(chan struct{}, 1)})
	}
	return t, nil
}

// start is called once the receiver is ready.
func (t *transport) start() {
	go t.accept()
	for _, p := range t.peers {
		if p != nil {
			go p.write()
		}
	}
}

func (t *transport) send(ms []*raftpb.Message) {
	for _, m := range ms {
		if m.GetType() == raftpb.MsgSnap {
			fatal(errors.New("a follower needs a snapshot: too much was dropped from memory"))
		}
		p := t.peers[m.GetTo()-1]
		p.mu.Lock()
		if len(p.waiting) < maxWaiting {
			p.waiting = append(p.waiting, m)
		}
		p.mu.Unlock()
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// write sends all that waits by one write. After an error it connects anew; what was being sent is lost, as on any network.
func (p *peer) write() {
	var conn net.Conn
	var buf []byte
	var ms []*raftpb.Message
	for range p.wake {
		if p.t.isClosed() {
			return
		}
		p.mu.Lock()
		ms, p.waiting = p.waiting, ms[:0]
		p.mu.Unlock()
		buf = buf[:0]
		for i, m := range ms {
			start := len(buf)
			buf = append(buf, 0, 0, 0, 0)
			var err error
			if buf, err = (proto.MarshalOptions{}).MarshalAppend(buf, m); err != nil {
				fatal(err)
			}
			binary.LittleEndian.PutUint32(buf[start:], uint32(len(buf)-start-4))
			ms[i] = nil
		}
		if conn == nil {
			c, err := net.DialTimeout("tcp", p.address, time.Second)
			if err != nil {
				continue // the library sends again
			}
			if !p.t.keep(c) {
				return
			}
			conn = c
		}
		if _, err := conn.Write(buf); err != nil {
			p.t.drop(conn)
			conn = nil
		}
	}
}

func (t *transport) accept() {
	for {
		c, err := t.listener.Accept()
		if err != nil || !t.keep(c) {
			return
		}
		go t.read(c)
	}
}

func (t *transport) read(c net.Conn) {
	defer t.drop(c)
	r := bufio.NewReaderSize(c, 1<<20)
	var length [4]byte
	var buf []byte
	for {
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return
		}
		n := int(binary.LittleEndian.Uint32(length[:]))
		if cap(buf) < n {
			buf = make([]byte, n)
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return
		}
		m := &raftpb.Message{}
		if err := proto.Unmarshal(buf[:n], m); err != nil {
			fatal(err)
		}
		t.receive(m)
	}
}

// keep registers a connection, so that close ends it. It reports false if close was called.
func (t *transport) keep(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		c.Close()
		return false
	}
	t.conns[c] = true
	return true
}

func (t *transport) drop(c net.Conn) {
	c.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

func (t *transport) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

func (t *transport) close() {
	t.mu.Lock()
	t.closed = true
	for c := range t.conns {
		c.Close()
	}
	t.mu.Unlock()
	t.listener.Close()
	for _, p := range t.peers {
		if p == nil {
			continue
		}
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}
