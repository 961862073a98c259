package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

const testEntry = `{"type":"conduit-cni","agentSocket":"/run/conduit/cni.sock"}`

func TestAddEntry(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"compact": {
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}`,
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},` + testEntry + `]}`,
		},
		"indented, with what nobody knows": {
			"{\n  \"x\": 1.50e+3,\n  \"cniVersion\": \"0.3.1\", \"name\":\"n\",\n  \"plugins\": [\n    {\n      \"type\": \"calico\", \"mtu\": 12345678901234567890\n    },\n    {\"type\": \"portmap\"}\n  ],\n  \"z\": {\"b\":1,\"a\":\"\\u003c\"}\n}\n",
			"{\n  \"x\": 1.50e+3,\n  \"cniVersion\": \"0.3.1\", \"name\":\"n\",\n  \"plugins\": [\n    {\n      \"type\": \"calico\", \"mtu\": 12345678901234567890\n    },\n    {\"type\": \"portmap\"},\n    " + testEntry + "\n  ],\n  \"z\": {\"b\":1,\"a\":\"\\u003c\"}\n}\n",
		},
		"ours is there, with more behind it": {
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}, {"agentSocket" : "/run/conduit/cni.sock", "type":"conduit-cni"} , {"type":"tuning"}]}`,
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}, {"agentSocket" : "/run/conduit/cni.sock", "type":"conduit-cni"} , {"type":"tuning"}]}`,
		},
		"another socket": {
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"conduit-cni","agentSocket":"/old"},{"type":"tuning"}]}`,
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"tuning"},` + testEntry + `]}`,
		},
		"several of ours, in front too": {
			`{"cniVersion":"1.0.0","name":"n","plugins":[` + testEntry + `, ` + testEntry + `,  {"type":"bridge"},` + testEntry + `,` + testEntry + `,{"type":"tuning"}]}`,
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"tuning"},` + testEntry + `]}`,
		},
		"other cases of letters are other fields": {
			`{"cniVersion":"1.0.0","name":"n","Plugins":[],"plugins":[{"type":"bridge","Type":"conduit-cni"}]}`,
			`{"cniVersion":"1.0.0","name":"n","Plugins":[],"plugins":[{"type":"bridge","Type":"conduit-cni"},` + testEntry + `]}`,
		},
	} {
		got, err := addEntry([]byte(c.in), []byte(testEntry))
		if err != nil || string(got) != c.want {
			t.Errorf("%s:\n%s\nwant\n%s\n%v", name, got, c.want, err)
			continue
		}
		again, err := addEntry(got, []byte(testEntry))
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s, a second time:\n%s\n%v", name, again, err)
		}
		if _, err := libcni.NetworkConfFromBytes(got); err != nil {
			t.Errorf("%s: libcni: %v", name, err)
		}
	}
}

func TestRemoveEntriesUndoesAddEntry(t *testing.T) {
	for _, in := range []string{
		`{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}`,
		" {\"plugins\" : [ {\"type\":\"a\"}\n\t, {\"type\":\"b\"} ]\r\n, \"cniVersion\":\"1.1.0\" } \n\n",
		"{\"cniVersion\":\"0.4.0\",\n\"plugins\":[\n{\"type\":\"a\"}\n]}",
	} {
		with, err := addEntry([]byte(in), []byte(testEntry))
		if err != nil {
			t.Fatal(err)
		}
		without, err := removeEntries(with)
		if err != nil || string(without) != in {
			t.Errorf("%q\nbecame\n%q\nand then\n%q\n%v", in, with, without, err)
		}
	}
}

// What cannot be understood is refused with a reason.
func TestRefused(t *testing.T) {
	for in, why := range map[string]string{
		``:           "not valid JSON",
		`{"plugins"`: "not valid JSON",
		`{"cniVersion":"1.0.0","plugins":[{"type":"a"}]} {}`: "not valid JSON",
		`[]`:                                                           "not a JSON object",
		`{"cniVersion":"1.0.0"}`:                                       "no plugins",
		`{"cniVersion":"1.0.0","plugins":[]}`:                          "no plugins",
		`{"cniVersion":"1.0.0","plugins":{}}`:                          "not an array",
		`{"cniVersion":"1.0.0","plugins":null}`:                        "not an array",
		`{"cniVersion":"1.0.0","plugins":["bridge"]}`:                  "not an object",
		`{"cniVersion":"1.0.0","plugins":[{"name":"x"}]}`:              `no "type"`,
		`{"cniVersion":"1.0.0","plugins":[{"type":7}]}`:                `no "type"`,
		`{"plugins":[{"type":"a"}]}`:                                   `"cniVersion" is ""`,
		`{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}`:              "0.3.1 or later",
		`{"cniVersion":"0.3.0","plugins":[{"type":"a"}]}`:              "0.3.1 or later",
		`{"cniVersion":"new","plugins":[{"type":"a"}]}`:                `"cniVersion" is "new"`,
		`{"cniVersion":1,"plugins":[{"type":"a"}]}`:                    "not a string",
		`{"cniVersion":"1.0.0","plugins":[{"type":"a"}],"plugins":[]}`: "twice",
		`{"cniVersion":"1.0.0","plugins":[` + testEntry + `]}`:         "no plugin but",
	} {
		_, err := addEntry([]byte(in), []byte(testEntry))
		if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: error %v, want one with %q", in, err, why)
		}
	}
	for in, why := range map[string]string{
		`{"cniVersion":"1.0.0","type":"bridge"}`:                          `no "name"`,
		`{"name":"n","type":"bridge"}`:                                    `no "cniVersion"`,
		`{"name":"n","cniVersion":"1.0.0"}`:                               `no "type"`,
		`{"name":"n","cniVersion":"1.0.0","type":"conduit-cni"}`:          "no primary plugin",
		`{"name":"n","cniVersion":"0.2.0","type":"bridge"}`:               "0.3.1 or later",
		`{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}`: "does not end in .conflist",
		`null`: `no "name"`, `nonsense`: "not valid JSON",
	} {
		_, err := listOf([]byte(in), []byte(testEntry))
		if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), why) {
			t.Errorf("conversion of %s: error %v, want one with %q", in, err, why)
		}
	}
}

// FuzzEdit: whatever a configuration is, it is refused or gets exactly one entry, libcni reads what comes out, the rest
// of it means what it meant, and taking the entry out gives the bytes back.
func FuzzEdit(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","x":1e400},{"type":"portmap"}]}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[` + testEntry + `,{"type":"bridge"},` + testEntry + `]}`))
	f.Add([]byte("{\"cniVersion\":\"0.3.1\",\"plugins\":[ {\"type\":\"\xff\"}\n] }"))
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"n","type":"ptp","ipam":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		checkConversion(t, data)
		out, err := addEntry(data, []byte(testEntry))
		if err != nil {
			if !errors.Is(err, errConfig) {
				t.Fatalf("error %v", err)
			}
			return
		}
		l, err := parseList(out)
		if err != nil {
			t.Fatalf("%q became %q: %v", data, out, err)
		}
		ours := 0
		for i, o := range l.ours {
			if o {
				ours++
				if i == 0 || !sameJSON(out[l.plugins[i].start:l.plugins[i].end], []byte(testEntry)) {
					t.Fatalf("%q became %q", data, out)
				}
			}
		}
		if ours != 1 {
			t.Fatalf("%q became %q, with %d entries", data, out, ours)
		}
		before, errBefore := removeEntries(data)
		after, errAfter := removeEntries(out)
		if errBefore != nil || errAfter != nil || !bytes.Equal(before, after) {
			t.Fatalf("%q and %q without entries:\n%q %v\n%q %v", data, out, before, errBefore, after, errAfter)
		}
		var was, is struct{ Plugins []json.RawMessage }
		if json.Unmarshal(before, &was) == nil && json.Unmarshal(out, &is) == nil && len(is.Plugins) != len(was.Plugins)+1 {
			t.Fatalf("%d plugins became %d: %q, %q", len(was.Plugins), len(is.Plugins), data, out)
		}
	})
}

func checkConversion(t *testing.T, conf []byte) {
	t.Helper()
	out, err := listOf(conf, []byte(testEntry))
	if err != nil {
		return
	}
	if same, err := addEntry(out, []byte(testEntry)); err != nil || !bytes.Equal(same, out) {
		t.Fatalf("%q became %q, which is not chained: %v", conf, out, err)
	}
	if !bytes.Contains(out, bytes.TrimSpace(conf)) {
		t.Fatalf("%q became %q: the original is not in it", conf, out)
	}
}
