package loader

import (
	"errors"
	"fmt"
	"net/netip"

	"conduit.io/conduit/api/kernel"

	"github.com/cilium/ebpf"
)

// Acceptor is the process that has accepted a connection, as the kernel saw it do so.
type Acceptor struct {
	Process kernel.Process
	UID     uint32 // in the initial user namespace
	// PIDNamespace is the inode of the PID namespace in which it makes its children: its own, unless it has made one below.
	// ParentPIDNamespace is that of the one above, 0 when there is none.
	PIDNamespace, ParentPIDNamespace uint32
}

// AskAcceptor has the kernel watch who accepts the connection from one address to another inside a network namespace. It
// comes before the connect. One question stands at a time, the newest; the zero AddrPorts are none.
func (d *Datapath) AskAcceptor(cookie uint64, from, to netip.AddrPort) error {
	w := kernel.Witness{Cookie: cookie}
	if from.IsValid() {
		w.Conn = kernel.NewTuple(from, to)
	}
	if err := d.maps["cdt_witness"].Put(uint32(0), &w); err != nil {
		return fmt.Errorf("ask who accepts %v: %w", to, err)
	}
	return nil
}

// Acceptor is the answer to AskAcceptor; ok is false while nobody has accepted.
func (d *Datapath) Acceptor() (a Acceptor, ok bool, err error) {
	var w kernel.Witness
	if err := d.maps["cdt_witness"].Lookup(uint32(0), &w); err != nil {
		return a, false, fmt.Errorf("read who has accepted: %w", err)
	}
	return Acceptor{w.Who, w.Uid, w.PidNs, w.PidNsParent}, w.Who.Tgid != 0, nil
}

// SetKubelet makes a process the kubelet of the node whose network namespace is named: from now on what it dials there
// reaches the applications of the node's pods past the proxy. It takes the place of every other.
func (d *Datapath) SetKubelet(cookie uint64, p kernel.Process) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.maps["cdt_kubelet"].Put(cookie, &p)
	if err == nil {
		err = d.forgetKubelets(cookie)
	}
	if err != nil {
		return fmt.Errorf("vouch for the kubelet: %w", err)
	}
	return nil
}

// ForgetKubelet takes back what SetKubelet has said.
func (d *Datapath) ForgetKubelet() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.forgetKubelets(0); err != nil {
		return fmt.Errorf("forget the kubelet: %w", err)
	}
	return nil
}

func (d *Datapath) forgetKubelets(but uint64) error {
	var (
		cookie uint64
		p      kernel.Process
		others []uint64
	)
	it := d.maps["cdt_kubelet"].Iterate()
	for it.Next(&cookie, &p) {
		if cookie != but {
			others = append(others, cookie)
		}
	}
	err := it.Err()
	for _, cookie := range others {
		err = errors.Join(err, d.maps["cdt_kubelet"].Delete(cookie))
	}
	return err
}

// Kubelet is the process that SetKubelet named, this agent's or an earlier one's.
func (d *Datapath) Kubelet(cookie uint64) (p kernel.Process, ok bool, err error) {
	err = d.maps["cdt_kubelet"].Lookup(cookie, &p)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return p, false, nil
	}
	if err != nil {
		return p, false, fmt.Errorf("read the kubelet: %w", err)
	}
	return p, true, nil
}
