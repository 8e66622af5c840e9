//go:build unix

package wal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// killVariable holds the directory and the seed of a writer process; unset in all others.
const killVariable = "WAL_KILL_TEST"

// What a writer says. A report of a batch is 21 bytes long: the letter, and of the log's last entry index, term and checksum.
const (
	killBegins = 'b' // a step begins
	killDone   = 'd' // it has succeeded
)

// modelOf reads a log.
func modelOf(w *WAL, rec *raft.Recovered) (model, error) {
	m := model{hardState: rec.HardState, base: rec.Compacted.Index, start: rec.Compacted.Index, fence: rec.Fence}
	for at := rec.Compacted.Index + 1; at <= rec.LastIndex; {
		es, err := w.Entries(at, rec.LastIndex+1, 1<<20)
		if err != nil {
			return m, err
		}
		for i := range es {
			m.entries = append(m.entries, es[i].Clone())
		}
		at += raft.Index(len(es))
	}
	return m, nil
}

// killStep is a writer's next step: both the writer and the test draw it, from the same seed and the same model.
func killStep(rnd *rand.Rand, m model) step {
	switch n := rnd.IntN(20); {
	case n == 0:
		return step{prepare: true}
	case n < 3:
		return step{idle: true}
	case n == 3:
		return step{reopen: true}
	case n == 4 && len(m.entries) > 20:
		return step{compact: m.last() - 10}
	}
	b := randomBatch(rnd, m)
	return step{batch: &b}
}

func (s *step) after(m model) model {
	switch {
	case s.batch != nil:
		return m.after(*s.batch)
	case s.compact != 0:
		m.base = max(m.base, s.compact)
	}
	return m
}

func (m model) report(kind byte) []byte {
	b := make([]byte, 1, 21)
	b[0] = kind
	b = binary.LittleEndian.AppendUint64(b, uint64(m.last()))
	if n := len(m.entries); n > 0 {
		b = binary.LittleEndian.AppendUint64(b, uint64(m.entries[n-1].Term))
		return binary.LittleEndian.AppendUint32(b, checksum(m.entries[n-1].Frame()))
	}
	return append(b, make([]byte, 12)...)
}

// writeUntilKilled is the writer process: it never ends by itself.
func writeUntilKilled(dir string, seed uint64, out io.Writer) error {
	w := New(dir, Options{MinSegmentBytes: 16 << 10, MaxSegmentBytes: 64 << 10})
	rec, err := w.Open(ctx, identity)
	if err != nil {
		return err
	}
	m, err := modelOf(w, &rec)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(seed, 3))
	for {
		s := killStep(rnd, m)
		if _, err := out.Write(m.report(killBegins)); err != nil {
			return err
		}
		switch {
		case s.batch != nil:
			err = w.Write(*s.batch)
		case s.compact != 0:
			err = w.Compact(s.compact)
		case s.idle:
			err = w.Idle()
		case s.prepare:
			for more := true; more && err == nil; {
				more, err = w.Prepare()
			}
		case s.reopen:
			if err = w.Close(); err == nil {
				_, err = w.Open(ctx, identity)
			}
		}
		if err != nil {
			return err
		}
		m = s.after(m)
		if _, err := out.Write(m.report(killDone)); err != nil {
			return err
		}
	}
}

// TestKilledWriterLosesNothing kills a process that writes to a log, again and again, at random moments, with SIGKILL. What it had
// reported as done is there, and what was under way is there as a whole or not at all. The operating system lives on, so that this
// shows the order of writes and the files' names, not that anything was synced. SAFETY inv 2, 3
func TestKilledWriterLosesNothing(t *testing.T) {
	if what := os.Getenv(killVariable); what != "" {
		seed, dir, _ := strings.Cut(what, " ")
		n, err := strconv.ParseUint(seed, 10, 64)
		require.NoError(t, err)
		// An end by itself is an error: the test is the one that ends it.
		fmt.Fprintln(os.Stderr, writeUntilKilled(dir, n, os.NewFile(3, "reports")))
		os.Exit(1)
	}
	self, err := os.Executable()
	if err != nil {
		t.Skip("this system does not say which program runs: ", err)
	}
	cycles := 1000
	if !*proof {
		cycles = 30
	}
	dir := t.TempDir()
	var m model
	steps, batches, mid, early := 0, 0, 0, 0
	for cycle := range uint64(cycles) {
		rnd := rand.New(rand.NewPCG(cycle, 4))
		reports, stderr, err := killOne(self, dir, cycle, time.Duration(rnd.Int64N(int64(20*time.Millisecond))), rnd.IntN(8))
		require.NoError(t, err, "cycle %d: %s", cycle, stderr)

		// The same steps, as far as the writer got.
		acked, doubt := m, m
		steps1 := rand.New(rand.NewPCG(cycle, 3))
		done := true
		for i, r := range reports {
			switch r[0] {
			case killBegins:
				require.True(t, done, "cycle %d, report %d", cycle, i)
				s := killStep(steps1, acked)
				doubt, done = s.after(acked), false
				steps++
				if s.batch != nil {
					batches++
				}
				require.Equal(t, acked.report(killBegins), r, "cycle %d, report %d", cycle, i)
			default:
				acked, done = doubt, true
				require.Equal(t, acked.report(killDone), r, "cycle %d, report %d", cycle, i)
			}
		}
		if len(reports) == 0 {
			early++
		} else if !done {
			mid++
		}

		w := New(dir, Options{MinSegmentBytes: 16 << 10, MaxSegmentBytes: 64 << 10})
		rec, err := w.Open(ctx, identity)
		require.NoError(t, err, "cycle %d", cycle)
		acked.base = max(acked.base, doubt.base) // a compaction may have happened
		if err := acked.check(w, &rec); err != nil {
			require.NoError(t, doubt.check(w, &rec), "cycle %d: neither what was acknowledged (%v) nor the step under way", cycle, err)
		}
		m, err = modelOf(w, &rec)
		require.NoError(t, err)
		require.NoError(t, w.Close())
	}
	t.Logf("%d writers killed, %d of them in the middle of a step, %d before the first; %d steps begun, %d of them batches, up to entry %d",
		cycles, mid, early, steps, batches, m.last())
	require.NotZero(t, mid)
	require.NotZero(t, batches)
}

// killOne starts a writer, kills it that long after its n-th report, or after its start if n is 0, and returns what it reported.
func killOne(self, dir string, seed uint64, delay time.Duration, n int) (reports [][]byte, stderr string, err error) {
	r, out, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	var errText strings.Builder
	cmd := exec.Command(self, "-test.run=^TestKilledWriterLosesNothing$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", killVariable, seed, dir))
	cmd.ExtraFiles = []*os.File{out}
	cmd.Stderr = &errText
	err = cmd.Start()
	err = errors.Join(err, out.Close())
	if err != nil {
		return nil, "", errors.Join(err, r.Close())
	}
	kill := func() { _ = cmd.Process.Kill() } // it may have ended by itself; Wait says so
	var timer *time.Timer
	if n == 0 {
		timer = time.AfterFunc(delay, kill)
	}
	in := bufio.NewReader(r)
	for {
		b := make([]byte, 21)
		if _, err = io.ReadFull(in, b); err != nil {
			break // the end, perhaps in the middle of a report
		}
		if reports = append(reports, b); len(reports) == n {
			timer = time.AfterFunc(delay, kill)
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	if timer == nil {
		kill() // it ended before its n-th report; Wait says how
	}
	var exit *exec.ExitError
	waitErr := cmd.Wait()
	if !errors.As(waitErr, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		err = errors.Join(err, fmt.Errorf("the writer ended otherwise: %w", waitErr))
	}
	if timer != nil {
		timer.Stop()
	}
	return reports, errText.String(), errors.Join(err, r.Close())
}
