package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// cases is how many h2spec 2.2.1 has, with the strict ones. A report of fewer proves less than it seems to.
const cases = 146

// exception is a failing case that is not the proxy's fault.
type exception struct {
	section, title string // as h2spec names them: RFC 7540's sections
	applies        func(v variant) bool
	why            string
}

// known are all exceptions.
var known = []exception{{
	section: "http2/3.5", title: "Sends invalid connection preface",
	applies: func(v variant) bool { return v.protocol == "detect" && !v.tls },
	why: "RFC 9113, 3.4: what is no preface says that the peer does not use HTTP/2, and a listener that detects the protocol " +
		"is no HTTP/2 server before the preface. The bytes are an HTTP/1.1 request line, which is answered with 400 in " +
		"HTTP/1.1; the connection is closed as the case demands, but h2spec cannot read the answer.",
}}

// result is what one run of h2spec found.
type result struct {
	failed []failure
	count  int
	text   string // for people
}

type failure struct{ section, title, detail string }

// parse reads h2spec's report.
func parse(data []byte) (*result, error) {
	var doc struct {
		Suites []struct {
			Cases []struct {
				Section string  `xml:"package,attr"`
				Title   string  `xml:"classname,attr"`
				Error   *string `xml:"error"`
				Failure *string `xml:"failure"`
				Skipped *string `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("read h2spec's report: %w", err)
	}
	r := &result{}
	for _, s := range doc.Suites {
		for _, c := range s.Cases {
			r.count++
			for _, bad := range []*string{c.Error, c.Failure, c.Skipped} {
				if bad != nil {
					r.failed = append(r.failed, failure{c.Section, c.Title, strings.TrimSpace(*bad)})
					break
				}
			}
		}
	}
	return r, nil
}

// judge writes the summary and reports whether nothing failed but what is known to.
func (r *result) judge(v variant) bool {
	ok := r.count == cases
	var b strings.Builder
	fmt.Fprintf(&b, "h2spec %-24s %d cases, %d failed\n", v.name, r.count, len(r.failed))
	if !ok {
		fmt.Fprintf(&b, "  %d cases were expected\n", cases)
	}
	for _, f := range r.failed {
		why := f.excuse(v)
		if why == "" {
			ok = false
			fmt.Fprintf(&b, "  FAIL %s %s\n       %s\n", f.section, f.title, strings.ReplaceAll(f.detail, "\n", "\n       "))
			continue
		}
		fmt.Fprintf(&b, "  known %s %s\n        %s\n", f.section, f.title, why)
	}
	r.text = b.String()
	return ok
}

// excuse is why a failure is none; empty if it is one.
func (f failure) excuse(v variant) string {
	for _, e := range known {
		if e.section == f.section && e.title == f.title && e.applies(v) {
			return e.why
		}
	}
	return ""
}
