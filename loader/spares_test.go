package loader

import (
	"testing"
	"time"
)

// Every copy is a pod's own, also when more are taken than are held ready; others take their place, and none is left when the Datapath is closed.
func TestSpares(t *testing.T) {
	before := len(openFiles())
	d := openAt(t, pinDir(t))
	var copies []lookupCopy
	for cookie := range uint64(spareCount + 3) {
		c, err := d.spares.take()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.of.Put(uint32(0), cookie); err != nil {
			t.Fatal(err)
		}
		copies = append(copies, c)
	}
	for want, c := range copies {
		var got uint64
		if err := c.of.Lookup(uint32(0), &got); err != nil || got != uint64(want) {
			t.Errorf("copy %d is that of %d (%v)", want, got, err)
		}
		c.close()
	}
	for deadline := time.Now().Add(30 * time.Second); len(d.spares.ready) < spareCount; {
		if time.Now().After(deadline) {
			t.Fatalf("%d copies are ready, want %d again", len(d.spares.ready), spareCount)
		}
		<-time.After(time.Millisecond)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if after := openFiles(); len(after) > before {
		t.Errorf("%d files are open, and %d were before: %v", len(after), before, after)
	}
}
