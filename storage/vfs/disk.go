package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// SectorSize is the unit in which a Disk writes: after a crash a sector is old or new, never a mixture.
const SectorSize = 512

// Errors of a simulated disk.
var (
	// ErrCrashed is what every operation on a disk returns after the simulated power cut.
	ErrCrashed = errors.New("simulated crash")
	// ErrIO stands for a device that does not do what it was asked.
	ErrIO = errors.New("simulated input/output error")
)

// OpKind says what an operation on a Disk does.
type OpKind uint8

// The operations. All but OpRead change something, or make it durable.
const (
	OpRead OpKind = iota
	OpWrite
	OpSync
	OpTruncate
	OpCreate
	OpRename
	OpRemove
	OpSyncDir
	OpMkdir
)

var opNames = [...]string{"read", "write", "sync", "truncate", "create", "rename", "remove", "sync directory", "mkdir"}

// String names the kind.
func (k OpKind) String() string {
	if int(k) < len(opNames) {
		return opNames[k]
	}
	return fmt.Sprintf("operation %d", uint8(k))
}

// Op is one operation on a Disk, as a fault function sees it.
type Op struct {
	Number int // how many changing operations came before; the same for reads in between
	Kind   OpKind
	Path   string
	Offset int64 // of reads and writes; the new size of a truncation
	Length int
}

// ShortWrite, returned by a fault function, lets a write do its first N bytes only.
type ShortWrite struct{ N int }

// Error describes the fault.
func (s ShortWrite) Error() string { return fmt.Sprintf("simulated short write of %d bytes", s.N) }

// Disk is a simulated disk. It keeps what programs see apart from what is durable: a write is durable after Sync of its file, an
// entry of a directory after SyncDir. A crash keeps any part of the rest: each unsynced sector in any of the states it has been
// in, any of the lengths that a file has had, and of the changes to a directory any number of the first ones (file systems
// journal them in order).
//
// Everything follows from the seed and the order of calls. A Disk has no goroutine and no clock; its methods may be called at the
// same time.
type Disk struct {
	mu      sync.Mutex
	rng     uint64
	dirs    map[string]*simDir
	locks   map[string]int // how many hold it; exclusive: one alone
	crashed bool

	ops      int
	failFrom int               // this operation and all later ones fail; negative: none
	fault    func(op Op) error // may be nil
	space    int64             // bytes that files may still grow by; negative: no limit
	outcome  CrashOutcome
}

// CrashOutcome counts what a crash has made of what was not synced.
type CrashOutcome struct {
	NamesLost   int // changes of directories that did not survive
	SectorsKept int // with the last content that they were given
	SectorsOld  int // with what they held in between
	SectorsLost int
	FilesTorn   int // of which some sectors survived and others did not, in whatever order they were written
}

// Outcome says what the crash did that this disk comes from; zero if it comes from none.
func (d *Disk) Outcome() CrashOutcome {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.outcome
}

var _ FS = (*Disk)(nil)

// New makes an empty disk. Everything that is left to chance, now and after its crashes, follows from the seed.
func New(seed uint64) *Disk {
	return &Disk{
		rng:      seed,
		dirs:     map[string]*simDir{".": newSimDir(), string(filepath.Separator): newSimDir()},
		locks:    map[string]int{},
		failFrom: -1,
		space:    -1,
	}
}

// Clone returns a copy that shares nothing with d, except for the fault function. Open files and locks stay with d: the copy is
// what another computer would see of the disk without a crash.
func (d *Disk) Clone() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.clone()
}

// clone is Clone for a caller that holds mu.
func (d *Disk) clone() *Disk {
	c := &Disk{
		rng: d.rng, dirs: map[string]*simDir{}, locks: map[string]int{}, crashed: d.crashed,
		ops: d.ops, failFrom: d.failFrom, fault: d.fault, space: d.space,
	}
	copies := map[*simFile]*simFile{}
	copyFile := func(f *simFile) *simFile {
		if f != nil && copies[f] == nil {
			copies[f] = f.clone()
		}
		return copies[f]
	}
	for path, dir := range d.dirs {
		cd := newSimDir()
		for name, f := range dir.entries {
			cd.entries[name] = copyFile(f)
		}
		for name, f := range dir.durable {
			cd.durable[name] = copyFile(f)
		}
		for _, ch := range dir.pending {
			ch.file = copyFile(ch.file)
			cd.pending = append(cd.pending, ch)
		}
		c.dirs[path] = cd
	}
	return c
}

// Crash cuts the power. It returns the disk as the next boot finds it, without faults, locks or a limit of space; d itself, and
// every file opened on it, fails from now on.
func (d *Disk) Crash() *Disk {
	// At one moment: what became durable between a copy and the end would have been acknowledged, and be lost.
	d.mu.Lock()
	c := d.clone()
	d.crashed = true
	d.mu.Unlock()

	r := &random{&c.rng}
	// From "all is lost" through any mixture to "all has survived": the extremes are drawn often.
	keep := [...]uint64{0, 100, 50, r.below(101)}[r.below(4)]
	settled := map[*simFile]bool{}
	var out CrashOutcome
	for _, path := range slices.Sorted(maps.Keys(c.dirs)) {
		dir := c.dirs[path]
		survived := 0
		for survived < len(dir.pending) && r.below(100) < max(keep, 20) {
			survived++
		}
		for _, ch := range dir.pending[:survived] {
			ch.apply(dir.durable)
		}
		out.NamesLost += len(dir.pending) - survived
		dir.pending = nil
		dir.entries = maps.Clone(dir.durable)
		for _, name := range slices.Sorted(maps.Keys(dir.durable)) {
			f := dir.durable[name]
			if settled[f] {
				continue
			}
			settled[f] = true
			out.add(f.settle(r, keep))
			f.forget()
			f.data = slices.Clone(f.durable)
		}
	}
	c.crashed, c.ops, c.failFrom, c.fault, c.space, c.outcome = false, 0, -1, nil, -1, out
	return c
}

// Kill is what becomes of a disk when the process that uses it is killed: nothing is lost, but every file opened on d and d itself fail
// from now on. It returns the disk as the next process finds it: the same content, without faults, locks or a limit of space.
func (d *Disk) Kill() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New(d.rng)
	c.ops, c.dirs = d.ops, d.dirs
	d.crashed, d.dirs = true, map[string]*simDir{} // moved: to copy them would be most of the work of a simulated crash
	return c
}

// Reseed replaces the state of the random generator: clones with different seeds crash differently.
func (d *Disk) Reseed(seed uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rng = seed
}

// Ops counts the operations so far that changed something or made it durable.
func (d *Disk) Ops() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// FailFrom makes operation k (counted as by Ops) and everything after it fail with ErrCrashed, reads included, so that a crash at
// each operation can be tried in turn. Operation k itself is in doubt: a later Crash may find it done, undone or half done.
func (d *Disk) FailFrom(k int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failFrom = k
}

// SetFault makes f decide about every operation; nil removes it. An error from f makes the operation fail with it: a read returns
// nothing, a write does nothing (or its first bytes, with ShortWrite), a sync loses part of what it should have made durable, for
// good. f must not call the disk.
func (d *Disk) SetFault(f func(op Op) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// SetSpace limits by how many bytes files may grow in total before they fail with syscall.ENOSPC; a write that does not fit does
// what fits. Truncate and Remove give bytes back. A negative n lifts the limit.
func (d *Disk) SetSpace(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.space = n
}

// Flip inverts bits of a stored byte, both as seen and as durable.
func (d *Disk) Flip(path string, off int64, mask byte) error {
	return d.damage(path, off, 1, func(b []byte) { b[0] ^= mask })
}

// Zero overwrites a range by zeros, as a sector that was never written reads.
func (d *Disk) Zero(path string, off int64, n int) error {
	return d.damage(path, off, n, func(b []byte) { clear(b) })
}

// Corrupt overwrites a range by random bytes.
func (d *Disk) Corrupt(path string, off int64, n int) error {
	return d.damage(path, off, n, func(b []byte) {
		r := &random{&d.rng}
		for i := range b {
			b[i] = byte(r.next())
		}
	})
}

func (d *Disk) damage(path string, off int64, n int, f func([]byte)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	file, err := d.lookup(path)
	if err != nil {
		return err
	}
	if off < 0 || off+int64(n) > int64(len(file.data)) {
		return pathError("damage", path, io.ErrUnexpectedEOF)
	}
	f(file.data[off : off+int64(n)])
	if off+int64(n) <= int64(len(file.durable)) {
		copy(file.durable[off:], file.data[off:off+int64(n)])
	}
	return nil
}

// begin admits an operation. If it returns an error, done tells whether the operation takes place all the same, in doubt.
// The caller holds mu.
func (d *Disk) begin(kind OpKind, path string, off int64, length int) (done bool, err error) {
	if d.crashed {
		return false, pathError(kind.String(), path, ErrCrashed)
	}
	number := d.ops
	if kind != OpRead {
		d.ops++
	}
	if d.failFrom >= 0 && (number > d.failFrom || number == d.failFrom && kind != OpRead) {
		return number == d.failFrom && kind != OpRead, pathError(kind.String(), path, ErrCrashed)
	}
	if d.fault != nil {
		if err := d.fault(Op{Number: number, Kind: kind, Path: path, Offset: off, Length: length}); err != nil {
			return false, pathError(kind.String(), path, err)
		}
	}
	return true, nil
}

func pathError(op, path string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }

// dir finds the directory that holds path. The caller holds mu.
func (d *Disk) dir(path string) (*simDir, string, error) {
	path = filepath.Clean(path)
	dir := d.dirs[filepath.Dir(path)]
	if dir == nil {
		return nil, "", pathError("open", path, fs.ErrNotExist)
	}
	return dir, filepath.Base(path), nil
}

func (d *Disk) lookup(path string) (*simFile, error) {
	dir, name, err := d.dir(path)
	if err != nil {
		return nil, err
	}
	f := dir.entries[name]
	if f == nil {
		return nil, pathError("open", path, fs.ErrNotExist)
	}
	return f, nil
}

// Create implements FS.
func (d *Disk) Create(path string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	done, err := d.begin(OpCreate, path, 0, 0)
	if !done {
		return nil, err
	}
	dir, name, dirErr := d.dir(path)
	if dirErr != nil {
		return nil, dirErr
	}
	f := dir.entries[name]
	if f == nil {
		f = newSimFile()
		dir.change(dirChange{add: name, file: f})
	} else {
		d.free(int64(len(f.data)))
		f.truncate(0)
	}
	if err != nil {
		return nil, err
	}
	return &simHandle{disk: d, file: f, path: path, writable: true}, nil
}

// Open implements FS.
func (d *Disk) Open(path string) (File, error) { return d.open(path, false) }

// OpenWrite implements FS.
func (d *Disk) OpenWrite(path string) (File, error) { return d.open(path, true) }

func (d *Disk) open(path string, writable bool) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.begin(OpRead, path, 0, 0); err != nil {
		return nil, err
	}
	f, err := d.lookup(path)
	if err != nil {
		return nil, err
	}
	return &simHandle{disk: d, file: f, path: path, writable: writable}, nil
}

// Rename implements FS. Both paths must be in the same directory.
func (d *Disk) Rename(oldpath, newpath string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	done, err := d.begin(OpRename, oldpath, 0, 0)
	if !done {
		return err
	}
	f, lookupErr := d.lookup(oldpath)
	if lookupErr != nil {
		return lookupErr
	}
	if filepath.Dir(filepath.Clean(oldpath)) != filepath.Dir(filepath.Clean(newpath)) {
		return pathError("rename", newpath, errors.New("the simulated disk renames within one directory only"))
	}
	dir, oldName, _ := d.dir(oldpath) // lookup has found it
	newName := filepath.Base(newpath)
	if replaced := dir.entries[newName]; replaced != nil && replaced != f {
		d.free(int64(len(replaced.data)))
	}
	if oldName != newName {
		dir.change(dirChange{remove: oldName, add: newName, file: f})
	}
	return err
}

// Remove implements FS.
func (d *Disk) Remove(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	done, err := d.begin(OpRemove, path, 0, 0)
	if !done {
		return err
	}
	f, lookupErr := d.lookup(path)
	if lookupErr != nil {
		return lookupErr
	}
	dir, name, _ := d.dir(path) // lookup has found it
	dir.change(dirChange{remove: name})
	d.free(int64(len(f.data)))
	return err
}

// MkdirAll implements FS.
func (d *Disk) MkdirAll(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	path = filepath.Clean(path)
	if d.dirs[path] != nil {
		_, err := d.begin(OpRead, path, 0, 0)
		return err
	}
	done, err := d.begin(OpMkdir, path, 0, 0)
	if !done {
		return err
	}
	for p := path; d.dirs[p] == nil; p = filepath.Dir(p) {
		d.dirs[p] = newSimDir()
	}
	return err
}

// List implements FS.
func (d *Disk) List(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.begin(OpRead, dir, 0, 0); err != nil {
		return nil, err
	}
	dir = filepath.Clean(dir)
	sd := d.dirs[dir]
	if sd == nil {
		return nil, pathError("open", dir, fs.ErrNotExist)
	}
	names := slices.Collect(maps.Keys(sd.entries))
	for p := range d.dirs {
		if p != dir && filepath.Dir(p) == dir {
			names = append(names, filepath.Base(p))
		}
	}
	slices.Sort(names)
	return names, nil
}

// Stat implements FS.
func (d *Disk) Stat(path string) (fs.FileInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.begin(OpRead, path, 0, 0); err != nil {
		return nil, err
	}
	if d.dirs[filepath.Clean(path)] != nil {
		return simInfo{name: filepath.Base(path), dir: true}, nil
	}
	f, err := d.lookup(path)
	if err != nil {
		return nil, err
	}
	return simInfo{name: filepath.Base(path), size: int64(len(f.data))}, nil
}

// SyncDir implements FS.
func (d *Disk) SyncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.begin(OpSyncDir, dir, 0, 0); err != nil {
		return err
	}
	sd := d.dirs[filepath.Clean(dir)]
	if sd == nil {
		return pathError("sync", dir, fs.ErrNotExist)
	}
	sd.durable = maps.Clone(sd.entries)
	sd.pending = nil
	return nil
}

// Lock implements FS. Nothing is stored: the lock ends with Close, or with the crash.
func (d *Disk) Lock(path string) (io.Closer, error) { return d.lock(path, exclusive) }

// LockShared implements FS.
func (d *Disk) LockShared(path string) (io.Closer, error) { return d.lock(path, 1) }

// exclusive counts as a holder who leaves no room for others.
const exclusive = -1

func (d *Disk) lock(path string, as int) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.begin(OpRead, path, 0, 0); err != nil {
		return nil, err
	}
	path = filepath.Clean(path)
	if holders := d.locks[path]; holders == exclusive || holders > 0 && as == exclusive {
		return nil, pathError("lock", path, ErrLocked)
	}
	d.locks[path] += as
	return &simLock{disk: d, path: path, as: as}, nil
}

type simLock struct {
	disk   *Disk
	path   string
	as     int
	closed bool
}

func (l *simLock) Close() error {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	if l.closed {
		return pathError("unlock", l.path, fs.ErrClosed)
	}
	l.closed = true
	l.disk.locks[l.path] -= l.as
	return nil
}

// take reserves up to n bytes and returns how many there are. The caller holds mu.
func (d *Disk) take(n int64) int64 {
	if d.space < 0 || n <= 0 {
		return n
	}
	n = min(n, d.space)
	d.space -= n
	return n
}

func (d *Disk) free(n int64) {
	if d.space >= 0 {
		d.space += n
	}
}

// Dump lists every file with its length, for messages of tests.
func (d *Disk) Dump() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(d.dirs)) {
		dir := d.dirs[path]
		for _, name := range slices.Sorted(maps.Keys(dir.entries)) {
			f := dir.entries[name]
			state := "synced"
			if len(f.dirty) > 0 || len(f.sizes) > 0 || !bytes.Equal(f.data, f.durable) {
				state = "not synced"
			}
			fmt.Fprintf(&b, "%s %d bytes, %s\n", filepath.Join(path, name), len(f.data), state)
		}
	}
	return b.String()
}
