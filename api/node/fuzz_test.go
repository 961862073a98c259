package node_test

import (
	"encoding/json"
	"testing"

	"conduit.io/conduit/api/node"
)

// FuzzMessage: what is read can be written, and reads the same again.
func FuzzMessage(f *testing.F) {
	for _, s := range []string{
		`{"hello":{"version":1,"pid":2,"build":"b","kernel":true,"snapshot":3,"pods":[1],"draining":[]}}`,
		`{"id":1,"snapshot":{"version":1,"trustDomain":"td","node":"n","workloads":[{"name":"w","namespace":"s","addrs":["10.0.0.1"]}],"services":[]}}`,
		`{"id":2,"certificates":{"roots":"AA==","leaves":[{"identity":{"trustDomain":"td"},"chain":"AA==","key":"AA=="}]}}`,
		`{"id":3,"pod":{"cookie":18446744073709551615,"workload":{}}}`, `{"id":4,"remove":{"cookie":1,"drain":true}}`, `{"ack":{"error":"x"}}`, `{}`, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var m, again node.Message
		if json.Unmarshal(in, &m) != nil {
			return
		}
		out, err := json.Marshal(&m)
		if err != nil {
			t.Fatalf("%q was read, and cannot be written: %v", in, err)
		}
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatalf("%q was written as %q, which cannot be read: %v", in, out, err)
		}
		if second, err := json.Marshal(&again); err != nil || string(second) != string(out) {
			t.Fatalf("%q and %q, %v", out, second, err)
		}
	})
}
