package worker

import (
	"math/bits"
	"time"
)

// histogram counts durations, in buckets 1/32 apart: what it returns is at most 3 % too high.
type histogram struct {
	buckets [(64 - subBits) << subBits]uint32
	count   uint64
	max     time.Duration
}

const subBits = 5

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(d)]++
	h.count++
	h.max = max(h.max, d)
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
	h.count += o.count
	h.max = max(h.max, o.max)
}

// quantile returns the smallest duration that at least the share q of all do not exceed, rounded up to a bucket's end.
func (h *histogram) quantile(q float64) time.Duration {
	want, seen := uint64(q*float64(h.count)), uint64(0)
	if float64(want) < q*float64(h.count) {
		want++
	}
	for i, n := range h.buckets {
		if seen += uint64(n); n > 0 && seen >= want {
			return min(bucketEnd(i), h.max)
		}
	}
	return h.max
}

// bucketOf is the identity below 2^subBits; above, subBits bits behind the leading one are kept.
func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - 1 - subBits
	return (shift+1)<<subBits + int(v>>shift)&(1<<subBits-1)
}

// bucketEnd is the largest duration in a bucket.
func bucketEnd(i int) time.Duration {
	if i < 1<<subBits {
		return time.Duration(i)
	}
	shift := i>>subBits - 1
	mantissa := uint64(1<<subBits | i&(1<<subBits-1))
	return time.Duration((mantissa+1)<<shift - 1)
}
