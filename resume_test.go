package raft_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// countedStorage counts the snapshots that are being written.
type countedStorage struct {
	raft.Storage
	mu         sync.Mutex
	open, room int // room: bytes that still fit, if it is not 0
	dropped    int
}

func (s *countedStorage) Snapshots() raft.SnapshotStore {
	return countedSnapshots{s.Storage.Snapshots(), s}
}

// unfinished returns how many snapshots are neither committed nor aborted.
func (s *countedStorage) unfinished() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

type countedSnapshots struct {
	raft.SnapshotStore
	s *countedStorage
}

func (v countedSnapshots) Create(meta raft.SnapshotMeta) (raft.SnapshotSink, error) {
	sink, err := v.SnapshotStore.Create(meta)
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	v.s.open++
	return &countedSink{sink, v.s}, err
}

type countedSink struct {
	raft.SnapshotSink
	s *countedStorage
}

func (k *countedSink) Write(p []byte) (int, error) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if k.s.room != 0 {
		if k.s.room -= len(p); k.s.room <= 0 {
			k.s.room = 1
			return 0, raft.ErrStorageFull
		}
	}
	return k.SnapshotSink.Write(p)
}

func (k *countedSink) Commit() (raft.SnapshotMeta, error) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	k.s.open--
	return k.SnapshotSink.Commit()
}

func (k *countedSink) Abort() error {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	k.s.open--
	k.s.dropped++
	return k.SnapshotSink.Abort()
}

var errCut = errors.New("connection cut")

// stream is a snapshot on its way. It breaks after some bytes.
type stream struct {
	content []byte
	cut     int  // after so many bytes; -1: never
	mute    bool // it breaks before the sender has answered
	read    int  // bytes that it has brought
	began   int64
}

func (s *stream) Resume(have int64, sum [32]byte) (int64, error) {
	if s.mute {
		return 0, errCut
	}
	if have <= int64(len(s.content)) && sha256.Sum256(s.content[:have]) == sum {
		s.began = have
	}
	return s.began, nil
}

func (s *stream) Read(p []byte) (int, error) {
	rest := s.content[min(int(s.began)+s.read, len(s.content)):]
	if s.cut >= 0 {
		rest = rest[:min(len(rest), s.cut-s.read)]
	}
	if len(rest) == 0 {
		if s.cut >= 0 {
			return 0, errCut
		}
		return 0, io.EOF
	}
	n := copy(p, rest)
	s.read += n
	return n, nil
}

// whole hides that a stream can be resumed.
type whole struct{ io.Reader }

// joining is a server that knows nothing, and what sends it snapshots.
type joining struct {
	*cluster
	m       *machine
	storage *countedStorage
	request uint64
}

func whileJoining(t *testing.T, f func(t *testing.T, j *joining)) {
	j := &joining{}
	inCluster(t, 1, func(cfg *raft.Config) {
		if cfg.ID == "n4" {
			j.storage = &countedStorage{Storage: cfg.Storage}
			cfg.Storage = j.storage
		}
	}, func(t *testing.T, c *cluster) {
		j.cluster, j.m = c, c.add("n4")
		f(t, j)
	})
}

func (j *joining) meta(index raft.Index, content []byte) raft.SnapshotMeta {
	return raft.SnapshotMeta{Index: index, Term: 5, ConfigurationIndex: 1, Configuration: j.conf, Size: int64(len(content))}
}

func (j *joining) send(meta raft.SnapshotMeta, r io.Reader) error {
	j.request++
	h := raft.Header{From: "n1", To: "n4", Term: 5, Request: j.request, Replica: 1, Incarnation: 1}
	_, _, err := j.m.node.InstallSnapshot(within(time.Hour), h, raft.InstallSnapshot{Meta: meta}, r)
	return err
}

func journalOf(t *testing.T, word string, n int) (commands []string, content []byte) {
	for i := range n {
		commands = append(commands, fmt.Sprint(word, i))
	}
	content, err := json.Marshal(commands)
	require.NoError(t, err)
	return commands, content
}

// However often a stream breaks, and wherever, no byte is sent twice, and what is installed is what was sent.
func TestSnapshotTransferGoesOnWhereItBroke(t *testing.T) {
	for _, step := range []int{1, 7, 100, 4096, 1 << 20} {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			whileJoining(t, func(t *testing.T, j *joining) {
				want, content := journalOf(t, "command ", 500)
				meta := j.meta(9, content)
				sent := 0
				for cut := step; ; cut += step {
					if cut%3 == 0 {
						require.ErrorIs(t, j.send(meta, &stream{content: content, mute: true}), errCut)
					}
					s := &stream{content: content, cut: step}
					if sent >= len(content)-step {
						s.cut = -1
					}
					err := j.send(meta, s)
					require.EqualValues(t, sent, s.began)
					sent += s.read
					if s.cut < 0 {
						require.NoError(t, err)
						break
					}
					require.ErrorIs(t, err, errCut)
					require.Equal(t, 1, j.storage.unfinished())
				}
				require.Len(t, content, sent)
				j.eventually("its state", func() bool { return len(j.m.sm.all()) > 0 })
				require.Equal(t, want, j.m.sm.all())
				require.Zero(t, j.storage.unfinished())
				require.Zero(t, j.storage.dropped)
			})
		})
	}
}

// What is here counts for nothing if it is of another snapshot, even one at the same index.
func TestPartOfAnotherSnapshotIsDropped(t *testing.T) {
	want, content := journalOf(t, "old", 100)
	_, same := journalOf(t, "new", 100)
	for name, test := range map[string]struct {
		index   raft.Index
		content []byte
		change  func(*raft.SnapshotMeta)
	}{
		"other bytes at the same index": {9, same, nil},
		"a newer one":                   {10, content, nil},
		"another term":                  {9, content, func(m *raft.SnapshotMeta) { m.Term = 4 }},
		"another length":                {9, append(bytes.Clone(content), "\n\n"...), nil},
		"another configuration":         {9, content, func(m *raft.SnapshotMeta) { m.ConfigurationIndex = 2 }},
	} {
		t.Run(name, func(t *testing.T) {
			whileJoining(t, func(t *testing.T, j *joining) {
				require.ErrorIs(t, j.send(j.meta(9, content), &stream{content: content, cut: 100}), errCut)
				meta := j.meta(test.index, test.content)
				if test.change != nil {
					test.change(&meta)
				}
				s := &stream{content: test.content, cut: -1}
				require.NoError(t, j.send(meta, s))
				require.Zero(t, s.began)
				require.Equal(t, len(test.content), s.read)
				require.Equal(t, 1, j.storage.dropped)
				require.Zero(t, j.storage.unfinished())
				j.eventually("its state", func() bool { return len(j.m.sm.all()) > 0 })
				if bytes.Equal(test.content, same) {
					want, _ := journalOf(t, "new", 100)
					require.Equal(t, want, j.m.sm.all())
				} else {
					require.Equal(t, want, j.m.sm.all())
				}
				latest, err := j.storage.Snapshots().Latest()
				require.NoError(t, err)
				require.Equal(t, meta, latest)
			})
		})
	}
}

func TestPartOfASnapshotDoesNotStayForEver(t *testing.T) {
	_, content := journalOf(t, "c", 100)
	for name, drop := range map[string]func(*testing.T, *joining){
		"its sender does not come back": func(t *testing.T, j *joining) {
			time.Sleep(9 * time.Minute)
			require.Equal(t, 1, j.storage.unfinished())
			// An attempt that brings nothing does not prolong its life.
			require.ErrorIs(t, j.send(j.meta(9, content), &stream{content: content, mute: true}), errCut)
			require.Equal(t, 1, j.storage.unfinished())
			time.Sleep(2 * time.Minute)
		},
		"the node stops": func(t *testing.T, j *joining) { require.NoError(t, j.m.node.Stop(context.Background())) },
		"another transport": func(t *testing.T, j *joining) {
			s := &stream{content: content, cut: -1}
			require.NoError(t, j.send(j.meta(9, content), whole{s}))
			require.Len(t, content, s.read)
		},
	} {
		t.Run(name, func(t *testing.T) {
			whileJoining(t, func(t *testing.T, j *joining) {
				require.ErrorIs(t, j.send(j.meta(9, content), &stream{content: content, cut: 100}), errCut)
				require.Equal(t, 1, j.storage.unfinished())
				drop(t, j)
				require.Zero(t, j.storage.unfinished())
			})
		})
	}
}

// Over a transport that sends everything again, nothing is kept.
func TestPartOfAWholeTransferIsNotKept(t *testing.T) {
	whileJoining(t, func(t *testing.T, j *joining) {
		_, content := journalOf(t, "c", 100)
		require.ErrorIs(t, j.send(j.meta(9, content), whole{&stream{content: content, cut: 100}}), errCut)
		require.Zero(t, j.storage.unfinished())
	})
}

// A server that has caught up by entries needs no rest of a snapshot.
func TestPartOfASnapshotIsDroppedForOneOfItsOwn(t *testing.T) {
	var storage *countedStorage
	inCluster(t, 1, func(cfg *raft.Config) {
		storage = &countedStorage{Storage: cfg.Storage}
		cfg.Storage = storage
	}, func(t *testing.T, c *cluster) {
		j := &joining{cluster: c, m: c.leader()}
		_, content := journalOf(t, "c", 100)
		meta := j.meta(j.m.node.Status().CommitIndex+5, content)
		h := raft.Header{From: "x", To: j.m.id, Term: j.m.node.Leadership().Term, Request: 1, Replica: 1, Incarnation: 1}
		meta.Term = h.Term
		_, _, err := j.m.node.InstallSnapshot(within(time.Minute), h, raft.InstallSnapshot{Meta: meta}, &stream{content: content, cut: 10})
		require.ErrorIs(t, err, errCut)
		for i := range 5 {
			_, err := j.m.node.Snapshot(t.Context())
			if i > 0 {
				require.NoError(t, err)
			}
			require.Equal(t, 1, storage.unfinished())
			c.propose(j.m, fmt.Sprint(i))
		}
		_, err = j.m.node.Snapshot(t.Context())
		require.NoError(t, err)
		require.Zero(t, storage.unfinished())
	})
}

// After a restart the content begins anew, and what the process before has left behind is not taken for a snapshot.
func TestSnapshotTransferBeginsAnewAfterARestart(t *testing.T) {
	whileJoining(t, func(t *testing.T, j *joining) {
		want, content := journalOf(t, "c", 100)
		require.ErrorIs(t, j.send(j.meta(9, content), &stream{content: content, cut: 100}), errCut)
		j.crash(j.m)
		j.start(j.m)
		s := &stream{content: content, cut: -1}
		require.NoError(t, j.send(j.meta(9, content), s))
		require.Zero(t, s.began)
		j.eventually("its state", func() bool { return len(j.m.sm.all()) > 0 })
		require.Equal(t, want, j.m.sm.all())
	})
}

// What did not fit is not kept: it would occupy the space that is missing.
func TestPartThatFillsTheDiskIsDropped(t *testing.T) {
	whileJoining(t, func(t *testing.T, j *joining) {
		want, content := journalOf(t, "c", 100)
		require.ErrorIs(t, j.send(j.meta(9, content), &stream{content: content, cut: 100}), errCut)
		j.storage.mu.Lock()
		j.storage.room = 50
		j.storage.mu.Unlock()
		require.ErrorIs(t, j.send(j.meta(9, content), &stream{content: content, cut: -1}), raft.ErrStorageFull)
		require.Zero(t, j.storage.unfinished())
		j.storage.mu.Lock()
		j.storage.room = 0
		j.storage.mu.Unlock()
		s := &stream{content: content, cut: -1}
		require.NoError(t, j.send(j.meta(9, content), s))
		require.Zero(t, s.began)
		j.eventually("its state", func() bool { return len(j.m.sm.all()) > 0 })
		require.Equal(t, want, j.m.sm.all())
	})
}

// Both parts together must be as long as was announced.
func TestResumedSnapshotOfAnotherLengthIsRefused(t *testing.T) {
	_, content := journalOf(t, "c", 100)
	for name, rest := range map[string][]byte{"shorter": content[:len(content)-1], "longer": append(bytes.Clone(content), ' ')} {
		t.Run(name, func(t *testing.T) {
			whileJoining(t, func(t *testing.T, j *joining) {
				require.ErrorIs(t, j.send(j.meta(9, content), &stream{content: content, cut: 100}), errCut)
				s := &stream{content: rest, cut: -1}
				require.ErrorContains(t, j.send(j.meta(9, content), s), "announced")
				require.EqualValues(t, 100, s.began)
				require.Zero(t, j.storage.unfinished())
				latest, err := j.storage.Snapshots().Latest()
				require.NoError(t, err)
				require.Zero(t, latest.Index)
			})
		})
	}
}
