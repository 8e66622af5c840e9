package keyring

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// maxKeyFile bounds how much of a file is read: several thousand keys.
const maxKeyFile = 1 << 20

// File is a ring in a file, one key a line: its ID in decimal, and 64 hexadecimal digits. Empty lines and those that begin with # are
// skipped. The current key is the one with the highest ID.
//
//	# since March
//	1 6f1e…
//	2 09c4…
//
// The file is read again whenever a key is asked for: to replace the key of a running server, write a file with one more key beside it
// and rename that over it.
type File struct{ path string }

// Open returns the ring in a file, which nobody but its owner may read or write: permissions 0600. Keys that cannot be read, and
// two with the same ID, are errors.
func Open(path string) (*File, error) {
	f := &File{path: path}
	if _, _, err := f.Current(); err != nil {
		return nil, err
	}
	return f, nil
}

// Current implements [Ring].
func (f *File) Current() (id uint32, key [KeySize]byte, err error) {
	s, err := f.read()
	if err != nil {
		return 0, key, err
	}
	return s.Current()
}

// Key implements [Ring].
func (f *File) Key(id uint32) (key [KeySize]byte, err error) {
	s, err := f.read()
	if err != nil {
		return key, err
	}
	if key, err = s.Key(id); err != nil {
		return key, fmt.Errorf("key file %s: %w", f.path, err)
	}
	return key, nil
}

func (f *File) read() (s Static, err error) {
	file, err := os.Open(f.path)
	if err != nil {
		return s, fmt.Errorf("key file: %w", err)
	}
	defer func() { _ = file.Close() }() // it was only read
	info, err := file.Stat()
	if err != nil {
		return s, fmt.Errorf("key file: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" { // where Go makes up the permissions
		return s, fmt.Errorf("key file %s: others may use it (permissions %04o): chmod 600 it, and consider its keys known", f.path, mode)
	}
	s = Static{Keys: map[uint32][KeySize]byte{}}
	lines := bufio.NewScanner(io.LimitReader(file, maxKeyFile))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		// What is in a line is not repeated in an error: it may be a key.
		fields := strings.Fields(line)
		if len(fields) != 2 {
			return s, fmt.Errorf("key file %s, line %d: want an ID and a key", f.path, n)
		}
		id, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil || id == 0 {
			return s, fmt.Errorf("key file %s, line %d: want an ID from 1 to %d", f.path, n, uint32(1<<32-1))
		}
		var key [KeySize]byte
		if decoded, err := hex.DecodeString(fields[1]); err != nil || copy(key[:], decoded) != KeySize || len(decoded) != KeySize {
			return s, fmt.Errorf("key file %s, line %d: want a key of %d hexadecimal digits", f.path, n, 2*KeySize)
		}
		if _, twice := s.Keys[uint32(id)]; twice {
			return s, fmt.Errorf("key file %s, line %d: there are two keys with ID %d", f.path, n, id)
		}
		s.Keys[uint32(id)] = key
		s.CurrentID = max(s.CurrentID, uint32(id))
	}
	if err := lines.Err(); err != nil {
		return s, fmt.Errorf("key file %s: %w", f.path, err)
	}
	if s.CurrentID == 0 {
		return s, fmt.Errorf("key file %s: there is no key in it; a line is an ID and %d hexadecimal digits", f.path, 2*KeySize)
	}
	return s, nil
}
