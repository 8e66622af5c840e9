//go:build !linux

package vfs

import "os"

// syncData uses what the os package holds for durable on this system (on Apple systems: F_FULLFSYNC).
func syncData(f *os.File) error { return f.Sync() }
