// Package tcp carries messages between servers over TCP, in the clear or under mutual TLS 1.3.
//
//	t, err := tcp.New(tcp.Config{Listen: "10.0.0.1:7000", TLS: tcp.TLSFiles("node.crt", "node.key", "ca.crt")})
//
// # Connections
//
// Every server dials its own connections to a peer: one for each lane (raft.LaneControl at once, raft.LaneLog when there is
// something to send), and one for each snapshot. A connection carries messages one way only; the accepting side sends nothing but
// its half of the handshake and, for a snapshot, what it has of it and the outcome. So a long append never delays a heartbeat, and a peer that reads
// slowly delays nobody but itself: queues are bounded in bytes, and what does not fit is dropped, as on any network.
//
// The dialer begins with a preface (magic and version) and a hello: cluster, node, replica, incarnation, advertised address, the
// lane, and the server that it means to reach. The acceptor answers with its own identity and its end of the connection, or with a refusal, whose text the dialer
// logs. Frames and messages are described in the source of transport/internal/wire.
//
// A snapshot's connection begins with its message. The receiver answers how much of the content it has from an attempt that broke off, and
// the SHA-256 of that. The sender reads its own content up to there, eight times as fast as it may send, and compares; it goes on behind it if
// both are the same, and begins anew if not. What has arrived counts in chunks of up to 256 KiB, so that an attempt which breaks brings
// nothing if it has not brought one of them.
//
// Both sides of a lane notice a link that died silently: the dialer sends keep-alives when it has nothing else to send, and the
// acceptor ends a connection on which nothing arrives for Config.IdleTimeout. Because it then also renews its own connections to
// that peer, the other direction is checked too.
//
// # Who may talk
//
// With TLS the certificate names the server by a URI, raft://<cluster>/<node> (see [NodeURI]). Chain and name are verified by both
// sides before a byte of this protocol is read; host names mean nothing. Every message must come from the server that the
// connection belongs to. Without TLS the hello is believed, so the network must keep strangers out.
//
// # When a peer counts as lost
//
// raft.Handler.PeerLost shortens an election, so it is reported only for a reason: a server that had been reached at an address
// refuses connections there (ECONNREFUSED) and none of its own connections to us is alive, or a later incarnation introduces
// itself. It must have been reached at its own address, as it sees it: where a proxy or the translation of addresses stands between, a
// refusal may be theirs, so it says nothing, and a dead leader is noticed by the election timeout. Time-outs and unreachable networks say nothing. On plaintext links it is reported for loopback addresses, and elsewhere
// only if Config.TrustPlaintext says that nobody can forge packets.
package tcp
