package raft

import "time"

// splitmix64 is the core's own random generator (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). It is
// part of the state, so that a core can be copied and replayed.
type splitmix64 uint64

func (s *splitmix64) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// below returns a number in [0, n); 0 if n is not positive.
func (s *splitmix64) below(n time.Duration) time.Duration {
	if n <= 0 {
		return 0
	}
	return time.Duration(s.next() % uint64(n))
}
