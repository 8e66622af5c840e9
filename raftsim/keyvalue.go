package raftsim

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"strings"

	"github.com/steadyraft/raft"
)

// KeyValue is the built-in state machine: a small store of strings with puts, appends and compare-and-set. Results and reads are
// strings.
type KeyValue struct {
	values map[string]string
	hash   uint64 // of all commands so far, so that a command lost from an overwritten value shows, too
}

// kvInput is an operation of KeyValueWorkload, and as JSON its command.
type kvInput struct {
	Op       string `json:"op"` // get, put, append, cas
	Key      string `json:"key"`
	Value    string `json:"value,omitempty"`
	Expected string `json:"expected,omitempty"`
}

// kvMaxValue bounds a value; an append beyond it is refused.
const kvMaxValue = 48

// step is the sequential specification of one key, used by the store and by the model.
func (in kvInput) step(value string) (output, next string) {
	switch in.Op {
	case "put":
		return "ok", in.Value
	case "append":
		if len(value)+len(in.Value) > kvMaxValue {
			return "full " + value, value
		}
		return value + in.Value, value + in.Value
	case "cas":
		if value != in.Expected {
			return "is " + value, value
		}
		return "swapped", in.Value
	default:
		return value, value
	}
}

// NewKeyValue makes an empty KeyValue.
func NewKeyValue() raft.StateMachine { return &KeyValue{values: map[string]string{}} }

// Apply implements [raft.StateMachine].
func (kv *KeyValue) Apply(entries []raft.Entry, results []any) error {
	for i := range entries {
		var in kvInput
		if err := json.Unmarshal(entries[i].Data, &in); err != nil {
			return fmt.Errorf("command at %d: %w", entries[i].Index, err)
		}
		results[i], kv.values[in.Key] = in.step(kv.values[in.Key])
		h := fnv.New64a()
		var sum [8]byte
		binary.LittleEndian.PutUint64(sum[:], kv.hash)
		for _, b := range [][]byte{sum[:], entries[i].Data} {
			if _, err := h.Write(b); err != nil {
				return err
			}
		}
		kv.hash = h.Sum64()
	}
	return nil
}

// StateHash implements [StateHasher].
func (kv *KeyValue) StateHash() uint64 { return kv.hash }

// kvImage is what a snapshot holds.
type kvImage struct {
	Hash   uint64            `json:"hash"`
	Values map[string]string `json:"values"`
}

// Snapshot implements [raft.StateMachine].
func (kv *KeyValue) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	return kvImage{kv.hash, maps.Clone(kv.values)}, nil
}

// WriteTo implements [raft.SnapshotWriter].
func (v kvImage) WriteTo(_ context.Context, w io.Writer) error { return json.NewEncoder(w).Encode(v) }

// Close implements [raft.SnapshotWriter].
func (kvImage) Close() {}

// Restore implements [raft.StateMachine].
func (kv *KeyValue) Restore(_ context.Context, _ raft.SnapshotMeta, r io.Reader) error {
	image := kvImage{Values: map[string]string{}}
	if err := json.NewDecoder(r).Decode(&image); err != nil {
		return err
	}
	kv.hash, kv.values = image.Hash, image.Values
	return nil
}

// KeyValueWorkload puts, appends, swaps and gets a few keys of a [KeyValue], with some long values among them.
func KeyValueWorkload() *Workload {
	keys := []string{"a", "b", "c", "d", "e", "f"}
	return &Workload{
		Next: func(r *rand.Rand, client, n int) Operation {
			in := kvInput{Key: keys[r.IntN(len(keys))]}
			switch r.IntN(10) {
			case 0, 1, 2, 3:
				in.Op = "get"
				return Operation{Input: in}
			case 4, 5:
				in.Op, in.Value = "put", fmt.Sprintf("%d", n)
				if r.IntN(4) == 0 {
					in.Value += strings.Repeat("x", r.IntN(400))
				}
			case 6, 7, 8:
				in.Op, in.Value = "append", fmt.Sprintf("+%d", n)
			default:
				in.Op, in.Expected, in.Value = "cas", fmt.Sprintf("%d", max(0, n-r.IntN(20))), fmt.Sprintf("%d", n)
			}
			cmd, err := json.Marshal(in)
			if err != nil {
				panic(err) // strings always have an encoding
			}
			return Operation{Input: in, Command: cmd}
		},
		Read: func(sm raft.StateMachine, input any) any { return sm.(*KeyValue).values[input.(kvInput).Key] },
		Model: Model{
			Init: func() any { return "" },
			Apply: func(state, input any) (output, next any) {
				out, value := input.(kvInput).step(state.(string))
				return out, value
			},
			Key: func(input any) string { return input.(kvInput).Key },
			Describe: func(input, output any) string {
				in := input.(kvInput)
				return fmt.Sprintf("%s %s %.20q: %.40q", in.Op, in.Key, in.Value, output)
			},
		},
	}
}
