// Package cnicache reads what libcni remembers of the attachments that container runtimes have made with it: one file for each,
// written when ADD has succeeded and removed by DEL. So pods can be found of which no plugin has told. The files are the
// runtime's: no pod can write them.
package cnicache

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// DefaultDir is where container runtimes have the records, on nodes.
const DefaultDir = "/var/lib/cni/results"

// kind is of the only format since libcni 0.8. Before, there was the result alone.
const kind = "cniCacheV1"

// maxRecord bounds what is read of a file; records are of a few KB.
const maxRecord = 1 << 20

// Record is one attachment of a Kubernetes pod, as its ADD ended.
type Record struct {
	Network, ContainerID, IfName string
	Netns                        string // path; empty: neither the runtime (libcni before 1.2) nor a plugin has said it
	Namespace, Pod               string
	PodUID                       string       // empty where the runtime has not said it
	Addrs                        []netip.Addr // of the interface in the pod
}

// Read reads the records of all pods below dir, in the order of their files. Those of other containers are passed over. What cannot
// be read is in the error, and does not keep the rest from being returned.
func Read(dir string) ([]Record, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the runtime's records: %w", err)
	}
	var out []Record
	var errs []error
	for _, e := range entries {
		r, err := read(filepath.Join(dir, e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed by a DEL just now
		case err != nil:
			errs = append(errs, fmt.Errorf("read the runtime's record %s: %w", e.Name(), err))
		case r.Namespace != "" && r.Pod != "" && r.IfName != "lo": // which some runtimes attach, too
			out = append(out, r)
		}
	}
	return out, errors.Join(errs...)
}

// cached is libcni's cachedInfo, as far as it matters.
type cached struct {
	Kind        string      `json:"kind"`
	ContainerID string      `json:"containerId"`
	IfName      string      `json:"ifName"`
	NetworkName string      `json:"networkName"`
	Netns       string      `json:"netns"`
	Args        [][2]string `json:"cniArgs"`
	Result      struct {
		Interfaces []struct {
			Name    string `json:"name"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
		IPs []struct {
			Interface *int   `json:"interface"`
			Address   string `json:"address"`
		} `json:"ips"`
	} `json:"result"`
}

func read(path string) (Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return Record{}, err // no record at all
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return Record{}, err
	}
	if len(data) > maxRecord {
		return Record{}, fmt.Errorf("it is larger than %d bytes", maxRecord)
	}
	return parse(data)
}

func parse(data []byte) (Record, error) {
	var c cached
	if err := json.Unmarshal(data, &c); err != nil {
		return Record{}, err
	}
	if c.Kind != kind {
		return Record{}, fmt.Errorf("its kind is %q, want %q", c.Kind, kind)
	}
	r := Record{Network: c.NetworkName, ContainerID: c.ContainerID, IfName: c.IfName, Netns: c.Netns}
	for _, arg := range c.Args {
		switch arg[0] {
		case "K8S_POD_NAMESPACE":
			r.Namespace = arg[1]
		case "K8S_POD_NAME":
			r.Pod = arg[1]
		case "K8S_POD_UID":
			r.PodUID = arg[1]
		}
	}
	for _, i := range c.Result.Interfaces {
		if r.Netns == "" && i.Name == r.IfName {
			r.Netns = i.Sandbox // the plugin's CNI_NETNS, as the specification says
		}
	}
	for _, ip := range c.Result.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(c.Result.Interfaces) && c.Result.Interfaces[*i].Sandbox == "" {
			continue // on the node's side
		}
		if p, err := netip.ParsePrefix(ip.Address); err == nil && !slices.Contains(r.Addrs, p.Addr().Unmap()) {
			r.Addrs = append(r.Addrs, p.Addr().Unmap())
		}
	}
	return r, nil
}
