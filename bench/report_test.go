package main

import (
	"encoding/json"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/bench/worker"
)

func TestSpread(t *testing.T) {
	require.Equal(t, spread{}, spreadOf([]float64{}))
	require.Equal(t, spread{3, 1, 2, 9}, spreadOf([]float64{9, 1, 2}))
	require.Equal(t, spread{4, 1, 2.5, 9}, spreadOf([]float64{9, 1, 2, 3}))
	values := []time.Duration{3, 1}
	spreadOf(values)
	require.Equal(t, []time.Duration{3, 1}, values, "the caller's order stays")
}

// The machine was half as fast in the second repeat, for all: the ratio must not change.
func TestRatiosAreTakenWithinARepeat(t *testing.T) {
	require.Equal(t, spread{2, 2, 2, 2}, ratio(map[int]float64{0: 200, 1: 100, 2: 77}, map[int]float64{0: 100, 1: 50}))
	require.Zero(t, ratio(map[int]float64{0: 1}, map[int]float64{1: 1, 0: 0}))
}

func TestBestIsStable(t *testing.T) {
	require.Equal(t, "", best(nil))
	require.Equal(t, "b", best(map[string]float64{"a": 1, "b": 3, "c": 2}))
	for range 20 {
		require.Equal(t, "a", best(map[string]float64{"a": 3, "b": 3, "c": 3}))
	}
}

// sampleReport is two repeats of three libraries with two numbers of clients.
func sampleReport() *Report {
	r := &Report{Machine: Machine{Processor: "P", Processors: 2}, Servers: []int{3}, Repeats: 2, Time: time.Second, Scale: 1}
	for _, n := range []string{floor, ours, "hashicorp"} {
		r.about(worker.About{Name: n, Modules: []string{n + " v1"}, Notes: "as is"})
		r.about(worker.About{Name: n})
	}
	add := func(lib string, repeat, clients int, rate float64) {
		r.Samples = append(r.Samples, worker.Sample{
			Point: worker.Point{Kind: worker.Propose, Size: 256, Clients: clients}, Library: lib, Repeat: repeat, Servers: 3, PerSecond: rate, Latencies: 1,
			P50: time.Millisecond, P99: 20 * time.Millisecond, P999: 3 * time.Second, CPU: 10, Allocations: 0.5, Flushes: -1, WrittenBytes: 12345,
		})
	}
	for repeat, speed := range []float64{1, 0.5} {
		for _, clients := range []int{1, 1024} {
			add(floor, repeat, clients, 10000*speed)
			add(ours, repeat, clients, 8000*speed)
			add("hashicorp", repeat, clients, 4000*speed)
		}
	}
	return r
}

func TestTableShowsRatios(t *testing.T) {
	r := sampleReport()
	r.Samples[3].Others = 0.5 // the first repeat of ours with 1,024 clients is now suspect
	require.Equal(t, floor, r.Samples[3].Library)
	text := r.text(asText)
	require.Regexp(t, `commands of 256 B, 1 client +6,000 +0.80 +2.00  hashicorp`, text)
	require.Contains(t, text, "10,000")
	require.Contains(t, text, "7,500 †", "the floor under other load")
	require.NotContains(t, text, "6,000 †")
	require.Contains(t, text, "4,000–8,000")
	require.Contains(t, text, "—", "flushes that are not known are not zero")
	require.Contains(t, text, "20 ms")
	require.Contains(t, text, "hashicorp v1; as is")

	md := r.text(asMarkdown)
	for line := range strings.Lines(md) {
		if strings.HasPrefix(line, "| 1,024") {
			require.Equal(t, 13, strings.Count(line, "|"), line)
		}
	}
}

// A measurement that failed must leave a hole that can be seen.
func TestMissingMeasurementsAreShown(t *testing.T) {
	r := sampleReport()
	var kept []worker.Sample
	for _, s := range r.Samples {
		if s.Library != "hashicorp" || s.Clients == 1 {
			kept = append(kept, s)
		}
	}
	r.Samples = kept
	r.Samples[0].Failures = 3
	for i := range r.Samples {
		r.Samples[i].Latencies = 0
	}
	r.Problems = []string{"hashicorp: gone"}
	r.Missing = []Missing{{"etcd", whatEverything, "", "it does not build"}}
	text := r.text(asText)
	require.Contains(t, text, "1,024  hashicorp  not measured")
	require.Contains(t, text, "7,500 !")
	require.Contains(t, text, "- hashicorp: gone")
	require.Contains(t, text, "- not measured: everything (etcd): it does not build")
	require.Regexp(t, `1,024  etcd +not measured`, text)
	require.NotRegexp(t, `hashicorp .*20 ms`, text, "no operation began and ended within the time")
	require.Regexp(t, `commands of 256 B, 1,024 clients +6,000 +0.80 +—  —`, text)
}

func TestOutagesAndTransfers(t *testing.T) {
	r := sampleReport()
	r.Outages = []Outage{{ours, killed, 5 * time.Millisecond}, {ours, killed, 15 * time.Millisecond}, {"hashicorp", stopped, 2 * time.Second}}
	r.Transfers = []Transfer{{ours, worker.Gap{Longest: 8 * time.Millisecond}}, {"hashicorp", worker.Gap{Longest: time.Hour, NotDone: "no"}},
		{"hashicorp", worker.Gap{Longest: 30 * time.Millisecond, Failures: 7}}}
	r.Slow = []Slow{{ours, worker.Sample{PerSecond: 900, P99: time.Millisecond, Latencies: 1},
		worker.Sample{PerSecond: 800, P99: 2 * time.Millisecond, Latencies: 1}}}
	text := r.text(asText)
	require.Regexp(t, `steady +900 +800 +1.0 ms +2.0 ms +2.00 +2.00–2.00 +1\n`, text)
	require.Regexp(t, `steady +kill -9 +10 ms +5.0 ms–15 ms +2\n`, text)
	require.Regexp(t, `hashicorp +SIGSTOP +2.00 s`, text)
	require.Regexp(t, `hashicorp +30 ms +30 ms–30 ms +7 +2 +1\n`, text)
}

func TestReportIsWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	r := sampleReport()
	r.Outages = []Outage{{ours, killed, 5 * time.Millisecond}, {"hashicorp", stopped, 2 * time.Second}}
	r.Aways = []Away{{Library: ours, Memory: []AwayMemory{{At: time.Second, Memory: worker.Memory{Heap: 1 << 20, Resident: 33 << 20}},
		{At: 7 * time.Second, Memory: worker.Memory{Heap: 7 << 20, Resident: 39 << 20}}}}}
	require.NoError(t, r.write(dir))
	b, err := os.ReadFile(filepath.Join(dir, "results.json"))
	require.NoError(t, err)
	var back Report
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, r, &back)
	b, err = os.ReadFile(filepath.Join(dir, "README.md"))
	require.NoError(t, err)
	require.Contains(t, string(b), "(throughput-propose-256.svg)")
	for _, name := range []string{"throughput-propose-256.svg", "latency-propose-256.svg", "fail-over.svg", "memory-steady.svg"} {
		require.Contains(t, string(b), "("+name+")")
		f, err := os.Open(filepath.Join(dir, name))
		require.NoError(t, err)
		dec := xml.NewDecoder(f)
		for err == nil {
			_, err = dec.Token()
		}
		require.ErrorIs(t, err, io.EOF, "well-formed")
		require.NoError(t, f.Close())
		svg, err := os.ReadFile(f.Name())
		require.NoError(t, err)
		require.NotRegexp(t, `NaN|Inf`, string(svg))
		require.Contains(t, string(svg), "steady")
	}
}

func TestAxesAreRound(t *testing.T) {
	require.Equal(t, []float64{200, 500, 1000, 2000}, newAxis(true, 220, 1999, 0, 1, 9).ticks)
	require.Equal(t, []float64{100, 200}, newAxis(true, 100, 100, 0, 1, 9).ticks, "one value")
	require.Equal(t, []float64{10, 100, 1000, 10000}, newAxis(true, 10, 9999, 0, 1, 9).ticks, "decades")
	require.Equal(t, []float64{0, 0.5, 1, 1.5, 2, 2.5}, newAxis(false, 0, 2.2, 0, 1, 0).ticks)
	require.Equal(t, []float64{0, 10, 20, 30, 40, 50, 60}, newAxis(false, 0, 60, 0, 1, 0).ticks)
	require.InDelta(t, 0.5, newAxis(true, 10, 1000, 0, 1, 9).at(100), 1e-9)
	require.InDelta(t, 300, newAxis(false, 0, 60, 600, 0, 0).at(30), 1e-9)
}

func TestFlags(t *testing.T) {
	o, err := parseFlags([]string{"-quick"})
	require.NoError(t, err)
	require.Equal(t, []int{256}, o.sizes)
	require.Empty(t, o.out)
	o, err = parseFlags(nil)
	require.NoError(t, err)
	require.Equal(t, names(), o.libraries)
	require.Equal(t, []int{16, 256, 4096, 65536}, o.sizes)
	require.NotEmpty(t, o.out)
	for args, want := range map[string]string{
		"-libraries=etcd,zookeeper": `"zookeeper" is none of`,
		"-kinds=write":              `"write" is none of`,
		"-sizes=4":                  "at least 8 bytes",
		"-clients=1,x":              `"x" is not a positive number`,
		"-servers=2":                "at least 3",
		"all":                       "only flags",
	} {
		_, err := parseFlags([]string{args})
		require.ErrorContains(t, err, want)
	}
}

func TestPlanCoversWhatWasAskedFor(t *testing.T) {
	o, err := parseFlags([]string{"-sizes", "16,4096", "-clients", "1,256"})
	require.NoError(t, err)
	groups := (&driver{options: o}).groups()
	require.Len(t, groups, 5)
	require.Len(t, groups[0].points, 2)
	require.Len(t, groups[2].points, 4)
	require.Equal(t, 7, groups[4].servers)
	require.Equal(t, transfersEach, groups[2].transfers)
	o, err = parseFlags([]string{"-quick"})
	require.NoError(t, err)
	groups = (&driver{options: o}).groups()
	require.Len(t, groups, 1, "one cluster for each library and repeat")
	require.Len(t, groups[0].points, 6)
}

func TestMemoryFileSystemsAreRefused(t *testing.T) {
	require.ErrorContains(t, checkDirectory("/no/such/directory"), "/no/such/directory")
	if fileSystem("/dev/shm") != "tmpfs" {
		t.Skip("no tmpfs at /dev/shm")
	}
	require.ErrorContains(t, checkDirectory("/dev/shm"), "in memory")
	require.ErrorContains(t, run(t.Context(), []string{"-dir", "/dev/shm"}), "-force")
}

func TestTailKeepsTheEnd(t *testing.T) {
	var w tail
	for range 1000 {
		_, err := w.Write([]byte("0123456789"))
		require.NoError(t, err)
	}
	_, err := w.Write([]byte("the end"))
	require.NoError(t, err)
	require.Len(t, w.String(), tailSize)
	require.True(t, strings.HasSuffix(w.String(), "the end"))
	require.Less(t, len(w.b), 3*tailSize)
}
