package vfs

import "unsafe"

// Direct returns f such that it writes past the operating system's cache, where the system and the file system can: what a log writes
// is hardly ever read again, and a cache of it costs a copy of every byte and memory that others need. It is a hint. Writes whose offset,
// length and memory lie at multiples of 512 bytes (see [Aligned]) go that way; the first that does not, or that the disk refuses because
// its blocks are larger, ends it for this file. Sync is needed all the same. f must not be used any more beside the result.
func Direct(f File) File { return direct(f) }

const (
	directUnit  = 512  // what offsets and lengths of direct writes are multiples of
	memoryAlign = 4096 // what Aligned is aligned to; no system wants more
)

// Aligned returns n zero bytes whose address suits a direct write.
func Aligned(n int) []byte {
	b := make([]byte, n+memoryAlign)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (memoryAlign - 1))
	return b[skip : skip+n : skip+n]
}

// suitsDirect reports whether a direct write of b at off is possible.
func suitsDirect(b []byte, off int64) bool {
	return off%directUnit == 0 && len(b)%directUnit == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(b)))%directUnit == 0
}
