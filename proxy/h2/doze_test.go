package h2_test

import (
	"fmt"
	"testing"
	"time"
)

// TestDozing: connections without streams give up what they know of header blocks, and are understood afterwards as before.
func TestDozing(t *testing.T) {
	r := newRig(true)
	id := uint32(1)
	for round := range 4 {
		for i := range 6 {
			own, same := fmt.Sprintf("%d.%d", round, i), "the same in all requests"
			r.client.Headers(id, true, with(getReq, "x-own", own, "x-same", same)...)
			r.n.Run()
			if r.app.Field(id, 0, "x-own") != own || r.app.Field(id, 0, "x-same") != same {
				t.Fatalf("%s: the server got %v", own, r.app.Find(1, id))
			}
			r.app.Headers(id, true, ":status", "200", "x-own", own, "x-same", same)
			r.n.Run()
			if r.client.Field(id, 0, "x-own") != own || r.client.Field(id, 0, "x-same") != same {
				t.Fatalf("%s: the client got %v", own, r.client.Find(1, id))
			}
			id += 2
			r.n.Advance(3 * time.Second)
			if r.sv.Dozing() {
				t.Fatal("a connection in use dozes")
			}
		}
		r.n.Advance(21 * time.Second)
		if !r.sv.Dozing() || !r.cl.Dozing() {
			t.Fatalf("round %d: client's connection dozes %v, server's %v", round, r.sv.Dozing(), r.cl.Dozing())
		}
	}
	r.check(t)
}

// TestDozingWithStreams: a long stream keeps the connection awake.
func TestDozingWithStreams(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, true, getReq...)
	r.n.Run()
	r.n.Advance(time.Hour)
	if r.sv.Dozing() {
		t.Error("a connection with a stream dozes")
	}
	r.app.Headers(1, true, ":status", "200")
	r.n.Run()
	if r.client.Field(1, 0, ":status") != "200" {
		t.Errorf("got %v", r.client.Find(1, 1))
	}
	r.n.Advance(11 * time.Second)
	if !r.sv.Dozing() {
		t.Error("it does not doze afterwards")
	}
	r.check(t)
}
