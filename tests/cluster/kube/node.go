package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"conduit.io/conduit/tests/cluster/machine"
)

// CNIConfig is the place of the primary plugin's configuration on a node.
const CNIConfig = "/etc/cni/net.d/10-primary.conflist"

type object = map[string]any

// addNode starts a node's machine and its daemons, and does not wait until the node is ready.
func (c *Cluster) addNode(ctx context.Context, i int, bins Binaries) error {
	name := nodeName(i)
	dir := filepath.Join(c.dir, name)
	files, err := c.nodeFiles(i)
	if err != nil {
		return err
	}
	if err := writeFiles(filepath.Join(dir, "root"), files); err != nil {
		return err
	}
	if err := copyPlugins(filepath.Join(bins.Own, "cni"), filepath.Join(dir, "root/opt/cni/bin")); err != nil {
		return err
	}
	m, err := machine.Start(filepath.Join(c.dir, "initd"), machine.Config{Name: name, Dir: dir, Group: c.group(name), Owned: true,
		Binds: append([]machine.Bind{{Host: bins.Kubernetes, Inside: binDir}}, c.opts.Binds...), Sysctls: routerSysctls()})
	if err != nil {
		return err
	}
	c.nodes[i] = m
	if err := c.plug(i, m); err != nil {
		return err
	}
	if err := m.StartDaemon(machine.Daemon{Name: "containerd", Argv: []string{"containerd", "--config=" + conf("containerd.toml")}}); err != nil {
		return err
	}
	err = Poll(ctx, 100*time.Millisecond, "containerd answers on "+name, func() error {
		_, err := m.Run(ctx, "ctr", "version")
		return err
	})
	if err != nil {
		return err
	}
	if err := c.importArchive(ctx, m, filepath.Join(c.dir, pauseArchive)); err != nil {
		return err
	}
	for _, d := range []machine.Daemon{
		{Name: "kubelet", Argv: []string{"kubelet", "--config=" + conf("kubelet.json"), "--kubeconfig=" + conf("kubelet.conf"),
			"--hostname-override=" + name, "--node-ip=" + joined(c.net.node(i))}},
		{Name: "kube-proxy", Argv: []string{"kube-proxy", "--config=" + conf("kube-proxy.json")}},
	} {
		if err := m.StartDaemon(d); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) nodeFiles(i int) (map[string][]byte, error) {
	name, server := nodeName(i), "https://"+c.net.controlPlane()+":"+apiPort
	kubelet, err := c.ca.issue("system:node:"+name, "system:nodes", append([]string{name}, c.net.node(i)...)...)
	if err != nil {
		return nil, err
	}
	kubeletConf, err := c.ca.kubeconfig(server, kubelet)
	if err != nil {
		return nil, err
	}
	proxyConf, err := c.ca.client(server, "system:kube-proxy", "")
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		conf("ca.crt"): c.ca.pem, conf("kubelet.crt"): kubelet.cert, conf("kubelet.key"): kubelet.key,
		conf("kubelet.conf"): kubeletConf, conf("kube-proxy.conf"): proxyConf,
		conf("containerd.toml"): []byte(containerdConfig),
		"/var/lib/kubelet/keep": nil,
	}
	for file, content := range map[string]object{
		conf("kubelet.json"): c.kubeletConfig(), conf("kube-proxy.json"): c.kubeProxyConfig(name), CNIConfig: c.cniConfig(i),
	} {
		if files[file], err = json.MarshalIndent(content, "", "  "); err != nil {
			return nil, err
		}
	}
	return files, nil
}

const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + PauseImage + `"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
`

func (c *Cluster) kubeletConfig() object {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"cgroupDriver": "cgroupfs", "failSwapOn": false, "failCgroupV1": false, "enforceNodeAllocatable": []string{},
		"authentication":           object{"anonymous": object{"enabled": false}, "webhook": object{"enabled": true}, "x509": object{"clientCAFile": conf("ca.crt")}},
		"authorization":            object{"mode": "Webhook"},
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"clusterDNS":               []string{c.net.dns()}, "clusterDomain": "cluster.local", "resolvConf": "/etc/resolv.conf",
		"tlsCertFile": conf("kubelet.crt"), "tlsPrivateKeyFile": conf("kubelet.key"),
		// The disk is the host's, and nobody's images are to be removed.
		"evictionHard": object{"nodefs.available": "1%", "imagefs.available": "1%"}, "imageGCHighThresholdPercent": 100,
		"maxPods": 120,
	}
}

func (c *Cluster) kubeProxyConfig(node string) object {
	return object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": c.opts.ProxyMode,
		"clusterCIDR": c.net.pods(), "hostnameOverride": node, "clientConnection": object{"kubeconfig": conf("kube-proxy.conf")},
		"conntrack": object{"maxPerCore": 0}, // the kernel's only
	}
}

// cniConfig is the primary network of a node's pods.
func (c *Cluster) cniConfig(i int) object {
	var ranges [][]object
	var routes []object
	for k, subnet := range c.net.podNet(i) {
		ranges = append(ranges, []object{{"subnet": subnet}})
		routes = append(routes, object{"dst": c.net.anywhere()[k]})
	}
	primary := object{"type": c.opts.CNI, "ipMasq": false, "ipam": object{"type": "host-local", "ranges": ranges, "routes": routes}}
	if c.opts.CNI == "bridge" {
		primary["bridge"], primary["isGateway"], primary["hairpinMode"] = "cni0", true, true
	}
	return object{"cniVersion": "1.0.0", "name": "primary", "plugins": []object{primary,
		{"type": "portmap", "capabilities": object{"portMappings": true}}}}
}

// copyPlugins copies the CNI plugins: on a node, others are put beside them.
func copyPlugins(from, to string) error {
	entries, err := os.ReadDir(from)
	if err == nil && len(entries) == 0 {
		err = errors.New("no CNI plugin has been built")
	}
	if err == nil {
		err = os.MkdirAll(to, 0o755)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, mode)
	}
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return nil
}
