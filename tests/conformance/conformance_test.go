package main

import (
	"strings"
	"testing"
)

// A failure that nobody excused, a case that was passed over and a report that is too short all fail.
func TestJudge(t *testing.T) {
	plain, strict := variant{name: "v", protocol: "detect"}, variant{name: "v", protocol: "http2"}
	const preface = `<testcase package="http2/3.5" classname="Sends invalid connection preface"><error>odd</error></testcase>`
	good := strings.Repeat(`<testcase package="generic/1" classname="x" time="0"></testcase>`, cases-1)
	for _, c := range []struct {
		name, cases string
		v           variant
		ok          bool
		want        string
	}{
		{"passed", good + `<testcase package="p" classname="c"></testcase>`, strict, true, "146 cases, 0 failed"},
		{"failed", good + `<testcase package="p" classname="c"><failure>a` + "\n" + `b</failure></testcase>`, strict, false, "FAIL p c"},
		{"error", good + `<testcase package="p" classname="c"><error>e</error></testcase>`, plain, false, "FAIL p c"},
		{"skipped", good + `<testcase package="p" classname="c"><skipped></skipped></testcase>`, strict, false, "FAIL p c"},
		{"known", good + preface, plain, true, "RFC 9113, 3.4"},
		{"known elsewhere only", good + preface, strict, false, "FAIL http2/3.5"},
		{"too few", good, strict, false, "146 cases were expected"},
	} {
		r, err := parse([]byte(`<testsuites><testsuite name="s">` + c.cases + `</testsuite></testsuites>`))
		if err != nil {
			t.Fatal(err)
		}
		if ok := r.judge(c.v); ok != c.ok || !strings.Contains(r.text, c.want) {
			t.Errorf("%s: %v\n%s", c.name, ok, r.text)
		}
	}
	if _, err := parse([]byte("h2spec crashed")); err == nil {
		t.Error("a report that is none is accepted")
	}
}
