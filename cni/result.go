package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// parseChained reads the configuration of a verb that needs the result of the plugins before this one.
func parseChained(args *skel.CmdArgs, verb string) (*Conf, *current.Result, error) {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return nil, nil, err
	}
	if conf.PrevResult == nil {
		return nil, nil, invalidConf(fmt.Sprintf(`%s has no "prevResult": conduit-cni must come after a primary plugin (such as bridge, ptp, or your network's own) in the "plugins" list`, verb))
	}
	// Results before 1.0.0 may come without a version; they have the configuration's (specification, section 5).
	fixed, err := withVersion(conf.PrevResult, conf.CNIVersion)
	if err != nil {
		return nil, nil, err
	}
	if err := checkLists(fixed); err != nil {
		return nil, nil, err
	}
	conf.PrevResult = fixed
	result, err := create.CreateFromBytes(conf.PrevResult)
	if err != nil {
		return nil, nil, invalidConf(fmt.Sprintf(`"prevResult" cannot be read: %v`, err))
	}
	if result.Version() != conf.CNIVersion {
		return nil, nil, types.NewError(types.ErrIncompatibleCNIVersion,
			fmt.Sprintf(`"prevResult" has cniVersion %s, and the network configuration has %s`, result.Version(), conf.CNIVersion),
			"the runtime must pass the result in the configuration's version: look for a second conflist, or update the runtime")
	}
	prev, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, nil, invalidConf(fmt.Sprintf(`"prevResult" cannot be read: %v`, err))
	}
	return conf, prev, nil
}

// withVersion adds cniVersion to a result that has none, and leaves every other byte alone.
func withVersion(result json.RawMessage, version string) (json.RawMessage, error) {
	var have struct {
		CNIVersion *string `json:"cniVersion"`
	}
	if err := json.Unmarshal(result, &have); err != nil {
		return nil, invalidConf(fmt.Sprintf(`"prevResult" cannot be read: %v`, err))
	}
	if have.CNIVersion != nil {
		return result, nil
	}
	field, err := json.Marshal(version)
	if err != nil {
		return nil, err
	}
	rest := bytes.TrimSpace(bytes.TrimPrefix(bytes.TrimSpace(result), []byte("{")))
	out := append([]byte(`{"cniVersion":`), field...)
	if rest[0] != '}' {
		out = append(out, ',')
	}
	return append(out, rest...), nil
}

// checkLists refuses a result with null where an interface, an address or a route should be: libcni would take it.
func checkLists(result json.RawMessage) error {
	var r struct{ Interfaces, IPs, Routes []json.RawMessage }
	if err := json.Unmarshal(result, &r); err != nil {
		return invalidConf(fmt.Sprintf(`"prevResult" cannot be read: %v`, err))
	}
	for name, list := range map[string][]json.RawMessage{"interfaces": r.Interfaces, "ips": r.IPs, "routes": r.Routes} {
		for i, entry := range list {
			if string(entry) == "null" {
				return invalidConf(fmt.Sprintf(`"prevResult" is inconsistent: %s[%d] is null`, name, i))
			}
		}
	}
	return nil
}

// podAddrs are the addresses of the result's interfaces inside the pod. An address without an interface is taken for
// the pod's.
func podAddrs(r *current.Result) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil {
			if *i < 0 || *i >= len(r.Interfaces) {
				return nil, invalidConf(fmt.Sprintf(`"prevResult" is inconsistent: address %s is on interface %d of %d`, ip.Address.IP, *i, len(r.Interfaces)))
			}
			if r.Interfaces[*i].Sandbox == "" {
				continue // on the node's side
			}
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			addrs = append(addrs, a.Unmap())
		}
	}
	if len(addrs) == 0 {
		return nil, invalidConf(`"prevResult" gives the pod no address: the primary plugin before conduit-cni must have an "ipam" section`)
	}
	return addrs, nil
}

// writeResult passes the previous result on as it came.
func writeResult(w io.Writer, conf *Conf) error {
	if _, err := fmt.Fprintf(w, "%s\n", conf.PrevResult); err != nil {
		return types.NewError(types.ErrIOFailure, fmt.Sprintf("write the result: %v", err), "")
	}
	return nil
}
