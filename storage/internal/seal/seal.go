// Package seal encrypts and authenticates pieces of files: AES-256-GCM under keys that are derived for each file. docs/storage-format.md
// says what for, and argues that no nonce is used twice.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/steadyraft/raft/storage/keyring"
)

const (
	Overhead  = 16 // what Seal adds: the authentication tag
	MACSize   = sha256.Size
	CheckSize = 8
	SaltSize  = 16
	nonceSize = 12
)

// Key is what is derived from one key of the ring for one file. It may be used by several goroutines at the same time.
type Key struct {
	ID    uint32
	check [CheckSize]byte
	mac   []byte
	aead  cipher.AEAD
}

// Derive derives a file's keys by HKDF-SHA256. The salt is random and used for one file only. info says what for: the parts are
// framed, so that no two lists of parts are the same.
func Derive(id uint32, key [keyring.KeySize]byte, salt []byte, info ...string) (*Key, error) {
	var framed []byte
	for _, part := range info {
		framed = binary.LittleEndian.AppendUint32(framed, uint32(len(part)))
		framed = append(framed, part...)
	}
	out, err := hkdf.Key(sha256.New, key[:], salt, string(framed), keyring.KeySize+MACSize+CheckSize)
	if err != nil {
		return nil, fmt.Errorf("derive key %d: %w", id, err)
	}
	block, err := aes.NewCipher(out[:keyring.KeySize])
	if err != nil {
		return nil, fmt.Errorf("derive key %d: %w", id, err)
	}
	k := &Key{ID: id, mac: out[keyring.KeySize:][:MACSize]}
	copy(k.check[:], out[keyring.KeySize+MACSize:])
	if k.aead, err = cipher.NewGCM(block); err != nil {
		return nil, fmt.Errorf("derive key %d: %w", id, err)
	}
	return k, nil
}

// Check names the key within its file without telling anything about it. If it is not the one in the file, the key on the ring is
// another one, or the file was changed.
func (k *Key) Check() [CheckSize]byte { return k.check }

// MAC authenticates a piece that stays readable.
func (k *Key) MAC(b []byte) (mac [MACSize]byte) {
	h := hmac.New(sha256.New, k.mac)
	h.Write(b)
	copy(mac[:], h.Sum(nil))
	return mac
}

// Verify reports whether a MAC is right.
func (k *Key) Verify(b, mac []byte) bool {
	want := k.MAC(b)
	return hmac.Equal(want[:], mac)
}

// Use tells pieces of one file apart that may have the same number.
type Use byte

// Scratch holds what a call would otherwise allocate. It serves one goroutine.
type Scratch struct{ nonce [nonceSize]byte }

func (s *Scratch) set(number uint64, use Use) []byte {
	binary.LittleEndian.PutUint64(s.nonce[:], number)
	s.nonce[8] = byte(use)
	return s.nonce[:]
}

// Seal encrypts the first n bytes of b in place and puts the tag behind them: b has n + Overhead bytes. The additional data is
// authenticated with them. Number and use must never come again under this key.
func (k *Key) Seal(s *Scratch, number uint64, use Use, b []byte, additional []byte) {
	k.aead.Seal(b[:0], s.set(number, use), b[:len(b)-Overhead], additional)
}

// Open decrypts b, which ends with the tag, into to, which is empty, has room for all but the tag, and shares no bytes with b unless it
// begins where b begins. ErrForged: b or the additional data is not what was sealed.
func (k *Key) Open(s *Scratch, to []byte, number uint64, use Use, b []byte, additional []byte) ([]byte, error) {
	out, err := k.aead.Open(to, s.set(number, use), b, additional)
	if err != nil {
		return nil, ErrForged
	}
	return out, nil
}

// ErrForged says that a piece is not what a holder of the key has written.
var ErrForged = errors.New("authentication does not match")
