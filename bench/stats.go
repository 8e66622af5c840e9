package main

import (
	"cmp"
	"slices"
)

// spread is what a few repeats of one measurement gave.
type spread struct {
	n                int
	min, median, max float64
}

func spreadOf[T ~int64 | ~float64](values []T) spread {
	if len(values) == 0 {
		return spread{}
	}
	s := slices.Clone(values)
	slices.Sort(s)
	median := float64(s[len(s)/2])
	if len(s)%2 == 0 {
		median = (median + float64(s[len(s)/2-1])) / 2
	}
	return spread{n: len(s), min: float64(s[0]), median: median, max: float64(s[len(s)-1])}
}

// ratio divides measurements that were taken in the same repeat, so that a machine that changes its speed between two repeats does
// not change the result. by and over map a repeat to its measurement.
func ratio(of, by map[int]float64) spread {
	var out []float64
	for repeat, v := range of {
		if w, ok := by[repeat]; ok && w > 0 {
			out = append(out, v/w)
		}
	}
	return spreadOf(out)
}

// best returns the key whose spread has the highest median.
func best(medians map[string]float64) (name string) {
	for k, v := range medians {
		if name == "" || cmp.Or(cmp.Compare(v, medians[name]), cmp.Compare(name, k)) > 0 {
			name = k
		}
	}
	return name
}
