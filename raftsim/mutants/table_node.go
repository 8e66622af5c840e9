package mutants

// node lists the guards of the node: its loop, the log writer, the applier, proposals.
var node = []Mutant{
	// node.go.
	{
		Name: "blank storage starts without a cluster",
		Rule: "SAFETY §2 disk: a wiped directory is refused, never silently trusted",
		File: "node.go",
		Old:  `	if rec.Blank() && rec.Identity.Cluster == "" {`,
		New:  `	if false {`,
		Test: Test{".", "TestStartOnABlankStorageNeedsACluster"},
	},
	{
		Name: "request numbers begin anew with every process",
		Rule: "node.adopt: an answer to our predecessor is no answer to us, and our forwards are no duplicates of its",
		File: "node.go",
		Old: `	n.fwd.nextRequest = rec.Identity.Incarnation << 32
`,
		New:  ``,
		Test: Test{".", "TestRestartedFollowerForwardsToTheSameLeader"},
	},
	{
		Name: "clock looked at before the messages",
		Rule: "SAFETY §2 process: after a pause, messages that were waiting show that nobody has fallen silent",
		File: "node.go",
		Old: `		for _, m := range in.messages {
			n.receive(now, m)
		}
`,
		New: `		if now >= n.core.Deadline() {
			n.core.Tick(now)
		}
		for _, m := range in.messages {
			n.receive(now, m)
		}
`,
		Test: Test{".", "TestFollowerThatWasHeldUpHearsFirst"},
	},
	{
		Name: "failed leader does not hand over",
		Rule: "SAFETY §2: a node that fails hands leadership over, nobody has to time out",
		File: "node.go",
		Old: `		n.core.Abstain(now, true)
		n.drain(now)
`,
		New:  ``,
		Test: Test{".", "TestFailedLeaderAsksItsSuccessorToLead"},
	},
	{
		Name: "node with a poisoned log goes on",
		Rule: "SAFETY §2 disk: sync error: no retry, no acknowledgement, leadership handed over, node Failed",
		File: "node.go",
		Old: `		n.lingers = n.view.Role == Leader // the core hands over
		n.fail(err)
`,
		New: `		n.lingers = n.view.Role == Leader
`,
		Test: Test{".", "TestFailedWriteHandsOverAndFails"},
	},
	{
		Name: "proposal forwarded to another server taken",
		Rule: "SAFETY inv 21: messages of another recipient are dropped",
		File: "node.go",
		Old:  `		if m.To != n.cfg.ID {`,
		New:  `		if false {`,
		Test: Test{".", "TestForwardsForAnotherServerAreDropped"},
	},
	{
		Name: "membership change reported at the joint configuration",
		Rule: "§6: a change is complete when the new configuration is committed",
		File: "node.go",
		Old:  `	if !e.Committed || e.Configuration.Joint() {`,
		New:  `	if !e.Committed {`,
		Test: Test{".", "TestChangeMembership"},
	},
	{
		Name: "membership change reported before it is committed",
		Rule: "§6: a change is complete when the new configuration is committed",
		File: "node.go",
		Old:  `	if !e.Committed || e.Configuration.Joint() {`,
		New:  `	if e.Configuration.Joint() {`,
		Test: Test{".", "TestChangeReturnsWhenTheLastConfigurationIsCommitted"},
	},
	{
		Name: "replaced membership change reported as complete",
		Rule: "SAFETY inv 14: a deposed leader's change was dropped although its successor's is complete",
		File: "node.go",
		Old:  `		w.held = known && term == w.id.Term`,
		New:  `		w.held = known || term == w.id.Term`,
		Test: Test{".", "TestReplacedChangeIsNotTakenForItsSuccessors"},
	},
	{
		Name: "membership change ended by an earlier configuration",
		Rule: "§6: a caller waits for its own configuration",
		File: "node.go",
		Old:  `		if e.Index < w.id.Index {`,
		New:  `		if false {`,
		Equivalent: "A change is refused while an earlier configuration is not committed (TestChangesAreRefusedWhileOneMayBeUnderWay), so " +
			"that of this leader's configurations only later ones can be reported after it. A later leader's configuration at an earlier index means that " +
			"the change was replaced, and then the outcome of its proposal decides, whatever index is reported (\"replaced membership change reported as complete\").",
	},
	{
		Name: "calls on a removed server wait for ever",
		Rule: "SAFETY §3 lifecycle: every pending call ends on removal",
		File: "node.go",
		Old:  `	if e.Configuration.IsRemoved(n.cfg.ID) {`,
		New:  `	if false {`,
		Test: Test{".", "TestRemovalEndsWhatWaits"},
	},
	{
		Name: "forwards wait for a deposed leader",
		Rule: "SAFETY §3 lifecycle: step-down unblocks everything",
		File: "node.go",
		Old: `	n.forwardLeaderChanged(now)
`,
		New:  ``,
		Test: Test{".", "TestForwardToADeposedLeaderEndsSoon"},
	},
	{
		Name: "calls wait for ever on a stopped node",
		Rule: "SAFETY inv 14 and §3 lifecycle: every pending call ends on shutdown",
		File: "node.go",
		Old: `	n.endCalls(cause)
}

// onLoop`,
		New: `}

// onLoop`,
		Test: Test{".", "TestStopEndsEveryCall"},
	},
	{
		Name: "panic in the state machine ends the process",
		Rule: "SAFETY §2 process: panic in the user's state machine: node goes Failed, the process lives",
		File: "apply.go",
		Old: `	defer func() {
		if r := recover(); r != nil {
			err = &panicError{in: in, value: r, stack: debug.Stack()}
		}
	}()
	return f()
`,
		New: `	_ = debug.Stack
	return f()
`,
		Test: Test{".", "TestFailingApplyMakesTheNodeFail/panic"},
	},

	// logwriter.go.
	{
		Name: "write reported before it is durable",
		Rule: "SAFETY inv 11 and 12: no vote and no acknowledgement before the write they depend on is durable",
		File: "logwriter.go",
		Old: `		err := w.st.Write(batch)
`,
		New: `		w.n.inbox.reportPersisted(writes[merged-1].Seq)
		err := w.st.Write(batch)
`,
		Test: Test{".", "TestFullStorageGetsItsWritesOneByOne"},
	},
	{
		Name: "writes reported that were not merged into the batch",
		Rule: "SAFETY inv 11: no reply claims an index that is not durable",
		File: "logwriter.go",
		Old:  `w.n.inbox.reportPersisted(writes[merged-1].Seq)`,
		New:  `w.n.inbox.reportPersisted(writes[len(writes)-1].Seq)`,
		Test: Test{".", "TestFullStorageGetsItsWritesOneByOne"},
	},
	{
		Name: "failed write skipped",
		Rule: "SAFETY §4: a failed write or sync is final; the next one must not be reported as if the log were whole",
		File: "logwriter.go",
		Old: `			w.failed(fmt.Errorf("write the log: %w", err))
			return false
`,
		New: `			w.failed(fmt.Errorf("write the log: %w", err))
			writes = writes[merged:]
`,
		Test: Test{".", "TestFailedWriteIsTheLast"},
	},
	{
		Name: "what is prepared waits for the last of many writes",
		Rule: "SAFETY §2 disk: no write waits for work that could have been done before",
		File: "logwriter.go",
		Old:  "			poke(w.after) // many",
		New:  "			// many",
		Test: Test{".", "TestPreparerIsWokenAfterEveryWrite"},
	},
	{
		Name: "vote waits for room behind commands",
		Rule: "SAFETY §2 disk: with a full disk voting and serving go on",
		File: "logwriter.go",
		Old: `			limit = 0 // one by one: what is small may still fit
`,
		New: `			_ = limit
`,
		Test: Test{".", "TestFullStorageGetsItsWritesOneByOne"},
	},
	{
		Name: "first hard state of merged writes stands",
		Rule: "SAFETY inv 2 and 12: of the hard states the last one stands",
		File: "logwriter.go",
		Old:  `		if next.HardState != nil {`,
		New:  `		if next.HardState != nil && b.HardState == nil {`,
		Test: Test{".", "TestMergeWrites"},
	},
	{
		Name: "merged writes keep what a later one truncates",
		Rule: "§5.3: a conflicting suffix is gone; SAFETY §3: term change racing an append",
		File: "logwriter.go",
		Old: `			b.Entries = b.Entries[:keep]
`,
		New:  ``,
		Test: Test{".", "TestMergeWrites"},
	},
	{
		Name: "merged writes forget the lower truncation",
		Rule: "§5.3: the lowest truncation of a batch stands",
		File: "logwriter.go",
		Old:  `			if keep == 0 && (b.TruncateFrom == 0 || t < b.TruncateFrom) {`,
		New:  `			if keep == 0 && b.TruncateFrom == 0 {`,
		Test: Test{".", "TestMergeWrites"},
	},
	{
		Name: "installed snapshot merged with what came before",
		Rule: "§7: a snapshot replaces the log; what comes before and after it has different meanings",
		File: "logwriter.go",
		Old:  `		if standsAlone(next) || bytes+size > maxBytes {`,
		New:  `		if bytes+size > maxBytes {`,
		Test: Test{".", "TestMergeWrites"},
	},

	{
		Name: "full disk is found out by a command that gets stuck",
		Rule: "SAFETY §4: space runs out while preparing a segment → full, typed; what was appended before has room yet",
		File: "logwriter.go",
		Old:  `			w.setFull(&w.prepareFull, true, err)`,
		New:  `			w.setFull(&w.prepareFull, false, err)`,
		Test: Test{".", "TestDiskIsFullOnceNothingMoreCanBePrepared"},
	},
	{
		Name: "room to prepare is not noticed",
		Rule: "SAFETY §4 full: resumes by itself",
		File: "logwriter.go",
		Old: `			w.setFull(&w.prepareFull, false, nil)
`,
		New:  ``,
		Test: Test{".", "TestDiskIsFullOnceNothingMoreCanBePrepared"},
	},
	{
		Name: "command that was cut off blocks a full disk",
		Rule: "SAFETY §2 disk: with a full disk voting and serving go on",
		File: "logwriter.go",
		Old:  `!hasCommand(all.Entries) {`,
		New:  `!hasCommand(all.Entries) && n < 2 {`,
		Test: Test{".", "TestCommandThatIsCutOffDoesNotBlockAFullDisk"},
	},
	{
		Name: "failed compaction waits for the next write",
		Rule: "SAFETY §2 disk: leadership handed over, node Failed",
		File: "logwriter.go",
		Old: `		w.failed(fmt.Errorf("compact the log: %w", err))
		return false
`,
		New: `		w.n.log.Warn("compact the log", "to", to, "error", err)
`,
		Test: Test{".", "TestFailedCompactionHandsOverAndFails"},
	},
	{
		Name: "Start waits for a disk that hangs",
		Rule: "SAFETY §3 storage: a storage call hangs instead of failing; every blocking call takes a context",
		File: "node.go",
		Old:  `	case <-time.After(openGrace):`,
		New:  `	case <-time.After(time.Hour):`,
		Test: Test{".", "TestStartGivesUpOnAHangingDisk"},
	},
	{
		Name: "storage that was given up stays open",
		Rule: "Storage.Open: after an error of Start it may be called again",
		File: "node.go",
		Old: `			res.err = n.cfg.Storage.Close()
		}
		n.log.Info("the storage that`,
		New: `		}
		n.log.Info("the storage that`,
		Test: Test{".", "TestStartGivesUpOnAHangingDisk"},
	},

	// apply.go.
	{
		Name: "entry that changed in memory applied",
		Rule: "SAFETY §2 memory: the checksum is taken at propose and verified before apply",
		File: "apply.go",
		Old: `		if _, _, err := DecodeEntry(e.frame); err != nil {
			return fmt.Errorf("entry %v changed in memory: %w", e.ID(), err)
		}
`,
		New:  ``,
		Test: Test{".", "TestApplierRefusesAnEntryThatChangedInMemory"},
	},
	{
		Name: "entries applied twice after a restart",
		Rule: "SAFETY inv 9: each index applied once per state lineage; raft.DurableStateMachine: Apply goes on behind LastApplied",
		File: "apply.go",
		Old: `		if e.Index <= a.durable {
			continue
		}
		// The bytes have been in memory since they were read or received. They are looked at once more, because an error in them
		// would be carried into the state, where no checksum finds it.
		if _, _, err := DecodeEntry(e.frame); err != nil {
			return fmt.Errorf("entry %v changed in memory: %w", e.ID(), err)
		}
		a.batch = append(a.batch, *e)
		a.batchBytes += e.Size()
		if len(a.batch) >= maxApplyEntries || a.batchBytes >= maxApplyBytes {
			if err := a.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// gatherStored is gather for entries [lo, hi) that are no longer in memory.
func (a *applier) gatherStored(ctx context.Context, lo, hi Index) error {
	lo = max(lo, a.durable+1)
`,
		New: `		// The bytes have been in memory since they were read or received. They are looked at once more, because an error in them
		// would be carried into the state, where no checksum finds it.
		if _, _, err := DecodeEntry(e.frame); err != nil {
			return fmt.Errorf("entry %v changed in memory: %w", e.ID(), err)
		}
		a.batch = append(a.batch, *e)
		a.batchBytes += e.Size()
		if len(a.batch) >= maxApplyEntries || a.batchBytes >= maxApplyBytes {
			if err := a.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// gatherStored is gather for entries [lo, hi) that are no longer in memory.
func (a *applier) gatherStored(ctx context.Context, lo, hi Index) error {
`,
		Test: Test{".", "TestApplierSkipsWhatTheStateMachineHolds"},
	},
	{
		Name: "entries applied behind a gap",
		Rule: "SAFETY inv 9: entries are applied in order, none left out",
		File: "apply.go",
		Old: `	case a.gap:
		return nil
`,
		New:  ``,
		Test: Test{".", "TestApplierWaitsForTheSnapshotThatCoversCompactedEntries"},
	},
	{
		Name: "applied entries of before the restore come after it",
		Rule: "SAFETY inv 9 and 19: a restored state holds what the snapshot holds",
		File: "apply.go",
		Old: `	case w.Restore != nil:
		if err := a.flush(); err != nil {
			return err
		}
`,
		New: `	case w.Restore != nil:
`,
		Test: Test{".", "TestApplierFinishesBeforeItRestores"},
	},
	{
		Name: "other entries of the storage applied",
		Rule: "SAFETY inv 9: a storage that returns other entries than asked is not believed",
		File: "apply.go",
		Old:  `		case len(es) == 0 || es[0].Index != lo:`,
		New:  `		case len(es) == 0:`,
		Test: Test{".", "TestApplierWaitsForTheSnapshotThatCoversCompactedEntries"},
	},
	{
		Name: "state machine ahead of the log accepted",
		Rule: "SAFETY inv 7, §2 disk: a rolled-back or foreign directory is never silently trusted",
		File: "apply.go",
		Old:  `	case has.Index > last:`,
		New:  `	case false:`,
		Test: Test{".", "TestDurableStateMachineGoesOnWhereItWas"},
	},
	{
		Name: "state machine of another history accepted",
		Rule: "SAFETY inv 7: one entry per index for the whole cluster",
		File: "apply.go",
		Old:  `	case known && term != has.Term:`,
		New:  `	case known && false:`,
		Test: Test{".", "TestDurableStateMachineGoesOnWhereItWas"},
	},
	{
		Name: "state machine behind the snapshot not restored",
		Rule: "raft.DurableStateMachine: snapshots that are newer are restored at start",
		File: "apply.go",
		Old:  `		if has.Index >= snapshot.Index {`,
		New:  `		if has.Index > 0 {`,
		Test: Test{".", "TestDurableStateMachineGoesOnWhereItWas"},
	},
	{
		Name: "restored snapshot not read to its end",
		Rule: "SAFETY inv 24: the store verifies the whole content at the very end",
		File: "apply.go",
		Old: `		_, err = io.Copy(io.Discard, r)
`,
		New: `		_ = io.Discard
`,
		Test: Test{".", "TestSnapshotIsReadToItsEnd"},
	},
	{
		Name: "no-ops handed to the state machine",
		Rule: "raft.StateMachine: entries holds commands only",
		File: "apply.go",
		Old:  `	if n := countCommands(a.batch); n != len(a.batch) {`,
		New:  `	if n := countCommands(a.batch); n == -1 {`,
		Test: Test{".", "TestLeaderWorkWaitsForTheStateMachine"},
	},
	{
		Name: "proposals wait for ever behind a restored snapshot",
		Rule: "SAFETY §3 lifecycle: every pending call ends on restore",
		File: "apply.go",
		Old: `	a.n.table.restored(stored.ID())
`,
		New:  ``,
		Test: Test{".", "TestRestoreEndsTheProposalsThatItCovers"},
	},
	{
		Name: "applied reported before the state machine has seen it",
		Rule: "SAFETY inv 9 and 16: lastApplied is what the state machine holds",
		File: "apply.go",
		Old: `	if len(commands) > 0 {
		start := time.Now()
`,
		New: `	a.noteApplied(last)
	if len(commands) > 0 {
		start := time.Now()
`,
		Test: Test{".", "TestAppliedIsReportedAfterwards"},
	},

	// bootstrap.go, reconfigure.go.
	{
		Name: "initialised directory bootstrapped again",
		Rule: "SAFETY §2 operator: bootstrap of an initialised cluster refused",
		File: "bootstrap.go",
		Old:  `	if !rec.Blank() {`,
		New:  `	if !rec.Blank() && false {`,
		Test: Test{".", "TestBootstrap"},
	},
	{
		Name: "first configuration differs from server to server",
		Rule: "SAFETY inv 7: every server gets the same bytes at index 1",
		File: "bootstrap.go",
		Old: `	conf.sortServers()
`,
		New:  ``,
		Test: Test{".", "TestBootstrap"},
	},
	{
		Name: "first configuration without its server",
		Rule: "raft.Bootstrap: called for every server in conf",
		File: "bootstrap.go",
		Old:  `	if _, ok := conf.Server(id); !ok {`,
		New:  `	if _, ok := conf.Server(id); !ok && id == "" {`,
		Test: Test{".", "TestBootstrap"},
	},
	{
		Name: "leader that removed itself does not know that it succeeded",
		Rule: "§6: a leader removes itself by committing a configuration without it",
		File: "reconfigure.go",
		Old: `			if w.held {
				return index, nil
			}
		default:`,
		New: `			_ = index
		default:`,
		Test: Test{".", "TestLeaderThatRemovedItselfKnowsIt"},
	},

	// propose.go.
	{
		Name: "replaced proposal gets its successor's result",
		Rule: "SAFETY inv 14: another leader's entry at the proposal's index: ErrDropped",
		File: "propose.go",
		Old: `		case entries[at].Term != sl.id.Term:
			err = ErrDropped
`,
		New:  ``,
		Test: Test{".", "TestTableGivesEachProposalTheOutcomeOfItsEntry"},
	},
	{
		Name: "truncated proposal waits until somebody fills its index",
		Rule: "SAFETY inv 14: each call ends; terms only rise along a log",
		File: "propose.go",
		Old:  `	if to.Term > t.applied.Term {`,
		New:  `	if false {`,
		Test: Test{".", "TestTableGivesEachProposalTheOutcomeOfItsEntry"},
	},
	{
		Name: "proposal covered by a snapshot called dropped",
		Rule: "SAFETY inv 14: failed means never applied; unknown is its own outcome",
		File: "propose.go",
		Old:  `		if sl.id.Term > id.Term || sl.id.Index == id.Index && sl.id.Term != id.Term {`,
		New:  `		if sl.id.Term != id.Term {`,
		Test: Test{".", "TestTableAfterASnapshotWasRestored"},
	},
	{
		Name: "forwarded proposal of an earlier term waits for ever",
		Rule: "SAFETY inv 14: each call ends; terms only rise along a log",
		File: "propose.go",
		Old: `	case sl.id.Index > t.applied.Index && sl.id.Term < t.applied.Term:
		sl.p.end(nil, ErrDropped)
		return
`,
		New:  ``,
		Test: Test{".", "TestTableDropsALateForwardOfAnEarlierTerm"},
	},
	{
		Name: "late answer gets another entry's result",
		Rule: "SAFETY inv 14: the result belongs to the entry at that index and term",
		File: "propose.go",
		Old:  `		if r.term == sl.id.Term {`,
		New:  `		if true {`,
		Test: Test{".", "TestTableKeepsResultsWhileForwardsAreUnanswered"},
	},
	{
		Name: "late answer about another leader's entry called uncertain",
		Rule: "SAFETY inv 14: what is known to be dropped is said to be",
		File: "propose.go",
		Old: `	if term, ok := termAt(sl.id.Index); ok && term != sl.id.Term {
		sl.p.end(nil, ErrDropped)
		return
	}
`,
		New:  ``,
		Test: Test{".", "TestTableKeepsResultsWhileForwardsAreUnanswered"},
	},
	{
		Name: "appended command called without effect when its caller leaves",
		Rule: "SAFETY inv 14: unknown is its own, typed outcome",
		File: "propose.go",
		Old:  `		p.settle(nil, &UncertainError{ID: p.id, Cause: ctx.Err()})`,
		New:  `		p.settle(nil, certain)`,
		Test: Test{".", "TestContextThatEndsAfterTheAppendIsUncertain"},
	},
	{
		Name: "appended command called without effect when the node stops",
		Rule: "SAFETY inv 14: unknown is its own, typed outcome",
		File: "propose.go",
		Old:  `		p.settle(nil, &UncertainError{ID: p.id, Cause: cause})`,
		New:  `		p.settle(nil, cause)`,
		Test: Test{".", "TestStopEndsEveryCall"},
	},
	{
		Name: "withdrawn command appended",
		Rule: "SAFETY inv 14: failed means never applied",
		File: "propose.go",
		Old: `	if p.stage != stageQueued {
		return Entry{}, false
	}
`,
		New:  ``,
		Test: Test{".", "TestProposalEndsOnce"},
	},
	{
		Name: "ended command queued again",
		Rule: "SAFETY inv 14: each client call ends exactly once",
		File: "propose.go",
		Old: `	return p.stage == stageQueued
}

func (p *Pending) appended`,
		New: `	return true
}

func (p *Pending) appended`,
		Test: Test{".", "TestProposalEndsOnce"},
	},
	{
		Name: "finished work piles up before a slow state machine",
		Rule: "SAFETY inv 26, §2 memory: a proposal flood is bounded in bytes",
		File: "propose.go",
		Old:  `	if n.outstanding.Add(p.cost()) > n.maxOutstanding() {`,
		New:  `	if n.outstanding.Add(p.cost()) < 0 {`,
		Test: Test{".", "TestSlowStateMachineHoldsProposalsBack"},
	},
	{
		Name: "proposing from inside Apply waits for itself",
		Rule: "raft.StateMachine: Propose and Read from inside Apply fail with ErrReentrant",
		File: "propose.go",
		Old: `	if n.applier.isCaller() {
		return nil, ErrReentrant
	}
`,
		New:  ``,
		Test: Test{".", "TestCallsFromInsideApplyAreRefused"},
	},
	{
		Name: "read served before its index is applied",
		Rule: "SAFETY inv 16, dissertation §6.4 step 4: wait until the state machine has advanced as far as readIndex",
		File: "propose.go",
		Old:  `	if index <= t.applied.Index {`,
		New:  `	if true {`,
		Test: Test{".", "TestReadsWaitForTheirIndex"},
	},
	{
		Name: "waiting read served one entry too early",
		Rule: "SAFETY inv 16, dissertation §6.4 step 4",
		File: "propose.go",
		Old:  `		if r.index <= to.Index {`,
		New:  `		if r.index <= to.Index+1 {`,
		Test: Test{".", "TestReadsWaitForTheirIndex"},
	},
}
