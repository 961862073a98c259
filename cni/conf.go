package cni

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// Conf is the plugin's part of a CNI network configuration.
type Conf struct {
	Network     string        // name of the network
	CNIVersion  string        // of the configuration, and so of the result
	AgentSocket string        // where the agent listens
	Timeout     time.Duration // for the agent's answer to ADD; no verb waits longer
	PrevResult  json.RawMessage
	Valid       []types.GCAttachment // GC only; nil when the runtime has not said which attachments are valid
}

const (
	defaultTimeout = 20 * time.Second
	maxTimeout     = 5 * time.Minute
)

// ownKeys are the keys that this plugin defines.
var ownKeys = []string{"agentSocket", "timeout"}

// standardKeys are the keys that the CNI specification, section 1, or a runtime puts into any plugin's configuration.
var standardKeys = []string{"cniVersion", "name", "type", "prevResult", "args", "capabilities", "runtimeConfig", "ipam", "ipMasq", "dns"}

// The keys by which a runtime tells GC what is valid (specification, "GC"); the second one is the name before the
// specification 1.1 was corrected.
const (
	keyValid    = "cni.dev/valid-attachments"
	keyValidOld = "cni.dev/attachments"
)

// runtimePrefix marks keys that belong to the CNI project (specification, section 1, "reserved keys").
const runtimePrefix = "cni.dev/"

// parseConf reads the configuration on standard input. Errors are CNI errors with code 7 (invalid configuration).
func parseConf(stdin []byte) (*Conf, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &raw); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("the network configuration is not a JSON object: %v", err), hintConf)
	}
	if err := checkKeys(raw); err != nil {
		return nil, err
	}
	var in struct {
		Name        string               `json:"name"`
		CNIVersion  string               `json:"cniVersion"`
		AgentSocket string               `json:"agentSocket"`
		Timeout     string               `json:"timeout"`
		Valid       []types.GCAttachment `json:"cni.dev/valid-attachments"`
		Attachments []types.GCAttachment `json:"cni.dev/attachments"`
	}
	if err := json.Unmarshal(stdin, &in); err != nil {
		return nil, invalidConf(fmt.Sprintf("the network configuration has a field of the wrong type: %v", err))
	}
	c := &Conf{Network: in.Name, CNIVersion: in.CNIVersion, AgentSocket: in.AgentSocket, Timeout: defaultTimeout}
	for key, list := range map[string][]types.GCAttachment{keyValid: in.Valid, keyValidOld: in.Attachments} {
		if _, ok := raw[key]; ok { // libcni says null when there are none
			c.Valid = append([]types.GCAttachment{}, append(c.Valid, list...)...)
		}
	}
	if p := raw["prevResult"]; len(p) > 0 && string(p) != "null" {
		c.PrevResult = p
	}
	if c.AgentSocket == "" {
		return nil, invalidConf(`"agentSocket" is missing: it is the path of the agent's CNI socket, RUN-DIR/cni.sock`)
	}
	if !filepath.IsAbs(c.AgentSocket) {
		return nil, invalidConf(fmt.Sprintf(`"agentSocket" is %q: want an absolute path`, c.AgentSocket))
	}
	if in.Timeout != "" {
		d, err := time.ParseDuration(in.Timeout)
		if err != nil || d <= 0 || d > maxTimeout {
			return nil, invalidConf(fmt.Sprintf(`"timeout" is %q: want a duration such as "20s", at most %v`, in.Timeout, maxTimeout))
		}
		c.Timeout = d
	}
	return c, nil
}

// checkKeys refuses keys that nobody defines. Names are compared exactly, as the specification does, although
// encoding/json would accept any case.
func checkKeys(raw map[string]json.RawMessage) error {
	var unknown []string
	for key := range raw {
		if !slices.Contains(ownKeys, key) && !slices.Contains(standardKeys, key) && !strings.HasPrefix(key, runtimePrefix) {
			unknown = append(unknown, fmt.Sprintf("%q", key))
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	return invalidConf(fmt.Sprintf("unknown field %s: conduit-cni defines %s", strings.Join(unknown, ", "), strings.Join(ownKeys, " and ")))
}

const hintConf = "correct the conduit-cni entry in the node's CNI configuration (the .conflist file in use, usually in /etc/cni/net.d)"

func invalidConf(message string) error {
	return types.NewError(types.ErrInvalidNetworkConfig, message, hintConf)
}
