package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	probeInterval = 10 * time.Millisecond
	probeTimeout  = 2 * time.Second // of one attempt
	probePatience = 5 * time.Second // of one question
	probePause    = 20 * time.Millisecond
)

// prober asks a published port again and again, as a client would that knows several nodes: if one does not answer, it asks the next,
// for some seconds.
type prober struct {
	port   int
	cancel context.CancelFunc
	ended  chan struct{}

	mu    sync.Mutex
	hosts []string
	total score
}

// score is how the questions were answered.
type score struct {
	asked, retried, failed int
	slowest                time.Duration
	lastError              error // of a question that nobody has answered
}

func (s score) String() string {
	return fmt.Sprintf("%d requests, %d failed", s.asked, s.failed)
}

func startProber(port int, hosts ...string) *prober {
	ctx, cancel := context.WithCancel(context.Background())
	p := &prober{port: port, hosts: hosts, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		for turn := 0; ctx.Err() == nil; turn++ {
			p.ask(ctx, turn)
			select {
			case <-ctx.Done():
			case <-time.After(probeInterval):
			}
		}
	}()
	return p
}

func (p *prober) setHosts(hosts []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hosts = slices.Clone(hosts)
}

func (p *prober) urls() (urls []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, host := range p.hosts {
		urls = append(urls, "http://"+net.JoinHostPort(host, strconv.Itoa(p.port)))
	}
	return urls
}

// ask asks one question: one node after the other, beginning with another one each time.
func (p *prober) ask(ctx context.Context, turn int) {
	began := time.Now()
	attempts := 0
	var err error
	for again := true; again; again = err != nil && ctx.Err() == nil && time.Since(began) < probePatience {
		urls := p.urls()
		if len(urls) == 0 {
			return // there is nobody to ask yet
		}
		if attempts > 0 && attempts%len(urls) == 0 { // none of them has answered
			time.Sleep(probePause)
		}
		attempt, cancel := context.WithTimeout(ctx, probeTimeout)
		_, err = get(attempt, urls[(turn+attempts)%len(urls)])
		cancel()
		attempts++
	}
	if ctx.Err() != nil {
		return // cut short, so it says nothing
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total.asked++
	p.total.slowest = max(p.total.slowest, time.Since(began))
	switch {
	case err != nil:
		p.total.failed++
		p.total.lastError = err
	case attempts > 1:
		p.total.retried++
	}
}

func (p *prober) score() score {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

// stop ends the questions and returns the score. It may be called again.
func (p *prober) stop() score {
	p.cancel()
	<-p.ended
	return p.score()
}

// get makes one request over a connection of its own.
func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, response.Status)
	}
	return string(body), err
}
