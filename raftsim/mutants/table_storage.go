package mutants

// storage lists the guards of the write-ahead log and the snapshot store.
var storage = []Mutant{
	// wal.go: writing.
	{
		Name: "batch reported before its sync",
		Rule: "SAFETY inv 11 and 13, §4: one batch is one write and one sync, and counts after it",
		File: "storage/wal/wal.go",
		Old:  `err := w.activeFile.Sync()`,
		New:  `err := error(nil)`,
		Test: Test{"./storage/wal", "TestCrashAtEveryFileOperation"},
	},
	{
		Name: "segment header not synced before the segment gets its name",
		Rule: "SAFETY §4: segments are made as temporary name, fsync, rename, fsync of the directory",
		File: "storage/wal/wal.go",
		Old:  `err := s.file.Sync()`,
		New:  `err := error(nil)`,
		Test: Test{"./storage/wal", "TestCrashAtEveryFileOperation"},
	},
	{
		Name: "directory not synced after a segment got its name",
		Rule: "SAFETY §3 storage: directory sync after create and rename",
		File: "storage/wal/wal.go",
		Old:  `err := w.fs.SyncDir(w.dir)`,
		New:  `err := error(nil)`,
		Test: Test{"./storage/wal", "TestCrashAtEveryFileOperation"},
	},
	{
		Name: "segment gets its name before its header is written",
		Rule: "SAFETY §4: rename after the sync, so that a file under a segment's name is a segment",
		File: "storage/wal/wal.go",
		Old: `	page := h.encode()
	for at := int64(0); at < segmentHeaderSize; at += pageSize {
		if _, err := s.file.WriteAt(page, at); err != nil {
			return fmt.Errorf("write the header of segment %d: %w", h.seq, err)
		}
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("sync the header of segment %d: %w", h.seq, err)
	}
	path := w.path(segmentName(h.seq))
	if err := w.fs.Rename(w.path(spareName), path); err != nil {
		if vfs.IsFull(err) { // the spare is still there, and its header may be written again
			return fmt.Errorf("begin segment %d: %w: %w", h.seq, raft.ErrStorageFull, err)
		}
		return fmt.Errorf("begin segment %d: %w", h.seq, err)
	}
`,
		New: `	page := h.encode()
	path := w.path(segmentName(h.seq))
	if err := w.fs.Rename(w.path(spareName), path); err != nil {
		if vfs.IsFull(err) {
			return fmt.Errorf("begin segment %d: %w: %w", h.seq, raft.ErrStorageFull, err)
		}
		return fmt.Errorf("begin segment %d: %w", h.seq, err)
	}
	for at := int64(0); at < segmentHeaderSize; at += pageSize {
		if _, err := s.file.WriteAt(page, at); err != nil {
			return fmt.Errorf("write the header of segment %d: %w", h.seq, err)
		}
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("sync the header of segment %d: %w", h.seq, err)
	}
`,
		Test: Test{"./storage/wal", "TestCrashAtEveryFileOperation"},
	},
	{
		Name: "failed sync tried again",
		Rule: "SAFETY §4: a failed sync is final for that process; the retry succeeds without writing what was lost",
		File: "storage/wal/wal.go",
		Old: `	w.failed = err
	return err
`,
		New: `	return err
`,
		Test: Test{"./storage/wal", "TestFailedSyncIsFinal"},
	},
	{
		Name: "full disk ends the log for good",
		Rule: "SAFETY §4 full: space runs out while preparing, typed, and resumes by itself",
		File: "storage/wal/wal.go",
		Old: `		if errors.Is(err, raft.ErrStorageFull) {
			return err
		}
		return w.fail(err)
	}

	h.tag`,
		New: `		return w.fail(err)
	}

	h.tag`,
		Test: Test{"./storage/wal", "TestFullDiskRefusesCommandsAndLeavesRoomForVotes"},
	},
	{
		Name: "commands fill the reserve of a full disk",
		Rule: "SAFETY §4: the end of a segment is kept for hard state, no-op and configuration",
		File: "storage/wal/wal.go",
		Old:  `errors.Is(err, raft.ErrStorageFull) && essential && w.active.end`,
		New:  `errors.Is(err, raft.ErrStorageFull) && w.active.end`,
		Test: Test{"./storage/wal", "TestFullDiskRefusesCommandsAndLeavesRoomForVotes"},
	},
	{
		Name: "no room is kept for votes",
		Rule: "SAFETY §2 disk: with a full disk voting and serving go on",
		File: "storage/wal/wal.go",
		Old:  `	if w.active.end+n <= w.activeSize-reserve(w.activeSize) {`,
		New:  `	if w.active.end+n <= w.activeSize {`,
		Test: Test{"./storage/wal", "TestFullDiskRefusesCommandsAndLeavesRoomForVotes"},
	},
	{
		Name: "vote file ahead of the log",
		Rule: "wal.Write: the log first, so that a batch is there as a whole or not at all; a vote file that is ahead proves a loss",
		File: "storage/wal/wal.go",
		Old: `	if _, err := w.activeFile.WriteAt(w.buf, h.offset); err != nil {
		return w.fail(fmt.Errorf("write batch %d: %w", h.seq, err))
	}
`,
		New: `	if h.has(flagHardState) && h.hardState != w.vote.hardState {
		w.vote.hardState, w.vote.batch = h.hardState, h.seq
		if err := w.writeVote(); err != nil {
			return w.fail(err)
		}
	}
	if _, err := w.activeFile.WriteAt(w.buf, h.offset); err != nil {
		return w.fail(fmt.Errorf("write batch %d: %w", h.seq, err))
	}
`,
		Test: Test{"./storage/wal", "TestCrashAtEveryFileOperation"},
	},
	{
		Name: "log takes an earlier term",
		Rule: "SAFETY inv 2: currentTerm never decreases",
		File: "storage/wal/wal.go",
		Old:  `hs.CurrentTerm < w.hardState.CurrentTerm {`,
		New:  `hs.CurrentTerm+1 < w.hardState.CurrentTerm {`,
		Test: Test{"./storage/wal", "TestImpossibleBatchesAreRefused/term_goes_back"},
	},
	{
		Name: "log takes a vote back within its term",
		Rule: "SAFETY inv 3: one vote per server and term",
		File: "storage/wal/wal.go",
		Old:  `voted != "" && hs.VotedFor != voted {`,
		New:  `voted != "" && hs.VotedFor != "" && hs.VotedFor != voted {`,
		Test: Test{"./storage/wal", "TestImpossibleBatchesAreRefused/vote_is_taken_back"},
	},
	{
		Name: "log takes a second vote within a term",
		Rule: "SAFETY inv 3: one vote per server and term",
		File: "storage/wal/wal.go",
		Old:  `voted != "" && hs.VotedFor != voted {`,
		New:  `voted != "" && hs.VotedFor == "" {`,
		Test: Test{"./storage/wal", "TestImpossibleBatchesAreRefused/second_vote"},
	},
	{
		Name: "log takes falling terms",
		Rule: "§5.3: terms never fall along a log; SAFETY inv 5",
		File: "storage/wal/wal.go",
		Old:  `if e.Index != end.Index+1 || e.Term < end.Term || e.Term == 0 {`,
		New:  `if e.Index != end.Index+1 || e.Term == 0 {`,
		Test: Test{"./storage/wal", "TestImpossibleBatchesAreRefused/falling_term"},
	},
	{
		Name: "log takes a gap",
		Rule: "SAFETY inv 20: no gap in the log",
		File: "storage/wal/wal.go",
		Old:  `if e.Index != end.Index+1 || e.Term < end.Term || e.Term == 0 {`,
		New:  `if e.Index <= end.Index || e.Term < end.Term || e.Term == 0 {`,
		Test: Test{"./storage/wal", "TestImpossibleBatchesAreRefused/gap"},
	},
	{
		Name: "installed snapshot keeps the suffix of another history",
		Rule: "§7: entries behind the snapshot stay only if the entry at its index has its term",
		File: "storage/wal/wal.go",
		Old:  `ok && term == meta.Term && meta.Index <= end.Index {`,
		New:  `ok && term > 0 && meta.Index <= end.Index {`,
		Test: Test{"./storage/wal", "TestSnapshotResetsTheLog"},
	},
	{
		Name: "installed snapshot keeps entries that the same batch truncates",
		Rule: "raft.Batch: the parts take effect in the order of the fields",
		File: "storage/wal/wal.go",
		Old:  `ok && term == meta.Term && meta.Index <= end.Index {`,
		New:  `ok && term == meta.Term {`,
		Test: Test{"./storage/wal", "TestSnapshotBehindATruncationInOneBatch"},
	},
	{
		Name: "compaction drops the vote",
		Rule: "SAFETY §4: the segment header carries the hard state, so that compaction cannot drop a vote",
		File: "storage/wal/wal.go",
		Old:  `last: w.index.last, hardState: w.hardState, snapshot`,
		New:  `last: w.index.last, hardState: raft.HardState{CurrentTerm: w.hardState.CurrentTerm}, snapshot`,
		Test: Test{"./storage/wal", "TestConformance/simulated_disk,_small_segments/CompactEverything"},
	},
	{
		Name: "segments removed before the vote file says where the log begins",
		Rule: "wal.Compact: it does not matter then which of the files survive a crash",
		File: "storage/wal/wal.go",
		Old: `	w.vote.first, w.vote.batch = keep.seq, w.lastBatch
	if err := w.writeVote(); err != nil {
		return w.fail(err)
	}
`,
		New: `	w.vote.first, w.vote.batch = keep.seq, w.lastBatch
`,
		Test: Test{"./storage/wal", "TestConformance/simulated_disk,_small_segments/Compact"},
	},
	{
		Name: "compaction gives up the last batch's segment",
		Rule: "wal.Compact: its successor names it",
		File: "storage/wal/wal.go",
		Old: `	keep := w.lastHolder
	if keep == nil {
		keep = w.active
	}
`,
		New: `	keep := w.active
`,
		Equivalent: "The segment that follows carries all that outlives it: last batch, chain, hard state, end of the log, snapshot and " +
			"configuration. Recovery goes back no further than the first segment that the vote file names, and without a vote file no further than " +
			"the oldest file there is. Keeping it spares a search for a file that is gone.",
	},
	{
		Name: "compaction gives up a segment that holds wanted entries",
		Rule: "raft.Storage: Compact gives up entries up to and including to, or fewer",
		File: "storage/wal/wal.go",
		Old:  `if r := &w.index.runs[i]; r.last > to {`,
		New:  `if r := &w.index.runs[i]; r.first > to {`,
		Test: Test{"./storage/wal", "TestConformance/simulated_disk,_small_segments/Compact"},
	},
	{
		Name: "batch overwrites the idle record before it",
		Rule: "SAFETY §4: an old sector is never written to again: after a crash it would pass for damage in the new batch",
		File: "storage/wal/wal.go",
		Old:  `	w.active.end, w.idle = h.end(), true`,
		New:  `	w.idle = true`,
		Test: Test{"./storage/wal", "TestLostIdleRecordHidesNoLaterBatch"},
	},
	{
		Name: "every process locks a file of its own",
		Rule: "SAFETY §2 process: two processes on one data directory: ErrLocked",
		File: "storage/wal/wal.go",
		Old:  `w.fs.Lock(w.path(lockName))`,
		New:  `w.fs.Lock(w.path(fmt.Sprint(lockName, w.opts.Random())))`,
		Test: Test{"./storage/wal", "TestSecondOpenIsLockedOut"},
	},

	{
		Name: "next segment falls behind the active one",
		Rule: "SAFETY §2 disk: no write waits for work that could have been done before",
		File: "storage/wal/prepare.go",
		Old:  `prepareLead+int64(2*full*float64(s.size))`,
		New:  `prepareLead+int64(full/2*float64(s.size))`,
		Test: Test{"./storage/wal", "TestNextSegmentIsWrittenInStep"},
	},
	{
		Name: "next segment written all at once",
		Rule: "SAFETY §2 disk: slow work of the one who prepares does not hold up the log's syncs",
		File: "storage/wal/prepare.go",
		Old:  `return s.file != nil && s.written >=`,
		New:  `return s.size < 0 && s.written >=`,
		Test: Test{"./storage/wal", "TestNextSegmentIsWrittenInStep"},
	},
	// recover.go.
	{
		Name: "missing last segment not noticed",
		Rule: "SAFETY §2 disk: a stale or missing segment is never recreated silently",
		File: "storage/wal/recover.go",
		Old:  `if r.voteFound && (len(r.files) == 0 || r.files[len(r.files)-1] < r.vote.segment) {`,
		New:  `if r.voteFound && len(r.files) > 0 && r.files[len(r.files)-1] < r.vote.segment {`,
		Test: Test{"./storage/wal", "TestLostSectorsBehindAWordThatTheyWereSyncedAreDamage/no_segment_left"},
	},
	{
		Name: "segment under another's name taken",
		Rule: "SAFETY inv 24: bytes of another file never pass for this one's",
		File: "storage/wal/recover.go",
		Old:  `	if h.seq != seq {`,
		New:  `	if false {`,
		Test: Test{"./storage/wal", "TestSegmentUnderAnothersNameIsRefused"},
	},
	{
		Name: "directory of another cluster opened",
		Rule: "SAFETY §2 disk and operator: a foreign directory is refused",
		File: "storage/wal/recover.go",
		Old:  `		{"cluster", have.Cluster, want.Cluster},`,
		New:  ``,
		Test: Test{"./storage/wal", "TestDirectoryOfAnotherServerIsRefused"},
	},
	{
		Name: "directory of another server opened",
		Rule: "SAFETY §2 disk and operator: a foreign directory is refused",
		File: "storage/wal/recover.go",
		Old:  `		{"node", string(have.Node), string(want.Node)},`,
		New:  ``,
		Test: Test{"./storage/wal", "TestDirectoryOfAnotherServerIsRefused"},
	},
	{
		Name: "segment of another replica taken",
		Rule: "SAFETY §4: the segment header names the replica; files of two directories do not make a log",
		File: "storage/wal/recover.go",
		Old:  `other.Replica != have.Replica {`,
		New:  `other.Cluster != have.Cluster {`,
		Test: Test{"./storage/wal", "TestFilesOfAnotherReplicaAreRefused"},
	},
	{
		Name: "vote file of another replica taken",
		Rule: "SAFETY inv 3 and §2: another directory's vote is not ours",
		File: "storage/wal/recover.go",
		Old:  `if r.voteFound && (r.vote.replica != have.Replica || r.vote.incarnation > have.Incarnation) {`,
		New:  `if r.voteFound && r.vote.incarnation > have.Incarnation {`,
		Test: Test{"./storage/wal", "TestFilesOfAnotherReplicaAreRefused"},
	},
	{
		Name: "log of an earlier run than the vote file taken",
		Rule: "SAFETY §2 disk: a rolled-back directory is refused, never silently trusted",
		File: "storage/wal/recover.go",
		Old:  `if r.voteFound && (r.vote.replica != have.Replica || r.vote.incarnation > have.Incarnation) {`,
		New:  `if r.voteFound && r.vote.replica != have.Replica {`,
		Equivalent: "Every run begins a segment with its incarnation in the header before it writes the vote file, and the vote file " +
			"names that segment: a log without it is refused for the missing segment (\"missing last segment not noticed\"), and one with it has the " +
			"incarnation. The check names the cause where a file was given another's number.",
	},
	{
		Name: "incarnation stays the same at a restart",
		Rule: "SAFETY inv 21 and 29: a dead incarnation's messages are dropped, so every start counts",
		File: "storage/wal/recover.go",
		Old:  `	w.identity.Incarnation++`,
		New:  ``,
		Test: Test{"./storage/wal", "TestBlankDirectoryGetsAnIdentity"},
	},
	{
		Name: "segments that do not continue each other taken",
		Rule: "SAFETY §4: the header carries the final chain value of the previous segment",
		File: "storage/wal/recover.go",
		Old:  `} else if h.lastBatch != w.lastBatch || h.chain != w.chain || h.last != w.index.last || h.hardState != w.hardState {`,
		New:  `} else if h.lastBatch != w.lastBatch {`,
		Test: Test{"./storage/wal", "TestSegmentOfAnotherHistoryIsRefused"},
	},
	{
		Name: "log shorter than the vote file says taken",
		Rule: "SAFETY §4: damage that a persisted word covers is corruption",
		File: "storage/wal/recover.go",
		Old:  `		if w.lastBatch < r.vote.batch {`,
		New:  `		if false {`,
		Test: Test{"./storage/wal", "TestLogThatEndsBeforeItsVoteIsRefused"},
	},
	{
		Name: "vote comes from the log alone",
		Rule: "SAFETY §4: recovery takes the higher term of log and vote file",
		File: "storage/wal/recover.go",
		Old: `		if w.hardState, err = mergeHardStates(w.hardState, r.vote.hardState, w.path(voteName)); err != nil {
			return err
		}
`,
		New:  ``,
		Test: Test{"./storage/wal", "TestTwoVotesInOneTermAreRefused"},
	},
	{
		Name: "missing middle segment skipped",
		Rule: "SAFETY §3 storage: mid-log corruption skipped",
		File: "storage/wal/recover.go",
		Old: `			return nil, r.missing(prev)
`,
		New: `			break
`,
		Test: Test{"./storage/wal", "TestMissingMiddleSegmentIsNotSkipped"},
	},
	{
		Name: "last segment that was cut off taken",
		Rule: "SAFETY inv 24: what is gone from a file is noticed, or nobody was told of it",
		File: "storage/wal/recover.go",
		Old:  `sealedAt < 0 && size < made {`,
		New:  `false {`,
		Test: Test{"./storage/wal", "TestLastSegmentCutOffIsRefused"},
	},
	{
		Name: "bytes behind the sealed end replayed",
		Rule: "SAFETY §4: what was cut stays cut; the next segment says where this one ends",
		File: "storage/wal/recover.go",
		Old: `	if sealedAt >= 0 {
		end = sealedAt
	}
`,
		New:  ``,
		Test: Test{"./storage/wal", "TestEveryTornPatternOfTheLastBatchIsCut"},
	},
	{
		Name: "damage in a sealed segment taken for an unfinished write",
		Rule: "SAFETY §4: damage in a segment that is not the last is corruption",
		File: "storage/wal/recover.go",
		Old: `		if sealedAt >= 0 {
			return &raft.CorruptionError{Path: seg.path, Offset: seg.end, Reason: v.reason, Next: nextVerify}
		}
`,
		New: ``,
		Equivalent: "Whatever is cut off a sealed segment leaves the log at an earlier batch than the one that the next segment's header " +
			"continues, and replay refuses that (\"segments that do not continue each other taken\"). The check names the place of the damage.",
	},
	{
		Name: "batch of another history taken",
		Rule: "SAFETY §4: a batch names the identity and the chain value of the one before",
		File: "storage/wal/recover.go",
		Old:  `	case h.prevChain != w.chain || h.before != w.before:`,
		New:  `	case false:`,
		Test: Test{"./storage/wal", "TestBatchOfAnotherHistoryIsRefused"},
	},
	{
		Name: "batch of another number taken",
		Rule: "SAFETY §4: batches are numbered over the whole life of the directory",
		File: "storage/wal/recover.go",
		Old:  `	case h.seq != want:`,
		New:  `	case false:`,
		Equivalent: "The chain value of the batch before is a checksum over its header, number included, and the writer gives its successor that " +
			"number plus one: a batch whose prevChain fits has the right number, unless two headers collide in CRC32C. The check names the cause.",
	},
	{
		Name: "truncation ignored at recovery",
		Rule: "SAFETY §4: no physical truncation; a batch that starts at index i supersedes all from there on",
		File: "storage/wal/index.go",
		Old: `	if h.has(flagTruncate) {
		x.truncate(h)
	}
`,
		New:  ``,
		Test: Test{"./storage/wal", "TestTruncationSupersedesWithoutTouchingWhatIsThere"},
	},
	{
		Name: "idle record lost in a crash taken for damage",
		Rule: "wal: the idle record is not waited for, so a later batch may be durable without it",
		File: "storage/wal/recover.go",
		Old:  `	return decodeErr == nil && h.tag == seg.tag && h.offset == next && !h.has(flagIdle) && r.follows(&h).reason == "", nil`,
		New:  `	return decodeErr == nil && h.tag != seg.tag, nil`,
		Test: Test{"./storage/wal", "TestLostIdleRecordHidesNoLaterBatch"},
	},
	{
		Name: "unfinished batch cut although a later one was written",
		Rule: "SAFETY §4: damage is corruption when any later valid batch exists, or a later word covers it",
		File: "storage/wal/recover.go",
		Old:  `h.offset == at && h.syncedThrough >= doubtful {`,
		New:  `h.offset == at && h.syncedThrough > doubtful {`,
		Test: Test{"./storage/wal", "TestLostSectorsBehindAWordThatTheyWereSyncedAreDamage"},
	},
	{
		Name: "changed bytes taken for an unfinished write",
		Rule: "SAFETY §4: only sectors that read all zero are torn; any non-zero damage is corruption",
		File: "storage/wal/recover.go",
		Old: `	case !neverBegun && !v.torn:
		return damaged(v.reason)
`,
		New:  ``,
		Test: Test{"./storage/wal", "TestChangedBytesAreNeverTakenForAnUnfinishedWrite"},
	},
	{
		Name: "batch whose first sector was lost ends the log in an error",
		Rule: "SAFETY §4: a torn batch is cut; nothing in it was acknowledged",
		File: "storage/wal/recover.go",
		Old:  `	case !neverBegun && !v.torn:`,
		New:  `	case !v.torn:`,
		Test: Test{"./storage/wal", "TestEveryTornPatternOfTheLastBatchIsCut"},
	},
	{
		Name: "last batch not written again at a restart",
		Rule: "SAFETY §3 storage: sync fails once and the retry succeeds; what a restart reads may be in memory only",
		File: "storage/wal/recover.go",
		Old:  `	if w.lastHolder == r.last {`,
		New:  `	if false {`,
		Test: Test{"./storage/wal", "TestFailedSyncIsFinal"},
	},
	{
		Name: "last batch not synced again at a restart",
		Rule: "SAFETY inv 11: what a restart reports must be durable, also if the process before died before its sync",
		File: "storage/wal/recover.go",
		Old:  `err := f.Sync()`,
		New:  `err := error(nil)`,
		Test: Test{"./storage/wal", "TestFailedSyncIsFinal"},
	},

	// inspect.go, and what it uses.
	{
		Name: "directory of a running server inspected",
		Rule: "SAFETY §2 process: two processes on one data directory",
		File: "storage/wal/inspect.go",
		Old:  `	in.lock, err = lock(in.w.path(lockName))`,
		New:  `	in.lock, err = nil, nil`,
		Test: Test{"./storage/wal", "TestInspectKeepsServersOut"},
	},
	{
		Name: "inspection does not see the gap between snapshot and log",
		Rule: "SAFETY inv 20: no gap between snapshot and log",
		File: "storage/wal/inspect.go",
		Old:  `in.report.Refusal == nil && reached.Index < base.Index {`,
		New:  `false {`,
		Test: Test{"./storage/wal", "TestInspectJudgesSnapshots"},
	},
	{
		Name: "inspection calls the snapshot that a server starts from dispensable",
		Rule: "SAFETY inv 24: no byte out of a damaged range is applied, and the operator hears of it before",
		File: "storage/wal/inspect.go",
		Old:  `f.Verdict, f.Next = Damaged, nextRestore`,
		New:  `f.Next = nextRestore`,
		Test: Test{"./storage/wal", "TestInspectJudgesSnapshots"},
	},
	{
		Name: "inspection does not read the content of snapshots",
		Rule: "SAFETY §4: checksums are verified on every read",
		File: "storage/snapshot/verify.go",
		Old:  `err = r.next()`,
		New:  `_, err = r, io.EOF`,
		Test: Test{"./storage/snapshot", "TestVerifyFindsEveryDamage"},
	},

	// force.go.
	{
		Name: "recovered directory stays in the old cluster",
		Rule: "SAFETY §2 operator: forced recovery is an explicit command with a new cluster ID",
		File: "storage/wal/force.go",
		Old: `	w.identity.Cluster = plan.Entry.Configuration.ClusterID
`,
		New:  ``,
		Test: Test{"./storage/wal", "TestRecoverFoundsACluster"},
	},
	{
		Name: "cluster recovered under the ID that it has",
		Rule: "SAFETY §2 operator: forced recovery is an explicit command with a new cluster ID",
		File: "storage/wal/force.go",
		Old:  `	case cluster == r.Cluster:`,
		New:  `	case false:`,
		Test: Test{"./storage/wal", "TestRecoverFoundsACluster"},
	},
	{
		Name: "cluster recovered under an ID that it had before",
		Rule: "SAFETY §2 operator: forced recovery is an explicit command with a new cluster ID",
		File: "storage/wal/force.go",
		Old:  `	case in.wasIn(cluster):`,
		New:  `	case false:`,
		Test: Test{"./storage/wal", "TestRecoverRefusesEveryEarlierID"},
	},
	{
		Name: "terms after a recovery are those that lost leaders gave out",
		Rule: "WhileLeader: an epoch is given out once",
		File: "storage/wal/force.go",
		Old:  `max(r.HardState.CurrentTerm, plan.Last.Term) + termLeap`,
		New:  `max(r.HardState.CurrentTerm, plan.Last.Term) + 1`,
		Test: Test{"./storage/wal", "TestRecoverFoundsACluster"},
	},
	{
		Name: "IDs of lost servers can be used again after a recovery",
		Rule: "SAFETY §3 membership: a reused ID with an empty log forms its own quorum",
		File: "storage/wal/force.go",
		Old: `	conf.Removed = in.formerMembers()
`,
		New:  ``,
		Test: Test{"./storage/wal", "TestRecoverFoundsACluster"},
	},
	{
		Name: "damaged directory recovered",
		Rule: "SAFETY inv 24: no byte out of a damaged range is served",
		File: "storage/wal/force.go",
		Old:  `	case r.Verdict == Damaged:`,
		New:  `	case false:`,
		Test: Test{"./storage/wal", "TestRecoverRefuses"},
	},
	{
		Name: "recovery of another state than was confirmed",
		Rule: "SAFETY §2 operator: states what may be lost",
		File: "storage/wal/force.go",
		Old:  `now.batches != plan.batches || now.incarnation != plan.incarnation || now.Entry.EntryID != plan.Entry.EntryID`,
		New:  `false`,
		Test: Test{"./storage/wal", "TestRecoverRefuses"},
	},
	{
		Name: "recovery builds on a batch that is in memory only",
		Rule: "SAFETY §3 storage: what a restart reads may be in memory only",
		File: "storage/wal/force.go",
		Old:  `err := in.r.secureTail()`,
		New:  `err := error(nil)`,
		Test: Test{"./storage/wal", "TestRecoverSecuresWhatItBuildsOn"},
	},
	{
		Name: "recovery builds on a snapshot whose name is in memory only",
		Rule: "SAFETY §3 storage: directory sync after create and rename",
		File: "storage/wal/force.go",
		Old:  `err := w.fs.SyncDir(w.snapshotsDir())`,
		New:  `err := error(nil)`,
		Test: Test{"./storage/wal", "TestRecoverSecuresWhatItBuildsOn"},
	},
	{
		Name: "recovery renames a segment that is not durable",
		Rule: "SAFETY §4: rename after the sync",
		File: "storage/wal/force.go",
		Old:  `		err = f.Sync()`,
		New:  `		err = nil`,
		Test: Test{"./storage/wal", "TestRecoverIsWholeOrNotAtAll"},
	},
	{
		Name: "recovery does not sync the directory",
		Rule: "SAFETY §3 storage: directory sync after create and rename",
		File: "storage/wal/force.go",
		Old:  `	return w.fs.SyncDir(w.dir)`,
		New:  `	return nil`,
		Test: Test{"./storage/wal", "TestRecoverIsWholeOrNotAtAll"},
	},

	// hardstate.go.
	{
		Name: "vote file not synced",
		Rule: "SAFETY inv 12: term and vote in the log and in the vote file, both synced before a reply",
		File: "storage/wal/hardstate.go",
		Old:  `err := w.voteFile.Sync()`,
		New:  `err := error(nil)`,
		Test: Test{"./storage/wal", "TestCrashAtEveryFileOperation"},
	},
	{
		Name: "vote file renamed before it is durable",
		Rule: "SAFETY §4: rename after the sync",
		File: "storage/wal/hardstate.go",
		Old: `	if err == nil {
		err = f.Sync()
	}
`,
		New: ``,
		Equivalent: "Nothing is promised before adopt has written the first record into the same file and synced it, which makes its length " +
			"and its zeros durable too. After a crash before that, the vote file is empty or of another length: it counts as never written and is made anew.",
	},
	{
		Name: "older copy of the vote counts",
		Rule: "SAFETY inv 2 and 3: the newest generation of the vote file is the server's vote",
		File: "storage/wal/hardstate.go",
		Old:  `!found || r.generation > rec.generation {`,
		New:  `!found || r.generation < rec.generation {`,
		Test: Test{"./storage/wal", "TestTwoVotesInOneTermAreRefused"},
	},
	{
		Name: "checksum of the vote not verified",
		Rule: "SAFETY inv 24: no byte out of a damaged range is used",
		File: "storage/wal/hardstate.go",
		Old:  `le.Uint32(b[0:]) != voteMagic || checksum(b[:sectorSize-4]) != le.Uint32(b[sectorSize-4:]) {`,
		New:  `le.Uint32(b[0:]) != voteMagic {`,
		Test: Test{"./storage/wal", "TestChangedBytesAreNeverTakenForAnUnfinishedWrite"},
	},
	{
		Name: "empty vote hides the vote of its term",
		Rule: "SAFETY §4: same term and one vote empty: the other; a seen term is not a granted vote",
		File: "storage/wal/hardstate.go",
		Old:  `	case vote.CurrentTerm < log.CurrentTerm, vote.CurrentTerm == log.CurrentTerm && vote.VotedFor == "":`,
		New: `	case vote.CurrentTerm == log.CurrentTerm && vote.VotedFor == "":
		return vote, nil
	case vote.CurrentTerm < log.CurrentTerm:`,
		Test: Test{"./storage/wal", "TestTwoVotesInOneTermAreRefused"},
	},
	{
		Name: "lower of two terms counts",
		Rule: "SAFETY inv 2, §4: recovery takes the higher term",
		File: "storage/wal/hardstate.go",
		Old:  `	case vote.CurrentTerm < log.CurrentTerm, vote.CurrentTerm`,
		New:  `	case vote.CurrentTerm > log.CurrentTerm, vote.CurrentTerm`,
		Test: Test{"./storage/wal", "TestTwoVotesInOneTermAreRefused"},
	},
	{
		Name: "two different votes of one term accepted",
		Rule: "SAFETY §4: two different votes: it does not start as voter",
		File: "storage/wal/hardstate.go",
		Old:  `	case vote.CurrentTerm > log.CurrentTerm || log.VotedFor == "" || log.VotedFor == vote.VotedFor:`,
		New:  `	default:`,
		Test: Test{"./storage/wal", "TestTwoVotesInOneTermAreRefused"},
	},

	// segment.go, batch.go, read.go.
	{
		Name: "checksum of the segment header not verified",
		Rule: "SAFETY inv 24: no byte out of a damaged range is used",
		File: "storage/wal/segment.go",
		Old:  `end < segmentFixedSize || end > pageSize-4 || checksum(b[:end]) != le.Uint32(b[end:]) {`,
		New:  `end < segmentFixedSize || end > pageSize-4 {`,
		Test: Test{"./storage/wal", "TestOneCopyOfTheSegmentHeaderIsEnough"},
	},
	{
		Name: "second copy of the segment header never used",
		Rule: "SAFETY §4: segment header twice",
		File: "storage/wal/segment.go",
		Old: `	} else if first != nil {
		h = other
`,
		New: `	} else if first != nil {
		second = first
`,
		Test: Test{"./storage/wal", "TestOneCopyOfTheSegmentHeaderIsEnough"},
	},
	{
		Name: "checksum of the batch header not verified",
		Rule: "SAFETY inv 24; §4: the batch header has its own CRC32C",
		File: "storage/wal/batch.go",
		Old:  `	if checksum(b[:batchHeaderCRC]) != h.chain {`,
		New:  `	if false {`,
		Test: Test{"./storage/wal", "TestChangedBytesAreNeverTakenForAnUnfinishedWrite"},
	},
	{
		Name: "checksum of the page table not verified",
		Rule: "SAFETY inv 24 and 3: the vote stands there too",
		File: "storage/wal/batch.go",
		Old:  `	if checksum(variable) != h.tableCRC {`,
		New:  `	if false {`,
		Test: Test{"./storage/wal", "TestDamagedVoteInTheLogIsNotUsed"},
	},
	{
		Name: "checksum of the pages not verified at recovery",
		Rule: "SAFETY §4: a CRC32C per 4 KiB page of the body",
		File: "storage/wal/batch.go",
		Old: `		if crc == binary.LittleEndian.Uint32(table[p*pageRecordSize:]) {
			continue
		}
`,
		New: `		if crc != 0 {
			continue
		}
`,
		Test: Test{"./storage/wal", "TestEveryTornPatternOfTheLastBatchIsCut"},
	},
	{
		Name: "changed page taken for an unfinished write",
		Rule: "SAFETY §4: torn only if a damaged sector reads all zero and is not in the bitmap",
		File: "storage/wal/batch.go",
		Old: `		if !lostSector(b, p, h.headerLen, table[p*pageRecordSize+4]) {
			return corrupted(fmt.Sprintf("page %d of batch %d does not match its checksum", p, h.seq))
		}
`,
		New:  ``,
		Test: Test{"./storage/wal", "TestChangedBytesAreNeverTakenForAnUnfinishedWrite"},
	},
	{
		Name: "sectors that are zero on purpose taken for lost ones",
		Rule: "SAFETY §4: a bitmap of sectors that are legitimately zero; else a changed byte in their page would pass for a torn batch",
		File: "storage/wal/batch.go",
		Old:  `		if used&(1<<((s-from)/sectorSize)) != 0 && isZero(batch[s:min(s+sectorSize, to)]) {`,
		New:  `		if isZero(batch[s:min(s+sectorSize, to)]) {`,
		Test: Test{"./storage/wal", "TestSectorsThatAreZeroOnPurposeHideNoDamage"},
	},
	{
		Name: "lost page taken for corruption",
		Rule: "SAFETY §4: a torn batch is cut, counted, logged",
		File: "storage/wal/batch.go",
		Old:  `		result = torn(fmt.Sprintf(`,
		New:  `		result = corrupted(fmt.Sprintf(`,
		Test: Test{"./storage/wal", "TestEveryTornPatternOfTheLastBatchIsCut"},
	},
	{
		Name: "lost header sector taken for corruption",
		Rule: "SAFETY §4: a torn batch is cut, counted, logged",
		File: "storage/wal/batch.go",
		Old:  `				return torn("part of the batch header was never written")`,
		New:  `				break`,
		Test: Test{"./storage/wal", "TestHeaderOfALargeBatchIsCheckedBeforeItIsUsed"},
	},
	{
		Name: "batch of another segment taken",
		Rule: "SAFETY §4: the segment's UUID tag stands in every batch, so that bytes of another file never pass for this one's",
		File: "storage/wal/read.go",
		Old:  `	case h.tag != tag || h.offset != offset:`,
		New:  `	case h.offset != offset:`,
		Test: Test{"./storage/wal", "TestBatchOfAnotherSegmentIsRefused"},
	},
	{
		Name: "batch of another place taken",
		Rule: "SAFETY inv 24: a batch names its place",
		File: "storage/wal/read.go",
		Old:  `	case h.tag != tag || h.offset != offset:`,
		New:  `	case h.tag != tag:`,
		Equivalent: "The writer gives each batch one place. A copy of it somewhere else follows neither by number nor by chain value " +
			"(\"batch of another history taken\"), except where the batch itself belongs, and there its offset is the right one.",
	},
	{
		Name: "batch longer than its file read",
		Rule: "SAFETY §2 hostile input: lengths are checked before they are used",
		File: "storage/wal/read.go",
		Old:  `	case h.end() > r.size:`,
		New:  `	case false:`,
		Test: Test{"./storage/wal", "TestHeaderOfALargeBatchIsCheckedBeforeItIsUsed"},
	},
	{
		Name: "compacted entries asked of the index",
		Rule: "raft.Storage: ErrCompacted: lo is no longer there",
		File: "storage/wal/read.go",
		Old:  `	case lo <= w.index.compacted.Index:`,
		New:  `	case lo < w.index.compacted.Index:`,
		Test: Test{"./storage/wal", "TestSnapshotResetsTheLog"},
	},
	{
		Name: "superseded entries served",
		Rule: "SAFETY §4: a batch that starts at index i supersedes all from there on",
		File: "storage/wal/read.go",
		Old:  `	for ; next <= h.last.Index && next < q.hi && next <= last; next++ {`,
		New:  `	for ; next <= h.last.Index && next < q.hi; next++ {`,
		Test: Test{"./storage/wal", "TestConformance/simulated_disk,_small_segments/Batch"},
	},
	{
		Name: "entry larger than the limit never read",
		Rule: "raft.Storage: as many as fit into maxBytes, at least one",
		File: "storage/wal/read.go",
		Old:  `		} else if q.bytes > 0 && q.bytes+n > q.maxBytes {`,
		New:  `		} else if q.bytes+n > q.maxBytes {`,
		Test: Test{"./storage/wal", "TestEntriesRespectsMaxBytes"},
	},
	{
		Name: "lost idle record taken for damage when reading",
		Rule: "wal: the idle record is not waited for, so a later batch may be durable without it",
		File: "storage/wal/read.go",
		Old:  `		if v.reason != "" && !gap {`,
		New:  `		if v.reason != "" && gap {`,
		Test: Test{"./storage/wal", "TestLostIdleRecordHidesNoLaterBatch"},
	},

	// index.go.
	{
		Name: "truncated configuration stays in force",
		Rule: "§6, SAFETY §3 membership: an uncommitted configuration is rolled back, across restarts too",
		File: "storage/wal/index.go",
		Old: `	for n := len(x.configs); n > 0 && x.configs[n-1].Index >= from; n-- {
		x.configs = x.configs[:n-1]
	}
`,
		New:  ``,
		Test: Test{"./storage/wal", "TestConformance/simulated_disk,_small_segments/ConfigurationsAndTerms"},
	},
	{
		Name: "truncated terms stay",
		Rule: "§5.3: the term of an entry decides whether logs match",
		File: "storage/wal/index.go",
		Old:  `	for n := len(x.terms); n > 0 && x.terms[n-1].Index >= from; n-- {`,
		New:  `	for n := len(x.terms); n > 0 && x.terms[n-1].Index > from; n-- {`,
		Test: Test{"./storage/wal", "TestTruncationForgetsTheTermThatBeganThere"},
	},
	{
		Name: "entries appended to a truncated run",
		Rule: "wal index: behind a run's last entry, in the same batches, there may be superseded ones",
		File: "storage/wal/index.go",
		Old: `	x.cut = true
	for n := len(x.runs)`,
		New:  `	for n := len(x.runs)`,
		Test: Test{"./storage/wal", "TestConformance/simulated_disk,_small_segments/Batch"},
	},

	// Snapshots.
	{
		Name: "snapshot gets its name before its sync",
		Rule: "SAFETY §2 disk: under its final name a snapshot is always whole",
		File: "storage/snapshot/sink.go",
		Old: `	k.write(encodeTrailer(k.seed, k.size, k.content))
	k.sync()
`,
		New: `	k.write(encodeTrailer(k.seed, k.size, k.content))
`,
		Test: Test{"./storage/snapshot", "TestPowerFailureAtEveryOperation"},
	},
	{
		Name: "snapshot's name not durable when Commit returns",
		Rule: "SAFETY §2 disk: directory entry or rename lost; the log before the snapshot is given up after Commit",
		File: "storage/snapshot/store.go",
		Old: `	delete(s.files, index)
	if err := s.fs.SyncDir(s.dir); err != nil {`,
		New: `	delete(s.files, index)
	if err := error(nil); err != nil {`,
		Test: Test{"./storage/snapshot", "TestPowerFailureAtEveryOperation"},
	},
	{
		Name: "snapshot found at a restart not durable",
		Rule: "SAFETY §2 disk: a name that a restart was shown may still be lost until the directory is synced",
		File: "storage/snapshot/store.go",
		Old:  `err := fsys.SyncDir(dir)`,
		New:  `err := error(nil)`,
		Test: Test{"./storage/snapshot", "TestWhatARestartFindsSurvivesAPowerFailure"},
	},
	{
		Name: "snapshot whose name may be lost offered",
		Rule: "SAFETY inv 20: the log is compacted behind snapshots that will be there",
		File: "storage/snapshot/store.go",
		Old: `		s.giveUp(s.file(index), index, err)
		return err
	}
	s.prune()`,
		New: `		return err
	}
	s.prune()`,
		Test: Test{"./storage/snapshot", "TestFailedOperationsLeaveTheOldSnapshot/syncdir"},
	},
	{
		Name: "one snapshot kept",
		Rule: "raft.SnapshotSink: the two newest are kept; SAFETY §2: corrupt snapshot: older snapshot and log",
		File: "storage/snapshot/store.go",
		Old:  `const kept = 2`,
		New:  `const kept = 1`,
		Test: Test{"./storage/snapshot", "TestTwoNewestAreKept"},
	},
	{
		Name: "damaged snapshot counts as kept",
		Rule: "SAFETY §2 disk: the two newest intact ones are kept, so that one is left when the other is damaged",
		File: "storage/snapshot/store.go",
		Old:  `if _, err := s.inspect(index); err == nil {`,
		New:  `if _, err := s.inspect(index); err == nil || isDamage(err) {`,
		Test: Test{"./storage/snapshot", "TestDamagedSnapshotsDoNotCountAsKept"},
	},
	{
		Name: "older snapshot hides trouble with the newest",
		Rule: "SAFETY §2 disk: a server must not start from the past because of a passing error",
		File: "storage/snapshot/store.go",
		Old: `		if s.unusable(index) == nil {
			return raft.SnapshotMeta{}, err // not damage: an older snapshot would only hide the trouble
		}
`,
		New:  ``,
		Test: Test{"./storage/snapshot", "TestOtherTroubleIsNotTakenForDamage"},
	},
	{
		Name: "snapshot that a reader found damaged offered again",
		Rule: "SAFETY inv 24, §2 disk: corrupt snapshot: older snapshot and log",
		File: "storage/snapshot/store.go",
		Old: `		s.giveUp(known, index, err)
`,
		New: `		_ = known
`,
		Test: Test{"./storage/snapshot", "TestEveryDamageIsFound"},
	},
	{
		Name: "unfinished snapshots fill the disk",
		Rule: "SAFETY inv 26: files stay within their bounds",
		File: "storage/snapshot/store.go",
		Old:  `		if !isLeftover(name) {`,
		New:  `		if isLeftover(name) {`,
		Test: Test{"./storage/snapshot", "TestLeftoversAreRemovedAndNothingElse"},
	},
	{
		Name: "checksum of snapshot chunks not verified",
		Rule: "SAFETY inv 24: no byte out of a damaged range is served",
		File: "storage/snapshot/reader.go",
		Old:  `	if chunkChecksum(r.layout.seed, r.chunks, data) != binary.LittleEndian.Uint32(b[4:]) {`,
		New:  `	if false {`,
		Test: Test{"./storage/snapshot", "TestEveryDamageIsFound"},
	},
	{
		Name: "checksum of the whole snapshot not verified",
		Rule: "SAFETY inv 24: io.EOF only after the whole content was verified",
		File: "storage/snapshot/reader.go",
		Old:  `	if r.left == want && content != r.layout.content {`,
		New:  `	if false {`,
		Test: Test{"./storage/snapshot", "TestFilesThatContradictThemselves"},
	},
	{
		Name: "chunks may change places",
		Rule: "SAFETY inv 24: no byte is handed out before it is verified, and the checksum of a chunk covers its number",
		File: "storage/snapshot/format.go",
		Old: `	binary.LittleEndian.PutUint64(position[:], number)
`,
		New:  ``,
		Test: Test{"./storage/snapshot", "TestEveryDamageIsFound"},
	},
	{
		Name: "checksum of the snapshot's header not verified",
		Rule: "SAFETY inv 19: index, term and configuration of a snapshot",
		File: "storage/snapshot/format.go",
		Old:  `	if crc32.Checksum(header[:start-checksumSize], castagnoli) != seed {`,
		New:  `	if false {`,
		Test: Test{"./storage/snapshot", "TestEveryDamageIsFound"},
	},
	{
		Name: "snapshot under another's name taken",
		Rule: "SAFETY inv 19: a snapshot's index is that of its content",
		File: "storage/snapshot/format.go",
		Old:  `	if meta.Index != index {`,
		New:  `	if false {`,
		Test: Test{"./storage/snapshot", "TestBytesOfAnotherSnapshotAreDamage"},
	},
	{
		Name: "snapshot may differ from its announced length on disk",
		Rule: "SAFETY §3 snapshots: a stream longer or shorter than declared",
		File: "storage/snapshot/format.go",
		Old:  `	if meta.Size >= 0 && meta.Size != size {`,
		New:  `	if false {`,
		Test: Test{"./storage/snapshot", "TestFilesThatContradictThemselves"},
	},
	{
		Name: "snapshot longer than announced stored",
		Rule: "SAFETY §3 snapshots: a stream longer than declared; a peer cannot fill our disk with it",
		File: "storage/snapshot/sink.go",
		Old:  `	if k.err == nil && k.meta.Size >= 0 && int64(len(p)) > k.meta.Size-k.size {`,
		New:  `	if k.err == nil && k.meta.Size >= 0 && k.size > k.meta.Size {`,
		Test: Test{"./storage/snapshot", "TestContentMustHaveTheAnnouncedLength"},
	},
	{
		Name: "snapshot shorter than announced committed",
		Rule: "SAFETY §3 snapshots: a stream shorter than declared is not whole",
		File: "storage/snapshot/sink.go",
		Old:  `k.err == nil && k.meta.Size >= 0 && k.size != k.meta.Size {`,
		New:  `k.err == nil && k.meta.Size >= 0 && k.size > k.meta.Size {`,
		Test: Test{"./storage/snapshot", "TestContentMustHaveTheAnnouncedLength"},
	},
	{
		Name: "snapshot committed after a failed write",
		Rule: "raft.SnapshotSink: after an error nothing of it will be seen",
		File: "storage/snapshot/sink.go",
		Old: `	if k.err != nil {
		return raft.SnapshotMeta{}, errors.Join(k.err, k.Abort())
	}
`,
		New:  ``,
		Test: Test{"./storage/snapshot", "TestFailedOperationsLeaveTheOldSnapshot"},
	},

	// The storage in memory, on which the simulator and most tests stand.
	{
		Name: "memory: incarnation stays the same at a restart",
		Rule: "SAFETY inv 21 and 29: every start counts",
		File: "storage/memory/memory.go",
		Old: `	have.Incarnation++
`,
		New:  ``,
		Test: Test{"./storage/memory", "TestConformance/Identity"},
	},
	{
		Name: "memory: two at once",
		Rule: "SAFETY §2 process: two processes on one data directory: ErrLocked",
		File: "storage/memory/memory.go",
		Old: `	case s.open:
		return raft.Recovered{}, raft.ErrLocked
`,
		New:  ``,
		Test: Test{"./storage/memory", "TestOpenTwiceIsLocked"},
	},
	{
		Name: "memory: installed snapshot keeps the suffix of another history",
		Rule: "§7: discard the entire log, unless the entry at the snapshot's index has its term",
		File: "storage/memory/memory.go",
		Old:  `n > raft.Index(len(log)) || log[n-1].ID() != snapshot {`,
		New:  `n > raft.Index(len(log)) {`,
		Test: Test{"./storage/memory", "TestContradictingSnapshotDiscardsTheLog"},
	},
	{
		Name: "memory: log compacted without a snapshot",
		Rule: "SAFETY inv 20: no gap between snapshot and log",
		File: "storage/memory/memory.go",
		Old:  `to > newest {`,
		New:  `to > newest+1000 {`,
		Test: Test{"./storage/memory", "TestCompactNeedsASnapshot"},
	},
	{
		Name: "memory: sink of a dead process commits",
		Rule: "SAFETY inv 21: what belongs to a dead incarnation is over",
		File: "storage/memory/snapshots.go",
		Old:  `err == nil && d.identity.Incarnation != k.incarnation {`,
		New:  `err == nil && false {`,
		Test: Test{"./storage/memory", "TestSinkOfAnEarlierOpenIsDead"},
	},
	{
		Name: "memory: changed entry served",
		Rule: "SAFETY inv 24, §2 memory: checksums are verified on every read",
		File: "storage/memory/memory.go",
		Old:  `		if _, _, err := raft.DecodeEntry(e.Frame()); err != nil {`,
		New:  `		if err := error(nil); err != nil {`,
		Test: Test{"./storage/memory", "TestChangedFrameIsFoundOut"},
	},
}
