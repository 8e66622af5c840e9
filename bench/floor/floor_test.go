package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/bench/worker"
)

func startThree(t *testing.T) []*server {
	var addresses []string
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
		l.Close()
	}
	var out []*server
	for i := range 3 {
		s, err := start(worker.Options{ID: i, Addresses: addresses, Dir: t.TempDir()})
		require.NoError(t, err)
		out = append(out, s)
	}
	t.Cleanup(func() {
		for _, s := range out {
			s.Close()
		}
	})
	return out
}

// The floor would be no bound if it did less than replicate: every answered command is in the logs of two servers at least, in one
// order, whole.
func TestAnsweredCommandsAreInTheLogsOfAMajority(t *testing.T) {
	servers := startThree(t)
	const clients, each = 20, 50
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				cmd := fmt.Appendf(nil, "client %d command %d", c, i)
				if err := servers[0].Propose(context.Background(), cmd); err != nil {
					t.Error(err)
				}
				copy(cmd, "xxxxxxxxxxxxxxxxxxxx") // the buffer is the client's again
				if err := servers[0].Read(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	holds := map[string]int{}
	var orders [][]string
	for _, s := range servers {
		commands := readLog(t, s.log.file.Name())
		orders = append(orders, commands)
		for _, c := range commands {
			holds[c]++
		}
	}
	require.Len(t, holds, clients*each)
	for c, n := range holds {
		require.GreaterOrEqual(t, n, 2, c)
	}
	for _, o := range orders { // one is a prefix of the other
		n := min(len(o), len(orders[0]))
		require.Equal(t, orders[0][:n], o[:n])
	}
	require.EqualValues(t, clients*each, servers[0].count())
}

func (s *server) count() uint64 {
	n, _ := s.Applied()
	return n
}

// readLog reads what is in a log before it goes round.
func readLog(t *testing.T, path string) (out []string) {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	for binary.LittleEndian.Uint32(b) > 0 {
		frame := wholeFrame(b)
		require.Equal(t, binary.LittleEndian.Uint32(frame[4:]), crc32.Checksum(frame[prefixSize:], castagnoli))
		first, _, count := parse(frame)
		require.EqualValues(t, len(out)+1, first)
		rest := frame[headerSize:]
		for range count {
			n := binary.LittleEndian.Uint32(rest)
			out = append(out, string(rest[4:4+n]))
			rest = rest[4+n:]
		}
		require.Empty(t, rest)
		b = b[len(frame):]
	}
	return out
}

func TestDeadFollowersFailProposals(t *testing.T) {
	servers := startThree(t)
	require.NoError(t, servers[0].Propose(t.Context(), []byte("before")))
	require.NoError(t, servers[1].Close())
	require.NoError(t, servers[2].Close())
	for range 3 { // at once or when it is noticed, but never an answer
		require.Error(t, servers[0].Propose(t.Context(), []byte("after")))
	}
	require.Error(t, servers[0].Close(), "it did not end well")
}

func TestTheLogGoesRound(t *testing.T) {
	l, err := createLog(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer l.file.Close()
	big := make([]byte, logSize-10)
	require.NoError(t, l.append(big))
	require.NoError(t, l.append([]byte("from the beginning")))
	b := make([]byte, 18)
	_, err = l.file.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, "from the beginning", string(b))
	info, err := l.file.Stat()
	require.NoError(t, err)
	require.EqualValues(t, logSize, info.Size(), "it does not grow")
}
