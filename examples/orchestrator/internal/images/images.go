// Package images makes images for a Docker Engine from nothing: no registry, no base image, no Dockerfile. An image is the few files that a
// program needs, as a tar archive that the engine imports. The demonstration makes one of itself, the tests make nginx and redis.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/moby/moby/client"
)

// maxAnswerBytes bounds what the engine says about an import.
const maxAnswerBytes = 1 << 20

// Config is how containers of an image begin.
type Config struct {
	Entrypoint, Command []string
	Directory           string
	Labels              map[string]string
}

// changes are the lines of a Dockerfile that an import understands.
func (c Config) changes() (lines []string) {
	add := func(word string, argv []string) {
		if len(argv) > 0 {
			text, _ := json.Marshal(argv) // strings always can be
			lines = append(lines, word+" "+string(text))
		}
	}
	lines = append(lines, "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	add("ENTRYPOINT", c.Entrypoint)
	add("CMD", c.Command)
	if c.Directory != "" {
		lines = append(lines, "WORKDIR "+c.Directory)
	}
	for key, value := range c.Labels {
		lines = append(lines, fmt.Sprintf("LABEL %q=%q", key, value))
	}
	slices.Sort(lines)
	return lines
}

// Import makes an image of a tar archive and returns its ID.
func Import(ctx context.Context, engine *client.Client, ref string, archive io.Reader, config Config) (string, error) {
	answer, err := engine.ImageImport(ctx, client.ImageImportSource{Source: archive, SourceName: "-"}, ref, client.ImageImportOptions{Changes: config.changes()})
	if err != nil {
		return "", fmt.Errorf("import image %s: %w", ref, err)
	}
	defer answer.Close()
	var last struct{ Status, Error string }
	for decoder := json.NewDecoder(io.LimitReader(answer, maxAnswerBytes)); ; {
		err := decoder.Decode(&last)
		if errors.Is(err, io.EOF) {
			return last.Status, nil
		}
		if err == nil && last.Error != "" {
			err = errors.New(last.Error)
		}
		if err != nil {
			return "", fmt.Errorf("import image %s: %w", ref, err)
		}
	}
}

// Program makes an image of one program of this machine with the shared libraries that it needs, if any. It lies at /app, which is the entry
// point.
func Program(ctx context.Context, engine *client.Client, ref, program string, config Config) error {
	var files Files
	files.Dir("tmp", 0o1777)
	files.Add("app", program, 0o755)
	files.Libraries("/", program)
	files.Text("etc/passwd", "root:x:0:0:root:/:/app\n")
	if config.Entrypoint == nil {
		config.Entrypoint = []string{"/app"}
	}
	return files.importAs(ctx, engine, ref, config)
}

func (f *Files) importAs(ctx context.Context, engine *client.Client, ref string, config Config) error {
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(f.WriteTar(writer)) }()
	_, err := Import(ctx, engine, ref, reader, config)
	return errors.Join(err, reader.Close()) // which ends the goroutine if the engine did not want it all
}

// Files is what an image consists of. Its methods collect; what goes wrong is told by WriteTar.
type Files struct {
	entries []entry
	names   map[string]bool
	err     error
}

type entry struct {
	name   string
	mode   int64
	uid    int
	source string // file to copy; else content
	text   string
	dir    bool
}

func (f *Files) add(e entry) {
	if f.names == nil {
		f.names = map[string]bool{}
	}
	if !f.names[e.name] {
		f.names[e.name] = true
		f.entries = append(f.entries, e)
	}
}

// Add copies a file.
func (f *Files) Add(name, source string, mode int64) {
	f.add(entry{name: name, source: source, mode: mode})
}

// Text makes a file of its content.
func (f *Files) Text(name, content string) { f.add(entry{name: name, text: content, mode: 0o644}) }

// Dir makes an empty directory.
func (f *Files) Dir(name string, mode int64) { f.add(entry{name: name + "/", dir: true, mode: mode}) }

// OwnedDir makes an empty directory of a user.
func (f *Files) OwnedDir(name string, uid int) {
	f.add(entry{name: name + "/", dir: true, mode: 0o755, uid: uid})
}

// libraryDirs are where a dynamic linker looks without being told, below the root.
var libraryDirs = []string{"lib/*-linux-gnu*", "usr/lib/*-linux-gnu*", "lib64", "usr/lib64", "lib", "usr/lib"}

// Libraries adds the dynamic linker of a program and the shared libraries that it loads, as they are found below root; nothing for a static one.
func (f *Files) Libraries(root, program string) {
	if f.err != nil {
		return
	}
	f.err = f.libraries(root, program)
}

func (f *Files) libraries(root, program string) error {
	binary, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("%s is no program for Linux: %w", program, err)
	}
	defer binary.Close()
	for _, section := range binary.Progs {
		if section.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(io.LimitReader(section.Open(), 4096))
		if err != nil {
			return err
		}
		linker := path.Clean(string(bytes.TrimRight(name, "\x00")))[1:]
		f.Add(linker, filepath.Join(root, linker), 0o755)
	}
	needed, err := binary.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, library := range needed {
		name, err := findLibrary(root, library)
		if err != nil {
			return fmt.Errorf("%s: %w", program, err)
		}
		if f.names[name] {
			continue
		}
		f.Add(name, filepath.Join(root, name), 0o755)
		if err := f.libraries(root, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	return nil
}

func findLibrary(root, library string) (string, error) {
	for _, dir := range libraryDirs {
		found, err := filepath.Glob(filepath.Join(root, dir, library))
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			return filepath.Rel(root, found[0])
		}
	}
	return "", fmt.Errorf("shared library %s: %w", library, fs.ErrNotExist)
}

// WriteTar writes the archive.
func (f *Files) WriteTar(w io.Writer) error {
	if f.err != nil {
		return f.err
	}
	archive := tar.NewWriter(w)
	for _, e := range f.entries {
		if err := e.write(archive); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return archive.Close()
}

func (e entry) write(archive *tar.Writer) error {
	header := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.uid, Typeflag: tar.TypeReg, Size: int64(len(e.text))}
	switch {
	case e.dir:
		header.Typeflag = tar.TypeDir
		return archive.WriteHeader(header)
	case e.source == "":
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.WriteString(archive, e.text)
		return err
	}
	source, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer source.Close() // read only
	info, err := source.Stat()
	if err != nil {
		return err
	}
	header.Size = info.Size()
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(archive, source)
	return err
}
