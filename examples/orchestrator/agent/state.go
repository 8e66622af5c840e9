package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const assignmentsFile = "assignments.json"

// ErrInUse says that another agent works in the same directory.
var ErrInUse = errors.New("the directory is in use by another agent")

// stateFile keeps the accepted assignments, with their fence, in one file that is replaced as a whole.
type stateFile struct {
	path string
	lock *os.File
}

func openState(dir string) (*stateFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("agent directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// The system releases the lock with the process, however it ends.
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w; stop it, or give this one its own directory", dir, ErrInUse), lock.Close())
	}
	return &stateFile{path: filepath.Join(dir, assignmentsFile), lock: lock}, nil
}

func (s *stateFile) close() error { return s.lock.Close() }

// load returns the zero Assignments if there are none yet. A damaged file is an error: without its fence the node would believe any
// leader of the past.
func (s *stateFile) load() (a Assignments, err error) {
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	} else if err != nil {
		return a, err
	}
	if err := json.Unmarshal(data, &a); err != nil {
		return a, fmt.Errorf("%s is damaged (%w); remove it if no deposed manager can still reach this node", s.path, err)
	}
	return a, nil
}

// KnownManagers returns the addresses of the managers that the agent of a directory was told last; none if it was told nothing yet.
func KnownManagers(dir string) ([]string, error) {
	a, err := (&stateFile{path: filepath.Join(dir, assignmentsFile)}).load()
	return a.Managers, err
}

// save is durable when it returns nil. If it fails, the old content or the new is there, whole.
func (s *stateFile) save(a Assignments) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	tmp := s.path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
