// Package store keeps what the CNI plugin told about each attachment in files, so that a restarted agent knows its
// pods. One file per attachment, replaced atomically.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"conduit.io/conduit/mesh"
)

// Attachment is one interface of one container, as the plugin's ADD described it.
type Attachment struct {
	Network     string       `json:"network"`
	ContainerID string       `json:"containerID"`
	IfName      string       `json:"ifName"`
	Netns       string       `json:"netns"`  // path
	Cookie      uint64       `json:"cookie"` // of the namespace that was at Netns
	Namespace   string       `json:"namespace"`
	Pod         string       `json:"pod"`
	PodUID      string       `json:"podUID,omitempty"`
	Addrs       []netip.Addr `json:"addrs"`
	// Workload is the pod as the manifests described it last; it serves while they do not describe it.
	Workload mesh.Workload `json:"workload"`
}

// Key names an attachment: CNI identifies it by container and interface.
type Key struct {
	ContainerID string
	IfName      string
}

// Key is the attachment's key.
func (a *Attachment) Key() Key { return Key{a.ContainerID, a.IfName} }

// Store is the directory. Its methods must not be called concurrently.
type Store struct{ dir string }

// Open makes the directory if it is missing.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open attachment store: %w", err)
	}
	return &Store{dir: dir}, nil
}

// path is <container>-<ifname>.json. Dashes of the interface name are escaped, so that the last one divides the two.
func (s *Store) path(k Key) string {
	return filepath.Join(s.dir, k.ContainerID+"-"+strings.NewReplacer("%", "%25", "-", "%2D").Replace(k.IfName)+".json")
}

// Put writes a.
func (s *Store) Put(a *Attachment) error {
	data, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return fmt.Errorf("store attachment: %w", err)
	}
	path := s.path(a.Key())
	tmp := path + ".tmp"
	err = os.WriteFile(tmp, append(data, '\n'), 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("store attachment: %w", err)
	}
	return nil
}

// Delete forgets k; it is no error if it is not there.
func (s *Store) Delete(k Key) error {
	if err := os.Remove(s.path(k)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete attachment: %w", err)
	}
	return nil
}

// Load reads every attachment, in the order of their file names. Files that cannot be read are reported in the error,
// and do not keep the others from being returned.
func (s *Store) Load() ([]*Attachment, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("load attachments: %w", err)
	}
	var out []*Attachment
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if strings.HasSuffix(e.Name(), ".tmp") {
			os.Remove(path) // a write that was cut off: the plugin was never told of success
			continue
		}
		a, err := read(path)
		if err == nil && s.path(a.Key()) != path {
			err = fmt.Errorf("%s describes another attachment", path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("load attachment: %w", err))
			continue
		}
		out = append(out, a)
	}
	return slices.Clip(out), errors.Join(errs...)
}

func read(path string) (*Attachment, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	a := &Attachment{}
	if err := json.Unmarshal(data, a); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if a.ContainerID == "" || a.Netns == "" || a.Cookie == 0 {
		return nil, fmt.Errorf("%s: not an attachment", path)
	}
	return a, nil
}
