package raft

import "slices"

// Verdict says how bad it is what was found in a data directory.
type Verdict string

// The verdicts, from good to bad. A server starts with the first five, and refuses to with the others.
const (
	VerdictClean    Verdict = "clean"
	VerdictTorn     Verdict = "torn"               // a crash came in the middle of a write that nobody was told of: it is cut off
	VerdictDegraded Verdict = "degraded"           // what had been durable has changed or is gone, and nothing in force is lost with it
	VerdictCorrupt  Verdict = "corrupt"            // entries are unreadable, and known by index and term: see Recovered.Damaged
	VerdictFenced   Verdict = "fenced"             // the log has lost its end: see Recovered.Fence
	VerdictDamaged  Verdict = "damaged"            // what is lost cannot be told
	VerdictTermLost Verdict = "term and vote lost" // the server may have voted and does not know for whom
	VerdictWiped    Verdict = "wiped"              // the directory was in use, and its log is gone
	VerdictTampered Verdict = "tampered"           // somebody has written to it who does not have the keys of its encryption
)

// Worse reports whether v is worse than other.
func (v Verdict) Worse(other Verdict) bool { return v.rank() > other.rank() }

func (v Verdict) rank() int {
	return slices.Index([]Verdict{
		VerdictClean, VerdictTorn, VerdictDegraded, VerdictCorrupt, VerdictFenced, VerdictDamaged, VerdictTermLost, VerdictWiped,
		VerdictTampered,
	}, v)
}

// Finding is one thing in a data directory that is not as it was written.
type Finding struct {
	File    string  `json:"file"`
	Offset  int64   `json:"offset"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`   // what is there
	Meaning string  `json:"meaning"` // what follows for the server
	Next    string  `json:"next"`    // what the operator can do
}
