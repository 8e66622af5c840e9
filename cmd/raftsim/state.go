package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/steadyraft/raft/raftsim"
)

// state is what a run has done so far: the seeds from the first one up to Next, without a gap. It is kept in a file, so that a run
// that was interrupted, or killed, goes on where it was.
type state struct {
	Options   string           `json:"options"` // the seeds were simulated with these; others would make another sum
	Next      uint64           `json:"next_seed"`
	Seeds     uint64           `json:"seeds"`
	Events    uint64           `json:"events"`
	Calls     uint64           `json:"calls"`
	Simulated time.Duration    `json:"simulated_ns"`
	Took      time.Duration    `json:"took_ns"`
	Coverage  raftsim.Coverage `json:"coverage"`
	Failures  []failure        `json:"failures,omitempty"`

	waiting map[uint64]raftsim.Result // finished before one with a lower number
}

type failure struct {
	Seed  uint64 `json:"seed"`
	Error string `json:"error"`
}

// add counts a seed as soon as all before it are counted.
func (s *state) add(r raftsim.Result) {
	s.waiting[r.Seed] = r
	for {
		r, ok := s.waiting[s.Next]
		if !ok {
			return
		}
		delete(s.waiting, s.Next)
		s.Next++
		s.Seeds++
		s.Events += r.Events
		s.Calls += uint64(r.Calls)
		s.Simulated += r.Simulated
		for name, n := range r.Coverage {
			s.Coverage[name] += n
		}
		if r.Err != nil {
			s.Failures = append(s.Failures, failure{r.Seed, r.Err.Error()})
		}
	}
}

func (s *state) report() *raftsim.Report {
	r := &raftsim.Report{Seeds: s.Seeds, Events: s.Events, Calls: s.Calls, Simulated: s.Simulated, Took: s.Took, Coverage: s.Coverage}
	for _, f := range s.Failures {
		r.Failures = append(r.Failures, raftsim.Result{Seed: f.Seed, Err: errors.New(f.Error)})
	}
	return r
}

// described is what of the options decides about a seed.
func (r *run) described() string {
	return fmt.Sprintf("servers %d to %d, faulty %d, faults %q", r.opts.MinServers, r.opts.MaxServers, r.opts.MaxFaulty, r.faults)
}

// load reads the file, if there is one.
func (r *run) load() (*state, error) {
	s := &state{Options: r.described(), Next: r.opts.FirstSeed, Coverage: raftsim.Coverage{}, waiting: map[uint64]raftsim.Result{}}
	if r.resume == "" {
		return s, nil
	}
	b, err := os.ReadFile(r.resume)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err != nil:
		return nil, fmt.Errorf("read what was done so far: %w", err)
	}
	s = &state{waiting: s.waiting}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s does not say what was done so far: %w; take another file", r.resume, err)
	}
	if s.Next == 0 || s.Coverage == nil {
		return nil, fmt.Errorf("%s does not say what was done so far: no next seed or no coverage; take another file", r.resume)
	}
	if s.Options != r.described() {
		return nil, fmt.Errorf("%s belongs to a run with %s, this one has %s: give the same flags, or take another file", r.resume, s.Options, r.described())
	}
	return s, nil
}

// save replaces the file at once or not at all.
func (r *run) save(s *state) error {
	if r.resume == "" {
		return nil
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("remember what was done so far: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(r.resume), filepath.Base(r.resume)+".*")
	if err != nil {
		return fmt.Errorf("remember what was done so far: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), r.resume)
	}
	if err != nil {
		return fmt.Errorf("remember what was done so far: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
