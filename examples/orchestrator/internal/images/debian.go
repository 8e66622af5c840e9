package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/client"
)

// What the images of the article's examples are made of, and how they begin, as those of the same names in the public registry do. A change
// here needs another cacheVersion.
const (
	suite        = "bookworm"
	packages     = "nginx-light,redis-server"
	cacheVersion = "1"

	nginxConfig = `user www-data;
worker_processes 1;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
	include /etc/nginx/mime.types;
	default_type application/octet-stream;
	access_log /dev/stdout;
	server {
		listen 80 default_server;
		root /usr/share/nginx/html;
		index index.html;
	}
}
`
)

// debian is one image made of Debian packages.
type debian struct {
	files  func(root string) *Files
	config Config
}

var recipes = map[string]debian{
	"nginx": {nginxFiles, Config{Command: []string{"nginx", "-g", "daemon off;"}}},
	"redis": {redisFiles, Config{Command: []string{"redis-server", "--protected-mode", "no"}, Directory: "/data"}},
}

// ErrCannotMake says that this machine, or this user, lacks what Debian needs.
var ErrCannotMake = errors.New("images cannot be made of Debian's packages here")

// Names returns what Debian can make.
func Names() []string {
	var names []string
	for name := range recipes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func nginxFiles(root string) *Files {
	var f Files
	f.system()
	f.program(root, "usr/sbin/nginx")
	f.copy(root, "etc/nginx/mime.types", "usr/share/nginx/html/index.html")
	f.Text("etc/nginx/nginx.conf", nginxConfig)
	f.Dir("var/log/nginx", 0o755)
	f.OwnedDir("var/lib/nginx", wwwData)
	return &f
}

func redisFiles(root string) *Files {
	var f Files
	f.system()
	f.program(root, "usr/bin/redis-server")
	f.program(root, "usr/bin/redis-cli")
	f.OwnedDir("data", 0)
	return &f
}

const wwwData = 33 // Debian's number for it, everywhere

func (f *Files) system() {
	f.Text("etc/passwd", "root:x:0:0:root:/root:/sbin/nologin\nwww-data:x:33:33:www-data:/var/www:/sbin/nologin\n")
	f.Text("etc/group", "root:x:0:\nwww-data:x:33:\n")
	f.Dir("tmp", 0o1777)
	f.Dir("run", 0o755)
}

func (f *Files) program(root, name string) {
	real, err := filepath.EvalSymlinks(filepath.Join(root, name)) // redis-server is a link to one that checks its files
	if err != nil {
		f.err = errors.Join(f.err, err)
		return
	}
	f.Add(name, real, 0o755)
	f.Libraries(root, real)
}

func (f *Files) copy(root string, names ...string) {
	for _, name := range names {
		f.Add(name, filepath.Join(root, name), 0o644)
	}
}

// Debian makes an image of nginx or redis from Debian's packages. The archives are kept in a directory of the user's cache: making them takes a
// minute, importing one takes a second. It needs debootstrap, root's rights and Debian's package server when they are not there yet.
func Debian(ctx context.Context, engine *client.Client, name, ref string, labels map[string]string) error {
	recipe, ok := recipes[name]
	if !ok {
		return fmt.Errorf("image %q: want one of %s", name, strings.Join(Names(), ", "))
	}
	archive, err := debianArchive(ctx, name)
	if err != nil {
		return err
	}
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close() // read only
	config := recipe.config
	config.Labels = labels
	_, err = Import(ctx, engine, ref, f, config)
	return err
}

// debianArchive returns the file with an image's content, and makes those of all if it is not there.
func debianArchive(ctx context.Context, name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "steadyraft-orchestrator", "images-"+suite+"-"+cacheVersion)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(dir, "lock")) // another process may be making them
	if err != nil {
		return "", err
	}
	defer unlock()
	wanted := filepath.Join(dir, name+".tar")
	if _, err := os.Stat(wanted); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return wanted, err
	}
	return wanted, bootstrap(ctx, dir)
}

func bootstrap(ctx context.Context, dir string) (err error) {
	program, err := exec.LookPath("debootstrap")
	if err != nil {
		return fmt.Errorf("%w: %w; install it (apt-get install debootstrap)", ErrCannotMake, err)
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("%w: debootstrap has to be run by root", ErrCannotMake)
	}
	root, err := os.MkdirTemp(dir, "root-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	if err := os.Chmod(root, 0o755); err != nil { // the packages' own users look into it
		return err
	}
	cmd := exec.CommandContext(ctx, program, "--variant=minbase", "--include="+packages, suite, root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("debootstrap: %w: %s", errors.Join(ctx.Err(), err), output[max(0, len(output)-500):])
	}
	for name, recipe := range recipes {
		if err := writeFile(filepath.Join(dir, name+".tar"), recipe.files(root)); err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
	}
	return nil
}

// writeFile is complete or not there.
func writeFile(name string, files *Files) error {
	f, err := os.Create(name + ".tmp")
	if err != nil {
		return err
	}
	if err := errors.Join(files.WriteTar(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}

// lock takes a file that one process at a time can have; the system gives it back with the process, however it ends.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(err, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
