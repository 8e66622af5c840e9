// Command floor is no consensus library. It is the least work that replication can do: one write and one sync
// per batch and server, one frame per peer and batch, and nothing else: no term, no election, no recovery. The first server leads
// for ever. The other libraries are measured against it.
package main

import "github.com/steadyraft/raft/bench/worker"

func main() {
	worker.Main(worker.Library{
		Name: "floor",
		Notes: "one goroutine collects what waits, frames it once, writes those bytes to both sockets and its own log, syncs; followers write " +
			"all that has arrived, sync once and acknowledge once; log of 64 MiB written beforehand and used in a circle; reads share one round",
		Start: func(o worker.Options) (worker.Node, error) { return start(o) },
	})
}
