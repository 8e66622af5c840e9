package tcp

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/internal/wire"
)

const (
	protocolVersion = 1
	prefaceSize     = 8
	maxName         = 255
	maxAddress      = 1024
	maxHello        = 4 << 10
	maxReason       = 1 << 10
	lingerTime      = time.Second
)

// laneSnapshot is the lane number of a connection that carries one snapshot.
const laneSnapshot = raft.Lane(2)

// hello is what the dialer says first, and, with the last field instead of the three before it, what the acceptor answers. Fields may be added; a
// change that an older server must not ignore needs a bit in Features or a new version.
type hello struct {
	Features    uint64 `codec:"features"` // none yet
	Cluster     string `codec:"cluster"`
	Node        string `codec:"node"`
	Replica     uint64 `codec:"replica"`
	Incarnation uint64 `codec:"incarnation"`
	Address     string `codec:"address"` // where the dialer can be reached
	To          string `codec:"to"`      // the server that it means to reach
	Lane        uint8  `codec:"lane"`
	Reached     string `codec:"reached"` // the acceptor's own end of this connection
}

func (t *Transport) hello(to raft.NodeID, lane raft.Lane) hello {
	return hello{
		Cluster: t.identity.Cluster, Node: string(t.identity.Node), Replica: uint64(t.identity.Replica),
		Incarnation: t.identity.Incarnation, Address: t.advertise, To: string(to), Lane: uint8(lane),
	}
}

func (h *hello) identity() raft.Identity {
	return raft.Identity{Cluster: h.Cluster, Node: raft.NodeID(h.Node), Replica: raft.ReplicaID(h.Replica), Incarnation: h.Incarnation}
}

// preface comes before everything else, in both directions, and never changes its size: it lets servers of different releases
// tell each other what is wrong.
func preface() []byte {
	return binary.LittleEndian.AppendUint16([]byte("sraft\x00"), protocolVersion)
}

// refusal is a reason to end a handshake.
type refusal struct {
	label string // short and constant, for raft.Handler.Refused
	text  string // for the other side's log
}

func (r *refusal) Error() string { return r.text }

func refuse(label, format string, args ...any) *refusal {
	return &refusal{label, fmt.Sprintf(format, args...)}
}

// refusedError is a refusal that came from the other side.
type refusedError struct{ reason string }

func (e *refusedError) Error() string { return "refused by the other side: " + e.reason }

// printable makes text from the other side fit for logs.
func printable(b []byte, limit int) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, string(b[:min(len(b), limit)]))
}

// readPreface reads the first bytes from the other side.
func readPreface(r io.Reader) error {
	var b [prefaceSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	want := preface()
	if !bytes.Equal(b[:6], want[:6]) {
		return refuse("not this protocol", "this port speaks the raft transport protocol only")
	}
	if v := binary.LittleEndian.Uint16(b[6:]); v != protocolVersion {
		return refuse("unknown protocol version", "protocol version %d is not supported here, only %d", v, protocolVersion)
	}
	return nil
}

// decodeHello reads a hello or welcome.
func decodeHello(b []byte) (hello, error) {
	var h hello
	if len(b) > maxHello {
		return h, wire.ErrOversized
	}
	if err := wire.Unpack(b, &h); err != nil {
		return hello{}, fmt.Errorf("%w: %w", wire.ErrMalformed, err)
	}
	if h.Node == "" || len(h.Node) > maxName || len(h.Cluster) > maxName || len(h.To) > maxName || len(h.Address) > maxAddress {
		return hello{}, fmt.Errorf("%w: names in the handshake are missing or too long", wire.ErrMalformed)
	}
	return h, nil
}

// outgoing is a connection that we dialled and whose handshake is complete.
type outgoing struct {
	net.Conn
	frames  *frameReader
	peer    raft.Identity
	address string // that we dialled
	trusted bool   // what this connection shows about the peer's fate may be believed
	direct  bool   // the peer itself is at that address
}

// dial connects to a server and shakes hands with it. The connection ends with ctx.
func (t *Transport) dial(ctx context.Context, to raft.NodeID, address string, lane raft.Lane) (*outgoing, error) {
	dialer := net.Dialer{Timeout: t.config.DialTimeout}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { closeQuietly(raw) })
	defer stop()
	c, err := t.introduceTo(ctx, raw, to, lane)
	if err != nil {
		closeQuietly(raw)
		return nil, fmt.Errorf("handshake with %s: %w", raw.RemoteAddr(), err)
	}
	c.address = address
	return c, nil
}

func (t *Transport) introduceTo(ctx context.Context, raw net.Conn, to raft.NodeID, lane raft.Lane) (*outgoing, error) {
	if err := raw.SetDeadline(time.Now().Add(t.config.HandshakeTimeout)); err != nil {
		return nil, err
	}
	conn := raw
	if t.config.TLS != nil {
		secure := tls.Client(raw, t.config.TLS.client(t.identity.Cluster, to))
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
		conn = secure
	}
	body, err := wire.AppendPack(nil, t.hello(to, lane))
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(wire.AppendFrame(preface(), wire.FrameHello, body)); err != nil {
		return nil, err
	}
	frames := newFrameReader(conn, maxHello)
	if err := readPreface(frames.buf); err != nil {
		return nil, err
	}
	header, control, _, err := frames.next(t.config.HandshakeTimeout, t.config.HandshakeTimeout)
	if err != nil {
		return nil, err
	}
	if header.Type == wire.FrameRefusal {
		return nil, &refusedError{printable(control, maxReason)}
	}
	if header.Type != wire.FrameWelcome {
		return nil, fmt.Errorf("%w: frame type %d instead of a welcome", wire.ErrMalformed, header.Type)
	}
	welcome, err := decodeHello(control)
	if err != nil {
		return nil, err
	}
	id := welcome.identity()
	if id.Cluster != t.identity.Cluster || id.Node != to {
		return nil, fmt.Errorf("server %q of cluster %q is there, not %q of %q", id.Node, id.Cluster, to, t.identity.Cluster)
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	frames.max = t.config.MaxFrameBytes
	return &outgoing{Conn: conn, frames: frames, peer: id, trusted: t.trusts(raw), direct: isDirect(raw.RemoteAddr(), welcome.Reached)}, nil
}

// isDirect reports whether the acceptor, which calls its end of the connection reached, is itself at the address that was dialled. If
// not, a proxy is, or the address was translated: what refuses connections there need not be the peer's kernel.
func isDirect(dialled net.Addr, reached string) bool {
	a, err := netip.ParseAddrPort(dialled.String())
	b, err2 := netip.ParseAddrPort(reached)
	// The name of a zone, as in fe80::1%eth0, means something on one machine only.
	plain := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	return err == nil && err2 == nil && plain(a) == plain(b)
}

// trusts reports whether what a connection shows about its peer's fate may be believed.
func (t *Transport) trusts(c interface{ RemoteAddr() net.Addr }) bool {
	if t.config.TLS != nil || t.config.TrustPlaintext {
		return true
	}
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	return ok && a.IP.IsLoopback()
}

// greet is the acceptor's half of the handshake, up to the decision. On a *refusal it has told the other side.
func (t *Transport) greet(raw net.Conn) (net.Conn, *frameReader, hello, error) {
	if err := raw.SetDeadline(time.Now().Add(t.config.HandshakeTimeout)); err != nil {
		return nil, nil, hello{}, err
	}
	conn, certified := raw, ""
	if t.config.TLS != nil {
		secure := tls.Server(raw, t.config.TLS.server(t.identity.Cluster))
		if err := secure.HandshakeContext(t.ctx); err != nil {
			if errors.Is(err, errWrongCertificate) {
				return nil, nil, hello{}, refuse("wrong certificate", "%v", err)
			}
			return nil, nil, hello{}, refuse("tls handshake", "%v", err)
		}
		name, err := certificateName(secure.ConnectionState().PeerCertificates[0])
		if err != nil {
			return nil, nil, hello{}, err
		}
		conn, certified = secure, name.String()
	}
	frames := newFrameReader(conn, maxHello)
	h, err := t.readHello(frames, certified)
	var no *refusal
	if errors.As(err, &no) {
		return conn, nil, h, errors.Join(no, t.sendRefusal(conn, no))
	}
	frames.max = t.config.MaxFrameBytes
	return conn, frames, h, err
}

// readHello reads the dialer's hello and decides whether it may go on.
func (t *Transport) readHello(frames *frameReader, certified string) (hello, error) {
	if err := readPreface(frames.buf); err != nil {
		return hello{}, err
	}
	header, control, _, err := frames.next(t.config.HandshakeTimeout, t.config.HandshakeTimeout)
	if err != nil {
		return hello{}, err
	}
	if header.Type != wire.FrameHello {
		return hello{}, fmt.Errorf("%w: frame type %d instead of a hello", wire.ErrMalformed, header.Type)
	}
	h, err := decodeHello(control)
	if err != nil {
		return hello{}, err
	}
	self := t.identity
	switch {
	case certified != "" && certified != NodeURI(h.Cluster, raft.NodeID(h.Node)).String():
		return h, refuse("certificate of another server", "the certificate names %s, not server %q of cluster %q", certified, h.Node, h.Cluster)
	case h.Cluster != self.Cluster:
		return h, refuse("other cluster", "this server is of cluster %q, not %q", self.Cluster, h.Cluster)
	case h.To != string(self.Node):
		return h, refuse("meant for another server", "this is server %q, not %q", self.Node, h.To)
	case h.Node == string(self.Node):
		return h, refuse("a second server of this name", "server %q runs here already; give every server a name of its own", self.Node)
	case raft.Lane(h.Lane) > laneSnapshot:
		return h, refuse("unknown lane", "lane %d is not known here", h.Lane)
	}
	return h, nil
}

func (t *Transport) sendWelcome(conn net.Conn) error {
	welcome := t.hello("", 0)
	welcome.Reached = conn.LocalAddr().String()
	body, err := wire.AppendPack(nil, welcome)
	if err != nil {
		return err
	}
	_, err = conn.Write(wire.AppendFrame(preface(), wire.FrameWelcome, body))
	return err
}

// sendRefusal tells the dialer why it is turned away.
func (t *Transport) sendRefusal(conn net.Conn, no *refusal) error {
	text := no.text[:min(len(no.text), maxReason)]
	if _, err := conn.Write(wire.AppendFrame(preface(), wire.FrameRefusal, []byte(text))); err != nil {
		return err
	}
	linger(conn)
	return nil
}

// linger gives the other side time to read what was written last. Closing at once, with bytes of theirs unread, would make the
// kernel reset the connection and throw it away.
func linger(conn net.Conn) {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	// How it ends does not matter: the connection is closed next.
	_, _ = io.Copy(io.Discard, conn)
}

// closeQuietly closes a connection of which nothing more is expected, so that an error says nothing new.
func closeQuietly(c io.Closer) { _ = c.Close() }
