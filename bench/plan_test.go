package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/bench/worker"
)

func planOf(t *testing.T, args ...string) (d *driver, takes time.Duration) {
	o, err := parseFlags(args)
	require.NoError(t, err)
	d = &driver{options: o, libraries: o.libraries, began: time.Now()}
	for _, s := range d.plan() {
		require.NotEmpty(t, s.what)
		require.NotEmpty(t, s.lib)
		require.Positive(t, s.takes, s.what)
		takes += s.takes
	}
	return d, takes
}

func TestPlansFitIntoTheirTime(t *testing.T) {
	_, quick := planOf(t, "-quick")
	require.Less(t, quick, 100*time.Second, "with the building, two minutes")
	_, full := planOf(t)
	t.Log(quick, full)
	require.Less(t, full, 28*time.Minute)
	_, scaled := planOf(t, "-scale", "0.1")
	require.Less(t, scaled, full/2)
}

// What was measured before a step that fails, or before the program is interrupted, is kept; what is missing says why.
func TestAFailingStepLeavesAHoleAndNothingElse(t *testing.T) {
	d, _ := planOf(t, "-libraries=steady", "-out="+t.TempDir())
	d.report = *sampleReport()
	ctx, cancel := context.WithCancel(t.Context())
	ran := ""
	at := func(name string, err error) step {
		return step{lib: ours, what: name, takes: time.Second, run: func(context.Context) error {
			ran += name
			return err
		}}
	}
	last := at("c", nil)
	last.run = func(context.Context) error {
		b, err := os.ReadFile(filepath.Join(d.out, "README.md"))
		require.NoError(t, err, "written before the end")
		require.Contains(t, string(b), "not measured: b (steady): disk on fire")
		cancel()
		return nil
	}
	d.carryOut(ctx, []step{at("a", nil), at("b", errors.New("disk on fire")), last, at("d", nil)})
	require.Equal(t, "ab", ran)
	require.Equal(t, []Missing{{ours, "b", "", "disk on fire"}, {ours, "d", "", "interrupted"}}, d.report.Missing)

	d.report.Missing, d.limit = nil, time.Nanosecond
	d.carryOut(t.Context(), []step{at("e", nil)})
	require.Equal(t, "ab", ran)
	require.Equal(t, []Missing{{ours, "e", "", "the time limit of 1ns was reached before"}}, d.report.Missing)
}

func TestSecondFormsAreMeasuredOnceBeyondTheMainSize(t *testing.T) {
	d, _ := planOf(t, "-kinds=propose")
	count := map[string]int{}
	for _, s := range d.plan() {
		count[s.lib+" "+s.what]++
	}
	require.Equal(t, 3, count["etcd commands of 256 B"])
	require.Equal(t, 1, count["etcd commands of 16 B"])
	require.Equal(t, 3, count["etcd-async commands of 16 B"])
}

func TestCoreBenchmarkIsRead(t *testing.T) {
	found, err := parseCore([]byte(`goos: linux
BenchmarkCommand/steady/one-2         	  171488	      3194 ns/op	    313083 commands/s	    1601 B/op	       9 allocs/op
BenchmarkCommand/etcd/one-of-64   	  647304	       928.6 ns/op	   1076842 commands/s	     735 B/op	       6 allocs/op
BenchmarkCommand/etcd/one-of-64   	  647304	       900 ns/op	   1076842 commands/s	     735 B/op	       6 allocs/op
PASS
`))
	require.NoError(t, err)
	require.Equal(t, []Core{{ours, "one", 0, 3194, 9}, {"etcd", "one-of-64", 0, 928.6, 6}, {"etcd", "one-of-64", 1, 900, 6}}, found)
	_, err = parseCore([]byte("PASS\n"))
	require.ErrorContains(t, err, "no benchmark was run")
	_, err = parseCore([]byte("BenchmarkCommand/steady/two-2 1 3 ns/op 4 allocs/op\n"))
	require.ErrorContains(t, err, "nobody understands")
}

func TestGoalsStandBesideWhatWasMeasured(t *testing.T) {
	r := sampleReport()
	sample := func(p99 time.Duration) worker.Sample { return worker.Sample{P99: p99, Latencies: 1, PerSecond: 10} }
	for i := range 3 {
		p99 := time.Duration(i+1) * time.Millisecond
		r.CatchUps = append(r.CatchUps, CatchUp{Library: ours, How: bySnapshot, SnapshotBytes: 1 << 30, Arrived: 2 * time.Second, All: 3 * time.Second,
			Without: sample(time.Millisecond), During: sample(p99)})
		r.Outages = append(r.Outages, Outage{ours, killed, 100 * p99})
	}
	r.Resets = []Resets{{Library: ours, Resets: 1000, TermBefore: 3, TermAfter: 4, During: sample(1)}}
	r.LongLogs = []LongLog{{Library: ours, Wanted: 1e7, Filled: 1e7, Short: []worker.Sample{{PerSecond: 104, CPU: 10}},
		Long: []worker.Sample{{PerSecond: 100, CPU: 11}}}}
	r.Aways = []Away{{Library: ours, Memory: []AwayMemory{{Memory: worker.Memory{Heap: 100}}, {Memory: worker.Memory{Heap: 200}}}}}
	r.Idle = []Idle{{Library: ours, Leads: true, Memory: worker.Memory{Resident: 10 << 20, Heap: 1 << 20, Goroutines: 18}}}
	r.Missing = []Missing{{"hashicorp", whatSnapshot, "", "no\nsecond line"}, {"etcd", whatSnapshot, "repeat 1 of 2", "no\nsecond line"},
		{"etcd", whatSnapshot, "repeat 2 of 2", "no\nsecond line"}}
	text := r.text(asText)
	for _, row := range []string{
		`256 B, 1 client: throughput of the floor +≥ 0.92 +0.80  NO`,
		`256 B, 1 client: throughput over the best other +≥ 1.2 +2.00 hashicorp \(without etcd-async, dragonboat-tan\)  yes`,
		`256 B, 16 clients: throughput of the floor +≥ 0.88 +not measured  —`,
		`flushes per command +≤ 3 +not measured  —`, // not known is not zero
		`kill -9 of the leader's process: p50 +≤ 15 ms +200 ms of 3  NO`,
		`p99 +≤ 250 ms +300 ms, the most of 3  NO`,
		`over without +≤ 2 +2.00 \(1.00–3.00, 1,024 MiB\)  yes`,
		`time per command at 10⁷ log entries over 10³ +≤ 1.05 +1.04  yes`,
		`processor time per command at 10⁷ log entries over 10³ +≤ 1.05 +1.10  NO`,
		`stated, bounded .* 2.00  NO`,
		`an idle node +stated +leader: 10.0 MiB resident, 1.0 MiB Go heap, 18 goroutines  yes`,
		`leader or term +0 +1, in 1,000 resets; 0 failed proposals  NO`,
		`(?m)^Not measured: .* by snapshot \(hashicorp, etcd 2 times\): no$`,
		`steady +0 +1,024 MiB +2.00 s +512 MiB/s +3.00 s `,
	} {
		require.Regexp(t, row, text)
	}
	r.Quick = true
	require.NotContains(t, r.goals(asText), "not measured  —")
	require.Contains(t, r.goals(asText), "not measured by this quick run")
}

func TestProxyCarriesAndResets(t *testing.T) {
	var p proxy
	require.NoError(t, p.listen())
	server, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer server.Close()
	go p.forward(0, server.Addr().String())
	require.Zero(t, p.reset(true), "there is nothing yet")

	c, err := net.Dial("tcp", p.addresses()[0])
	require.NoError(t, err)
	defer c.Close()
	s, err := server.Accept()
	require.NoError(t, err)
	defer s.Close()
	_, err = c.Write([]byte("ping"))
	require.NoError(t, err)
	b := make([]byte, 4)
	_, err = io.ReadFull(s, b)
	require.NoError(t, err)
	require.Equal(t, "ping", string(b))

	require.Equal(t, 1, p.reset(false))
	for _, end := range []net.Conn{c, s} {
		require.NoError(t, end.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, err := end.Read(b)
		require.ErrorIs(t, err, syscall.ECONNRESET)
	}
	require.Zero(t, p.reset(false))
	p.close()
}
