package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// Resets is what broken connections between living servers cost.
type Resets struct {
	Library    string        `json:"library"`
	Resets     int           `json:"resets"`
	Storms     int           `json:"storms"` // how often all connections were reset at once
	Took       time.Duration `json:"took_ns"`
	TermBefore uint64        `json:"term_before"`
	TermAfter  uint64        `json:"term_after"` // every change of leader raises it
	SameLeader bool          `json:"same_leader"`
	Without    worker.Sample `json:"without"`
	During     worker.Sample `json:"during"`
}

const (
	resetCount   = 1000
	resetEvery   = 20 * time.Millisecond
	resetStorm   = 10 // at every tenth time, all connections at once
	resetClients = 64
)

func (d *driver) resets(ctx context.Context, lib string) (r Resets, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	r = Resets{Library: lib}
	var proxies proxy
	defer proxies.close()
	for range 3 { // before free addresses are looked for: it may not take one of those
		if err := proxies.listen(); err != nil {
			return r, err
		}
	}
	jobs, err := d.trio()
	if err != nil {
		return r, err
	}
	targets := jobs[0].Addresses
	for i := range jobs {
		jobs[i].Listen, jobs[i].Addresses = targets[i], proxies.addresses()
		go proxies.forward(i, targets[i])
	}
	p, err := d.startProcesses(ctx, lib, jobs)
	if err != nil {
		return r, err
	}
	defer p.close()
	load := worker.Point{Kind: worker.Propose, Size: 256, Clients: resetClients, Warmup: d.warmup, Time: 2 * d.time}
	for range 2 { // the first is only to warm up
		if r.Without, err = p.measure(ctx, load); err != nil {
			return r, err
		}
	}
	before, err := p.progress(ctx, p.leader)
	if err != nil {
		return r, err
	}
	load.Warmup, load.Time = 0, 3*time.Minute
	end, err := p.load(load)
	if err != nil {
		return r, err
	}
	want := d.scaled(resetCount)
	began := time.Now()
	for i := 1; r.Resets < want && ctx.Err() == nil && time.Since(began) < 10*time.Duration(want)*resetEvery; i++ {
		time.Sleep(resetEvery)
		n := proxies.reset(i%resetStorm == 0)
		if r.Resets += n; n > 1 {
			r.Storms++
		}
	}
	r.Took = time.Since(began)
	if r.During, err = end(ctx, true); err != nil {
		return r, err
	}
	if r.Resets < want {
		return r, fmt.Errorf("only %d of %d resets within %v: there was no connection to reset", r.Resets, want, r.Took)
	}
	after, err := p.progress(ctx, p.leader)
	if err != nil {
		return r, err
	}
	r.TermBefore, r.TermAfter, r.SameLeader = before.Term, after.Term, after.Leads
	if r.TermBefore == 0 {
		return r, errors.New("the library does not tell its term")
	}
	return r, p.agree(ctx, 1, 2, 3)
}

// proxy stands between servers, so that connections can be reset without either of them.
type proxy struct {
	listeners []net.Listener // none is added once forward was called

	mu     sync.Mutex
	closed bool
	links  map[*link]bool
}

// link is one connection through the proxy.
type link [2]*net.TCPConn

// listen takes an address.
func (p *proxy) listen() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	p.listeners = append(p.listeners, l)
	return nil
}

func (p *proxy) addresses() (out []string) {
	for _, l := range p.listeners {
		out = append(out, l.Addr().String())
	}
	return out
}

// forward carries what comes to an address on to target, until close is called.
func (p *proxy) forward(i int, target string) {
	for {
		in, err := p.listeners[i].Accept()
		if err != nil {
			return
		}
		out, err := net.DialTimeout("tcp", target, time.Second)
		if err != nil {
			in.Close() // the server is not there: whoever dialled sees a connection that ends at once
			continue
		}
		p.carry(&link{in.(*net.TCPConn), out.(*net.TCPConn)})
	}
}

func (p *proxy) carry(k *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		k.close()
		return
	}
	if p.links == nil {
		p.links = map[*link]bool{}
	}
	p.links[k] = true
	for i := range k {
		go func() {
			_, _ = io.Copy(k[i], k[1-i]) // it ends with the connection
			p.mu.Lock()
			delete(p.links, k)
			p.mu.Unlock()
			k.close()
		}()
	}
}

func (k *link) close() {
	for _, c := range k {
		c.Close()
	}
}

// reset breaks one connection, any, or all of them, so that both ends receive a reset. It returns how many those were.
func (p *proxy) reset(all bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	links := slices.Collect(maps.Keys(p.links))
	if !all && len(links) > 1 {
		links = links[:1] // a map's order is random
	}
	for _, k := range links {
		delete(p.links, k)
		for _, c := range k {
			_ = c.SetLinger(0) // closing sends RST instead of FIN
		}
		k.close()
	}
	return len(links)
}

func (p *proxy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, l := range p.listeners {
		l.Close()
	}
	for k := range p.links {
		k.close()
	}
}
