//go:build !linux

package loopdevice

import "testing"

// Device is a file system on a device of its own.
type Device struct{}

// New skips the test.
func New(t testing.TB, _ int64, _ ...string) *Device {
	t.Helper()
	t.Skip("skipped: loop devices need Linux")
	return nil
}

// Dir is where the file system is mounted.
func (*Device) Dir() string { return "" }

// Cut makes everything fail.
func (*Device) Cut(bool) error { return nil }

// Remount mounts the file system again.
func (*Device) Remount() error { return nil }
