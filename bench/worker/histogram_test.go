package worker

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBucketsCoverAllDurationsInOrder(t *testing.T) {
	last := -1
	for _, d := range []time.Duration{-1, 0, 1, 31, 32, 33, 63, 64, 65, 1000, time.Millisecond, time.Hour, 1<<63 - 1} {
		b := bucketOf(d)
		require.GreaterOrEqual(t, b, last, "%d", d)
		require.Less(t, b, len(histogram{}.buckets))
		require.GreaterOrEqual(t, bucketEnd(b), d)
		if b > 0 {
			require.Less(t, bucketEnd(b-1), max(d, 1))
		}
		last = b
	}
}

// A quantile is never too low, and at most 1/32 too high.
func TestQuantileAgainstSorting(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var h, a, b histogram
	var all []time.Duration
	for i := range 10_000 {
		d := time.Duration(r.ExpFloat64() * float64(time.Millisecond))
		all = append(all, d)
		if i%2 == 0 {
			a.add(d)
		} else {
			b.add(d)
		}
	}
	h.merge(&a)
	h.merge(&b)
	slices.Sort(all)
	for _, q := range []float64{0.001, 0.5, 0.99, 0.999, 1} {
		exact := all[max(0, int(q*float64(len(all)))-1)]
		got := h.quantile(q)
		require.GreaterOrEqual(t, got, exact, "%v", q)
		require.LessOrEqual(t, float64(got), float64(exact)*(1+1.0/32)+1, "%v", q)
	}
	require.Equal(t, all[len(all)-1], h.quantile(1), "the largest is exact")
	require.Zero(t, new(histogram).quantile(.5))
}
