package tcp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/steadyraft/raft"
)

// Config configures a [Transport]. The zero value of an optional field means the default that its comment begins with.
type Config struct {
	// Listen is the address to listen at, as in "10.0.0.1:7000". Either it or Listener is required.
	Listen string
	// Listener is used instead of Listen. It must accept plain TCP connections; the transport closes it.
	Listener net.Listener
	// Advertise is the address at which others can reach this server; default: the listener's. It is needed where the listener
	// takes connections on all interfaces.
	Advertise string

	// TLS turns on mutual TLS. Default: plaintext.
	TLS *TLSConfig
	// TrustPlaintext says that nobody can forge packets on the network, so that PeerLost may be reported without TLS.
	// Loopback addresses are always trusted.
	TrustPlaintext bool

	Logger *slog.Logger // default: discard

	MaxFrameBytes  int // 65 MiB; the largest frame that is accepted. Entries are up to raft.MaxEntrySize.
	QueueBytes     int // 64 MiB; messages waiting for one lane of one peer. At least one message always fits.
	MaxConnections int // 1,024; accepted connections at the same time
	MaxGuests      int // 64; servers that reached us without being listed by SetPeers

	DialTimeout       time.Duration // 2 s
	HandshakeTimeout  time.Duration // 5 s; TLS included
	BodyTimeout       time.Duration // 10 s; from a frame's header to its end
	WriteTimeout      time.Duration // 10 s; for up to 1 MiB, or one message if it is larger
	KeepaliveInterval time.Duration // 100 ms; when there is nothing else to send
	IdleTimeout       time.Duration // 5 times KeepaliveInterval, on all servers; a lane without any frame for so long is closed
	MaxBackoff        time.Duration // 1 s; between attempts to dial

	// 64 MiB, to each follower at the same time. A snapshot competes with entries for the network, and for the disks of both servers:
	// much more makes commits wait while it is sent. math.MaxInt: no limit.
	SnapshotBytesPerSecond int
	SnapshotChunkTimeout   time.Duration // 10 s; for each piece of up to 256 KiB, in both directions
}

// withDefaults fills in what was left out, and reports all problems at once.
func (c Config) withDefaults() (Config, error) {
	var problems []error
	if (c.Listen == "") == (c.Listener == nil) {
		problems = append(problems, errors.New("exactly one of Listen and Listener is needed"))
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	number := func(name string, field *int, value int) {
		if *field == 0 {
			*field = value
		}
		if *field < 0 {
			problems = append(problems, fmt.Errorf("%s: %d is negative", name, *field))
		}
	}
	number("MaxFrameBytes", &c.MaxFrameBytes, raft.MaxEntrySize+1<<20)
	number("QueueBytes", &c.QueueBytes, 64<<20)
	number("MaxConnections", &c.MaxConnections, 1024)
	number("MaxGuests", &c.MaxGuests, 64)
	number("SnapshotBytesPerSecond", &c.SnapshotBytesPerSecond, 64<<20)
	duration := func(name string, field *time.Duration, value time.Duration) {
		if *field == 0 {
			*field = value
		}
		if *field < 0 {
			problems = append(problems, fmt.Errorf("%s: %v is negative", name, *field))
		}
	}
	duration("DialTimeout", &c.DialTimeout, 2*time.Second)
	duration("HandshakeTimeout", &c.HandshakeTimeout, 5*time.Second)
	duration("BodyTimeout", &c.BodyTimeout, 10*time.Second)
	duration("WriteTimeout", &c.WriteTimeout, 10*time.Second)
	duration("KeepaliveInterval", &c.KeepaliveInterval, 100*time.Millisecond)
	duration("IdleTimeout", &c.IdleTimeout, 5*c.KeepaliveInterval)
	duration("MaxBackoff", &c.MaxBackoff, time.Second)
	duration("SnapshotChunkTimeout", &c.SnapshotChunkTimeout, 10*time.Second)
	if c.IdleTimeout < 2*c.KeepaliveInterval {
		problems = append(problems, fmt.Errorf("IdleTimeout %v: want at least twice KeepaliveInterval %v", c.IdleTimeout, c.KeepaliveInterval))
	}
	if c.MaxFrameBytes > 0 && c.MaxFrameBytes < minFrameBytes {
		problems = append(problems, fmt.Errorf("MaxFrameBytes %d: want at least %d", c.MaxFrameBytes, minFrameBytes))
	}
	if c.TLS != nil && (c.TLS.Certificate == nil || c.TLS.Roots == nil) {
		problems = append(problems, errors.New("TLS: Certificate and Roots are both needed; TLSFiles makes them from files"))
	}
	if err := errors.Join(problems...); err != nil {
		return c, fmt.Errorf("tcp transport: %w", err)
	}
	return c, nil
}

// minFrameBytes leaves room for a snapshot's chunk, and for its description with the largest configuration.
const minFrameBytes = 1 << 20

// listen opens the listener and finds out which address others can dial.
func (c Config) listen() (net.Listener, string, error) {
	l := c.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", c.Listen); err != nil {
			return nil, "", fmt.Errorf("tcp transport: %w; if another process uses %s, stop it or choose another Config.Listen", err, c.Listen)
		}
	}
	address := c.Advertise
	if address == "" {
		address = l.Addr().String()
		if a, ok := l.Addr().(*net.TCPAddr); ok && a.IP.IsUnspecified() {
			return nil, "", errors.Join(fmt.Errorf("tcp transport: others cannot dial %s; set Config.Advertise", address), l.Close())
		}
	}
	if len(address) > maxAddress {
		return nil, "", errors.Join(fmt.Errorf("tcp transport: Advertise is longer than %d bytes", maxAddress), l.Close())
	}
	return l, address, nil
}
