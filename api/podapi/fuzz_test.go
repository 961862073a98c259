package podapi_test

import (
	"encoding/json"
	"testing"

	"conduit.io/conduit/api/podapi"
)

// FuzzRequest: what is read can be written, and reads the same again.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"version":1,"op":"ADD","network":"pods","containerID":"c","ifName":"eth0","netns":"/run/netns/x","namespace":"shop","pod":"web","addrs":["10.0.0.1","fd00::1"]}`,
		`{"op":"GC","valid":[{"containerID":"c","ifName":"eth0"}]}`, `{"op":"STATUS"}`, `{}`, `null`, `{"addrs":["fe80::1%eth0"]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var r, again podapi.Request
		if json.Unmarshal(in, &r) != nil {
			return
		}
		out, err := json.Marshal(&r)
		if err == nil {
			err = json.Unmarshal(out, &again)
		}
		if err != nil {
			t.Fatalf("%q was read, and written as %q: %v", in, out, err)
		}
		if second, err := json.Marshal(&again); err != nil || string(second) != string(out) {
			t.Fatalf("%q and %q, %v", out, second, err)
		}
	})
}
