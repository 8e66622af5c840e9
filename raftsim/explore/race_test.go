//go:build race

package explore

// With the race detector the worlds are explored less far: an exploration runs on one goroutine, and takes ten times as long there.
const raceDetector = true
