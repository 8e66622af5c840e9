package raftsim

import (
	"math"
	"testing"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// The order of the log is a proof only if every answer fits and time is respected; what it does not explain is left to the checker.
func TestOrderOfTheLogExplainsAHistory(t *testing.T) {
	m := Model{
		Init:        func() any { return 0 },
		Apply:       func(state, input any) (any, any) { return state.(int) + input.(int), state.(int) + input.(int) },
		EqualOutput: func(got, want any) bool { return got == want },
	}
	add := func(n, sum int, from, to int64) porcupine.Operation {
		return porcupine.Operation{Input: n, Output: sum, Call: from, Return: to}
	}
	at := func(i int) moment { return moment{at: raft.Index(i)} }
	read := func(i int) moment { return moment{at: raft.Index(i), isRead: true} }
	for name, tt := range map[string]struct {
		ops     []porcupine.Operation
		moments []moment
		want    bool
	}{
		"one after the other":             {[]porcupine.Operation{add(1, 1, 0, 1), add(2, 3, 2, 3)}, []moment{at(1), at(2)}, true},
		"at the same time":                {[]porcupine.Operation{add(2, 3, 0, 5), add(1, 1, 0, 5)}, []moment{at(2), at(1)}, true},
		"against time":                    {[]porcupine.Operation{add(2, 3, 0, 1), add(1, 1, 2, 3)}, []moment{at(2), at(1)}, false},
		"with a wrong answer":             {[]porcupine.Operation{add(1, 1, 0, 1), add(2, 2, 2, 3)}, []moment{at(1), at(2)}, false},
		"a read behind its command":       {[]porcupine.Operation{add(0, 1, 0, 5), add(1, 1, 0, 5)}, []moment{read(2), at(1)}, true},
		"a read that missed a command":    {[]porcupine.Operation{add(0, 0, 2, 3), add(1, 1, 0, 1)}, []moment{read(0), at(1)}, false},
		"an outcome that nobody knows":    {[]porcupine.Operation{add(1, 3, 0, math.MaxInt64), add(2, 2, 3, 4)}, []moment{at(2), at(1)}, true},
		"an outcome before its beginning": {[]porcupine.Operation{add(1, 1, 5, math.MaxInt64), add(2, 3, 3, 4)}, []moment{at(1), at(2)}, false},
	} {
		require.Equal(t, tt.want, m.explains(tt.ops, tt.moments), name)
	}
}
