package mutants

// snapshots lists the guards of snapshots inside the core.
var snapshots = []Mutant{
	// Receiving.
	{
		Name: "what follows a snapshot on its way is compacted",
		Rule: "SAFETY inv 30: a follower that lags catches up, however long a transfer takes",
		File: "snapshot.go",
		Old:  "			to = min(to, p.snapshot)\n",
		New:  "			_ = p\n",
		Test: Test{Package: ".", Name: "TestFollowerGoesOnWithEntriesAfterALongTransfer"},
	},
	{
		Name: "what a follower lacks behind its snapshot is compacted",
		Rule: "SAFETY inv 30: a follower that lags catches up, also when the next snapshot is taken meanwhile",
		File: "snapshot.go",
		Old:  "			to = min(to, p.matchIndex)\n",
		New:  "			_ = p\n",
		Test: Test{Package: ".", Name: "TestFollowerCatchesUpBehindASnapshotWhileTheNextIsTaken"},
	},
	{
		Name: "the log is kept for a follower that lacks what is gone",
		Rule: "SAFETY §2 memory: what it needs is compacted, so keeping the rest helps nobody",
		File: "snapshot.go",
		Old:  " && p.matchIndex >= c.log.base.Index && ",
		New:  " && ",
		Test: Test{Package: ".", Name: "TestFollowerCatchesUpBehindASnapshotWhileTheNextIsTaken"},
	},
	{
		Name: "the log is kept for a follower that does not catch up",
		Rule: "SAFETY §2 memory: a lagging follower retains no unbounded log",
		File: "snapshot.go",
		Old:  " && c.now-p.advancedAt < 2*c.cfg.ElectionTimeout:",
		New:  ":",
		Test: Test{Package: ".", Name: "TestFollowerCatchesUpBehindASnapshotWhileTheNextIsTaken"},
	},
	{
		Name: "a full disk keeps the log for a snapshot on its way",
		Rule: "SAFETY §2 disk: when there can be room again, serving goes on; one slow follower stops nobody",
		File: "snapshot.go",
		Old:  "c.role != Leader || c.storage == StorageFull {",
		New:  "c.role != Leader {",
		Test: Test{Package: ".", Name: "TestFullDiskKeepsNothingForAFollowerThatReceivesASnapshot"},
	},
	{
		Name: "a full disk waits for the next snapshot",
		Rule: "SAFETY §2 disk: while no command is taken, no later snapshot comes that would compact the log",
		File: "raft.go",
		Old:  "		c.compact() // no command is appended any more, so no later snapshot would do it\n",
		New:  "",
		Test: Test{Package: ".", Name: "TestFullDiskKeepsNothingForAFollowerThatReceivesASnapshot"},
	},
	{
		Name: "the log is kept for a snapshot that leads nowhere",
		Rule: "SAFETY inv 30: what follows the snapshot is gone, so the follower needs another one anyway",
		File: "snapshot.go",
		Old:  "p.state == stateSnapshot && p.snapshot >= c.log.base.Index:",
		New:  "p.state == stateSnapshot:",
		Test: Test{Package: ".", Name: "TestFullDiskKeepsNothingForAFollowerThatReceivesASnapshot"},
	},
	{
		Name: "a deposed leader's snapshot is installed",
		Rule: "Figure 13, rule 1: reply immediately if term < currentTerm",
		File: "snapshot.go",
		Old:  "	if h.Term < c.currentTerm {\n\t\tc.send(h.From, c.currentTerm, h.Request, InstallSnapshotReply{}) // rule 1",
		New:  "	if h.Term == 0 {\n\t\tc.send(h.From, c.currentTerm, h.Request, InstallSnapshotReply{}) // rule 1",
		Test: Test{Package: ".", Name: "TestRequestsOfEarlierTermsAreRejected/InstallSnapshotReply"},
	},
	{
		Name: "a second leader's snapshot is installed",
		Rule: "§5.2: one leader in a term, so a second one is a liar; SAFETY inv 1",
		File: "snapshot.go",
		Old: `	if c.leader != "" && c.leader != h.From {
		c.refuse(h.From, SecondLeader)
		return
	}
`,
		New:  "",
		Test: Test{Package: ".", Name: "TestSecondLeaderOfATermIsRefused"},
	},
	{
		Name: "a snapshot does not make its sender known as leader",
		Rule: "§5.2: candidates yield to a leader of their term, followers wait for it",
		File: "snapshot.go",
		Old:  "	c.followLeader(h.From)\n",
		New:  "",
		Test: Test{Package: ".", Name: "TestSnapshotMakesItsSenderKnownAsLeader"},
	},
	{
		Name: "a snapshot replaces what is newer",
		Rule: "§7: a snapshot that the log covers changes nothing; SAFETY §3: older than applied; inv 8",
		File: "snapshot.go",
		Old:  "	case meta.Index <= c.commitIndex:\n",
		New:  "	case meta.Index <= c.snapshot.Index && c.log.contains(meta.ID()):\n",
		Test: Test{Package: ".", Name: "TestOlderSnapshotReplacesNothing"},
	},
	{
		Name: "a snapshot older than the newest is the one to send",
		Rule: "§7: the store keeps the newest; an older one may be gone when it is to be sent",
		File: "snapshot.go",
		Old:  "if meta.Index > c.snapshot.Index && c.log.contains(meta.ID()) {",
		New:  "if c.log.contains(meta.ID()) {",
		Test: Test{Package: ".", Name: "TestOlderSnapshotReplacesNothing"},
	},
	{
		Name: "a snapshot of another history is taken for ours",
		Rule: "SAFETY inv 19: a snapshot equals the log at its index",
		File: "snapshot.go",
		Old:  "if meta.Index > c.snapshot.Index && c.log.contains(meta.ID()) {",
		New:  "if meta.Index > c.snapshot.Index {",
		Test: Test{Package: ".", Name: "TestOlderSnapshotReplacesNothing"},
	},
	{
		Name: "an old snapshot acknowledges what is not durable",
		Rule: "SAFETY inv 11: no reply claims an index that is not durable",
		File: "snapshot.go",
		Old:  "InstallSnapshotReply{MatchIndex: min(c.commitIndex, c.log.durable)}",
		New:  "InstallSnapshotReply{MatchIndex: c.commitIndex}",
		Test: Test{Package: ".", Name: "TestOldSnapshotChangesNothing"},
	},
	{
		Name: "an old snapshot acknowledges all that is durable",
		Rule: "§5.3: only what is known to equal the leader's log may be acknowledged; behind the commit index may lie a stale suffix",
		File: "snapshot.go",
		Old:  "InstallSnapshotReply{MatchIndex: min(c.commitIndex, c.log.durable)}",
		New:  "InstallSnapshotReply{MatchIndex: c.log.durable}",
		Test: Test{Package: ".", Name: "TestOldSnapshotAcknowledgesNothingBehindTheCommitIndex"},
	},
	{
		Name: "a snapshot of a known prefix discards the log behind it",
		Rule: "Figure 13, rule 6: retain the log entries following it; they may have been acknowledged (SAFETY inv 13)",
		File: "snapshot.go",
		Old:  "	case c.log.contains(meta.ID()):\n",
		New:  "	case c.log.contains(meta.ID()) && meta.Index == c.log.last:\n",
		Test: Test{Package: ".", Name: "TestSnapshotOfAKnownPrefixKeepsTheLog"},
	},
	{
		Name: "a snapshot leaves a conflicting log behind it",
		Rule: "Figure 13, rule 7: discard the entire log, unless the entry at its index has the same term; SAFETY §3",
		File: "snapshot.go",
		Old:  "	case c.log.contains(meta.ID()):\n",
		New:  "	case meta.Index <= c.log.last:\n",
		Test: Test{Package: ".", Name: "TestSnapshotReplacesAConflictingOrShorterLog"},
	},
	{
		Name: "a snapshot of a known prefix commits nothing",
		Rule: "§7: what a snapshot holds is committed",
		File: "snapshot.go",
		Old:  "		c.commitTo(meta.Index)\n",
		New:  "",
		Test: Test{Package: ".", Name: "TestSnapshotOfAKnownPrefixKeepsTheLog"},
	},
	{
		Name: "a snapshot of a known prefix is not the one to send",
		Rule: "§7; the store keeps two, so the one known before may be gone",
		File: "snapshot.go",
		Old:  "		c.snapshot = meta\n\t\tc.commitTo(meta.Index)",
		New:  "		c.commitTo(meta.Index)",
		Test: Test{Package: ".", Name: "TestReceivedSnapshotIsTheOneToSend"},
	},
	{
		Name: "a snapshot is acknowledged too early",
		Rule: "SAFETY inv 11: the reply waits for the write that makes the snapshot part of the log",
		File: "snapshot.go",
		Old:  "	c.send(h.From, c.currentTerm, h.Request, InstallSnapshotReply{MatchIndex: req.Meta.Index})",
		New:  "	c.sendNow(h.From, c.currentTerm, h.Request, InstallSnapshotReply{MatchIndex: req.Meta.Index})",
		Test: Test{Package: ".", Name: "TestSnapshotReplacesAConflictingOrShorterLog"},
	},
	{
		Name: "a snapshot that is not wanted is received all the same",
		Rule: "SAFETY §2: receiving what would not be taken only costs; a deposed leader's and an older one",
		File: "snapshot.go",
		Old:  "m.Term >= c.currentTerm && c.storage != StorageFailed &&\n\t\t(req.Meta.Index > c.commitIndex && req.Meta.Index >= c.log.lost.Last && !req.Repair || c.coversGaps(&req.Meta))",
		New:  "c.storage != StorageFailed && req.Meta.Index > 0",
		Test: Test{Package: ".", Name: "TestUnwantedSnapshotsAreKnownBeforehand"},
	},
	{
		Name: "a failed storage takes a snapshot",
		Rule: "SAFETY §2: a failed write or sync is final",
		File: "snapshot.go",
		Old:  "m.Term >= c.currentTerm && c.storage != StorageFailed &&",
		New:  "m.Term >= c.currentTerm &&",
		Test: Test{Package: ".", Name: "TestUnwantedSnapshotsAreKnownBeforehand"},
	},
	{
		Name: "an installed snapshot leaves the commit index behind",
		Rule: "SAFETY inv 8, 9: what the state machine holds is committed",
		File: "snapshot.go",
		Old:  "c.commitIndex, c.handedOut = meta.Index, meta.Index\n",
		New:  "c.handedOut = meta.Index\n",
		Test: Test{Package: ".", Name: "TestSnapshotReplacesAConflictingOrShorterLog"},
	},
	{
		Name: "entries in a snapshot are handed out for apply again",
		Rule: "SAFETY inv 9: each index is applied once",
		File: "snapshot.go",
		Old:  "c.commitIndex, c.handedOut = meta.Index, meta.Index\n",
		New:  "c.commitIndex = meta.Index\n",
		Test: Test{Package: ".", Name: "TestSnapshotReplacesAConflictingOrShorterLog"},
	},
	{
		Name: "the state machine is not restored from an installed snapshot",
		Rule: "Figure 13, rule 8: reset the state machine using snapshot contents",
		File: "snapshot.go",
		Old:  "	c.out.Apply = append(c.out.Apply, Apply{Restore: &meta, Lo: meta.Index + 1, Hi: meta.Index + 1})\n",
		New:  "",
		Test: Test{Package: ".", Name: "TestSnapshotReplacesAConflictingOrShorterLog"},
	},
	{
		Name: "an installed snapshot's configuration is not taken over",
		Rule: "Figure 13, rule 8: load the snapshot's cluster configuration",
		File: "snapshot.go",
		Old:  "	c.configurations = []configurationAt{{meta.ConfigurationIndex, meta.Configuration.Clone()}}\n\tc.committedConfig = meta.ConfigurationIndex\n\tc.configurationInForce()\n",
		New:  "",
		Test: Test{Package: ".", Name: "TestSnapshotReplacesAConflictingOrShorterLog"},
	},
	{
		Name: "configurations of the discarded log stay below an installed one",
		Rule: "Figure 13, rule 7: discard the entire log, configurations included",
		File: "snapshot.go",
		Old:  "c.configurations = []configurationAt{{meta.ConfigurationIndex, meta.Configuration.Clone()}}",
		New:  "c.configurations = append(c.configurations, configurationAt{meta.ConfigurationIndex, meta.Configuration.Clone()})",
		Test: Test{Package: ".", Name: "TestSnapshotReplacesAConflictingOrShorterLog"},
	},
	{
		Name: "an installed snapshot's configuration leaves the old peers",
		Rule: "Figure 13, rule 8: load the snapshot's cluster configuration; who votes and who is reached follows it",
		File: "snapshot.go",
		Old:  "	c.committedConfig = meta.ConfigurationIndex\n\tc.configurationInForce()\n",
		New:  "	c.committedConfig = meta.ConfigurationIndex\n",
		Test: Test{Package: ".", Name: "TestSnapshotReplacesAConflictingOrShorterLog"},
	},

	// The log behind an installed snapshot, and the disk.
	{
		Name: "the log on disk is not told of an installed snapshot",
		Rule: "SAFETY inv 20: no gap between snapshot and log, on disk either",
		File: "log.go",
		Old:  "	l.snapshot = &meta\n",
		New:  "",
		Test: Test{Package: ".", Name: "TestSnapshotReplacesAConflictingOrShorterLog"},
	},
	{
		Name: "a write that was under way counts for the log that a snapshot began, once that is issued",
		Rule: "SAFETY §3: late completion must be ignored",
		File: "log.go",
		Old:  "		f.truncateFrom = 1 // everything",
		New:  "		f.truncateFrom = l.truncateFrom // everything",
		Test: Test{Package: ".", Name: "TestCompletedAppendOfAReplacedLogIsNotDurable"},
	},
	{
		Name: "the discarded log's terms stay",
		Rule: "Figure 13, rule 7: discard the entire log",
		File: "log.go",
		Old:  "l.terms, l.tail, l.tailBytes = nil, tail{}, 0",
		New:  "l.tail, l.tailBytes = tail{}, 0",
		Test: Test{Package: ".", Name: "TestSnapshotReplacesAConflictingOrShorterLog"},
	},

	// Taking one, and compaction.
	{
		Name: "a snapshot taken late replaces one that was installed",
		Rule: "§7; SAFETY §3: a snapshot replaces a newer one",
		File: "snapshot.go",
		Old:  "	if meta.Index <= c.snapshot.Index {\n\t\treturn // a newer",
		New:  "	if meta.Index == 0 {\n\t\treturn // a newer",
		Test: Test{Package: ".", Name: "TestSnapshotTakenLateReplacesNothing"},
	},
	{
		Name: "a snapshot ahead of the state machine is believed",
		Rule: "§7: a snapshot covers committed entries only; SAFETY inv 9, 19",
		File: "snapshot.go",
		Old:  "assertf(c, meta.Index <= c.handedOut,",
		New:  "assertf(c, meta.Index <= ^Index(0),",
		Test: Test{Package: ".", Name: "TestSnapshotCarriesTheConfigurationOfItsIndex"},
	},
	{
		Name: "no trailing entries are kept",
		Rule: "CoreConfig.TrailingEntries: a follower that lags a little needs no snapshot (§7)",
		File: "snapshot.go",
		Old:  "c.covered = meta.Index - Index(c.cfg.TrailingEntries)",
		New:  "c.covered = meta.Index",
		Test: Test{Package: ".", Name: "TestSnapshotCompactsTheLogButKeepsATrail"},
	},
	{
		Name: "a short log is compacted to before its beginning",
		Rule: "§7: the subtraction of the trailing entries must not wrap around",
		File: "snapshot.go",
		Old:  "	if uint64(meta.Index) <= c.cfg.TrailingEntries {\n\t\treturn\n\t}\n",
		New:  "",
		Equivalent: "The subtraction wraps around to an index far behind the log, and raftLog.compact refuses what is not durable (\"entries that are not " +
			"durable are compacted\"). The configurations that are then forgotten lie at or below the snapshot, so nothing can roll back to them.",
	},
	{
		Name: "entries that are not durable are compacted",
		Rule: "SAFETY inv 20; §7: compaction never goes beyond what is durable and applied",
		File: "log.go",
		Old:  "if to <= l.base.Index || to > l.stored {",
		New:  "if to <= l.base.Index {",
		Test: Test{Package: ".", Name: "TestOnlyDurableEntriesLeaveMemory"},
	},
	{
		Name: "compaction goes back",
		Rule: "§7: what is gone is gone",
		File: "log.go",
		Old:  "if to <= l.base.Index || to > l.stored {",
		New:  "if to > l.stored {",
		Test: Test{Package: ".", Name: "TestCompactionNeverGoesBack"},
	},
	{
		Name: "runs of terms that hold nothing stay after compaction",
		Rule: "§5.3, §7: the terms of what remains, each entry in one run",
		File: "log.go",
		Old:  "		if to == l.last || len(l.terms) > 1 && l.terms[1].Index == to+1 {\n\t\t\tl.terms = l.terms[1:]\n\t\t}\n",
		New:  "",
		Test: Test{Package: ".", Name: "TestScripts/explored-snapshots"},
	},
	{
		Name: "a snapshot is described with the configuration in force",
		Rule: "§7: the latest configuration as of the last included index; one behind it may never be committed; SAFETY inv 19",
		File: "snapshot.go",
		Old:  "at, known := c.configurationBefore(index)\n",
		New:  "at, known := c.configurationBefore(c.log.last)\n",
		Test: Test{Package: ".", Name: "TestSnapshotCarriesTheConfigurationOfItsIndex"},
	},
	{
		Name: "a configuration at the snapshot's index is left out",
		Rule: "§7: the latest configuration as of the last included index, that one included; SAFETY inv 19",
		File: "membership.go",
		Old:  "if c.configurations[k].index <= index {",
		New:  "if c.configurations[k].index < index {",
		Test: Test{Package: ".", Name: "TestSnapshotCarriesTheConfigurationOfItsIndex"},
	},
	{
		Name: "a snapshot of what is not committed is described",
		Rule: "§7: a snapshot covers committed entries only",
		File: "snapshot.go",
		Old:  "if !ok || !known || index == 0 || index > c.handedOut {",
		New:  "if !ok || !known || index == 0 || index > c.log.last {",
		Test: Test{Package: ".", Name: "TestSnapshotOfWhatIsNotCommittedIsNotDescribed"},
	},
	{
		Name: "the configuration of the snapshot is dropped with the log",
		Rule: "§7: it is needed to describe the snapshot, and to roll back to",
		File: "snapshot.go",
		Old:  "for len(c.configurations) > 1 && c.configurations[1].index <= meta.Index {",
		New:  "for len(c.configurations) > 1 && c.configurations[0].index <= meta.Index {",
		Test: Test{Package: ".", Name: "TestConfigurationBehindASnapshotIsRolledBack"},
	},

	// Starting.
	{
		Name: "a gap between snapshot and log goes unnoticed",
		Rule: "SAFETY inv 20, 23: no gap between snapshot and log",
		File: "raft.go",
		Old:  "case rec.Snapshot.Index < rec.Compacted.Index:",
		New:  "case rec.Snapshot.Index > 0 && rec.Snapshot.Index+1 < rec.Compacted.Index:",
		Test: Test{Package: ".", Name: "TestGapBetweenSnapshotAndLogIsKnown"},
	},
	{
		Name: "a snapshot received right before a crash leaves the old log",
		Rule: "SAFETY §3: commit index beyond the log after a crash while installing; Figure 13, rule 7",
		File: "raft.go",
		Old:  "if !c.log.contains(rec.Snapshot.ID()) {",
		New:  "if c.log.last < rec.Snapshot.Index {",
		Test: Test{Package: ".", Name: "TestCrashWhileInstallingIsCompletedAtStart"},
	},
	{
		Name: "the log is discarded at every start with a snapshot",
		Rule: "Figure 13, rule 6; SAFETY inv 23: recovery drops no entry that may have been acknowledged",
		File: "raft.go",
		Old:  "if !c.log.contains(rec.Snapshot.ID()) {",
		New:  "if c.log.base != rec.Snapshot.ID() {",
		Test: Test{Package: ".", Name: "TestCrashWhileInstallingIsCompletedAtStart"},
	},
	{
		Name: "entries in the snapshot are applied again after a start",
		Rule: "SAFETY inv 9: each index is applied once, behind the snapshot that the state machine begins with",
		File: "raft.go",
		Old:  "c.commitIndex, c.lastApplied, c.handedOut = c.snapshot.Index, c.snapshot.Index, c.snapshot.Index",
		New:  "c.commitIndex = c.snapshot.Index",
		Test: Test{Package: ".", Name: "TestCrashWhileInstallingIsCompletedAtStart"},
	},
	{
		Name: "the commit index at start forgets the snapshot",
		Rule: "SAFETY inv 8, 9: what the state machine holds is committed",
		File: "raft.go",
		Old:  "c.commitIndex, c.lastApplied, c.handedOut = c.snapshot.Index, c.snapshot.Index, c.snapshot.Index",
		New:  "c.lastApplied, c.handedOut = c.snapshot.Index, c.snapshot.Index",
		Test: Test{Package: ".", Name: "TestCrashWhileInstallingIsCompletedAtStart"},
	},
	{
		Name: "the term of a snapshot is not entered at start",
		Rule: "§5.1: the current term is never less than a term in the log; SAFETY inv 2",
		File: "raft.go",
		Old:  "if t := c.log.lastID().Term; t > c.currentTerm {",
		New:  "if t := c.log.lastID().Term; t > c.currentTerm+maxTermJump {",
		Test: Test{Package: ".", Name: "TestCrashWhileInstallingIsCompletedAtStart"},
	},
	{
		Name: "the vote of an earlier term is kept for the snapshot's",
		Rule: "SAFETY inv 3: a vote belongs to its term",
		File: "raft.go",
		Old:  "c.currentTerm, c.votedFor, c.hardStateDirty = t, \"\", true",
		New:  "c.currentTerm, c.hardStateDirty = t, true",
		Test: Test{Package: ".", Name: "TestCrashWhileInstallingIsCompletedAtStart"},
	},

	// Sending.
	{
		Name: "a follower that needs compacted entries gets no snapshot",
		Rule: "§7: the leader sends a snapshot when it has discarded the next entry that a follower needs",
		File: "replication.go",
		Old:  "		prevLogTerm, ok := c.log.term(p.nextIndex - 1)\n\t\tif !ok {\n\t\t\tc.startSnapshot(p)\n\t\t\treturn\n\t\t}\n\t\troom",
		New:  "		prevLogTerm, ok := c.log.term(p.nextIndex - 1)\n\t\tif !ok {\n\t\t\treturn\n\t\t}\n\t\troom",
		Test: Test{Package: ".", Name: "TestLaggingFollowerGetsTheSnapshotThenTheLog"},
	},
	{
		Name: "a snapshot that was sent counts as acknowledged",
		Rule: "SAFETY inv 11, 13; SAFETY §3: a pending-snapshot peer: only its own reply says that it is durable there",
		File: "snapshot.go",
		Old:  "		p.nextIndex = p.snapshot + 1\n\t\tc.snapshotArrived(p)",
		New:  "		p.matchIndex, p.nextIndex = max(p.matchIndex, p.snapshot), p.snapshot+1\n\t\tc.snapshotArrived(p)\n\t\tc.advanceCommit()",
		Test: Test{Package: ".", Name: "TestSnapshotTransferEnds"},
	},
	{
		Name: "the end of an earlier transfer ends the present one",
		Rule: "SAFETY §3: slow install against a retry loop",
		File: "snapshot.go",
		Old:  "p.state == stateSnapshot && p.transfer == transfer {",
		New:  "p.state == stateSnapshot {",
		Test: Test{Package: ".", Name: "TestSnapshotTransferEnds"},
	},
	{
		Name: "a snapshot that failed is sent again at once",
		Rule: "SAFETY §3: slow install against a retry loop",
		File: "snapshot.go",
		Old:  "		c.endSnapshot(p)\n\t\tp.pausedUntil = c.now + c.cfg.ElectionTimeout\n",
		New:  "		c.endSnapshot(p)\n",
		Test: Test{Package: ".", Name: "TestSnapshotTransferEnds"},
	},
	{
		Name: "entries behind the follower are sent after a snapshot",
		Rule: "Figure 2: 0 <= matchIndex < nextIndex",
		File: "snapshot.go",
		Old:  "	p.nextIndex = max(p.matchIndex+1, p.nextIndex)\n\tp.resetRequest",
		New:  "	p.resetRequest",
		Equivalent: "acknowledged and handleInstallSnapshotReply raise nextIndex together with matchIndex, and end the transfer as soon as matchIndex reaches " +
			"the snapshot. So matchIndex < nextIndex holds already, also where SnapshotSent has just set nextIndex to the entry behind the snapshot.",
	},
	{
		Name: "a late rejection undoes a snapshot",
		Rule: "SAFETY §3: one rejected append wedges the pipeline; a rejection of a request before the snapshot is about what is no longer believed",
		File: "snapshot.go",
		Old:  "	p.nextIndex = max(p.matchIndex+1, p.nextIndex)\n\tp.resetRequest = c.nextRequest\n",
		New:  "	p.nextIndex = max(p.matchIndex+1, p.nextIndex)\n",
		Test: Test{Package: ".", Name: "TestSnapshotTransferEnds"},
	},
	{
		Name: "an acknowledgement while a snapshot is on its way ends it, whatever it says",
		Rule: "SAFETY §3: a pending-snapshot peer acknowledged past it, not before",
		File: "replication.go",
		Old:  "		if p.matchIndex >= p.snapshot {\n\t\t\tc.endSnapshot(p) // it got",
		New:  "		if p.matchIndex >= 0 {\n\t\t\tc.endSnapshot(p) // it got",
		Test: Test{Package: ".", Name: "TestSnapshotTransferEnds"},
	},
	{
		Name: "a follower that got past its snapshot by itself waits on",
		Rule: "SAFETY §3: a pending-snapshot peer acknowledged past it",
		File: "replication.go",
		Old:  "		if p.matchIndex >= p.snapshot {\n\t\t\tc.endSnapshot(p) // it got",
		New:  "		if p.matchIndex > c.log.last {\n\t\t\tc.endSnapshot(p) // it got",
		Test: Test{Package: ".", Name: "TestSnapshotTransferEnds"},
	},
	{
		Name: "the reply to an old snapshot ends the present transfer",
		Rule: "§7: the follower lacks what was compacted since",
		File: "snapshot.go",
		Old:  "if p.state == stateSnapshot && p.matchIndex >= p.snapshot {",
		New:  "if p.state == stateSnapshot {",
		Test: Test{Package: ".", Name: "TestSnapshotTransferEnds"},
	},
	{
		Name: "a snapshot reply to an earlier term counts",
		Rule: "§5.1: replies of earlier terms are dropped",
		File: "snapshot.go",
		Old:  "	if c.role != Leader || h.Term < c.currentTerm {\n\t\treturn\n\t}\n\tp := c.peer(h.From)",
		New:  "	if c.role != Leader {\n\t\treturn\n\t}\n\tp := c.peer(h.From)",
		Test: Test{Package: ".", Name: "TestSnapshotRepliesOfEarlierTermsOrIndexesChangeNothing"},
	},
	{
		Name: "another data directory acknowledges a snapshot",
		Rule: "SAFETY §3: reused ID with an empty log; inv 29",
		File: "snapshot.go",
		Old:  "if p == nil || !c.counted(p) {",
		New:  "if p == nil {",
		Test: Test{Package: ".", Name: "TestAnotherReplicaIsNotCounted"},
	},
	{
		Name: "a snapshot reply acknowledges what was never sent",
		Rule: "SAFETY §2, hostile input: impossible values are refused",
		File: "snapshot.go",
		Old:  "	if rep.MatchIndex > c.log.last {\n",
		New:  "	if rep.MatchIndex > maxIndex {\n",
		Test: Test{Package: ".", Name: "TestImpossibleInputIsRefused/acknowledgement_of_what_was_never_sent"},
	},
	{
		Name: "a late snapshot reply takes an acknowledgement back",
		Rule: "Figure 2: matchIndex increases monotonically",
		File: "snapshot.go",
		Old:  "	if rep.MatchIndex > p.matchIndex {\n",
		New:  "	if rep.MatchIndex > 0 {\n",
		Test: Test{Package: ".", Name: "TestSnapshotRepliesOfEarlierTermsOrIndexesChangeNothing"},
	},
	{
		Name: "a snapshot that follows damaged entries is sent though it lacks them",
		Rule: "SAFETY inv 24: no byte of a damaged range is sent; a snapshot before it helps nobody",
		File: "replication.go",
		Old:  "	if c.snapshot.Index < p.nextIndex {\n\t\tp.pausedUntil = c.now + c.cfg.ElectionTimeout\n\t\treturn\n\t}\n",
		New:  "",
		Test: Test{Package: ".", Name: "TestDamagedEntriesWithoutSnapshotPauseTheFollower"},
	},

	// The compacted part of the log.
	{
		Name: "the hint of a conflict points before the compacted part",
		Rule: "§5.3, §7: the compaction boundary stands for everything before it, so the logs agree there at the latest",
		File: "log.go",
		Old:  "		index = run.Index - 1\n\t}\n\treturn l.base",
		New:  "		index = run.Index - 1\n\t}\n\treturn EntryID{}",
		Test: Test{Package: ".", Name: "TestLogsAgreeAtTheCompactionBoundaryAtTheLatest"},
	},
	{
		Name: "a heartbeat names a compacted entry without its term",
		Rule: "§7: a leader cannot speak of an entry whose term it has given up",
		File: "replication.go",
		Old:  "		prev, prevLogTerm = 0, 0 // compacted",
		New:  "		prevLogTerm = 0 // compacted",
		Test: Test{Package: ".", Name: "TestScripts/snapshot-overtaken"},
	},
	{
		Name: "entries that come from the disk follow a compacted one",
		Rule: "§7: the leader compacted while it was reading; the follower needs the snapshot",
		File: "replication.go",
		Old:  "	prevLogTerm, ok := c.log.term(p.nextIndex - 1)\n\tif !ok {\n\t\tc.startSnapshot(p)\n\t\treturn\n\t}\n\tc.sendEntries",
		New:  "	prevLogTerm, _ := c.log.term(p.nextIndex - 1)\n\tc.sendEntries",
		Test: Test{Package: ".", Name: "TestSnapshotTakesThePlaceOfALoad"},
	},
	{
		Name: "the first run of terms begins in the compacted part",
		Rule: "§5.3, §7: the terms of what remains",
		File: "log.go",
		Old:  "		l.terms[0].Index = to + 1\n",
		New:  "",
		Test: Test{Package: ".", Name: "TestOlderSnapshotReplacesNothing"},
	},
	{
		Name: "entries that are not durable leave memory",
		Rule: "SAFETY inv 20: what storage cannot return yet is needed for the write, and by followers",
		File: "log.go",
		Old:  "l.tailBytes > maxBytes && first+Index(n) <= upTo; n++",
		New:  "l.tailBytes > maxBytes && first+Index(n) <= l.last; n++",
		Test: Test{Package: ".", Name: "TestAppliesReachBehindMemory"},
	},
	{
		Name: "a follower that asks for compacted entries gets no snapshot after the disk has said so",
		Rule: "§7: the leader sends a snapshot when it has discarded the next entry that a follower needs",
		File: "replication.go",
		Old:  "\t\treturn\n\t}\n\tc.startSnapshot(p)\n}\n",
		New:  "\t\treturn\n\t}\n\tp.pausedUntil = c.now + c.cfg.ElectionTimeout\n}\n",
		Test: Test{Package: ".", Name: "TestSnapshotTakesThePlaceOfALoad"},
	},

	// Not about snapshots, but it fits nowhere better: two guards that cover each other, so that the row takes out both. What lies
	// between them stays as it is.
	{
		Name: "the commit index that a heartbeat carries is bounded on neither side",
		Rule: "Figure 2, rule 5: min(leaderCommit, index of last new entry); a heartbeat may overtake entries; SAFETY inv 7",
		File: "replication.go",
		Old: `	commit := min(c.commitIndex, prev)
	p.sentCommit = max(p.sentCommit, commit)
	c.sendNow(p.server.ID, c.currentTerm, c.request(), AppendEntries{
		PrevLogIndex: prev, PrevLogTerm: prevLogTerm, LeaderCommit: commit, Round: c.round,
	})
}

// handleAppendEntries is the receiver's half of the AppendEntries RPC (§5.3, Figure 2).
func (c *Core) handleAppendEntries(h Header, req AppendEntries) {
	if h.Term < c.currentTerm {
		// Rule 1: a deposed leader; our term tells it so. Nothing else of the request is echoed: its sender may lead our term by
		// now, and as another process, which counts its rounds from the start again. It would take this for the answer to a round
		// that it begins later, and serve a stale read.
		c.send(h.From, c.currentTerm, h.Request, AppendEntriesReply{})
		return
	}
	reply := AppendEntriesReply{PrevLogIndex: req.PrevLogIndex, Round: req.Round}
	if c.leader != "" && c.leader != h.From { // a second leader in our term: a peer can claim it alone, so it is refused (§5.2)
		c.refuse(h.From, SecondLeader)
		return
	}
	if t, ok := c.log.term(req.PrevLogIndex); ok && req.PrevLogIndex <= c.commitIndex && t != req.PrevLogTerm {
		c.refuse(h.From, CommittedConflict)
		return
	}
	c.followLeader(h.From)

	if !c.matches(EntryID{Term: req.PrevLogTerm, Index: req.PrevLogIndex}) { // rule 2
		hint := c.log.lastWithTermUpTo(req.PrevLogIndex, req.PrevLogTerm)
		reply.HintIndex, reply.HintTerm = hint.Index, hint.Term
		c.send(h.From, c.currentTerm, h.Request, reply)
		return
	}
	if len(req.Entries) > 0 && !c.roomFor(req.Entries) {
		reply.Busy = true
		c.send(h.From, c.currentTerm, h.Request, reply)
		return
	}
	if !c.merge(h.From, req.Entries) { // rules 3 and 4
		return
	}
	// Rule 5. The bound is the last entry of this request, not the end of our log: beyond lastNew may lie a stale suffix that this
	// leader has not overwritten yet.
	lastNew := req.PrevLogIndex + Index(len(req.Entries))
	c.commitTo(min(req.LeaderCommit, lastNew))
`,
		New: `	commit := c.commitIndex
	p.sentCommit = max(p.sentCommit, commit)
	c.sendNow(p.server.ID, c.currentTerm, c.request(), AppendEntries{
		PrevLogIndex: prev, PrevLogTerm: prevLogTerm, LeaderCommit: commit, Round: c.round,
	})
}

// handleAppendEntries is the receiver's half of the AppendEntries RPC (§5.3, Figure 2).
func (c *Core) handleAppendEntries(h Header, req AppendEntries) {
	if h.Term < c.currentTerm {
		// Rule 1: a deposed leader; our term tells it so. Nothing else of the request is echoed: its sender may lead our term by
		// now, and as another process, which counts its rounds from the start again. It would take this for the answer to a round
		// that it begins later, and serve a stale read.
		c.send(h.From, c.currentTerm, h.Request, AppendEntriesReply{})
		return
	}
	reply := AppendEntriesReply{PrevLogIndex: req.PrevLogIndex, Round: req.Round}
	if c.leader != "" && c.leader != h.From { // a second leader in our term: a peer can claim it alone, so it is refused (§5.2)
		c.refuse(h.From, SecondLeader)
		return
	}
	if t, ok := c.log.term(req.PrevLogIndex); ok && req.PrevLogIndex <= c.commitIndex && t != req.PrevLogTerm {
		c.refuse(h.From, CommittedConflict)
		return
	}
	c.followLeader(h.From)

	if !c.matches(EntryID{Term: req.PrevLogTerm, Index: req.PrevLogIndex}) { // rule 2
		hint := c.log.lastWithTermUpTo(req.PrevLogIndex, req.PrevLogTerm)
		reply.HintIndex, reply.HintTerm = hint.Index, hint.Term
		c.send(h.From, c.currentTerm, h.Request, reply)
		return
	}
	if len(req.Entries) > 0 && !c.roomFor(req.Entries) {
		reply.Busy = true
		c.send(h.From, c.currentTerm, h.Request, reply)
		return
	}
	if !c.merge(h.From, req.Entries) { // rules 3 and 4
		return
	}
	// Rule 5. The bound is the last entry of this request, not the end of our log: beyond lastNew may lie a stale suffix that this
	// leader has not overwritten yet.
	lastNew := req.PrevLogIndex + Index(len(req.Entries))
	c.commitTo(min(req.LeaderCommit, c.log.last))
`,
		Test: Test{Package: ".", Name: "TestScripts/stale-suffix-heartbeat"},
	},
}
