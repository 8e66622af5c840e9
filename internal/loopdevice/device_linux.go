package loopdevice

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// Device is an ext4 file system on a loop device.
type Device struct {
	image   string
	dir     string
	options string
	mounted bool
}

// New makes a file system of that many bytes, and mounts it with the given options of ext4. It is gone when the test ends. Where such a
// thing cannot be made, the test is skipped.
func New(t testing.TB, size int64, options ...string) *Device {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: a file system on a loop device needs root")
	}
	for _, tool := range []string{"mkfs.ext4", "mount", "umount", "losetup"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: a file system on a loop device needs %s (packages e2fsprogs and mount): %v", tool, err)
		}
	}
	base := t.TempDir()
	d := &Device{image: filepath.Join(base, "image"), dir: filepath.Join(base, "mounted"),
		options: strings.Join(append([]string{"loop"}, options...), ",")}
	if err := d.make(size); err != nil {
		t.Fatal(err)
	}
	if err := d.mount(); err != nil {
		t.Skipf("skipped: no loop device can be mounted here: %v", err)
	}
	t.Cleanup(func() { // before the directory is removed
		if err := d.unmount(); err != nil {
			t.Error(err)
		}
	})
	if err := d.makeProbe(); err != nil {
		t.Fatal(err)
	}
	return d
}

// makeProbe makes the file by which a file system that works is told from one that was cut off.
func (d *Device) makeProbe() error {
	f, err := os.Create(d.probe())
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	dir, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (d *Device) probe() string { return filepath.Join(d.dir, "probe") }

func (d *Device) make(size int64) error {
	f, err := os.Create(d.image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.Mkdir(d.dir, 0o700)); err != nil {
		return err
	}
	return run("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", d.image)
}

// Dir is where the file system is mounted.
func (d *Device) Dir() string { return d.dir }

func (d *Device) mount() error {
	if err := makeNode(); err != nil {
		return err
	}
	err := run("mount", "-t", "ext4", "-o", d.options, d.image, d.dir)
	d.mounted = err == nil
	return err
}

// makeNode makes the file of the next free loop device where nothing else does.
func makeNode() error {
	out, err := exec.Command("losetup", "-f").CombinedOutput()
	node := strings.TrimSpace(string(out))
	if err != nil {
		return fmt.Errorf("losetup -f: %w: %s", err, node)
	}
	number, err := strconv.Atoi(strings.TrimPrefix(node, "/dev/loop"))
	if err != nil {
		return fmt.Errorf("losetup -f: %q", node)
	}
	if _, err := os.Stat(node); errors.Is(err, os.ErrNotExist) {
		return syscall.Mknod(node, syscall.S_IFBLK|0o600, 7<<8|number)
	}
	return nil
}

// unmount waits for a moment while a process that was killed lets go of its files.
func (d *Device) unmount() error {
	if !d.mounted {
		return nil
	}
	var err error
	for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); <-time.After(20 * time.Millisecond) {
		if err = run("umount", d.dir); err == nil {
			d.mounted = false
			return nil
		}
	}
	return errors.Join(err, run("umount", "-l", d.dir))
}

// Of <linux/fs.h> and ext4: from now on the file system does nothing any more, and what was in memory only is lost.
const (
	ioctlShutdown = 0x8004587d // FS_IOC_SHUTDOWN, _IOR('X', 125, __u32)
	flushJournal  = 1          // EXT4_GOING_FLAGS_LOGFLUSH: what is in the journal's memory reaches the disk, data do not
	flushNothing  = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
)

// Cut cuts the file system off from its device: every operation that would change something fails from now on, and what has not been
// written to the device is lost. With journal, the changes to names, lengths and blocks that are under way get there before; their data
// do not. What was written to the device is not lost, whether it was flushed there or not.
func (d *Device) Cut(journal bool) error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	flags := uint32(flushNothing)
	if journal {
		flags = flushJournal
	}
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), ioctlShutdown, uintptr(unsafe.Pointer(&flags)))
	err = f.Close()
	if errno != 0 {
		return errors.Join(fmt.Errorf("shut %s down: %w", d.dir, errno), err)
	}
	return err
}

// Remount mounts the file system again, after Cut as after a loss of power: from what is on the device. No file in it may be open.
func (d *Device) Remount() error {
	if err := errors.Join(d.unmount(), d.mount()); err != nil {
		return err
	}
	f, err := os.Open(d.probe())
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, syscall.EIO) {
		return err
	}
	// It is the old one, cut off: a process with a copy of all mounts, such as a container that is being made, holds on to it and to its
	// loop device. What is on the device is in the image, so a copy of that is as good.
	if err := errors.Join(d.unmount(), d.copyImage(), d.mount()); err != nil {
		return err
	}
	f, err = os.Open(d.probe())
	if err != nil {
		return err
	}
	return f.Close()
}

func (d *Device) copyImage() error {
	old := d.image
	from, err := os.Open(old)
	if err != nil {
		return err
	}
	d.image += "+"
	to, err := os.Create(d.image)
	if err != nil {
		return errors.Join(err, from.Close())
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close(), from.Close(), os.Remove(old))
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
