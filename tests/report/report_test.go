package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const passes = `{"Action":"start","Package":"a"}
{"Action":"run","Package":"a","Test":"TestOne"}
{"Action":"output","Package":"a","Test":"TestOne","Output":"=== RUN   TestOne\n"}
{"Action":"output","Package":"a","Test":"TestOne/sub","Output":"    one_test.go:7: said\n"}
{"Action":"pass","Package":"a","Test":"TestOne/sub","Elapsed":1}
{"Action":"pass","Package":"a","Test":"TestOne","Elapsed":61.5}
{"Action":"output","Package":"a","Output":"PASS\n"}
{"Action":"pass","Package":"a","Elapsed":62}
`

const fails = `{"Action":"output","Package":"b","Test":"TestTwo","Output":"    two_test.go:9: wrong\n"}
{"Action":"fail","Package":"b","Test":"TestTwo","Elapsed":2}
{"Action":"output","Package":"b","Output":"FAIL\n"}
{"Action":"fail","Package":"b","Elapsed":3}
`

// What went well takes a line, what failed is shown, and the log has everything.
func TestReport(t *testing.T) {
	for _, c := range []struct {
		what, in       string
		tests, good    bool
		said, unsaid   []string
		logged, wanted string
	}{
		{"all is well", passes, false, true, []string{"ok    a  1m2s\n", "2 passed, 0 failed, 0 skipped\n"}, []string{"TestOne", "said"}, "one_test.go:7: said\nPASS\n", ""},
		{"tests are named", passes, true, true, []string{"      TestOne  1m1.5s\n"}, []string{"TestOne/sub", "said"}, "one_test.go:7: said\n", ""},
		{"one has failed", passes + fails, true, false, []string{"--- FAIL b TestTwo  2s\n    two_test.go:9: wrong\n", "FAIL  b  3s\n", "2 passed, 2 failed"}, []string{"said"}, "wrong\nFAIL\n", ""},
		{"nothing was run", `{"Action":"pass","Package":"a","Elapsed":0}`, true, false, []string{"0 passed"}, nil, "", ""},
		{"the stream is cut off", passes + `{"Action":"ou`, true, false, nil, nil, "PASS\n", "unexpected EOF"},
	} {
		t.Run(c.what, func(t *testing.T) {
			log, out := filepath.Join(t.TempDir(), "log"), &strings.Builder{}
			good, err := run(strings.NewReader(c.in), out, c.tests, log)
			if c.wanted == "" && err != nil || c.wanted != "" && (err == nil || !strings.Contains(err.Error(), c.wanted)) {
				t.Errorf("error %v, want %q", err, c.wanted)
			}
			if good != c.good {
				t.Errorf("good is %v", good)
			}
			for _, s := range c.said {
				if !strings.Contains(out.String(), s) {
					t.Errorf("it does not say %q:\n%s", s, out)
				}
			}
			for _, s := range c.unsaid {
				if strings.Contains(out.String(), s) {
					t.Errorf("it says %q:\n%s", s, out)
				}
			}
			if whole, err := os.ReadFile(log); err != nil || !strings.Contains(string(whole), c.logged) {
				t.Errorf("the log is %q, %v", whole, err)
			}
		})
	}
}
