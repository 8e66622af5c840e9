package wire

import (
	"errors"
	"fmt"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// maxPack bounds one MessagePack value. The values are small; only hostile ones are not.
const maxPack = 64 << 10

// newHandle returns the MessagePack settings: nesting and first allocations are bounded, unknown fields are skipped.
func newHandle() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.MaxDepth = 8
	h.MaxInitLen = 64
	return h
}

var handle = newHandle()

// AppendPack appends v as MessagePack.
func AppendPack(b []byte, v any) ([]byte, error) {
	var packed []byte
	if err := codec.NewEncoderBytes(&packed, handle).Encode(v); err != nil {
		return b, fmt.Errorf("encode %T: %w", v, err)
	}
	return append(b, packed...), nil
}

// Unpack reads what AppendPack wrote, and nothing else, into v, which shares no bytes with b.
func Unpack(b []byte, v any) error {
	if len(b) > maxPack {
		return fmt.Errorf("decode %T: %d bytes, at most %d", v, len(b), maxPack)
	}
	d := codec.NewDecoderBytes(b, handle)
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decode %T: %w", v, err)
	}
	if d.NumBytesRead() != len(b) {
		return fmt.Errorf("decode %T: %w", v, errLeftOver)
	}
	return nil
}

var errLeftOver = errors.New("bytes left over")
