package mutants

// Wounds lists the scenarios that have bitten others, by the part of the system that bled; docs/old-wounds.md is made from it. The
// sources are the papers named there and public trackers; those without one are told in several places, or follow from the paper.
func Wounds() []Wound {
	return []Wound{
		{
			Name:  "election-crash-between-term-and-vote",
			Story: "Term and vote were two writes. A crash between them left a server that knew the term and had forgotten whom it had chosen (hashicorp/raft #661).",
			Test:  woundScript("wound-election-crash-between-term-and-vote"), Mutants: []string{"a vote is not written down"},
		},
		{
			Name:  "election-power-fails-between-term-and-vote",
			Story: "The same on the disk: the new term beside the old vote.",
			Test:  woundStorage("wal", "TestWoundPowerFailsBetweenTermAndVote"), Mutants: []string{"vote of the vote file under the term of the log"},
		},
		{
			Name:  "election-seen-term-is-no-vote",
			Story: "To have seen a candidate's term was taken for having voted in it, by the voter or by the candidate.",
			Test:  woundScript("wound-election-seen-term-is-no-vote"), Mutants: []string{"seen term is stored as a vote", "refusal in the candidate's term counts as a vote"},
		},
		{
			Name:  "election-vote-forgotten-within-its-term",
			Story: "Stepping down within a term went through the function for later terms, which clears the vote; a second vote followed (microsoft/CCF #8094).",
			Test:  woundScript("wound-election-vote-forgotten-within-its-term"), Mutants: []string{"vote is forgotten by a step down within the term"},
		},
		{
			Name:  "election-pre-vote-counted-as-vote",
			Story: "A late answer to a pre-vote was counted in the election behind it (canonical/raft #196).",
			Test:  woundScript("wound-election-pre-vote-counted-as-vote"), Mutants: []string{"pre-vote counts as a vote"},
		},
		{
			Name:  "election-pre-vote-deadlock",
			Story: "A long log at a low term and a short log at a high term refused each other for ever (etcd #8243, #8501).",
			Test:  woundScript("pre-vote-deadlock"), Mutants: []string{"pre-vote of an earlier term is not answered"},
		},
		{
			Name:  "election-demoted-server-flaps",
			Story: "A server that did not know that it had lost its vote came back with a high term and deposed one leader after another (hashicorp/raft #524).",
			Test:  woundScript("wound-election-demoted-server-flaps"), Mutants: []string{"demoted server's term is taken although a leader is heard"},
		},
		{
			Name:  "election-removed-server-raises-the-term",
			Story: "A removed server raced with those that stay for every term, once their leader had died (§6).",
			Test:  woundScript("wound-election-removed-server-raises-the-term"), Mutants: []string{"removed server's later term is taken"},
		},
		{
			Name:  "election-promoted-learner-does-not-vote",
			Story: "A promoted learner that had not heard of its promotion refused to vote, and a majority was missing (tikv/raft-rs #57, etcd #10998).",
			Test:  woundScript("wound-election-promoted-learner-does-not-vote"), Mutants: []string{"learner in its own eyes does not vote"},
		},
		{
			Name:  "election-learner-leads",
			Story: "Leadership was transferred to a learner (eBay/NuRaft #553).",
			Test:  woundScript("wound-election-learner-leads"), Mutants: []string{"learner campaigns", "learner is picked as successor", "learner is a target of a transfer"},
		},
		{
			Name:  "election-broken-disk-keeps-winning",
			Story: "A server whose disk took no writes went on leading, or won election after election (tarantool #9606).",
			Test:  woundTest("TestWoundBrokenDiskKeepsWinning"), Mutants: []string{"server with a failed storage campaigns"},
		},
		{
			Name:  "election-hanging-disk-keeps-winning",
			Story: "The same with a disk that hangs and reports nothing.",
			Test:  woundTest("TestWoundHangingDiskKeepsWinning"), Mutants: []string{"a server whose disk hangs campaigns"},
		},

		{
			Name:  "log-earlier-term-committed-by-counting",
			Story: "An entry of an earlier term on a majority was called committed, and overwritten (Figure 8).",
			Test:  woundScript("wound-log-earlier-term-committed-by-counting"), Mutants: []string{"entry of an earlier term is committed by counting"},
		},
		{
			Name:  "log-commit-reaches-a-stale-suffix",
			Story: "A follower committed what a deposed leader had left behind the last entry that the leader spoke of (Figure 2; etcd #1203).",
			Test:  woundTest("TestWoundCommitReachesAStaleSuffix"), Mutants: []string{"a follower commits what it was not sent"},
		},
		{
			Name:  "log-old-work-under-a-new-term",
			Story: "A command was taken in one term, waited, and was stamped with a later one.",
			Test:  woundTest("TestWoundOldWorkUnderANewTerm"), Mutants: []string{"command of an earlier term is appended in a later one"},
		},
		{
			Name:  "log-answer-of-an-earlier-term",
			Story: "An answer was made in one term and left with the term of its departure.",
			Test:  woundScript("wound-log-answer-of-an-earlier-term"), Mutants: []string{"answer leaves with the term of its departure"},
		},
		{
			Name:  "log-completion-of-an-earlier-term",
			Story: "The completion of a write was taken for the present term and vote, which were not in it.",
			Test:  woundScript("wound-log-completion-of-an-earlier-term"), Mutants: []string{"completion of an earlier write makes the present vote durable"},
		},
		{
			Name:  "log-append-aba",
			Story: "The late completion of a replaced append was taken for that of its replacement at the same index (described in etcd-io/raft #8).",
			Test:  woundScript("wound-log-append-aba"), Mutants: []string{"a late completion counts for another entry"},
		},
		{
			Name:  "log-completions-out-of-order",
			Story: "A later write was finished first, and everything before it was acknowledged.",
			Test:  woundTest("TestWoundCompletionsOutOfOrder"), Mutants: []string{"completion behind a later one counts", "writes reported that were not merged into the batch"},
		},
		{
			Name:  "log-duplicate-acknowledged-early",
			Story: "A retransmitted append had nothing to write, so its acknowledgement did not wait for the write of the first copy (yugabyte-db #32875).",
			Test:  woundScript("wound-log-duplicate-acknowledged-early"), Mutants: []string{"answer with nothing to write waits for nothing"},
		},
		{
			Name:  "log-vote-before-append",
			Story: "Votes and entries were written by two queues, and an answer left with the wrong one.",
			Test:  woundScript("wound-log-vote-before-append"), Mutants: []string{"vote leaves with the write before its own"},
		},
		{
			Name:  "log-reply-of-a-dead-process",
			Story: "A late acknowledgement of a process whose disk had lost what it acknowledged was counted beside those of its successor (tikv #994 tells of the loss).",
			Test:  woundScript("wound-log-reply-of-a-dead-process"), Mutants: []string{"dead process is listened to"},
		},
		{
			Name:    "log-single-voter-does-not-wait",
			Story:   "A cluster of one acknowledged before its disk had answered (etcd #14370).",
			Test:    woundScript("wound-log-single-voter-does-not-wait"),
			Mutants: []string{"single voter's vote counts before it is durable", "own entries count before they are durable"},
		},
		{
			Name:  "log-rejection-wedges-the-pipeline",
			Story: "One lost append made the follower reject those behind it, and late rejections undid every repair (andreev-io/little-raft #18).",
			Test:  woundScript("pipeline-rejection"), Mutants: []string{"late rejection of a pipeline undoes what was learned", "rejected pipeline is not begun again"},
		},
		{
			Name:  "log-crash-between-truncation-and-append",
			Story: "A conflicting suffix was removed, and the process died before its replacement was written.",
			Test:  woundScript("wound-log-crash-between-truncation-and-append"), Mutants: []string{"truncation and append are two writes"},
		},
		{
			Name:  "log-power-fails-between-truncation-and-append",
			Story: "The same inside the file.",
			Test:  woundStorage("wal", "TestWoundPowerFailsBetweenTruncationAndAppend"), Mutants: []string{"unfinished batch removes what it should have replaced"},
		},

		{
			Name:  "membership-change-before-no-op",
			Story: "A new leader changed the membership before it had committed anything; its majority and that of its predecessor's change did not intersect (Ongaro, raft-dev, July 2015).",
			Test:  woundScript("wound-membership-change-before-no-op"), Mutants: []string{"change before the leader's own no-op is committed"},
		},
		{
			Name:    "membership-uncommitted-change-rolled-back",
			Story:   "A configuration whose entry was overwritten stayed in force, or there was nothing to go back to after a restart (canonical/raft #250).",
			Test:    woundScript("wound-membership-uncommitted-change-rolled-back"),
			Mutants: []string{"a truncated configuration stays in force", "start remembers the latest configuration only"},
		},
		{
			Name:    "membership-leader-removes-itself",
			Story:   "A leader that removed itself counted itself, or stayed in office (§6).",
			Test:    woundScript("wound-membership-leader-removes-itself"),
			Mutants: []string{"servers that leave are counted in the new half", "leader that was removed stays in office"},
		},
		{
			Name:  "membership-joint-state-across-leaders",
			Story: "The leader that had entered a joint configuration died, and nobody left it.",
			Test:  woundScript("joint-change-across-leaders"), Mutants: []string{"joint configuration is left only by who entered it"},
		},
		{
			Name:  "membership-change-of-a-stale-configuration",
			Story: "A change was carried out on a configuration that its author had not seen.",
			Test:  woundTest("TestWoundChangeOfAStaleConfiguration"), Mutants: []string{"change of a stale configuration is carried out"},
		},
		{
			Name:  "membership-reused-id-with-an-empty-log",
			Story: "Servers with wiped disks and their old names formed a majority that knew nothing of what was committed (databendlabs/openraft #2002).",
			Test:  woundTest("TestWoundReusedIDWithAnEmptyLog"), Mutants: []string{"another replica is counted in place of the one that was lost"},
		},
		{
			Name:  "membership-removed-id-comes-back",
			Story: "A server was removed and added again; late answers of its first life spoiled what the leader knew of its second (tikv/raft-rs #571).",
			Test:  woundScript("wound-membership-removed-id-comes-back"), Mutants: []string{"removed server leaves no tombstone"},
		},

		{
			Name:  "reads-before-no-op",
			Story: "A new leader answered a read before it knew what its predecessor had committed (etcd #7331).",
			Test:  woundScript("wound-reads-before-no-op"), Mutants: []string{"read before the leader's no-op is committed"},
		},
		{
			Name:  "reads-confirmed-by-an-earlier-round",
			Story: "A read was confirmed by answers to heartbeats that were sent before it began.",
			Test:  woundScript("wound-reads-confirmed-by-an-earlier-round"), Mutants: []string{"read is confirmed by a round that began before it"},
		},
		{
			Name:  "reads-of-a-paused-leader",
			Story: "A leader's process stood still, went on, and answered a read as if no time had passed.",
			Test:  woundScript("wound-reads-of-a-paused-leader"), Mutants: []string{"leader confirms its reads by itself"},
		},
		{
			Name:  "reads-answer-to-an-earlier-process",
			Story: "A late refusal of a leader's earlier process carried the number of a round of the present one. It happened here (docs/adr/0002).",
			Test:  woundScript("read-round-of-an-earlier-process"), Mutants: []string{"a refusal of an old term answers a round"},
		},

		{
			Name:  "snapshots-conflict-with-the-local-entry",
			Story: "A log was kept because it held the snapshot's index, although with another term (§7, rule 6).",
			Test:  woundScript("wound-snapshots-conflict-with-the-local-entry"), Mutants: []string{"log is kept although the snapshot contradicts it"},
		},
		{
			Name:  "snapshots-older-than-applied",
			Story: "A second copy of a snapshot set the state machine back.",
			Test:  woundScript("wound-snapshots-older-than-applied"), Mutants: []string{"snapshot older than what was applied is installed"},
		},
		{
			Name:  "snapshots-configuration-at-the-index",
			Story: "A snapshot carried a configuration from behind its index, which could not be rolled back (canonical/raft #250).",
			Test:  woundScript("wound-snapshots-configuration-at-the-index"), Mutants: []string{"snapshot carries the configuration in force"},
		},
		{
			Name:  "snapshots-crash-while-installing",
			Story: "After a crash the commit index came from the snapshot and lay beyond the log: the process stopped itself at every start (CurvineIO/curvine #1551).",
			Test:  woundScript("wound-snapshots-crash-while-installing"), Mutants: []string{"crash while installing leaves the log behind its snapshot"},
		},
		{
			Name:  "snapshots-slow-install-and-retries",
			Story: "Installing took longer than the sender's patience, so the snapshot was sent again, and again (baidu/braft #423 asks; ClickHouse/NuRaft #121 measures).",
			Test:  woundScript("wound-snapshots-slow-install-and-retries"), Mutants: []string{"snapshot is sent again while it is being installed"},
		},
		{
			Name:  "snapshots-follower-acknowledged-past-it",
			Story: "A follower that had caught up by itself waited for a snapshot that it did not need (etcd #10945).",
			Test:  woundScript("snapshot-overtaken"), Mutants: []string{"follower stays pending behind a snapshot that it no longer needs"},
		},
		{
			Name:  "snapshots-stream-of-another-length",
			Story: "A stream that broke off became half a state.",
			Test:  woundStorage("snapshot", "TestWoundStreamOfAnotherLength"), Mutants: []string{"snapshot shorter than announced is taken"},
		},

		{
			Name:  "storage-torn-tail-against-bit-rot",
			Story: "A rotten last record was cut off like one that a crash had interrupted (Alagappan and others, FAST 2018).",
			Test:  woundStorage("wal", "TestWoundTornTailAgainstBitRot"), Mutants: []string{"rotten bits in the last batch are cut as an unfinished write"},
		},
		{
			Name:    "storage-sync-fails-once",
			Story:   "A sync failed, its repetition succeeded, and the data was not on the disk (Rebello and others, ATC 2020).",
			Test:    woundStorage("wal", "TestWoundSyncFailsOnceAndTheRetrySucceeds"),
			Mutants: []string{"write is tried again after a failed sync", "what a restart reads is not synced again"},
		},
		{
			Name:  "storage-full-in-the-middle-of-a-batch",
			Story: "The next record was written behind half a record, and could not be read (prometheus #13027, HarperFast/rocksdb-js #748).",
			Test:  woundStorage("wal", "TestWoundFullInTheMiddleOfABatch"), Mutants: []string{"half a batch is written behind"},
		},
		{
			Name:  "storage-directory-not-synced",
			Story: "A renamed log file was gone after a power failure, with what had been acknowledged in it (etcd #6368; Pillai and others, OSDI 2014).",
			Test:  woundStorage("wal", "TestWoundDirectoryNotSynced"), Mutants: []string{"directory of a new segment is not synced"},
		},
		{
			Name:  "storage-renamed-snapshot-vanishes",
			Story: "The same with a snapshot, after the log before it had been given up.",
			Test:  woundStorage("snapshot", "TestWoundRenamedSnapshotVanishes"), Mutants: []string{"directory of a new snapshot is not synced"},
		},
		{
			Name:  "storage-damage-in-the-middle-taken-for-the-end",
			Story: "Recovery ended the log at a damaged record in its middle.",
			Test:  woundStorage("wal", "TestWoundDamageInTheMiddleTakenForTheEnd"), Mutants: []string{"damage before a later batch is taken for the end"},
		},
		{
			Name:  "storage-call-hangs",
			Story: "A disk hung, the heartbeats went on, and nobody took over (hashicorp/raft #503).",
			Test:  woundScript("wound-storage-call-hangs"), Mutants: []string{"leader over a hanging disk stays in office"},
		},

		{
			Name:  "lifecycle-step-down-during-transfer",
			Story: "A transfer outlived its office, and the next office of that server refused all proposals (hashicorp/raft #696).",
			Test:  woundScript("wound-lifecycle-step-down-during-transfer"), Mutants: []string{"transfer outlives the office"},
		},
		{
			Name:  "lifecycle-pending-calls-at-step-down",
			Story: "Callers of a deposed leader waited for entries that had been truncated (etcd #5214, camunda #42720).",
			Test:  woundTest("TestWoundPendingCallsAtStepDown"), Mutants: []string{"proposal whose entry was truncated waits for its index", "reads are dropped without a word when leadership is lost"},
		},
		{
			Name:  "lifecycle-pending-calls-at-shutdown",
			Story: "Callers of a server that was shut down were never answered.",
			Test:  woundTest("TestWoundPendingCallsAtShutdown"), Mutants: []string{"shutdown forgets the calls that wait"},
		},
		{
			Name:  "lifecycle-pending-calls-at-removal",
			Story: "Callers of a removed server waited for a leader that no longer talked to it.",
			Test:  woundTest("TestWoundPendingCallsAtRemoval"), Mutants: []string{"removal forgets the calls that wait"},
		},
		{
			Name:  "lifecycle-pending-calls-at-restore",
			Story: "A command's entry came back inside a snapshot, and its caller was told nothing, or something untrue.",
			Test:  woundTest("TestWoundPendingCallsAtRestore"), Mutants: []string{"result inside a snapshot is reported as success"},
		},
		{
			Name:  "lifecycle-timeout-now-at-the-wrong-server",
			Story: "TimeoutNow arrived late, at a server that had been removed, and that server won (etcd #6815).",
			Test:  woundTest("TestWoundTimeoutNowAtTheWrongServer"), Mutants: []string{"TimeoutNow is obeyed by whoever gets it", "learner obeys TimeoutNow"},
		},
	}
}

func woundScript(name string) Test { return Test{Package: ".", Name: "TestScripts/" + name} }
func woundTest(name string) Test   { return Test{Package: ".", Name: name} }
func woundStorage(pkg, name string) Test {
	return Test{Package: "./storage/" + pkg, Name: name}
}
