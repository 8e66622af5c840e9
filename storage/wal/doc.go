// Package wal keeps a server's log, term and vote in files that survive crashes of the process and of the machine.
//
// # Files
//
// A directory belongs to one server and is locked while it is open. It holds
//
//	LOCK                   the lock
//	0000000000000001.wal   segments of the log, numbered in hexadecimal
//	next.spare             a segment made ahead, which reads zero
//	vote                   term and vote once more
//	snapshots/             see package storage/snapshot
//	*.tmp                  files being made
//
// # Writing
//
// A batch is written by one write and made durable by one sync, and no batch is written before the sync of the one before has
// returned. So at most one batch is ever in doubt. Segments read zero before they are used, so whatever a crash kept from being
// written is known by its zeros. Their blocks are taken from the file system beforehand, and written beforehand too, in step with the
// segment before, or along with the first of several small batches, where that makes syncs shorter. Every start begins a new segment,
// so that no sector is ever appended to. Nothing is truncated either: a batch that begins at index i supersedes all entries from i on,
// and if it turns out to be unfinished, the old ones are still there.
//
// Term and vote are in the log, and a second time in the vote file. Write returns when both are durable; the log is first, so that
// a batch is there as a whole or not at all.
//
// An error from a write or a sync is final: nobody knows what is on the disk then, and a second sync that succeeds says nothing
// about the first. Running out of space is different, since it is met while a segment is being prepared, before anything was
// written: that is raft.ErrStorageFull, and goes away by itself. The last 64 KiB of a segment (a quarter of a smaller one) are kept
// for hard states, no-ops and configurations, so that a server with a full disk can still vote and be reconfigured.
//
// # Recovery
//
// Open understands the whole log before it changes anything: it reads the headers of all segments, the footers of those that were sealed, and
// every batch of the last one ([Options].VerifyAtOpen: of all). What does not match its checksum is one of two things.
//
// Torn: it is the last batch, every damaged page of it shows sectors that read zero and were not written so, and nothing says that its sync
// had returned. Then nobody was told that the batch is durable. It is left out, counted and logged.
//
// Damaged: anything else. A later batch, an idle record, the next segment or the vote file says that the sync had returned; or the bytes are
// wrong rather than missing. If it is certain which entries are lost with it, the log is opened without them, and they can be repaired. If the
// end of the log is lost, it is fenced. If a vote may be lost, or what is lost cannot be told, Open returns a *raft.CorruptionError and
// leaves everything as it is. Damage in front of a footer is found by the read that meets it, or by [WAL.Scrub].
//
// Zeros from the end of a batch on are the end of the log, unless something says that there was more.
//
// Before Open returns, it writes the last batch again and syncs it. The process before may have been told that its sync failed, or
// may have died before it: the batch could then be read from memory and yet never reach the disk.
//
// [Inspect] reads and judges a stopped server's directory with the code of Open, and changes nothing; [Dump] hands out its entries.
// [Recover] makes a survivor the only member of a new cluster; docs/raftctl.md says when and how.
//
// # Format
//
// The byte tables are in docs/storage-format.md.
package wal
