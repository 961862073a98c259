package install

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxConfig bounds what is read of a configuration.
const maxConfig = 1 << 20

// tempSuffix ends the names of files that are not complete yet. No runtime reads a file with such a name.
const tempSuffix = ".conduit-new"

func readConfig(path string) ([]byte, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, configError("it is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = configError("it is larger than %d bytes", maxConfig)
	}
	return data, info, err
}

// sameContent compares two files piece by piece: programs have megabytes, and are looked at for as long as a node runs.
func sameContent(a, b string) (bool, error) {
	x, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer x.Close()
	y, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer y.Close()
	for xs, ys := make([]byte, 32<<10), make([]byte, 32<<10); ; {
		n, xerr := io.ReadFull(x, xs)
		m, yerr := io.ReadFull(y, ys)
		ended := errors.Is(xerr, io.EOF) || errors.Is(xerr, io.ErrUnexpectedEOF)
		switch {
		case xerr != nil && !ended:
			return false, xerr
		case yerr != nil && !errors.Is(yerr, io.EOF) && !errors.Is(yerr, io.ErrUnexpectedEOF):
			return false, yerr
		case !bytes.Equal(xs[:n], ys[:m]):
			return false, nil
		case ended:
			return true, nil
		}
	}
}

// writeTemp writes a complete file beside path, with the mode and owner of like, and returns its name.
func writeTemp(path string, data []byte, mode os.FileMode, like os.FileInfo) (string, error) {
	var random [8]byte
	rand.Read(random[:])
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+hex.EncodeToString(random[:])+tempSuffix)
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if st, ok := stat(like); err == nil && ok {
		err = f.Chown(int(st.Uid), int(st.Gid))
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(temp))
	}
	return temp, nil
}

func stat(info os.FileInfo) (*syscall.Stat_t, bool) {
	if info == nil {
		return nil, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return st, ok
}

// errChanged means that another program has changed a file since it was read.
var errChanged = errors.New("the file has been changed meanwhile")

// replace puts data in the place of a file that was read as old, atomically, and refuses with errChanged when the file is
// another one by now. If another program writes just now, its file is put back.
func replace(path string, old, data []byte, info os.FileInfo) error {
	temp, err := writeTemp(path, data, info.Mode().Perm(), info)
	if err != nil {
		return err
	}
	defer os.Remove(temp) // what is in it by then is old, or was not wanted
	err = unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system that cannot exchange
		if now, _, err := readConfig(path); err != nil || !bytes.Equal(now, old) {
			return errors.Join(errChanged, err)
		}
		return errors.Join(os.Rename(temp, path), syncDir(path))
	}
	if errors.Is(err, unix.ENOENT) {
		return errChanged
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if out, _, err := readConfig(temp); err != nil || !bytes.Equal(out, old) {
		// Ours is in place for this moment; theirs must not be lost.
		return errors.Join(errChanged, err, giveBack(temp, path, data))
	}
	return syncDir(path)
}

// giveBack puts the file at temp, which was taken from path in exchange for one with the content placed, in its place again: unless the other
// program has written once more meanwhile. What comes out then is newer than what was put back, and takes its place in turn.
func giveBack(temp, path string, placed []byte) error {
	for {
		older, _, err := readConfig(temp)
		if err != nil {
			return err
		}
		if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
			return err
		}
		out, _, err := readConfig(temp)
		if err != nil || bytes.Equal(out, placed) {
			return err
		}
		placed = older
	}
}

// create puts a new complete file at path, in the place of one that is there.
func create(path string, data []byte, mode os.FileMode, like os.FileInfo) error {
	temp, err := writeTemp(path, data, mode, like)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncDir(path)
}

// syncDir makes renames in the directory of path last.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync %s: %w", d.Name(), err)
	}
	return nil
}

// lockDir keeps other installers out of a directory until unlock, or until this process dies.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

// removeTemps removes what an installer left that was killed. The directory is locked.
func removeTemps(dir string) error {
	temps, err := filepath.Glob(filepath.Join(dir, ".*"+tempSuffix))
	errs := []error{err}
	for _, t := range temps {
		errs = append(errs, os.Remove(t))
	}
	return errors.Join(errs...)
}
