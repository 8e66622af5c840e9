// Package keyring holds the keys with which a server encrypts what it keeps on disk: log, term and vote, snapshots.
//
// Every file names the key that it was encrypted with by a number. A [Ring] finds keys by that number, and says which one is the current:
// new files take that one. So a key is replaced while the server runs: put a new one on the ring and make it the current; the next
// segment of the log and the next snapshot take it, and the files of the old one go as the log is compacted. wal.KeyUse tells when
// the last of them is gone and the old key can be taken off.
//
// [Static] and [File] are rings. A program that gets its keys from elsewhere implements Ring.
package keyring

import (
	"errors"
	"fmt"
)

// KeySize is the length of a key in bytes: AES-256.
const KeySize = 32

// Ring is a set of keys. Its methods may be called at the same time, and answer from memory or a local file: a write of the log may be
// waiting.
type Ring interface {
	// Current returns the key for new files, and its ID, which is not 0. The same ID always means the same key.
	Current() (id uint32, key [KeySize]byte, err error)
	// Key returns the key with that ID. An error that wraps ErrMissing says that it is not on the ring.
	Key(id uint32) (key [KeySize]byte, err error)
}

// What may be wrong between a directory and the keys that it is opened with.
var (
	ErrMissing = errors.New("the key is not on the ring")
	ErrWrong   = errors.New("the key on the ring is another one than the file was encrypted with")
	ErrNoKeys  = errors.New("the file is encrypted, and no keys were given")
	ErrClear   = errors.New("the file is not encrypted, and keys were given")
)

// Error says that a file and the keys do not go together. Nothing was written.
type Error struct {
	Path string
	ID   uint32 // of the key that the file names; 0: it is not encrypted
	Err  error  // wraps ErrMissing, ErrWrong, ErrNoKeys, ErrClear, or comes from the ring
}

// Error describes the mismatch and the next step.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s: key %d: %v", e.Path, e.ID, e.Err)
	switch {
	case errors.Is(e.Err, ErrMissing):
		s += "; put the key with this ID on the ring"
	case errors.Is(e.Err, ErrWrong):
		s += "; put the right key with this ID on the ring; a key never changes its ID"
	case errors.Is(e.Err, ErrNoKeys):
		s += "; open the directory with its keys"
	case errors.Is(e.Err, ErrClear):
		s += "; if the directory is to be encrypted from now on, say so with EncryptExisting; if it was encrypted before, somebody has " +
			"put the file there"
	}
	return s
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Static is a ring in memory that does not change.
type Static struct {
	CurrentID uint32
	Keys      map[uint32][KeySize]byte
}

// Current implements [Ring].
func (s Static) Current() (uint32, [KeySize]byte, error) {
	if s.CurrentID == 0 {
		return 0, [KeySize]byte{}, errors.New("no key is the current one: IDs begin at 1")
	}
	key, err := s.Key(s.CurrentID)
	return s.CurrentID, key, err
}

// Key implements [Ring].
func (s Static) Key(id uint32) ([KeySize]byte, error) {
	key, ok := s.Keys[id]
	if !ok {
		return key, fmt.Errorf("key %d: %w", id, ErrMissing)
	}
	return key, nil
}
