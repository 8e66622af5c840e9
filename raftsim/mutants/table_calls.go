package mutants

// calls lists the guards of what callers and other servers ask of a node: forwarding, reads, leadership, snapshots, RPC.
var calls = []Mutant{
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
	{
		Name: "command that nobody waits for stays the caller's",
		Rule: "Node.ProposeAsync: cmd is copied; the caller keeps it",
		File: "propose.go",
		Old:  `	if async || EntryHeaderSize+len(cmd) > maxSlabFrame {`,
		New:  `	if EntryHeaderSize+len(cmd) > maxSlabFrame {`,
		Test: Test{".", "TestAsyncCommandIsCopiedAtOnce"},
	},
	{
		Name: "proposal used again while others hold it",
		Rule: "DESIGN §4, outcomes: every caller gets the outcome of its own command",
		File: "propose.go",
		Old:  `			sl.p.free = sl.p.tabled`,
		New:  `			sl.p.free = true`,
		Test: Test{".", "TestProposalIsUsedAgainOnceNobodyHoldsIt"},
	},
	{
		Name: "proposal used again while the table holds it",
		Rule: "DESIGN §4, outcomes: every caller gets the outcome of its own command",
		File: "propose.go",
		Old:  `	if p.free {`,
		New:  `	if p.tabled {`,
		Test: Test{".", "TestProposalIsUsedAgainOnceNobodyHoldsIt"},
	},

	// entry.go.
	{
		Name: "entries taken for neighbours in memory",
		Rule: "EachPiece: the pieces are the frames, whatever lies behind them",
		File: "entry.go",
		Old:  `	return len(b) > 0 && cap(a)-len(a) >= len(b) && &a[:len(a)+1][len(a)] == &b[0]`,
		New:  `	return len(b) > 0 && cap(a)-len(a) >= len(b)`,
		Test: Test{".", "TestEntriesSideBySideAreOnePiece"},
	},
	{
		Name: "what is appended to a command overwrites its neighbour",
		Rule: "Entry: its bytes are immutable and shared",
		File: "entry.go",
		Old:  `Data: slices.Clip(frame[EntryHeaderSize:]), frame: frame}`,
		New:  `Data: frame[EntryHeaderSize:], frame: frame}`,
		Test: Test{".", "TestFramesFromASlab"},
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
		Name: "status of damage that is not counted yet",
		Rule: "SAFETY §2: damage is visible in the status, whole",
		File: "status.go",
		Old: `		n.drain(now) // what the core has just found out is counted, too
`,
		New:  ``,
		Test: Test{".", "TestStatusOfDamageIsOfOneMoment"},
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
		Test: Test{".", "TestSnapshotThatIsDamagedIsTakenAnew"},
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

	// resume.go.
	{
		Name: "part of another snapshot goes on",
		Rule: "SAFETY §3 snapshots: what is installed is one server's snapshot, under its own description",
		File: "resume.go",
		Old:  `	if !p.of(meta) {`,
		New:  `	if !p.of(meta) && false {`,
		Test: Test{".", "TestPartOfAnotherSnapshotIsDropped"},
	},
	{
		Name: "part is kept although its sender begins anew",
		Rule: "SAFETY §3 snapshots: what is installed is one server's snapshot",
		File: "resume.go",
		Old:  `	if from == p.size {`,
		New:  `	if from == p.size || true {`,
		Test: Test{".", "TestPartOfAnotherSnapshotIsDropped/other bytes at the same index"},
	},
	{
		Name: "part is kept although its content begins anew over this transport",
		Rule: "SAFETY §3 snapshots: what is installed is one server's snapshot",
		File: "resume.go",
		Old: `		part.drop(s.n.log, "it came over another transport")
		part = nil`,
		New:  ``,
		Test: Test{".", "TestPartOfASnapshotDoesNotStayForEver/another transport"},
	},
	{
		Name: "checksum of a part skips what was written last",
		Rule: "raft.ResumableContent: the sum is that of all that is here",
		File: "resume.go",
		Old:  `			p.sum.Write(buf[:n])`,
		New:  `			p.sum.Write(buf[:n-1])`,
		Test: Test{".", "TestSnapshotTransferGoesOnWhereItBroke"},
	},
	{
		Name: "part of a snapshot waits for ever",
		Rule: "SAFETY §2 disk: what is bounded: unfinished snapshots",
		File: "resume.go",
		Old:  `		if s.part == p {`,
		New:  `		if s.part == p && false {`,
		Test: Test{".", "TestPartOfASnapshotDoesNotStayForEver/its sender does not come back"},
	},
	{
		Name: "part of a snapshot outlives the node",
		Rule: "SAFETY §2 process: nothing is left open",
		File: "resume.go",
		Old: `	s.closed = true
	s.drop("the node stops")`,
		New:  `	s.closed = true`,
		Test: Test{".", "TestPartOfASnapshotDoesNotStayForEver/the node stops"},
	},
	{
		Name: "part of a snapshot outlives one that covers it",
		Rule: "SAFETY §2 disk: what is bounded: unfinished snapshots",
		File: "resume.go",
		Old:  `	if s.part != nil && s.part.meta.Index <= index {`,
		New:  `	if false && s.part.meta.Index <= index {`,
		Test: Test{".", "TestPartOfASnapshotIsDroppedForOneOfItsOwn"},
	},
	{
		Name: "part of a snapshot is kept although the disk is full",
		Rule: "SAFETY §2 disk: a full disk heals",
		File: "resume.go",
		Old: `	case err != nil:
		return SnapshotMeta{}, errors.Join(err, part.sink.Abort())
	case broken != nil && canResume:`,
		New: `	case err != nil:
		s.parts.keep(part)
		return SnapshotMeta{}, err
	case broken != nil && canResume:`,
		Test: Test{".", "TestPartThatFillsTheDiskIsDropped"},
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
