package mutants

// transport lists the guards of who may say what over the network.
var transport = []Mutant{
	// tcp: the handshake.
	{
		Name: "certificate of another server accepted",
		Rule: "SAFETY §2 hostile input: a certificate of another server: refused before any Raft byte is parsed",
		File: "transport/tcp/handshake.go",
		Old:  `	case certified != "" && certified != NodeURI(h.Cluster, raft.NodeID(h.Node)).String():`,
		New:  `	case certified != "" && false:`,
		Test: Test{"./transport/tcp", "TestCertificatesDecideWhoMayTalk"},
	},
	{
		Name: "server of another cluster admitted",
		Rule: "SAFETY inv 21: messages of another cluster are dropped",
		File: "transport/tcp/handshake.go",
		Old:  `	case h.Cluster != self.Cluster:`,
		New:  `	case false:`,
		Test: Test{"./transport/tcp", "TestHelloDecidesWhoMayCome"},
	},
	{
		Name: "connection meant for another server admitted",
		Rule: "SAFETY §2 network: wrong server behind an address: refused at the handshake",
		File: "transport/tcp/handshake.go",
		Old:  `	case h.To != string(self.Node):`,
		New:  `	case false:`,
		Test: Test{"./transport/tcp", "TestHelloDecidesWhoMayCome"},
	},
	{
		Name: "second server of our own name admitted",
		Rule: "SAFETY §2 operator: two servers of one name",
		File: "transport/tcp/handshake.go",
		Old:  `	case h.Node == string(self.Node):`,
		New:  `	case false:`,
		Test: Test{"./transport/tcp", "TestHelloDecidesWhoMayCome"},
	},
	{
		Name: "wrong server behind an address spoken to",
		Rule: "SAFETY §2 network: wrong cluster or wrong server behind an address: refused at the handshake, by the dialer too",
		File: "transport/tcp/handshake.go",
		Old:  `	if id.Cluster != t.identity.Cluster || id.Node != to {`,
		New:  `	if false {`,
		Test: Test{"./transport/tcp", "TestDialerLeavesWhoeverIsNotTheOneMeant"},
	},
	{
		Name: "handshake of any size read",
		Rule: "SAFETY §2 hostile input: length fields are checked against a cap before allocation",
		File: "transport/tcp/handshake.go",
		Old: `	frames := newFrameReader(conn, maxHello)
	h, err := t.readHello(frames, certified)`,
		New: `	frames := newFrameReader(conn, t.config.MaxFrameBytes)
	h, err := t.readHello(frames, certified)`,
		Test: Test{"./transport/tcp", "TestStrangeFirstBytesAreRefused"},
	},
	{
		Name: "hello without a name decoded",
		Rule: "SAFETY §2 hostile input: remote bytes are never trusted",
		File: "transport/tcp/handshake.go",
		Old:  `	if h.Node == "" || len(h.Node) > maxName || len(h.Cluster) > maxName || len(h.To) > maxName || len(h.Address) > maxAddress {`,
		New:  `	if false {`,
		Test: Test{"./transport/tcp", "TestHelloDecidesWhoMayCome"},
	},
	{
		Name: "plaintext of a foreign network believed",
		Rule: "raft.Handler: PeerLost counts against a leader, so it must come from who it says",
		File: "transport/tcp/handshake.go",
		Old:  `	return ok && a.IP.IsLoopback()`,
		New:  `	return ok && a != nil`,
		Test: Test{"./transport/tcp", "TestPlaintextOnAForeignNetworkIsNotTrusted"},
	},

	// tcp: TLS.
	{
		Name: "TLS 1.2 accepted",
		Rule: "SAFETY §2 hostile input: TLS 1.3 only",
		File: "transport/tcp/tls.go",
		Old:  `tls.VersionTLS13`,
		New:  `tls.VersionTLS12`,
		Test: Test{"./transport/tcp", "TestCertificatesDecideWhoMayTalk"},
	},
	{
		Name: "certificate of any authority accepted",
		Rule: "SAFETY §2 hostile input: wrong CA: refused before any Raft byte is parsed",
		File: "transport/tcp/tls.go",
		Old:  `	if _, err := leaf.Verify(options); err != nil {`,
		New:  `	if err := error(nil); options.Roots == nil {`,
		Test: Test{"./transport/tcp", "TestCertificatesDecideWhoMayTalk"},
	},
	{
		Name: "certificate for another use accepted",
		Rule: "tcp.TLSConfig: valid for client and server authentication",
		File: "transport/tcp/tls.go",
		Old:  `KeyUsages: []x509.ExtKeyUsage{usage}}`,
		New:  `KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}; _ = usage`,
		Test: Test{"./transport/tcp", "TestCertificatesDecideWhoMayTalk"},
	},
	{
		Name: "certificate with two names accepted",
		Rule: "tcp.NodeURI: with several of them a message could have several senders",
		File: "transport/tcp/tls.go",
		Old: `		if name != nil {
			return nil, fmt.Errorf("%w: it names %s and %s", errWrongCertificate, name, uri)
		}
`,
		New:  ``,
		Test: Test{"./transport/tcp", "TestCertificatesDecideWhoMayTalk"},
	},
	{
		Name: "dialer takes any server of the cluster",
		Rule: "SAFETY §2 network: wrong server behind an address: refused at the handshake",
		File: "transport/tcp/tls.go",
		Old:  `if want := NodeURI(cluster, peer); name.String() != want.String() {`,
		New:  `if want := NodeURI(cluster, peer); name.Host != want.Host {`,
		Test: Test{"./transport/tcp", "TestCertificatesDecideWhoMayTalk"},
	},
	{
		Name: "certificate of another cluster admitted",
		Rule: "SAFETY inv 21 and §2 hostile input",
		File: "transport/tcp/tls.go",
		Old:  `		if name.Host != cluster {`,
		New:  `		if false {`,
		Test: Test{"./transport/tcp", "TestCertificatesDecideWhoMayTalk"},
	},
	{
		Name: "own certificate not checked at start",
		Rule: "tcp.TLSConfig: a mistake is noticed here and not by every peer",
		File: "transport/tcp/tls.go",
		Old:  `	if want := NodeURI(id.Cluster, id.Node); name.String() != want.String() {`,
		New:  `	if want := NodeURI(id.Cluster, id.Node); want == nil {`,
		Test: Test{"./transport/tcp", "TestOwnCertificateIsCheckedAtStart"},
	},

	// tcp: connections and messages.
	{
		Name: "dead incarnation admitted",
		Rule: "SAFETY inv 21: messages of a dead incarnation are dropped",
		File: "transport/tcp/accept.go",
		Old:  `		if c.id.Incarnation < p.incarnation {`,
		New:  `		if false {`,
		Test: Test{"./transport/tcp", "TestHelloDecidesWhoMayCome"},
	},
	{
		Name: "copied data directory not noticed",
		Rule: "SAFETY §2 operator: cloned data directory: both servers named in the error",
		File: "transport/tcp/accept.go",
		Old:  `		if c.id.Incarnation == p.incarnation && control != nil && p.advertised != address {`,
		New:  `		if _ = control; false {`,
		Test: Test{"./transport/tcp", "TestCopiedDataDirectoryIsNamed"},
	},
	{
		Name: "unlisted servers without bound",
		Rule: "SAFETY inv 26, §2 hostile input: connection caps",
		File: "transport/tcp/accept.go",
		Old:  `		if t.guests() >= t.config.MaxGuests && !t.evictGuest() {`,
		New:  `		if false {`,
		Test: Test{"./transport/tcp", "TestGuestsAreBounded"},
	},
	{
		Name: "connections without bound",
		Rule: "SAFETY inv 26, §2 hostile input: connection caps",
		File: "transport/tcp/accept.go",
		Old:  `len(t.incoming) < t.config.MaxConnections, t.closed`,
		New:  `true, t.closed`,
		Test: Test{"./transport/tcp", "TestConnectionsAreBounded"},
	},
	{
		Name: "message of another sender delivered",
		Rule: "raft.Transport: the sender must be who they say",
		File: "transport/tcp/accept.go",
		Old:  `	if m.From != c.id.Node || m.Replica != c.id.Replica || m.Incarnation != c.id.Incarnation {`,
		New:  `	if m.Replica != c.id.Replica || m.Incarnation != c.id.Incarnation {`,
		Test: Test{"./transport/tcp", "TestHostileInputIsRefusedAndCounted/OtherSender"},
	},
	{
		Name: "message of another incarnation delivered",
		Rule: "SAFETY inv 21 and 29: messages of a dead incarnation are dropped",
		File: "transport/tcp/accept.go",
		Old:  `	if m.From != c.id.Node || m.Replica != c.id.Replica || m.Incarnation != c.id.Incarnation {`,
		New:  `	if m.From != c.id.Node || m.Replica != c.id.Replica {`,
		Test: Test{"./transport/tcp", "TestHostileInputIsRefusedAndCounted/EarlierIncarnation"},
	},
	{
		Name: "message of another replica delivered",
		Rule: "SAFETY §3 membership: a reused ID with an empty log",
		File: "transport/tcp/accept.go",
		Old:  `	if m.From != c.id.Node || m.Replica != c.id.Replica || m.Incarnation != c.id.Incarnation {`,
		New:  `	if m.From != c.id.Node || m.Incarnation != c.id.Incarnation {`,
		Test: Test{"./transport/tcp", "TestHostileInputIsRefusedAndCounted/OtherReplica"},
	},
	{
		Name: "message for another recipient delivered",
		Rule: "SAFETY inv 21: messages of another recipient are dropped",
		File: "transport/tcp/accept.go",
		Old:  `	if m.To != t.identity.Node {`,
		New:  `	if false {`,
		Test: Test{"./transport/tcp", "TestHostileInputIsRefusedAndCounted/OtherRecipient"},
	},
	{
		Name: "snapshot without content delivered on a message lane",
		Rule: "raft.Handler: a snapshot comes with its content",
		File: "transport/tcp/accept.go",
		Old:  `snapshot != (c.lane == laneSnapshot) {`,
		New:  `false && snapshot {`,
		Test: Test{"./transport/tcp", "TestHostileInputIsRefusedAndCounted/SnapshotOnALane"},
	},
	{
		Name: "malformed message delivered",
		Rule: "SAFETY §2 hostile input: impossible values are refused at the transport; the core assumes well-formed messages",
		File: "transport/tcp/accept.go",
		Old: `	if err := m.Validate(); err != nil {
		return m, refuse("invalid message", "%v", err)
	}
`,
		New:  ``,
		Test: Test{"./transport/tcp", "TestHostileInputIsRefusedAndCounted/Impossible"},
	},
	{
		Name: "control part of a frame without a bound of its own",
		Rule: "SAFETY §2 hostile input: length fields are checked against a cap before allocation",
		File: "transport/tcp/frame.go",
		Old:  `	if h.Control > maxControl {`,
		New:  `	if false {`,
		Test: Test{"./transport/tcp", "TestHostileInputIsRefusedAndCounted/Oversized"},
	},
	{
		Name: "buffer as large as announced",
		Rule: "SAFETY §2 hostile input: buffers grow only as bytes arrive",
		File: "transport/tcp/frame.go",
		Old:  `		step := min(n, max(cap(b), firstBuffer, 2*len(b)))`,
		New:  `		step := n`,
		Test: Test{"./transport/tcp", "TestFrameBufferGrowsOnlyAsBytesArrive"},
	},
	{
		Name: "checksum of a frame not verified",
		Rule: "SAFETY §2 network: corrupted frame (checksum)",
		File: "transport/tcp/frame.go",
		Old: `	if err = h.Check(r.control); err != nil {
		return h, nil, nil, err
	}
`,
		New:  ``,
		Test: Test{"./transport/tcp", "TestHostileInputIsRefusedAndCounted/DamagedControl"},
	},
	{
		Name: "snapshot with a piece missing is whole",
		Rule: "SAFETY §3 snapshots: a stream shorter than declared",
		File: "transport/tcp/snapshot.go",
		Old:  `sent != r.total {`,
		New:  `sent < r.total {`,
		Test: Test{"./transport/tcp", "TestCutSnapshotIsNotWhole"},
	},
	{
		Name: "what the receiver has of a snapshot is not compared",
		Rule: "SAFETY §2 network: snapshot stream cut at any byte: two servers' snapshots at one index are not mixed",
		File: "transport/tcp/resume.go",
		Old:  `	return [sha256.Size]byte(sum.Sum(nil)) == o.sum, nil`,
		New:  `	return [sha256.Size]byte(sum.Sum(nil)) == o.sum || true, nil`,
		Test: Test{"./transport/tcp", "TestSnapshotsOfTwoServersAreNotMixed"},
	},
	{
		Name: "snapshot is not rewound after a comparison in vain",
		Rule: "raft.ResumableContent: content begins where was said",
		File: "transport/tcp/resume.go",
		Old:  `		} else if err := rewinder.Rewind(); err != nil {`,
		New:  `		} else if err := error(nil); rewinder == nil || err != nil {`,
		Test: Test{"./transport/tcp", "TestReceiverWaitsWhileItsPartIsCompared/other"},
	},
	{
		Name: "receiver hears nothing while its part is compared",
		Rule: "SAFETY §2 network: a peer that works is not given up",
		File: "transport/tcp/resume.go",
		Old:  `		if time.Since(told) >= t.config.KeepaliveInterval {`,
		New:  `		if time.Since(told) >= time.Hour {`,
		Test: Test{"./transport/tcp", "TestReceiverWaitsWhileItsPartIsCompared/everything"},
	},
	{
		Name: "snapshot with a gap behind the receiver's part",
		Rule: "SAFETY §3 snapshots: a stream shorter than declared",
		File: "transport/tcp/resume.go",
		Old:  `			if r.total != 0 && r.total != uint64(have) {`,
		New:  `			if false && r.total != uint64(have) {`,
		Test: Test{"./transport/tcp", "TestSnapshotWithAGapIsRefused"},
	},
	{
		Name: "cut snapshot is whole",
		Rule: "SAFETY §2 network: snapshot stream cut at any byte: old state intact",
		File: "transport/tcp/snapshot.go",
		Old: `	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
`,
		New: `	if err == io.EOF {
		r.ended = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
`,
		Test: Test{"./transport/tcp", "TestCutSnapshotIsNotWhole"},
	},
	{
		Name: "foreign message sent",
		Rule: "raft.Transport: the sender must be who they say",
		File: "transport/tcp/peer.go",
		Old:  `	if m.From != id.Node || m.To != o.peer.id || m.Replica != id.Replica || m.Incarnation != id.Incarnation {`,
		New:  `	if false {`,
		Test: Test{"./transport/tcp", "TestForeignMessagesAreNotSent"},
	},
	{
		Name: "queue to a slow reader without bound",
		Rule: "SAFETY §2 network: slow reader: bounded queue, drop and probe",
		File: "transport/tcp/peer.go",
		Old:  `		if len(o.queue) > 0 && o.bytes+size > o.t.config.QueueBytes {`,
		New:  `		if false {`,
		Test: Test{"./transport/tcp", "TestQueueIsBoundedInBytes"},
	},
	{
		Name: "peer that is heard called lost",
		Rule: "raft.Handler.PeerLost: the process is most probably gone; a refused connection alone is no such sign",
		File: "transport/tcp/peer.go",
		Old:  `p.reachedAt == address && !alive, p.incarnation`,
		New:  `p.reachedAt == address && (alive || !alive), p.incarnation`,
		Test: Test{"./transport/tcp", "TestRefusedConnectionIsNoLossWhileThePeerIsHeard"},
	},
	{
		Name: "refusal by a proxy believed",
		Rule: "raft.Handler.PeerLost: the process is most probably gone; a proxy that is restarted says nothing about the process behind it",
		File: "transport/tcp/peer.go",
		Old:  `	if by != nil && by.direct {`,
		New:  `	if by != nil {`,
		Test: Test{"./transport/tcp", "TestRefusalByAProxyIsNoLoss"},
	},
	{
		Name: "resets make redials rare",
		Rule: "SAFETY §2, network: flapping links; a storm of resets must not silence a leader for an election timeout",
		File: "transport/tcp/peer.go",
		Old:  `			failures = min(failures, 1)`,
		New:  ``,
		Test: Test{"./transport/tcp", "TestLinkThatBreaksAgainAndAgainIsRedialledSoon"},
	},

	// wire.
	{
		Name: "checksum of the frame header not verified",
		Rule: "SAFETY §2 network: corrupted frame (checksum); lengths are not believed before it",
		File: "transport/internal/wire/frame.go",
		Old:  `	if crc32.Checksum(b[:20], castagnoli) != binary.LittleEndian.Uint32(b[20:]) {`,
		New:  `	if false {`,
		Test: Test{"./transport/internal/wire", "TestEveryFlippedBitIsNoticed"},
	},
	{
		Name: "checksum of the control part not verified",
		Rule: "SAFETY §2 network: corrupted frame (checksum)",
		File: "transport/internal/wire/frame.go",
		Old:  `	if len(control) != h.Control || crc32.Checksum(control, castagnoli) != h.sum {`,
		New:  `	if len(control) != h.Control {`,
		Test: Test{"./transport/internal/wire", "TestEveryFlippedBitIsNoticed"},
	},
	{
		Name: "frame of any length accepted",
		Rule: "SAFETY §2 hostile input: length fields are checked against a cap before allocation",
		File: "transport/internal/wire/frame.go",
		Old:  `	case uint64(length) > uint64(maxFrame):`,
		New:  `	case false:`,
		Test: Test{"./transport/internal/wire", "TestHeadersAreCheckedBeforeAnythingIsAllocated"},
	},
	{
		Name: "control part longer than its frame accepted",
		Rule: "SAFETY §2 hostile input: impossible values are refused, no panic",
		File: "transport/internal/wire/frame.go",
		Old:  `	case control > length:`,
		New:  `	case false:`,
		Test: Test{"./transport/internal/wire", "TestHeadersAreCheckedBeforeAnythingIsAllocated"},
	},
	{
		Name: "number of entries believed before it is checked",
		Rule: "SAFETY §2 hostile input: no number makes us allocate more than was received",
		File: "transport/internal/wire/message.go",
		Old:  `	if n > len(b)/size {`,
		New:  `	if n < 0 || size < 0 {`,
		Test: Test{"./transport/internal/wire", "TestNumbersLargerThanTheInputAreRefused"},
	},
	{
		Name: "number of outcomes believed before it is checked",
		Rule: "SAFETY §2 hostile input: no number makes us allocate more than was received",
		File: "transport/internal/wire/message.go",
		Old:  `		if n != len(d.b)/outcomeSize {`,
		New:  `		if n < 0 {`,
		Test: Test{"./transport/internal/wire", "TestNumbersLargerThanTheInputAreRefused"},
	},
	{
		Name: "bytes behind a message ignored",
		Rule: "wire: a message that is not exactly what was encoded is malformed",
		File: "transport/internal/wire/message.go",
		Old:  `	if d.err == nil && len(d.b)+len(entries) > 0 {`,
		New:  `	if false {`,
		Test: Test{"./transport/internal/wire", "TestBytesBehindAMessageAreRefused"},
	},

	// The transport in memory, on which most tests stand.
	{
		Name: "memory: server of another cluster heard",
		Rule: "SAFETY inv 21: messages of another cluster are dropped",
		File: "transport/memory/transport.go",
		Old:  `	if t.identity.Cluster == sender.identity.Cluster {`,
		New:  `	if true {`,
		Test: Test{"./transport/memory", "TestStrangersAndMalformedMessagesAreRefused"},
	},
	{
		Name: "memory: malformed message delivered",
		Rule: "SAFETY §2 hostile input: the core assumes well-formed messages",
		File: "transport/memory/transport.go",
		Old: `		return err != nil
	})`,
		New: `		return false
	})`,
		Test: Test{"./transport/memory", "TestStrangersAndMalformedMessagesAreRefused"},
	},
	{
		Name: "memory: message of another sender delivered",
		Rule: "raft.Transport: the sender must be who they say",
		File: "transport/memory/transport.go",
		Old:  `t.gone || p.m.From != t.id || p.m.To != key.to {`,
		New:  `t.gone {`,
		Test: Test{"./transport/memory", "TestStrangersAndMalformedMessagesAreRefused"},
	},
	{
		Name: "memory: forwarded proposal shared with its sender",
		Rule: "transport/memory: nothing inside a message that the receiver writes to; the leader stamps entries",
		File: "transport/memory/transport.go",
		Old: `		proposals[i].Entry = proposals[i].Entry.Clone()
`,
		New: `		_ = i
`,
		Test: Test{"./transport/memory", "TestForwardedProposalsAreNotShared"},
	},
	{
		Name: "memory: cut snapshot is whole",
		Rule: "SAFETY §2 network: snapshot stream cut at any byte",
		File: "transport/memory/snapshot.go",
		Old: `	_, err := io.Copy(pw, r)
	pw.CloseWithError(err)`,
		New: `	_, _ = io.Copy(pw, r)
	_ = pw.Close()`,
		Test: Test{"./transport/memory", "TestSenderThatFailsIsSeenByTheReceiver"},
	},

	// rpc.
	{
		Name: "rpc: reply of another server believed",
		Rule: "raft.Transport: the sender must be who they say",
		File: "transport/rpc/rpc.go",
		Old:  `err != nil || reply.From != request.To || reply.To != request.From {`,
		New:  `err != nil || reply.To != request.From {`,
		Test: Test{"./transport/rpc", "TestRepliesOfSomebodyElseAreRefused/sender"},
	},
	{
		Name: "rpc: reply for another server delivered",
		Rule: "SAFETY inv 21: messages of another recipient are dropped",
		File: "transport/rpc/rpc.go",
		Old:  `err != nil || reply.From != request.To || reply.To != request.From {`,
		New:  `err != nil || reply.From != request.To {`,
		Test: Test{"./transport/rpc", "TestRepliesOfSomebodyElseAreRefused/recipient"},
	},
	{
		Name: "rpc: malformed reply delivered",
		Rule: "SAFETY §2 hostile input: the core assumes well-formed messages",
		File: "transport/rpc/rpc.go",
		Old:  `	if err := reply.Validate(); err != nil || reply`,
		New:  `	if err := error(nil); err != nil || reply`,
		Test: Test{"./transport/rpc", "TestRepliesOfSomebodyElseAreRefused/malformed"},
	},
	{
		Name: "rpc: decoded message not validated",
		Rule: "SAFETY §2 hostile input: the core assumes well-formed messages",
		File: "transport/rpc/rpc.go",
		Old: `	if err == nil {
		err = m.Validate()
	}
`,
		New:  ``,
		Test: Test{"./transport/rpc", "TestDecodedMessagesAreValid"},
	},
	{
		Name: "rpc: reply delivered after the peer was removed",
		Rule: "raft.Transport.Close: no more calls to the handler are running",
		File: "transport/rpc/rpc.go",
		Old:  `	if reply.Body == nil || p.ctx.Err() != nil {`,
		New:  `	if reply.Body == nil {`,
		Test: Test{"./transport/rpc", "TestReplyAfterCloseIsDropped"},
	},
}
