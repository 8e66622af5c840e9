package raft

import (
	"testing"
	"time"
)

// BenchmarkThreeCores is the cost of the protocol alone: three cores on one thread pass messages in memory, disks that take no time, one
// command of 256 B a round. An op is one command, from NewCommand to its application on all three.
func BenchmarkThreeCores(b *testing.B) {
	conf := labConfiguration("a b c")
	boot := newEntry(EntryConfiguration, conf.AppendBinary(nil))
	boot.stamp(EntryID{Term: 1, Index: 1})
	ids := []NodeID{"a", "b", "c"}
	cores := make([]*Core, len(ids))
	now := time.Second
	for i, id := range ids {
		core, err := NewCore(CoreConfig{ID: id, Seed: uint64(i)}, now, &Recovered{
			Identity:  Identity{Cluster: "lab", Node: id, Replica: ReplicaID(labReplica + int(id[0])), Incarnation: 1},
			HardState: HardState{CurrentTerm: 1}, LastIndex: 1, Terms: []TermStart{{Index: 1, Term: 1}}, Configurations: []Entry{boot},
		})
		if err != nil {
			b.Fatal(err)
		}
		cores[i] = core
	}
	var wire, next []Message
	applied := 0
	pump := func() {
		for again := true; again; {
			again = false
			for i, c := range cores {
				for c.HasReady() {
					again = true
					r := c.Ready()
					wire = append(wire, r.Send...)
					for k := range r.Apply {
						c.Applied(now, r.Apply[k].Hi-1)
						if i == 0 {
							applied += len(r.Apply[k].Entries)
						}
					}
					if seq := r.Write.Seq; seq != 0 {
						c.Persisted(now, seq)
					}
				}
			}
			wire, next = next[:0], wire
			for k := range next {
				again = true
				cores[next[k].To[0]-'a'].Step(now, next[k])
			}
			clear(next)
		}
	}
	cores[0].ForceTimeout(now)
	pump()
	if cores[0].role != Leader {
		b.Fatal(cores[0])
	}
	payload := make([]byte, 256)
	proposal := make([]Entry, 1)
	applied = 0
	b.ReportAllocs()
	for b.Loop() {
		proposal[0] = NewCommand(payload)
		if _, n, err := cores[0].Propose(now, proposal); n != 1 {
			b.Fatal(err)
		}
		pump()
	}
	if applied != b.N {
		b.Fatalf("%d of %d commands applied", applied, b.N)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
}
