package mutants

// stores lists the guards of the snapshot store, and of the storage in memory, on which the simulator and most tests stand.
var stores = []Mutant{
	// Snapshots.
	{
		Name: "snapshot gets its name before its sync",
		Rule: "SAFETY §2 disk: under its final name a snapshot is always whole",
		File: "storage/snapshot/sink.go",
		Old: `	k.write(encodeTrailer(k.seed, k.size, k.content, k.sealer))
	k.sync()
`,
		New: `	k.write(encodeTrailer(k.seed, k.size, k.content, k.sealer))
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
		Name: "every start fails at the same damaged snapshot",
		Rule: "SAFETY §2 disk: corrupt snapshot: older snapshot and log, or from a peer",
		File: "storage/snapshot/store.go",
		Old:  "\t\ts.setAside(known, index)\n",
		New:  "",
		Test: Test{"./storage/snapshot", "TestDamagedContentIsSetAside"},
	},
	{
		Name: "a good snapshot is set aside for the damage of the one before",
		Rule: "SAFETY inv 20: the log is compacted behind snapshots that will be there",
		File: "storage/snapshot/store.go",
		Old:  "\tif s.files[index] != known {",
		New:  "\tif s.files[index] != known && false {",
		Test: Test{"./storage/snapshot", "TestDamageOfAReplacedFileIsNotHeldAgainstItsSuccessor"},
	},
	{
		Name: "damaged snapshots fill the disk",
		Rule: "SAFETY inv 26: files stay within their bounds",
		File: "storage/snapshot/store.go",
		Old:  "\t\tif index < oldest {",
		New:  "\t\tif index < oldest && false {",
		Test: Test{"./storage/snapshot", "TestDamagedContentIsSetAside"},
	},
	{
		Name: "a follower waits for a damaged snapshot until the next one is due",
		Rule: "SAFETY §2 disk: corrupt snapshot: older snapshot and log, or from a peer; inv 30",
		File: "snapshotter.go",
		Old:  "\tif !errors.As(err, new(*CorruptionError)) {",
		New:  "\tif true || !errors.As(err, new(*CorruptionError)) {",
		Test: Test{".", "TestSnapshotThatIsDamagedIsTakenAnew"},
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
