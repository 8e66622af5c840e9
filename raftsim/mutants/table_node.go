package mutants

// node lists the guards of the server's ordering around the core.
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
		Old:  `		if next.Snapshot != nil || bytes+size > maxBytes {`,
		New:  `		if bytes+size > maxBytes {`,
		Test: Test{".", "TestMergeWrites"},
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

	// forward.go.
	{
		Name: "doubled forward appended twice",
		Rule: "SAFETY inv 9 and 14: the leader takes a forwarded message once, although the network may duplicate it",
		File: "forward.go",
		Old:  `	case !n.firstSight(h):`,
		New:  `	case false:`,
		Test: Test{".", "TestDoubledForwardIsAppendedOnce"},
	},
	{
		Name: "duplicate of an appended forward refused",
		Rule: "forward.go: the refusal of a duplicate would make the follower send again what was appended",
		File: "forward.go",
		Old: `	case !n.firstSight(h):
		return // a duplicate: the first one is answered; or it may be one
	case n.stopping.Load():
		n.refuseForward(in, RefusedStopped)
		return
	case n.view.Role != Leader || h.Term != n.view.Term:
		n.refuseForward(in, RefusedNotLeader)
		return
	}
`,
		New: `	case n.stopping.Load():
		n.refuseForward(in, RefusedStopped)
		return
	case n.view.Role != Leader || h.Term != n.view.Term:
		n.refuseForward(in, RefusedNotLeader)
		return
	case !n.firstSight(h):
		return
	}
`,
		Test: Test{".", "TestDuplicateOfAnAppendedForwardIsNotRefused"},
	},
	{
		Name: "forward of another term taken",
		Rule: "forward.go: only in the very term that the follower names; of an earlier one we know nothing",
		File: "forward.go",
		Old: `	if h.Term != f.seenTerm {
		return false
	}
`,
		New:  ``,
		Test: Test{".", "TestDoubledForwardIsAppendedOnce"},
	},
	{
		Name: "replay window forgets within its reach",
		Rule: "forward.go: in a term each request number only once",
		File: "forward.go",
		Old:  `		for i := w.top + 1; i <= number; i++ {`,
		New:  `		for i := w.top; i <= number; i++ {`,
		Test: Test{".", "TestReplayWindowTakesEachNumberOnce"},
	},
	{
		Name: "number below the replay window taken for a new one",
		Rule: "forward.go: to ignore what comes so late is always safe, to take it is not",
		File: "forward.go",
		Old: `	case w.top-number >= replayWindowSize:
		return false
`,
		New:  ``,
		Test: Test{".", "TestReplayWindowTakesEachNumberOnce"},
	},
	{
		Name: "unanswered forward sent again",
		Rule: "SAFETY inv 9 and 14: without an answer nobody knows whether it was appended",
		File: "forward.go",
		Old: `	for _, p := range fw.ps {
		p.endWith(cause)
	}
	n.table.endForward()
`,
		New: `	for _, p := range fw.ps {
		if n.failure.Load() == nil && !n.stopping.Load() {
			n.requeue(p)
			continue
		}
		p.endWith(cause)
	}
	n.table.endForward()
`,
		Test: Test{".", "TestForwardWithoutAnAnswerIsUncertainAndNotRepeated"},
	},
	{
		Name: "refused forward not tried again",
		Rule: "SAFETY §3 lifecycle: proposals during a transfer go to the new leader",
		File: "forward.go",
		Old:  `	case RefusedNotLeader, RefusedStopped:`,
		New:  `	case RefusedStopped:`,
		Test: Test{".", "TestRefusedForwardIsSentAgain"},
	},
	{
		Name: "command of a later epoch appended too early",
		Rule: "raft.IfTerm: appended by the leader of term t or not at all",
		File: "forward.go",
		Old:  `	return ifTerm == 0 || ifTerm == n.view.Term, ifTerm`,
		New:  `	return ifTerm == 0 || ifTerm >= n.view.Term, ifTerm`,
		Test: Test{".", "TestIfTerm"},
	},
	{
		Name: "command of a deposed leader's epoch appended",
		Rule: "raft.IfTerm: a fencing token: no command of a deposed leader slips in behind its successor's",
		File: "forward.go",
		Old:  `ifTerm == n.view.Term, ifTerm == 0 || ifTerm >= n.view.Term`,
		New:  `ifTerm <= n.view.Term, true`,
		Test: Test{".", "TestIfTerm"},
	},
	{
		Name: "forwarded command's epoch not checked by the leader",
		Rule: "raft.IfTerm: appended by the leader of term t or not at all",
		File: "forward.go",
		Old:  `			if allowed, _ := n.termAllows(in.ps[i].IfTerm); !allowed {`,
		New:  `			if allowed, _ := n.termAllows(in.ps[i].IfTerm); !allowed && n.stopping.Load() {`,
		Test: Test{".", "TestRPCEntryPoints"},
	},
	{
		Name: "follower forwards a configuration",
		Rule: "§6, SAFETY inv 17: configurations are made by the leader alone; hostile input is refused",
		File: "forward.go",
		Old:  `		if e.Size() == 0 || e.Type != EntryCommand && e.Type != EntryBarrier {`,
		New:  `		if e.Size() == 0 {`,
		Test: Test{".", "TestForwardedConfigurationIsRefused"},
	},
	{
		Name: "forwarded command may have any size",
		Rule: "raft.Config.MaxCommandBytes; SAFETY inv 26",
		File: "forward.go",
		Old:  `		if len(e.Data) > n.cfg.MaxCommandBytes {`,
		New:  `		if false {`,
		Test: Test{".", "TestForwardedProposalsAreChecked"},
	},
	{
		Name: "answer with too few outcomes ends the node",
		Rule: "SAFETY §2 hostile input: an authenticated peer that sends impossible values: rejected and counted, no panic",
		File: "forward.go",
		Old:  `		if len(b.Outcomes) != len(fw.ps) {`,
		New:  `		if false {`,
		Test: Test{".", "TestOnlyTheAnswerOfTheLeaderThatWasAskedCounts"},
	},
	{
		Name: "answer of a server that was not asked believed",
		Rule: "SAFETY inv 14: the outcome comes from the leader that the proposal was passed to",
		File: "forward.go",
		Old:  `		if fw.request != h.Request || fw.to != h.From {`,
		New:  `		if fw.request != h.Request {`,
		Test: Test{".", "TestOnlyTheAnswerOfTheLeaderThatWasAskedCounts"},
	},
	{
		Name: "refusal of a deposed leader keeps proposals from the new one",
		Rule: "dissertation §3.10: clients wait no longer than the transfer takes",
		File: "forward.go",
		Old:  `		if fw.to == n.view.Leader {`,
		New:  `		if true {`,
		Test: Test{".", "TestRefusalOfADeposedLeaderHoldsNothingUp"},
	},
	{
		Name: "forward to a dead process waits for its deadline",
		Rule: "SAFETY §3 lifecycle: what was passed on to a process that is gone ends",
		File: "forward.go",
		Old:  `		if f.unanswered[i].to == peer {`,
		New:  `		if false {`,
		Test: Test{".", "TestForwardToACrashedLeaderIsUncertain"},
	},
	{
		Name: "proposal during a transfer refused",
		Rule: "SAFETY §3 lifecycle: step-down during transfer unblocks everything",
		File: "forward.go",
		Old:  `	retry := errors.Is(err, ErrTransferring) || errors.Is(err, ErrNotLeader)`,
		New:  `	retry := errors.Is(err, ErrNotLeader)`,
		Test: Test{".", "TestChangeLeader"},
	},

	{
		Name: "channel used again while a word is on its way",
		Rule: "DESIGN §4, outcomes: every caller gets the outcome of its own command",
		File: "propose.go",
		Old:  `		<-p.done // from us, or from who was faster`,
		New:  ``,
		Test: Test{".", "TestChannelOfAnEndedProposalIsEmpty"},
	},

	// readrounds.go.
	{
		Name: "confirmed read does not wait for the state machine",
		Rule: "SAFETY inv 16, dissertation §6.4 step 4",
		File: "readrounds.go",
		Old:  `		n.table.awaitApplied(index, b)`,
		New:  `		b.end(nil)`,
		Test: Test{".", "TestReadWaitsForASlowStateMachine"},
	},
	{
		Name: "later reads join a round that has begun",
		Rule: "SAFETY §3 reads: acknowledgement of a round that began before the read",
		File: "inbox.go",
		Old: `	r := b.reads
	b.reads = nil
	return r
`,
		New: `	return b.reads
`,
		Test: Test{".", "TestLaterReadsNeedALaterRound"},
	},
	{
		Name: "failed round confirms its reads",
		Rule: "SAFETY inv 16: a leader that lost its office serves nothing",
		File: "readrounds.go",
		Old: `	case res.Err != nil:
		n.abandonRound(now, r)
`,
		New:  ``,
		Test: Test{".", "TestReadOnADeposedLeaderSeesTheNewLeadersWrites"},
	},
	{
		Name: "refused round confirms its reads",
		Rule: "SAFETY inv 16: the refusal of who does not lead is no confirmation",
		File: "readrounds.go",
		Old: `	case b.Refusal != RefusedNot:
		n.abandonRound(now, r)
`,
		New:  ``,
		Test: Test{".", "TestOnlyTheLeaderThatWasAskedConfirmsAForwardedRead"},
	},
	{
		Name: "read confirmed by a server that was not asked",
		Rule: "SAFETY inv 16: the answer comes from the leader that the read was passed to",
		File: "readrounds.go",
		Old:  `		if r.id == id && r.to == to {`,
		New:  `		if r.id == id {`,
		Test: Test{".", "TestOnlyTheLeaderThatWasAskedConfirmsAForwardedRead"},
	},
	{
		Name: "lost answer to a read waited for without end",
		Rule: "SAFETY inv 14: reads change nothing, so they are repeated until they are answered",
		File: "readrounds.go",
		Old:  `r.alone, r.deadline = now+n.cfg.Core.HeartbeatInterval, now+n.cfg.Core.ElectionTimeout`,
		New:  `r.alone, r.deadline = now+n.cfg.Core.HeartbeatInterval, never`,
		Test: Test{".", "TestReadWhoseAnswerIsLostIsAskedAgain"},
	},
	{
		Name: "lost answer to a read holds up all later reads",
		Rule: "DESIGN §1.6: nothing waits for ever; later reads need not wait until an answer counts as lost",
		File: "readrounds.go",
		Old:  `return slices.ContainsFunc(n.fwd.rounds, func(r *readRound) bool { return r.to == "" || now < r.alone })`,
		New:  `return slices.ContainsFunc(n.fwd.rounds, func(r *readRound) bool { return r.to == "" || now < never })`,
		Test: Test{".", "TestForwardedRoundHoldsUpTheNextForAHeartbeatOnly"},
	},
	{
		Name: "a round for every read",
		Rule: "DESIGN §3 reads: a read joins the next round",
		File: "readrounds.go",
		Old:  `	case leading && n.roundUnderWay(now):`,
		New:  `	case leading && n.roundUnderWay(now) && false:`,
		Test: Test{".", "TestReadsGatherWhileARoundIsUnderWay"},
	},
	{
		Name: "gathering requests keeps the loop from its work",
		Rule: "DESIGN §4: the loop waits for nothing but its inbox and the clock",
		File: "inbox.go",
		Old:  `now == before || time.Since(start) > maxGather`,
		New:  `now == before || time.Since(start) > never`,
		Test: Test{".", "TestRequestsGatherWhileMoreCome"},
	},
	{
		Name: "followers' questions without a bound",
		Rule: "DESIGN §1.6: every queue is bounded",
		File: "readrounds.go",
		Old:  `len(n.fwd.readAskers) >= maxReadAskers`,
		New:  `len(n.fwd.readAskers) > 2*maxReadAskers`,
		Test: Test{".", "TestQuestionsOfFollowersAreBounded"},
	},
	{
		Name: "reads that gathered during a round wake nobody",
		Rule: "DESIGN §1.6: nothing waits for ever",
		File: "inbox.go",
		Old: `	if !hold && b.reads != nil {
		b.signal()
	}
`,
		New:  ``,
		Test: Test{".", "TestReadsThatHaveGatheredWakeTheLoop"},
	},

	// leadership.go.
	{
		Name: "leader's work goes on after its office",
		Rule: "raft.WhileLeader: f's context is cancelled when leadership is lost",
		File: "leadership.go",
		Old:  `	if l.work != nil && (c.Role != Leader || c.Term != l.work.epoch) {`,
		New:  `	if false {`,
		Test: Test{".", "TestWhileLeaderRunsOncePerTermAfterTheStateIsComplete"},
	},
	{
		Name: "leader's work begins before the state is complete",
		Rule: "§5.4.2, §8: a leader's first entry follows all that its predecessors committed",
		File: "leadership.go",
		Old:  `now.Term > done && l.appliedTerm == now.Term && !n.stopping.Load():`,
		New:  `now.Term > done && !n.stopping.Load():`,
		Test: Test{".", "TestLeaderWorkWaitsForTheStateMachine"},
	},
	{
		Name: "leader's work runs twice in a term",
		Rule: "raft.WhileLeader: once per term; the epoch is a fencing token",
		File: "leadership.go",
		Old:  `now.Term > done && l.appliedTerm`,
		New:  `now.Term >= done && l.appliedTerm`,
		Test: Test{".", "TestWhileLeaderReturns"},
	},
	{
		Name: "two calls of WhileLeader at once",
		Rule: "raft.WhileLeader: two runs of f never overlap",
		File: "leadership.go",
		Old:  `	if !n.working.CompareAndSwap(false, true) {`,
		New:  `	if n.working.CompareAndSwap(true, true) && ctx == nil {`,
		Test: Test{".", "TestWhileLeaderReturns"},
	},
	{
		Name: "failed node does not cancel the leader's work",
		Rule: "SAFETY §3 lifecycle: everything ends on failure",
		File: "leadership.go",
		Old: `	if l.work != nil {
		l.work.stop(cause, false)
	}
	l.announce()
}

// endWork`,
		New: `	l.announce()
}

// endWork`,
		Test: Test{".", "TestPanicInTheLoopMakesTheNodeFail"},
	},
	{
		Name: "server leads beside its previous work",
		Rule: "raft.WhileLeader: the node does not lead until f has returned",
		File: "leadership.go",
		Old: `	n.abstain(true)
`,
		New:  ``,
		Test: Test{".", "TestLeaderWorkThatIgnoresItsCancellationKeepsTheServerFromLeading"},
	},
	{
		Name: "server never leads again after slow work",
		Rule: "raft.WhileLeader: it leads again when f has returned",
		File: "leadership.go",
		Old: `		n.abstain(false) // the grace was over; overdue has run, or will see that we returned
`,
		New:  ``,
		Test: Test{".", "TestLeaderWorkThatIgnoresItsCancellationKeepsTheServerFromLeading"},
	},

	// snapshotter.go.
	{
		Name: "snapshot carries the newest configuration",
		Rule: "SAFETY inv 19 and §3 snapshots: configuration at its index",
		File: "snapshotter.go",
		Old:  `meta, known = s.n.core.SnapshotMeta(at.Index) })`,
		New:  `meta, known = s.n.core.SnapshotMeta(at.Index); meta.Configuration = s.n.conf })`,
		Test: Test{".", "TestSnapshotBesideAnUncommittedChange"},
	},
	{
		Name: "log given up before the snapshot is durable",
		Rule: "SAFETY inv 20: no gap between snapshot and log",
		File: "snapshotter.go",
		Old:  `	if err := recovered("the snapshot's WriteTo", func() error { return view.WriteTo(ctx, sink) }); err != nil {`,
		New: `	taken := meta
	s.n.inbox.report(func(now time.Duration) { s.n.core.SnapshotTaken(now, taken) })
	if err := recovered("the snapshot's WriteTo", func() error { return view.WriteTo(ctx, sink) }); err != nil {`,
		Test: Test{".", "TestSnapshotThatCannotBeTakenLeavesTheNodeRunning"},
	},
	{
		Name: "broken snapshot transfer reported as sent",
		Rule: "SAFETY §2 network: snapshot stream cut at any byte: resumed or restarted",
		File: "snapshotter.go",
		Old: `			if err != nil {
				s.n.core.SnapshotFailed(now, t.ID)
			} else {
				s.n.core.SnapshotSent(now, t.ID)
			}
`,
		New: `			s.n.core.SnapshotSent(now, t.ID)
`,
		Equivalent: "The core goes on behind the snapshot either way and believes nothing of the follower before it hears from it: the first " +
			"append is rejected, and brings the snapshot back. Only the pause before the next attempt is lost. (The core's own guard on what is " +
			"acknowledged is \"pending-snapshot peer acknowledged past it\", SAFETY §3.)",
	},
	{
		Name: "two snapshots received at once",
		Rule: "SAFETY §3 snapshots: slow install against a retry loop; inv 26",
		File: "snapshotter.go",
		Old:  `	if busy {`,
		New:  `	if busy && false {`,
		Test: Test{".", "TestSecondSnapshotAtOnceIsRefused"},
	},
	{
		Name: "panic while writing a snapshot ignored",
		Rule: "SAFETY §2 process: panic in the user's state machine: node goes Failed",
		File: "snapshotter.go",
		Old: `	if p := (*panicError)(nil); errors.As(err, &p) {
		return err
	}
	return nil
`,
		New: `	return nil
`,
		Test: Test{".", "TestPanicWhileWritingASnapshotMakesTheNodeFail"},
	},

	// rpc.go, inbox.go.
	{
		Name: "request meant for another server handled",
		Rule: "SAFETY inv 21: messages of another recipient are dropped",
		File: "rpc.go",
		Old:  `	if m.To != n.cfg.ID {`,
		New:  `	if false {`,
		Test: Test{".", "TestHandleRefusesWhatItCannotAnswer"},
	},
	{
		Name: "one of two equal calls gets the answer",
		Rule: "SAFETY inv 14: each call ends",
		File: "rpc.go",
		Old: `	for _, ch := range chs {
		ch <- m
	}
`,
		New: `	for _, ch := range chs[:min(len(chs), 1)] {
		ch <- m
	}
`,
		Test: Test{".", "TestSameRequestTwiceAtOnceAnswersBoth"},
	},
	{
		Name: "gathering that has come to nothing keeps the loop awake",
		Rule: "DESIGN §1.2: an idle node sleeps",
		File: "forward.go",
		Old:  `		f.gatherUntil = 0 // what waited`,
		New:  `		// what waited`,
		Test: Test{".", "TestLoopSleepsWhenGatheredProposalsAreGivenUp"},
	},
	{
		Name: "loop sleeps beyond the end of gathering",
		Rule: "SAFETY inv 28: a proposal does not wait for the next message",
		File: "forward.go",
		Old:  `	if f.gatherUntil > 0 {`,
		New:  `	if false {`,
		Test: Test{".", "TestGatheredProposalsDoNotWaitForASlowDisk"},
	},
	{
		Name: "many bytes of proposals do not wake the loop",
		Rule: "DESIGN §4: what is gathered is bounded in bytes",
		File: "inbox.go",
		Old:  `	if b.proposalBytes >= b.gatherBytes {`,
		New:  `	if b.gatherBytes == 0 {`,
		Test: Test{".", "TestManyBytesAreNotGathered"},
	},
	{
		Name: "leader gathers nothing",
		Rule: "DESIGN §4 path of a command: batches everywhere",
		File: "forward.go",
		Old:  `n.written <= n.persisted ||`,
		New:  `true ||`,
		Test: Test{".", "TestLeaderGathersProposalsWhileItsDiskIsBusy"},
	},
	{
		Name: "message larger than the inbox dropped for ever",
		Rule: "SAFETY inv 30: the sender does not know the limit here and would repeat it for ever",
		File: "inbox.go",
		Old:  `		if b.messageBytes > 0 && b.messageBytes+size > limit {`,
		New:  `		if b.messageBytes+size > limit {`,
		Test: Test{".", "TestFollowerWithASmallInboxCatchesUp"},
	},
	{
		Name: "inbox without bound",
		Rule: "SAFETY inv 26: queues stay within their stated bounds",
		File: "inbox.go",
		Old:  `		if b.messageBytes > 0 && b.messageBytes+size > limit {`,
		New:  `		if false {`,
		Test: Test{".", "TestInboxIsBoundedAndKeepsRoomForVotes"},
	},
	{
		Name: "flood of entries drops votes",
		Rule: "SAFETY §2 network: a large append never delays heartbeats; they have a lane of their own",
		File: "inbox.go",
		Old: `			limit += controlReserve
`,
		New: `			_ = limit
`,
		Test: Test{".", "TestInboxIsBoundedAndKeepsRoomForVotes"},
	},
	{
		Name: "proposals without a leader pile up",
		Rule: "SAFETY inv 26, §2 memory: a proposal flood is bounded in bytes",
		File: "inbox.go",
		Old:  `	if b.proposalBytes+p.size > b.maxProposalBytes {`,
		New:  `	if false {`,
		Test: Test{".", "TestProposalsWithoutALeaderAreBounded"},
	},
	{
		Name: "stopping node takes proposals",
		Rule: "SAFETY §3 lifecycle: Stop refuses new calls",
		File: "inbox.go",
		Old: `	if b.refused == nil {
		b.refused = cause
	}
`,
		New:  ``,
		Test: Test{".", "TestStoppingNodeTakesNoNewCalls"},
	},
}
