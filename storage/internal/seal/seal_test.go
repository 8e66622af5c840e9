package seal

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/storage/keyring"
)

func derive(t *testing.T, salt string, info ...string) *Key {
	t.Helper()
	k, err := Derive(1, [keyring.KeySize]byte{1, 2, 3}, []byte(salt), info...)
	require.NoError(t, err)
	return k
}

// What is opened is what was sealed, with the same key, number, use and additional data; nothing else is opened.
func TestOnlyWhatWasSealedIsOpened(t *testing.T) {
	var s Scratch
	k := derive(t, "salt", "a", "b")
	plain := []byte("some text")
	sealed := append(bytes.Clone(plain), make([]byte, Overhead)...)
	k.Seal(&s, 7, 2, sealed, []byte("header"))
	require.NotContains(t, string(sealed), "text")
	got, err := k.Open(&s, nil, 7, 2, sealed, []byte("header"))
	require.NoError(t, err)
	require.Equal(t, plain, got)

	refused := func(k *Key, number uint64, use Use, sealed []byte, additional string) {
		t.Helper()
		_, err := k.Open(&s, nil, number, use, sealed, []byte(additional))
		require.ErrorIs(t, err, ErrForged)
	}
	refused(k, 8, 2, sealed, "header")
	refused(k, 7, 3, sealed, "header")
	refused(k, 7, 2, sealed, "Header")
	refused(k, 7, 2, sealed[:len(sealed)-1], "header")
	refused(derive(t, "Salt", "a", "b"), 7, 2, sealed, "header")
	refused(derive(t, "salt", "ab", ""), 7, 2, sealed, "header") // parts are framed
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		refused(k, 7, 2, changed, "header")
	}
}

// What names the key, and the MAC, depend on all that the key is derived from.
func TestCheckAndMACDependOnTheKey(t *testing.T) {
	k := derive(t, "salt", "a")
	other, err := Derive(1, [keyring.KeySize]byte{1, 2, 4}, []byte("salt"), "a")
	require.NoError(t, err)
	require.Equal(t, k.Check(), derive(t, "salt", "a").Check())
	mac := k.MAC([]byte("piece"))
	require.True(t, k.Verify([]byte("piece"), mac[:]))
	require.False(t, k.Verify([]byte("Piece"), mac[:]))
	for _, o := range []*Key{other, derive(t, "tlas", "a"), derive(t, "salt", "b")} {
		require.NotEqual(t, k.Check(), o.Check())
		require.False(t, o.Verify([]byte("piece"), mac[:]))
	}
}
