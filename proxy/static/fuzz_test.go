package static

import (
	"errors"
	"testing"
)

// FuzzParse: a file is either refused with a word about the configuration, or every listener in it can be opened.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"listeners":[{"address":"127.0.0.1:8000","upstream":"[::1]:9000","protocol":"detect","upstream_protocol":"auto"}],"admin":"127.0.0.1:1"}`,
		`{"listeners":[{"address":"127.0.0.1:1","upstream":"127.0.0.1:2","tls":{"cert":"/dev/null","key":"/dev/null","ca":null}}]}`,
		`{"listeners":[{"address":"127.0.0.1:1","upstream":"127.0.0.1:2","upstream_tls":{"ca":"/dev/null","server_id":"spiffe://a/ns/b/sa/c"}}]}`,
		`{"listeners":[]}`, `[]`, `null`, `{"listeners":[null]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := Parse(in)
		switch {
		case err != nil && !errors.Is(err, ErrConfig):
			t.Fatalf("%q: %v", in, err)
		case err != nil:
			return
		case len(c.Listeners) == 0:
			t.Fatalf("%q: nothing to listen on", in)
		}
		for _, l := range c.Listeners {
			if !l.Address.IsValid() || !l.Upstream.IsValid() || l.Upstream.Port() == 0 {
				t.Fatalf("%q: %+v", in, l)
			}
		}
	})
}
