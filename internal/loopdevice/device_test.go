//go:build linux

package loopdevice

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// What was synced is there after a cut, what was not is gone, and nothing can be changed in between; also while a process with mounts of
// its own holds on to the old file system.
func TestCutLosesWhatWasNotSynced(t *testing.T) {
	for _, held := range []bool{false, true} {
		d := New(t, 16<<20)
		f, err := os.Create(filepath.Join(d.Dir(), "synced"))
		require.NoError(t, err)
		_, err = f.WriteString("kept")
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
		require.NoError(t, os.WriteFile(filepath.Join(d.Dir(), "not synced"), []byte("lost"), 0o600))
		if held {
			holder := exec.Command("cat")
			holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
			in, err := holder.StdinPipe()
			require.NoError(t, err)
			require.NoError(t, holder.Start())
			t.Cleanup(func() {
				require.NoError(t, in.Close())
				require.NoError(t, holder.Wait())
			})
		}
		require.NoError(t, d.Cut(false))
		require.ErrorIs(t, os.WriteFile(filepath.Join(d.Dir(), "later"), nil, 0o600), syscall.EIO)
		require.NoError(t, d.Remount())
		b, err := os.ReadFile(filepath.Join(d.Dir(), "synced"))
		require.NoError(t, err)
		require.Equal(t, "kept", string(b))
		_, err = os.Stat(filepath.Join(d.Dir(), "not synced"))
		require.ErrorIs(t, err, os.ErrNotExist)
		require.NoError(t, os.WriteFile(filepath.Join(d.Dir(), "later"), nil, 0o600))
	}
}
