package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"conduit.io/conduit/api/kernel"

	"github.com/cilium/ebpf"
)

// widenCounters replaces pinned counters of a version that knew fewer reasons for a bypass: reasons are only ever added
// at the end. What the old programs count after that, until they are replaced a moment later, is lost.
func (d *Datapath) widenCounters(spec *ebpf.MapSpec) error {
	pin := filepath.Join(d.pins.maps(), spec.Name)
	old, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the pinned counters: %w", err)
	}
	defer old.Close()
	if old.Type() != spec.Type || old.KeySize() != spec.KeySize || old.ValueSize() >= spec.ValueSize || old.ValueSize()%8 != 0 {
		return nil // as it should be, or for load to refuse
	}
	wide := spec.Copy()
	wide.Pinning = ebpf.PinNone
	next := pin + "-next"
	os.Remove(next) // of an agent that was killed just here
	m, err := ebpf.NewMap(wide)
	if err == nil {
		defer m.Close()
		err = copyCounters(m, old)
	}
	if err == nil {
		err = m.Pin(next)
	}
	if err == nil {
		err = os.Rename(next, pin)
	}
	if err != nil {
		os.Remove(next)
		return fmt.Errorf("take over the counters of another version: %w", err)
	}
	d.cfg.Log.Info("counters of an earlier version taken over", "pin", pin)
	return nil
}

func copyCounters(to, from *ebpf.Map) error {
	var cookie uint64
	for err := from.NextKey(nil, &cookie); ; err = from.NextKey(cookie, &cookie) {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		raw, err := from.LookupBytes(cookie)
		if err != nil {
			return err
		}
		if raw == nil {
			continue // dropped just now
		}
		values, err := decodeCounters(raw, int(from.ValueSize()))
		if err == nil {
			err = to.Put(cookie, values)
		}
		if err != nil {
			return err
		}
	}
}

// decodeCounters reads the values of all CPUs, each of size bytes; what they do not have is 0.
func decodeCounters(raw []byte, size int) ([]kernel.Counters, error) {
	all := make([]kernel.Counters, len(raw)/size)
	for i := range all {
		whole := make([]byte, binary.Size(all[i]))
		copy(whole, raw[i*size:(i+1)*size])
		if _, err := binary.Decode(whole, binary.NativeEndian, &all[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}
