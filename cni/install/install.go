package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// SavedSuffix ends the name of a single plugin's configuration while a list of it is in use.
const SavedSuffix = ".conduit-original"

// Where nodes keep configurations and plugins.
const (
	DefaultConfDir = "/etc/cni/net.d"
	DefaultBinDir  = "/opt/cni/bin"
)

const listExt = ".conflist"

// ErrNoConfig means that there is no configuration to chain to: the node's primary plugin is not installed yet.
var ErrNoConfig = errors.New("no network configuration of a primary plugin yet")

// Installer installs the plugin on one node. Several may work at the same time, also in different processes.
type Installer struct {
	ConfDir     string // of the runtime's configurations
	BinDir      string // of the runtime's plugins
	Plugin      string // the conduit-cni program, to be copied to BinDir
	AgentSocket string // as the runtime's plugins see it
	Lock        string // file that Watch locks while the plugin is in place; empty: none
}

// State tells what Install has found or done.
type State struct {
	File    string // the configuration in use
	Changed bool   // something had to be done
}

// Install makes the plugin a part of the configuration in use. It changes nothing when all is as it should be. The error
// is ErrNoConfig while there is nothing to chain to. A configuration that cannot be understood is left alone.
func (in Installer) Install() (State, error) {
	unlock, err := lockDir(in.ConfDir)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, ErrNoConfig
	}
	if err != nil {
		return State{}, fmt.Errorf("install CNI plugin: %w", err)
	}
	defer unlock()
	var st State
	if err := removeTemps(in.ConfDir); err != nil {
		return st, fmt.Errorf("install CNI plugin: %w", err)
	}
	copied, err := in.copyPlugin() // first: an entry without its program would keep pods from starting
	if err != nil {
		return st, fmt.Errorf("install CNI plugin: %w", err)
	}
	st.Changed = copied
	for range attempts {
		file, changed, err := in.chain()
		st.File, st.Changed = file, st.Changed || changed
		if errors.Is(err, errChanged) || err == nil && changed { // look again: perhaps another file is the first one now
			continue
		}
		if err != nil && !errors.Is(err, ErrNoConfig) {
			err = fmt.Errorf("install CNI plugin into %s: %w", file, err)
		}
		return st, err
	}
	return st, fmt.Errorf("install CNI plugin into %s: %w, again and again", st.File, errChanged)
}

// attempts bounds the changes that are made while others change the directory too.
const attempts = 10

// chain adds the entry to the first configuration.
func (in Installer) chain() (file string, changed bool, err error) {
	if file, err = first(in.ConfDir); err != nil {
		return file, false, err
	}
	entry, err := in.entry()
	if err != nil {
		return file, false, err
	}
	if filepath.Ext(file) != listExt {
		return file, true, in.convert(file, entry)
	}
	target, err := filepath.EvalSymlinks(file) // a link stays a link
	if err != nil {
		return file, false, err
	}
	data, info, err := readConfig(target)
	if err != nil {
		return file, false, err
	}
	out, err := addEntry(data, entry)
	if err != nil || bytes.Equal(out, data) {
		return file, false, err
	}
	return file, true, replace(target, data, out, info)
}

// first is the configuration that the runtime uses: what libcni.ConfFiles would list first. libcni itself is not linked: net/http comes
// with it, and every ADD starts this program.
func first(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, e := range entries { // in the order of names
		ext := filepath.Ext(e.Name())
		if !e.IsDir() && (ext == ".conf" || ext == listExt || ext == ".json") {
			return filepath.Join(dir, e.Name()), nil
		}
	}
	return "", ErrNoConfig
}

func (in Installer) entry() ([]byte, error) {
	return json.Marshal(struct {
		Type        string `json:"type"`
		AgentSocket string `json:"agentSocket"`
	}{PluginType, in.AgentSocket})
}

// convert puts a list into the place of a single plugin's configuration. The list comes first, so that there is always one
// that works: the runtime prefers "x.conf" to "x.conflist" until the first is renamed.
func (in Installer) convert(file string, entry []byte) error {
	data, info, err := readConfig(file)
	if err != nil {
		return err
	}
	out, err := listOf(data, entry)
	if err != nil {
		return err
	}
	target := listFor(file)
	if _, err := os.Lstat(target); err == nil {
		if own, err := isConverted(target); err != nil || !own {
			return errors.Join(configError("%s is there already, and is not made of it", target), err)
		}
	}
	if err := create(target, out, info.Mode().Perm(), info); err != nil {
		return err
	}
	if err := os.Rename(file, file+SavedSuffix); err != nil {
		return errors.Join(err, os.Remove(target))
	}
	return syncDir(file)
}

// listFor names the list that a configuration is converted to.
func listFor(file string) string { return strings.TrimSuffix(file, filepath.Ext(file)) + listExt }

// saved names the configurations set aside that a list may have been made of.
func saved(list string) (there []string, err error) {
	for _, ext := range []string{".conf", ".json"} {
		name := strings.TrimSuffix(list, listExt) + ext + SavedSuffix
		if _, err := os.Lstat(name); err == nil {
			there = append(there, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return there, nil
}

// isConverted tells whether a list was made by convert: it has our entry, and the original is beside it.
func isConverted(list string) (bool, error) {
	originals, err := saved(list)
	if err != nil || len(originals) == 0 {
		return false, err
	}
	data, _, err := readConfig(list)
	if err != nil {
		return false, err
	}
	l, err := parseList(data)
	if err != nil {
		return false, err
	}
	return slices.Contains(l.ours, true), nil
}

// copyPlugin copies the plugin's program, if another one or none is there.
func (in Installer) copyPlugin() (bool, error) {
	target := filepath.Join(in.BinDir, PluginType)
	info, err := os.Stat(target)
	if err == nil && info.Mode().Perm() == 0o755 {
		if same, err := sameContent(target, in.Plugin); err == nil && same {
			return false, nil
		}
	}
	data, err := os.ReadFile(in.Plugin)
	if err != nil {
		return false, err
	}
	if err := os.MkdirAll(in.BinDir, 0o755); err != nil {
		return false, err
	}
	if err := removeTemps(in.BinDir); err != nil {
		return false, err
	}
	return true, create(target, data, 0o755, nil)
}
