package keyring

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func line(id, digit string) string { return id + " " + strings.Repeat(digit, 2*KeySize) + "\n" }

func write(t *testing.T, path, content string) {
	t.Helper()
	tmp := path + ".new"
	require.NoError(t, os.WriteFile(tmp, []byte(content), 0o600))
	require.NoError(t, os.Rename(tmp, path))
}

// The key with the highest ID is the current one, and a file that was replaced is seen without opening it again.
func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	write(t, path, "# the first\n\n"+line("1", "a"))
	f, err := Open(path)
	require.NoError(t, err)
	id, key, err := f.Current()
	require.NoError(t, err)
	require.EqualValues(t, 1, id)
	require.EqualValues(t, 0xaa, key[31])
	_, err = f.Key(7)
	require.ErrorIs(t, err, ErrMissing)

	write(t, path, line("7", "b")+line("1", "a"))
	id, key, err = f.Current()
	require.NoError(t, err)
	require.EqualValues(t, 7, id)
	require.EqualValues(t, 0xbb, key[0])
	key, err = f.Key(1)
	require.NoError(t, err)
	require.EqualValues(t, 0xaa, key[0])

	require.NoError(t, os.Remove(path))
	_, err = f.Key(1)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// What is wrong in a key file is said by line, and never with the key.
func TestKeyFilesThatAreNone(t *testing.T) {
	secret := strings.Repeat("c", 2*KeySize-1)
	for name, content := range map[string]string{
		"empty": "", "only a comment": "# 1 a\n", "no ID": secret, "ID 0": line("0", "a"), "large ID": line("4294967296", "a"),
		"short key": "1 " + secret, "long key": "1 " + secret + "cc", "no hexadecimal": "1 " + strings.Repeat("x", 2*KeySize),
		"twice": line("1", "a") + line("1", "b"), "three words": "1 " + secret + "c more",
	} {
		path := filepath.Join(t.TempDir(), "keys")
		write(t, path, content)
		_, err := Open(path)
		require.Error(t, err, name)
		require.Contains(t, err.Error(), path, name)
		require.NotContains(t, err.Error(), "cccc", name)
	}
	_, err := Open(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestKeyFileThatOthersMayUseIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there are no such permissions")
	}
	path := filepath.Join(t.TempDir(), "keys")
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o644, 0o660} {
		write(t, path, line("1", "a"))
		require.NoError(t, os.Chmod(path, mode))
		_, err := Open(path)
		require.ErrorContains(t, err, "chmod 600", "%o", mode)
	}
	require.NoError(t, os.Chmod(path, 0o400))
	_, err := Open(path)
	require.NoError(t, err)
}

func TestStaticRing(t *testing.T) {
	s := Static{CurrentID: 2, Keys: map[uint32][KeySize]byte{2: {9}}}
	id, key, err := s.Current()
	require.NoError(t, err)
	require.EqualValues(t, 2, id)
	require.Equal(t, [KeySize]byte{9}, key)
	_, err = s.Key(1)
	require.ErrorIs(t, err, ErrMissing)
	_, _, err = Static{}.Current()
	require.Error(t, err)
	_, _, err = Static{CurrentID: 1}.Current()
	require.ErrorIs(t, err, ErrMissing)
}

// Every error says what to do next.
func TestErrorsSayWhatToDo(t *testing.T) {
	for _, cause := range []error{ErrMissing, ErrWrong, ErrNoKeys, ErrClear} {
		err := error(&Error{Path: "/d/f", ID: 3, Err: cause})
		require.ErrorIs(t, err, cause)
		require.Contains(t, err.Error(), "/d/f: key 3: ")
		require.Contains(t, err.Error(), "; ")
	}
	require.NotContains(t, (&Error{Err: errors.New("out of reach")}).Error(), ";")
}
