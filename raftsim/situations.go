package raftsim

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// situation is something that should happen sometimes. A simulation that never gets there proves nothing about it.
type situation int

// The situations. The table of names below is in the same order.
const (
	leaderElected situation = iota
	leaderDeposedByTerm
	leaderDeposedWithoutQuorum
	leaderDeposedBySlowDisk
	leaderStorageFailed
	leaderLeftAfterRemoval
	leaderAbstained
	leaderDeposedWhileTransferring
	leaderReelectedItself
	leaderOfLaterTermBesideOld
	leaderInheritedUncommitted
	leaderSuspected
	leaderPaused
	leaderResumed
	leaderIsolated
	leaderHearsLate
	leaderBehindHalfOpen
	pausedForLong
	leaderCrashed
	leaderCrashedInJoint
	leaderCrashedWhileTransferring
	leaderCrashedWithQueuedWrites
	leaderRemovesItself
	leaderDemotesItself
	candidateCrashed
	candidateLostToLeader
	candidateTimedOut
	electionBySuspicion
	electionByTransfer
	electionInJoint
	preVoteLost
	preVoteRefused
	voteLostByCrash
	termJumped
	timeoutNowSent
	transferBegun
	transferCompleted
	transferFailed
	transferRefused
	singleServerCommits
	entryCommitted
	entryOfEarlierTermCommitted
	manyCommittedAtOnce
	appendRejected
	appendRejectedByEarlierTerm
	appendRejectedByShortLog
	appendBusy
	appendOfManyEntries
	appendOfEarlierTerm
	heartbeatWithoutPosition
	heartbeatBehindCommit
	suffixTruncated
	queuedWriteTruncated
	manyWritesQueued
	snapshotTaken
	snapshotInJoint
	snapshotOvertaken
	snapshotSent
	snapshotLost
	snapshotGone
	snapshotUnwanted
	snapshotInstalled
	snapshotInstalledWhileTaking
	snapshotInstalledOverConflict
	snapshotOvertakenByAppends
	snapshotFailedByDisk
	snapshotBeyondLogAtStart
	restoreOvertaken
	logCompacted
	entriesLoaded
	loadCompacted
	loadTruncated
	applyFromDisk
	applyCompacted
	jointCommitted
	jointLeft
	jointInheritedByNewLeader
	configurationRolledBack
	jointTruncated
	learnerAdded
	learnerPromoted
	voterDemoted
	voterSwapped
	serverRemoved
	changePending
	changeConflict
	changeRefused
	startInJoint
	startFromSnapshot
	startWithoutLog
	startRefusedByDisk
	crashInRecovery
	crashBetweenOperations
	crashBetweenEffects
	crashDuringWrite
	crashBeforePersisted
	crashWhileTakingSnapshot
	crashWhileReceivingSnapshot
	allLosePower
	doubtfulWriteSurvived
	doubtfulWriteVanished
	unfinishedWriteCut
	nameLost
	sectorLost
	sectorOutdated
	fileTorn
	syncFailed
	directorySyncFailed
	storageFailed
	writeFoundDiskFull
	prepareFoundDiskFull
	prepareFoundDiskFullFirst
	spareAfterFullDisk
	diskHasRoomAgain
	diskHung
	messageLost
	messageCut
	messageVanished
	messageLostWithConnection
	messageDuplicated
	messageOvertaken
	messageVeryLate
	messageForSuccessor
	deadIncarnationRefused
	removedServerRefused
	connectionReset
	connectionHalfOpen
	linkLate
	oneWayCut
	networkSplit
	networkBridge
	clockRateChanged
	proposedWithoutLeading
	proposedWhileTransferring
	proposedWhileOverloaded
	proposedWhileFull
	proposalDropped
	outcomeUnknown
	unknownTookEffect
	unknownTookNone
	callTimedOut
	callNeverAppended
	resultSkippedBySnapshot
	readAtDeposedLeader
	readAfterSuccessorCommitted
	readConfirmed
	readFailed
	readAtFollower
	readWaitedForApply
	damageAtStart
	damageWhileRunning
	damageAtLeader
	damageRepaired
	leaderRecovers
	tailDiscarded
	recoveryStuck
	snapshotForRepair
	startFenced
	fenceLifted
	lostLogNoticed
	damageScrubbed
	bitFlipped
	sectorZeroed
	sectorMisdirected
	sectorGarbled
	voteCopyHit
	voteHit
	voteOutdated
	snapshotHit
	headerHit
	segmentLost
	logGone
	diskGone
	foundClean
	foundDegraded
	foundCorrupt
	foundFenced
	fencedForEverything
	startRefusedForDamage
	refusedDamaged
	refusedTermLost
	refusedWiped
	snapshotFellBack
	lastSnapshotLost
	startBehindLostSnapshot
	lostSnapshotFetched
	snapshotUnreadable
	snapshotTakenForDamaged
	restoreFoundDamage
	writeFailed
	writeTorn
	failedLeaderHandsOver
	clusterUnavailable
	situations
)

var situationNames = [situations]string{
	"leader elected", "leader deposed by term", "leader deposed without quorum", "leader deposed by slow disk",
	"leader storage failed", "leader left after removal", "leader abstained", "leader deposed while transferring",
	"leader reelected itself", "leader of later term beside old", "leader inherited uncommitted", "leader suspected",
	"leader paused", "leader resumed", "leader isolated", "leader hears late", "leader behind half open connection", "paused for long", "leader crashed", "leader crashed in joint",
	"leader crashed while transferring", "leader crashed with queued writes", "leader removes itself", "leader demotes itself",
	"candidate crashed", "candidate lost to leader", "candidate timed out", "election by suspicion", "election by transfer",
	"election in joint", "pre vote lost", "pre vote refused", "vote lost by crash", "term jumped", "timeout now sent",
	"transfer begun", "transfer completed", "transfer failed", "transfer refused", "single server commits", "entry committed",
	"entry of earlier term committed", "many committed at once", "append rejected", "append rejected by earlier term",
	"append rejected by short log", "append busy", "append of many entries", "append of earlier term",
	"heartbeat without position", "heartbeat behind commit", "suffix truncated", "queued write truncated", "many writes queued",
	"snapshot taken", "snapshot in joint", "snapshot overtaken", "snapshot sent", "snapshot lost", "snapshot gone", "snapshot unwanted",
	"snapshot installed", "snapshot installed while taking", "snapshot installed over conflict",
	"snapshot overtaken by appends", "snapshot failed by disk", "snapshot beyond log at start", "restore overtaken",
	"log compacted", "entries loaded", "load compacted", "load truncated", "apply from disk", "apply compacted", "joint committed", "joint left",
	"joint inherited by new leader", "configuration rolled back", "joint truncated", "learner added", "learner promoted",
	"voter demoted", "voter swapped", "server removed", "change pending", "change conflict", "change refused", "start in joint",
	"start from snapshot", "start without log", "start refused by disk", "crash in recovery", "crash between operations", "crash between effects",
	"crash during write", "crash before persisted", "crash while taking snapshot", "crash while receiving snapshot",
	"all lose power", "doubtful write survived", "doubtful write vanished", "unfinished write cut off", "name lost", "sector lost",
	"sector outdated", "file torn", "sync failed", "directory sync failed", "storage failed",
	"write found disk full", "prepare found disk full", "prepare found disk full before a write did", "spare made after a full disk",
	"disk has room again", "disk hung", "message lost", "message cut", "message vanished", "message lost with its connection",
	"message duplicated", "message overtaken", "message very late", "message for successor", "dead incarnation refused", "removed server refused",
	"connection reset", "connection half open", "link late", "one way cut", "network split", "network bridge", "clock rate changed", "proposed without leading",
	"proposed while transferring", "proposed while overloaded", "proposed while full", "proposal dropped", "outcome unknown",
	"unknown took effect", "unknown took none", "call timed out", "call never appended", "result skipped by snapshot",
	"read at deposed leader", "read at deposed leader after its successor committed", "read confirmed", "read failed", "read at follower", "read waited for apply",
	"damage at start", "damage while running", "damage at leader", "damage repaired", "leader recovers", "tail discarded", "recovery stuck",
	"snapshot for repair", "start fenced", "fence lifted", "lost log noticed",
	"damage found by a scrub", "bit flipped", "sector zeroed", "sector written in a wrong place", "sector garbled",
	"copy of term and vote damaged", "term and vote damaged", "term and vote outdated", "snapshot damaged",
	"segment header damaged", "segment lost", "log lost", "disk lost", "damaged disk found clean",
	"damaged disk found degraded", "damaged disk found corrupt", "damaged disk found fenced", "fenced at the highest term",
	"start refused for damage", "refused as damaged", "refused as term and vote lost",
	"refused as wiped", "snapshot fell back to an older one", "last snapshot lost", "start behind a lost snapshot",
	"lost snapshot fetched", "snapshot found damaged when sent", "snapshot taken for a damaged one",
	"snapshot found damaged when restored", "write failed", "write torn by an error", "failed leader hands over",
	"cluster stays unavailable",
}

// String names the situation.
func (s situation) String() string { return situationNames[s] }

// hit counts that the run has got into a situation.
func (w *world) hit(s situation) { w.reached[s]++ }

func (w *world) hitIf(yes bool, s situation) {
	if yes {
		w.reached[s]++
	}
}

// Coverage counts how often rare situations were reached, by their names.
type Coverage map[string]uint64

// Situations lists the names of all situations.
func Situations() []string { return slices.Clone(situationNames[:]) }

// Missing lists the situations that were never reached.
func (c Coverage) Missing() []string {
	var missing []string
	for _, name := range situationNames {
		if c[name] == 0 {
			missing = append(missing, name)
		}
	}
	return missing
}

// String lists all situations with their counts.
func (c Coverage) String() string {
	var b strings.Builder
	for _, name := range situationNames {
		fmt.Fprintf(&b, "%10d %s\n", c[name], name)
	}
	return b.String()
}

func (w *world) coverage() Coverage {
	c := Coverage{}
	for s, n := range w.reached {
		if n > 0 {
			c[situation(s).String()] = uint64(n)
		}
	}
	return c
}

func (w *world) sawRoleChange(v *server, was raft.Role, e raft.LeaderChange) {
	if was == raft.Leader && e.Role != raft.Leader {
		switch e.Reason {
		case raft.ReasonHigherTerm:
			w.hit(leaderDeposedByTerm)
		case raft.ReasonNoQuorum:
			w.hit(leaderDeposedWithoutQuorum)
		case raft.ReasonSlowDisk:
			w.hit(leaderDeposedBySlowDisk)
		case raft.ReasonRemoved:
			w.hit(leaderLeftAfterRemoval)
		}
		w.hitIf(v.transferring, leaderDeposedWhileTransferring)
	}
	if was == raft.Candidate && e.Role == raft.Follower {
		w.hitIf(e.Reason == raft.ReasonLostElection || e.Reason == raft.ReasonLeaderFound, candidateLostToLeader)
	}
	w.hitIf(was == raft.PreCandidate && e.Role == raft.Follower, preVoteLost)
	w.hitIf(e.Term > v.memory.prior.term+1 && v.memory.prior.term > 0, termJumped)
	if e.Role != raft.Leader || was == raft.Leader {
		return
	}
	w.hit(leaderElected)
	w.hitIf(w.model.leaders[e.Term-1] == v.id, leaderReelectedItself)
	for _, o := range w.servers {
		w.hitIf(o != v && o.up() && o.role == raft.Leader, leaderOfLaterTermBesideOld)
	}
	w.hitIf(v.memory.issued.last() > w.model.highest, leaderInheritedUncommitted)
	w.hitIf(v.conf.Joint(), jointInheritedByNewLeader)
}

func (w *world) sawCrash(v *server, power bool) {
	if v.up() {
		switch v.role {
		case raft.Leader:
			w.hit(leaderCrashed)
			w.hitIf(v.conf.Joint(), leaderCrashedInJoint)
			w.hitIf(v.transferring, leaderCrashedWhileTransferring)
			w.hitIf(len(v.writer.queue) > 0, leaderCrashedWithQueuedWrites)
		case raft.Candidate:
			w.hit(candidateCrashed)
		}
		for i := range v.writer.queue {
			hs := v.writer.queue[i].HardState
			w.hitIf(hs != nil && hs.VotedFor != "", voteLostByCrash)
		}
	}
}

// sawPowerLoss looks at what became of what was not synced.
func (w *world) sawPowerLoss(o vfs.CrashOutcome) {
	w.hitIf(o.NamesLost > 0, nameLost)
	w.hitIf(o.SectorsLost > 0, sectorLost)
	w.hitIf(o.SectorsOld > 0, sectorOutdated)
	w.hitIf(o.FilesTorn > 0, fileTorn)
}

func (w *world) sawConfiguration(v *server, e raft.ConfigurationChange) {
	if e.Index < v.confAt {
		w.hit(configurationRolledBack)
		w.hitIf(v.conf.Joint(), jointTruncated)
	}
}

func (w *world) sawChange(l *server, ch raft.Change, err error) {
	var refused *raft.MembershipError
	switch {
	case errors.Is(err, raft.ErrChangePending):
		w.hit(changePending)
	case errors.Is(err, raft.ErrChangeConflict):
		w.hit(changeConflict)
	case errors.As(err, &refused):
		w.hit(changeRefused)
	case err == nil:
		w.hitIf(len(ch.Add) > 0, learnerAdded)
		w.hitIf(len(ch.Promote) > 0, learnerPromoted)
		w.hitIf(len(ch.Demote) > 0, voterDemoted)
		w.hitIf(len(ch.Promote) > 0 && len(ch.Demote) > 0, voterSwapped)
		w.hitIf(len(ch.Remove) > 0, serverRemoved)
		w.hitIf(slices.Contains(ch.Remove, l.id), leaderRemovesItself)
		w.hitIf(slices.Contains(ch.Demote, l.id), leaderDemotesItself)
	}
}

func (w *world) sawRefusal(err error) {
	w.hitIf(errors.Is(err, raft.ErrNotLeader), proposedWithoutLeading)
	w.hitIf(errors.Is(err, raft.ErrTransferring), proposedWhileTransferring)
	w.hitIf(errors.Is(err, raft.ErrOverloaded), proposedWhileOverloaded)
	w.hitIf(errors.Is(err, raft.ErrStorageFull), proposedWhileFull)
}

// sawRead looks at the moment for which linearizable reads need rounds: the server still believes that it leads.
func (w *world) sawRead(v *server, k *call) {
	if v.role != raft.Leader {
		return
	}
	for _, o := range w.servers {
		if o.up() && o.role == raft.Leader && o.term > v.term {
			w.hit(readAtDeposedLeader)
			w.hitIf(k.atLeast > v.commit, readAfterSuccessorCommitted)
		}
	}
}

func (w *world) sawAppend(v *server, b *raft.AppendEntries) {
	n := len(b.Entries)
	w.hitIf(n > 10, appendOfManyEntries)
	w.hitIf(n > 0 && b.Entries[0].Term < v.term, appendOfEarlierTerm)
	w.hitIf(n == 0 && b.PrevLogIndex == 0, heartbeatWithoutPosition)
	w.hitIf(n == 0 && b.LeaderCommit < v.commit, heartbeatBehindCommit)
}

func (w *world) sawAppendReply(b raft.AppendEntriesReply) {
	w.hitIf(b.Busy, appendBusy)
	if b.Success || b.Busy || b.PrevLogIndex == 0 {
		return
	}
	w.hit(appendRejected)
	w.hitIf(b.HintIndex < b.PrevLogIndex, appendRejectedByShortLog)
	w.hitIf(b.HintIndex == b.PrevLogIndex, appendRejectedByEarlierTerm)
}

func (w *world) sawWrite(v *server, wr *raft.Write) {
	if wr.TruncateFrom > 0 {
		w.hit(suffixTruncated)
		w.hitIf(wr.TruncateFrom > v.memory.durable.last() && len(v.writer.queue) > 0, queuedWriteTruncated)
	}
	if wr.Snapshot != nil {
		id, ok := v.memory.issued.id(wr.Snapshot.Index)
		w.hitIf(ok && id != wr.Snapshot.ID(), snapshotInstalledOverConflict)
	}
}

func (w *world) sawElection(v *server, e raft.ElectionStarted) {
	if e.PreVote {
		return
	}
	w.hitIf(e.Reason == raft.ReasonSuspicion, electionBySuspicion)
	w.hitIf(e.Reason == raft.ReasonTransfer, electionByTransfer)
	w.hitIf(v.conf.Joint(), electionInJoint)
	w.hitIf(v.memory.prior.role == raft.Candidate, candidateTimedOut)
}

// sawCommit looks at what one advance of the commit index has brought, for the first time in the cluster.
func (w *world) sawCommit(v *server, first, commit raft.Index) {
	id, _ := v.memory.issued.id(first)
	last, _ := v.memory.issued.id(commit)
	w.hitIf(id.Term < last.Term, entryOfEarlierTermCommitted)
	w.hitIf(commit-first >= 10, manyCommittedAtOnce)
	w.hitIf(len(v.conf.Servers) == 1, singleServerCommits)
}
