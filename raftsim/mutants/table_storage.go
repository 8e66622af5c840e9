package mutants

// storage lists the guards of the log on disk, but for what happens when it is opened.
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
		Old: `	page := h.encode(sealer)
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
		New: `	page := h.encode(sealer)
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
		Name: "lost batch in front of an idle record written again",
		Rule: "SAFETY §4: what is damaged is not taken for the last batch, nor another place for its own",
		File: "storage/wal/loss.go",
		Old:  `w.lastHolder, r.lastDamaged = seg, true`,
		New:  `w.lastHolder, r.lastDamaged = seg, false`,
		Test: Test{"./storage/wal", "TestLostBatchInFrontOfAnIdleRecordIsNotWrittenAgain"},
	},
	{
		Name: "disk is full when a large segment has no room",
		Rule: "SAFETY §4 full: no room to prepare the next segment, of whatever size",
		File: "storage/wal/prepare.go",
		Old:  `		if errors.Is(err, raft.ErrStorageFull) && s.next < s.size {`,
		New:  `		if errors.Is(err, raft.ErrStorageFull) && s.next < 0 {`,
		Test: Test{"./storage/wal", "TestFullDiskPreparesASmallerSegment"},
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
		Old: `	if err := w.writeDurable(w.padded(h.end()), h.offset); err != nil {
		return w.fail(fmt.Errorf("write batch %d: %w", h.seq, err))
	}
`,
		New: `	if h.has(flagHardState) && h.hardState != w.vote.hardState {
		w.vote.hardState, w.vote.batch = h.hardState, h.seq
		if err := w.writeVote(); err != nil {
			return w.fail(err)
		}
	}
	if err := w.writeDurable(w.padded(h.end()), h.offset); err != nil {
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
		Test: Test{"./storage/wal", "TestCrashAtEveryFileOperation"},
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
		Old:  `prepareLead+int64(prepareRatio*full*float64(s.size))`,
		New:  `prepareLead+int64(full/2*float64(s.size))`,
		Test: Test{"./storage/wal", "TestNextSegmentIsWrittenInStep"},
	},
	{
		Name: "next segment written all at once",
		Rule: "SAFETY §2 disk: slow work of the one who prepares does not hold up the log's syncs",
		File: "storage/wal/prepare.go",
		Old:  `return s.file != nil && s.zeroed >=`,
		New:  `return s.size < 0 && s.zeroed >=`,
		Test: Test{"./storage/wal", "TestNextSegmentIsWrittenInStep"},
	},
	{
		Name: "zeros behind a batch are the bytes of an earlier one",
		Rule: "storage-format: a sector that was never written since the segment was made reads zero",
		File: "storage/wal/wal.go",
		Old:  `clear(w.buf[len(w.buf) : len(w.buf)+zeros])`,
		New:  `_ = zeros`,
		Test: Test{"./storage/wal", "TestZerosBehindABatchAreZeros"},
	},
	{
		Name: "a spare that was only allocated counts as written",
		Rule: "SAFETY §2 disk: no sync waits longer than it must",
		File: "storage/wal/wal.go",
		Old:  `w.activeFile, w.activeSize, w.zeroed, w.idle = seg, s.file, s.size, s.zeroed, false`,
		New:  `w.activeFile, w.activeSize, w.zeroed, w.idle = seg, s.file, s.size, s.size, false`,
		Test: Test{"./storage/wal", "TestNextSegmentIsOnlyAllocated"},
	},
	{
		Name: "a spare with bytes in it is used",
		Rule: "SAFETY §4: segments read zero before use, so that what a crash kept from being written is known",
		File: "storage/wal/prepare.go",
		Old:  `		if !isZero(b) {`,
		New:  `		if false {`,
		Test: Test{"./storage/wal", "TestSpareOfAnEarlierRunIsLookedAt"},
	},
	{
		Name: "a spare is used behind where it was looked at",
		Rule: "SAFETY §4: segments read zero before use, so that what a crash kept from being written is known",
		File: "storage/wal/prepare.go",
		Old:  `		err = f.Truncate(size)`,
		New:  `		err = nil`,
		Test: Test{"./storage/wal", "TestSpareOfAnEarlierRunIsLookedAt"},
	},
	{
		Name: "a spare with a header that a crash has cut off is thrown away",
		Rule: "SAFETY §4: an unused spare is kept across restarts",
		File: "storage/wal/prepare.go",
		Old:  `	for at := int64(segmentHeaderSize); at < size; at += int64(len(b)) {`,
		New:  `	for at := int64(0); at < size; at += int64(len(b)) {`,
		Test: Test{"./storage/wal", "TestSpareOfAnEarlierRunIsLookedAt"},
	},
	{
		Name: "a spare that is too short is used",
		Rule: "SAFETY §4: segments read zero before use",
		File: "storage/wal/prepare.go",
		Old:  `	if err != nil || have < size {`,
		New:  `	if err != nil {`,
		Test: Test{"./storage/wal", "TestSpareOfAnEarlierRunIsLookedAt"},
	},
	{
		Name: "a spare that could not be written stays",
		Rule: "SAFETY §4: an error from a write into a prepared segment is final",
		File: "storage/wal/prepare.go",
		Old:  `s.file, s.ready, s.allocated, s.zeroed = nil, false, false, 0`,
		New:  `s.file, s.allocated, s.zeroed = nil, false, 0`,
		Test: Test{"./storage/wal", "TestSpareThatCannotBeWrittenIsGivenUp"},
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
		Old:  `	if errs[0] != nil && errs[1] != nil {`,
		New:  `	if errs[0] != nil || errs[1] != nil {`,
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
		Old: `		if crc == binary.LittleEndian.Uint32(record) {
			if used`,
		New: `		if crc != 0 {
			continue
		}
		if crc == binary.LittleEndian.Uint32(record) {
			if used`,
		Test: Test{"./storage/wal", "TestEveryTornPatternOfTheLastBatchIsCut"},
	},
	{
		Name: "changed page taken for an unfinished write",
		Rule: "SAFETY §4: torn only if a damaged sector reads all zero and is not in the bitmap",
		File: "storage/wal/batch.go",
		Old:  `		if !lostSector(b, p, h.headerLen, record[4]) {`,
		New:  `		if lostSector(b, p, h.headerLen, record[4]) && crc == 0 {`,
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
		Test: Test{"./storage/wal", "TestBatchOfAnotherSegmentIsNotTaken"},
	},
	{
		Name: "batch of another place taken",
		Rule: "SAFETY inv 24: a batch names its place",
		File: "storage/wal/read.go",
		Old:  `	case h.tag != tag || h.offset != offset:`,
		New:  `	case h.tag != tag:`,
		Test: Test{"./storage/wal", "TestDamageNeverGoesUnnoticed"},
	},
	{
		Name: "batch longer than its file read",
		Rule: "SAFETY §2 hostile input: lengths are checked before they are used",
		File: "storage/wal/read.go",
		Old:  `	if int64(len(b)) < h.end()-offset {`,
		New:  `	if false {`,
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
		Old:  `			case next.prev.Index >= q.lo:`,
		New:  `			case next.prev.Index >= 0:`,
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
	x.damaged, x.repaired = without`,
		New:  `	x.damaged, x.repaired = without`,
		Test: Test{"./storage/wal", "TestConformance/simulated_disk,_small_segments/Batch"},
	},
}
