package agent

import (
	"runtime"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// MachineResources is what this machine has: all of its processors and memory. Memory that the system does not tell is 0, so that no
// task which reserves some is sent here.
func MachineResources() cluster.Resources {
	return cluster.Resources{NanoCPUs: int64(runtime.NumCPU()) * cluster.OneCPU, MemoryBytes: machineMemory()}
}
