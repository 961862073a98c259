package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// cniTimeout bounds one CNI operation: longer than any deadline the plugins keep themselves.
const cniTimeout = 60 * time.Second

// NetworkName is the name of the node's CNI network.
func (n *Node) NetworkName() string { return n.lab.cfg.Name }

// PluginPath is what CNI_PATH must be for the node's chain.
func (n *Node) PluginPath() []string {
	path := slices.Concat(n.lab.cfg.PluginPath, n.cfg.PluginPath)
	if n.lab.cfg.BinDir != "" {
		path = append(path, n.lab.cfg.BinDir)
	}
	return path
}

// Conflist is the node's CNI configuration list, in JSON.
func (n *Node) Conflist() ([]byte, error) {
	primary := map[string]any{"type": n.cfg.Primary, "ipam": n.ipam()}
	if n.cfg.Primary == Bridge {
		primary["bridge"] = "cni0"
		primary["isGateway"] = true
		primary["hairpinMode"] = true
	}
	plugins := []any{primary}
	if n.cfg.Mesh {
		plugins = append(plugins, map[string]any{"type": "conduit-cni", "agentSocket": n.AgentSocket()})
	}
	if n.cfg.Chain != nil {
		plugins = n.cfg.Chain(plugins)
	}
	return json.MarshalIndent(map[string]any{"cniVersion": n.cfg.CNIVersion, "name": n.NetworkName(), "plugins": plugins}, "", "  ")
}

func (n *Node) ipam() map[string]any {
	v4, v6 := podSubnets(n.index)
	var ranges [][]map[string]string
	var routes []map[string]string
	if n.cfg.Families&IPv4 != 0 {
		ranges = append(ranges, []map[string]string{{"subnet": v4.String()}})
		routes = append(routes, map[string]string{"dst": "0.0.0.0/0"})
	}
	if n.cfg.Families&IPv6 != 0 {
		ranges = append(ranges, []map[string]string{{"subnet": v6.String()}})
		routes = append(routes, map[string]string{"dst": "::/0"})
	}
	return map[string]any{"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": filepath.Join(n.dir, "ipam")}
}

func (n *Node) writeConflist() error {
	b, err := n.Conflist()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.CNIConfDir(), "10-"+n.NetworkName()+".conflist"), b, 0o644)
}

// runtime runs fn as a container runtime on the node: the plugins that it starts inherit the node's namespace.
func (n *Node) runtime(ctx context.Context, fn func(context.Context, *libcni.CNIConfig, *libcni.NetworkConfigList) error) error {
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	b, err := n.Conflist()
	if err != nil {
		return err
	}
	list, err := libcni.NetworkConfFromBytes(b)
	if err != nil {
		return fmt.Errorf("read the CNI configuration of %s: %w", n.name, err)
	}
	config := libcni.NewCNIConfigWithCacheDir(n.PluginPath(), n.cniCacheDir(), nil)
	return n.InNetns(func() error { return fn(ctx, config, list) })
}

// CNIStatus asks the node's chain whether it can wire pods (CNI STATUS).
func (n *Node) CNIStatus(ctx context.Context) error {
	return n.runtime(ctx, func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return c.GetStatusNetworkList(ctx, list)
	})
}

// CNIGC tells the node's chain which pods are still there (CNI GC); everything else is dropped. Like a runtime,
// libcni first deletes the attachments that it has cached and that are not valid.
func (n *Node) CNIGC(ctx context.Context, valid ...*Pod) error {
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, p := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: p.containerID, IfName: p.IfName()})
	}
	return n.runtime(ctx, func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return c.GCNetworkList(ctx, list, args)
	})
}
