// Package cni is Conduit's chained CNI plugin (specification 1.1.0). It runs after any primary plugin, asks the
// node's agent to wire the pod, and passes the primary plugin's result on unchanged. It changes nothing itself.
//
// ADD fails closed: a pod whose wiring is not confirmed does not start. DEL never stands in the way of a pod's
// removal: what the agent misses, it finds out by GC or by the namespace's disappearance.
package cni

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"conduit.io/conduit/api/podapi"
	"conduit.io/conduit/mesh"
)

// Verbs other than ADD ask the agent for less, and wait less.
const (
	checkTimeout  = 10 * time.Second
	delTimeout    = 5 * time.Second
	gcTimeout     = 10 * time.Second
	statusTimeout = 5 * time.Second
)

// Main runs the plugin as the CNI specification wants it: the call in the environment and on standard input, the
// result or error on standard output. It exits on errors.
func Main() {
	// After ADD and DEL skel would compare CNI_NETNS with this process's own namespace. The agent has judged it by then, and has refused its own.
	// And a look at /proc/self/task/TID costs the runtime dearly: when it reaps this process, and the thread ends as well, both clear
	// the same directory of /proc, and the kernel has one of the two spin until the other, which may not even run, is done.
	if err := os.Setenv("CNI_NETNS_OVERRIDE", "true"); err != nil {
		fmt.Fprintf(os.Stderr, "conduit-cni: %v\n", err)
	}
	p := plugin{stdout: os.Stdout, stderr: os.Stderr}
	skel.PluginMainFuncs(skel.CNIFuncs{Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status},
		version.VersionsStartingFrom("0.3.1"), "conduit-cni "+mesh.Version()+": wires pods into the Conduit mesh (chained CNI plugin)")
}

type plugin struct {
	stdout, stderr io.Writer
}

func (p plugin) add(args *skel.CmdArgs) error {
	conf, prev, err := parseChained(args, "ADD")
	if err != nil {
		return err
	}
	req, err := request(podapi.Add, conf, args)
	if err != nil {
		return err
	}
	if req.Namespace == "" || req.Pod == "" {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS names no pod: K8S_POD_NAMESPACE and K8S_POD_NAME are needed",
			"container runtimes set them for Kubernetes pods; with cnitool, set CNI_ARGS='IgnoreUnknown=1;K8S_POD_NAMESPACE=...;K8S_POD_NAME=...'")
	}
	if req.Addrs, err = podAddrs(prev); err != nil {
		return err
	}
	if _, err := ask(conf, req, conf.Timeout); err != nil {
		return toCNI(err, req, conf)
	}
	return writeResult(p.stdout, conf)
}

func (p plugin) check(args *skel.CmdArgs) error {
	conf, prev, err := parseChained(args, "CHECK")
	if err != nil {
		return err
	}
	req, err := request(podapi.Check, conf, args)
	if err != nil {
		return err
	}
	if req.Addrs, err = podAddrs(prev); err != nil {
		return err
	}
	if _, err := ask(conf, req, checkTimeout); err != nil {
		return toCNI(err, req, conf)
	}
	return nil
}

// del reports trouble on standard error alone: a runtime repeats a failed DEL for ever, and the pod could not go.
func (p plugin) del(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		p.warn(args, err)
		return nil
	}
	req, err := request(podapi.Del, conf, args)
	if err != nil {
		// The container's ID is enough to find the attachment.
		p.warn(args, err)
	}
	if _, err := ask(conf, req, delTimeout); err != nil {
		p.warn(args, toCNI(err, req, conf))
	}
	return nil
}

func (p plugin) warn(args *skel.CmdArgs, err error) {
	fmt.Fprintf(p.stderr, "conduit-cni: DEL of container %s goes on although the agent has not confirmed it: %v\n", args.ContainerID, err)
}

func (p plugin) gc(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	if conf.Valid == nil { // taken for an empty list, it would take every pod of the network out of the mesh
		fmt.Fprintf(p.stderr, "conduit-cni: GC removes nothing: the runtime has not said by %q which attachments are valid\n", keyValid)
		return nil
	}
	req := &podapi.Request{Version: podapi.Version, Op: podapi.GC, Network: conf.Network, Valid: []podapi.Attachment{}}
	for _, a := range conf.Valid {
		req.Valid = append(req.Valid, podapi.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	if _, err := ask(conf, req, gcTimeout); err != nil {
		return toCNI(err, req, conf)
	}
	return nil
}

// status says 50, "cannot service ADD requests", whatever keeps the agent from it. Pods that are already wired are
// served by the proxy and the pinned programs meanwhile, so it is not 51, "limited connectivity".
func (p plugin) status(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	req := &podapi.Request{Version: podapi.Version, Op: podapi.Status, Network: conf.Network}
	if _, err := ask(conf, req, statusTimeout); err != nil {
		cerr := toCNI(err, req, conf)
		cerr.Code = types.ErrPluginNotAvailable
		return cerr
	}
	return nil
}

// podArgs are the CNI_ARGS that Kubernetes runtimes pass. LoadArgs fills fields by name; other names are an error
// unless IgnoreUnknown is among the arguments.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE          types.UnmarshallableString //nolint:staticcheck // ST1003: the name is the argument's
	K8S_POD_NAME               types.UnmarshallableString //nolint:staticcheck // ST1003: the name is the argument's
	K8S_POD_UID                types.UnmarshallableString //nolint:staticcheck // ST1003: the name is the argument's
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString //nolint:staticcheck // ST1003: the name is the argument's
}

// request describes the attachment. It is usable, without the pod's name, when CNI_ARGS cannot be read.
func request(op podapi.Op, conf *Conf, args *skel.CmdArgs) (*podapi.Request, error) {
	req := &podapi.Request{Version: podapi.Version, Op: op, Network: conf.Network,
		ContainerID: args.ContainerID, IfName: args.IfName, Netns: args.Netns}
	var pod podArgs
	if err := types.LoadArgs(args.Args, &pod); err != nil {
		return req, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS cannot be read: %v", err),
			"add IgnoreUnknown=1 to CNI_ARGS if other plugins of the chain need more arguments")
	}
	req.Namespace, req.Pod, req.PodUID = string(pod.K8S_POD_NAMESPACE), string(pod.K8S_POD_NAME), string(pod.K8S_POD_UID)
	return req, nil
}
