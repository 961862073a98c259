package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Uninstall takes the plugin out of every configuration, puts originals back, and removes the program. It returns the
// files that it has changed. What cannot be understood is left alone, and is an error if it seems to name the plugin.
// Calling it again, or where nothing was installed, does nothing.
func (in Installer) Uninstall() (changed []string, err error) {
	unlock, err := lockDir(in.ConfDir)
	if err == nil {
		defer unlock()
		changed, err = in.unchainAll()
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		// The program stays: a configuration may still name it, and without it no pod would start.
		return changed, fmt.Errorf("uninstall CNI plugin: %w", err)
	}
	target := filepath.Join(in.BinDir, PluginType)
	if err := os.Remove(target); err == nil {
		changed = append(changed, target)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return changed, fmt.Errorf("uninstall CNI plugin: %w", err)
	}
	return changed, nil
}

func (in Installer) unchainAll() (changed []string, err error) {
	if err := removeTemps(in.ConfDir); err != nil {
		return nil, err
	}
	lists, err := filepath.Glob(filepath.Join(in.ConfDir, "*"+listExt))
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, list := range lists {
		did, err := unchainRetry(list)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", list, err))
		}
		if did {
			changed = append(changed, list)
		}
	}
	originals, err := filepath.Glob(filepath.Join(in.ConfDir, "*"+SavedSuffix)) // whose lists somebody has removed
	errs = append(errs, err)
	for _, original := range originals {
		list := listFor(original[:len(original)-len(SavedSuffix)])
		if _, err := os.Lstat(list); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, os.Remove(original))
		}
	}
	return changed, errors.Join(errs...)
}

func unchainRetry(list string) (bool, error) {
	for range attempts {
		did, err := unchain(list)
		if !errors.Is(err, errChanged) {
			return did, err
		}
	}
	return false, fmt.Errorf("%w, again and again", errChanged)
}

// unchain takes our entries out of one list, or puts back what it was made of.
func unchain(list string) (bool, error) {
	target, err := filepath.EvalSymlinks(list)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a link that leads nowhere, or gone meanwhile
	}
	if err != nil {
		return false, err
	}
	data, info, err := readConfig(target)
	if err != nil {
		return false, err
	}
	if !bytes.Contains(data, []byte(PluginType)) {
		return false, nil
	}
	l, err := parseList(data)
	if err != nil {
		return false, fmt.Errorf("it names %s: %w", PluginType, err)
	}
	if !slices.Contains(l.ours, true) {
		return false, nil
	}
	done, err := restore(list, data)
	if done || err != nil {
		return done, err
	}
	out, err := removeEntries(data)
	if err != nil {
		return false, err
	}
	return true, replace(target, data, out, info)
}

// restore puts an original back into the place of the list that was made of it, if nobody has changed the list since.
func restore(list string, data []byte) (bool, error) {
	originals, err := saved(list)
	if err != nil {
		return false, err
	}
	without, err := removeEntries(data)
	if err != nil {
		return false, err
	}
	for _, original := range originals {
		conf, _, err := readConfig(original)
		if err != nil {
			return false, err
		}
		made, err := listOf(conf, []byte(`{"type":"`+PluginType+`"}`))
		if err != nil {
			continue
		}
		if made, err = removeEntries(made); err != nil || !bytes.Equal(made, without) {
			continue // the list has been changed: it counts
		}
		back := original[:len(original)-len(SavedSuffix)]
		if _, err := os.Lstat(back); err == nil { // the primary plugin has written it anew
			err = os.Remove(original)
			return true, errors.Join(err, os.Remove(list), syncDir(list))
		}
		if err := os.Rename(original, back); err != nil { // the runtime prefers it to the list from now on
			return false, err
		}
		return true, errors.Join(os.Remove(list), syncDir(list))
	}
	for _, original := range originals {
		if err := os.Remove(original); err != nil {
			return false, err
		}
	}
	return false, nil
}
