//go:build unix && !linux

package agent

import (
	"encoding/binary"
	"syscall"
)

// machineMemory asks for hw.memsize, which is an integer; syscall.Sysctl takes it for a text and drops its last zero byte.
func machineMemory() int64 {
	text, err := syscall.Sysctl("hw.memsize")
	if err != nil {
		return 0
	}
	var number [8]byte
	copy(number[:], text)
	return int64(binary.LittleEndian.Uint64(number[:]))
}
