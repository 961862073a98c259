package static

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/trip"
)

func TestParseDefaults(t *testing.T) {
	c, err := Parse([]byte(`{"listeners":[{"address":"127.0.0.1:8000","upstream":"[::1]:9000"},
		{"address":"0.0.0.0:1","upstream":"127.0.0.1:2","protocol":"opaque","upstream_protocol":"auto","idle_timeout":"5m"},
		{"address":"0.0.0.0:3","upstream":"127.0.0.1:2","protocol":"http1","upstream_protocol":"http2","timeout":"1.5s"}],"admin":"127.0.0.1:4191"}`))
	if err != nil {
		t.Fatal(err)
	}
	a, b, h := c.Listeners[0], c.Listeners[1], c.Listeners[2]
	if a.Protocol != mesh.Detect || a.UpstreamProtocol != mesh.Detect || a.TLS != nil || a.UpstreamTLS != nil || a.Upstream.String() != "[::1]:9000" {
		t.Errorf("%+v", a)
	}
	if a.Limits != (trip.Limits{}) || b.Limits != (trip.Limits{Idle: 5 * time.Minute}) || h.Limits != (trip.Limits{Request: 1500 * time.Millisecond}) {
		t.Errorf("limits %+v, %+v, %+v", a.Limits, b.Limits, h.Limits)
	}
	if b.Protocol != mesh.Opaque || b.UpstreamProtocol != mesh.Detect || h.UpstreamProtocol != mesh.HTTP2 || c.Admin.Port() != 4191 {
		t.Errorf("%+v, admin %v", b, c.Admin)
	}
}

func TestParseErrorsNameTheField(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	listener := func(more string) string {
		return `{"listeners":[{"address":"127.0.0.1:1","upstream":"127.0.0.1:2"` + more + `}]}`
	}
	for _, c := range []struct{ name, in, want string }{
		{"syntax", "{\n  \"listeners\": [}\n", "line 2, column"},
		{"not an object", `[]`, "want an object"},
		{"empty", `{}`, "listeners: at least one"},
		{"unknown field", `{"listners":[]}`, "listners: unknown field"},
		{"listeners not an array", `{"listeners":{}}`, "listeners: want an array"},
		{"listener not an object", `{"listeners":[1]}`, "listeners[0]: want an object"},
		{"no address", `{"listeners":[{"upstream":"127.0.0.1:2"}]}`, "listeners[0].address: is missing"},
		{"second listener", `{"listeners":[{"address":"127.0.0.1:1","upstream":"127.0.0.1:2"},{"address":"127.0.0.1:3"}]}`, "listeners[1].upstream: is missing"},
		{"host name", `{"listeners":[{"address":"localhost:1","upstream":"127.0.0.1:2"}]}`, `listeners[0].address: "localhost:1" is not`},
		{"upstream port 0", `{"listeners":[{"address":"127.0.0.1:0","upstream":"127.0.0.1:0"}]}`, "listeners[0].upstream: \"127.0.0.1:0\" has port 0"},
		{"number", `{"listeners":[{"address":5,"upstream":"127.0.0.1:2"}]}`, "listeners[0].address: want a string"},
		{"field twice", listener(`,"upstream":"127.0.0.1:3"`), "listeners[0].upstream: is given twice"},
		{"admin twice", `{"admin":"127.0.0.1:1","listeners":[],"admin":"127.0.0.1:2"}`, "admin: is given twice"},
		{"protocol", listener(`,"protocol":"http3"`), `listeners[0].protocol: "http3" is not one of detect, http1`},
		{"upstream protocol", listener(`,"upstream_protocol":"opaque"`), "listeners[0].upstream_protocol"},
		{"timeout", listener(`,"timeout":"5"`), `listeners[0].timeout: "5" is not a duration`},
		{"idle timeout", listener(`,"idle_timeout":"-1s"`), `listeners[0].idle_timeout: "-1s" is not`},
		{"admin", `{"listeners":[{"address":"127.0.0.1:1","upstream":"127.0.0.1:2"}],"admin":"x"}`, `admin: "x" is not`},
		{"tls without cert", listener(`,"tls":{}`), "listeners[0].tls.cert: is missing"},
		{"tls without key", listener(fmt.Sprintf(`,"tls":{"cert":%q}`, junk)), "listeners[0].tls.key: is missing"},
		{"tls file missing", listener(`,"tls":{"cert":"/nonexistent.pem"}`), "listeners[0].tls.cert: open /nonexistent.pem"},
		{"tls junk", listener(fmt.Sprintf(`,"tls":{"cert":%q,"key":%q}`, junk, junk)), "listeners[0].tls: tls: read certificate"},
		{"tls server_id", listener(`,"tls":{"server_id":"x"}`), "listeners[0].tls.server_id: unknown field"},
		{"upstream_tls without ca", listener(`,"upstream_tls":{}`), "listeners[0].upstream_tls.ca: is missing"},
		{"upstream_tls key alone", listener(fmt.Sprintf(`,"upstream_tls":{"key":%q,"ca":%q}`, junk, junk)), "listeners[0].upstream_tls.cert: is missing"},
		{"server_id", listener(fmt.Sprintf(`,"upstream_tls":{"ca":%q,"server_id":"spiffe://x"}`, junk)), "listeners[0].upstream_tls.server_id"},
		{"server_id alone", listener(fmt.Sprintf(`,"upstream_tls":{"ca":%q,"server_id":"spiffe://td/ns/a/sa/b"}`, junk)), "listeners[0].upstream_tls.server_id: names another proxy, which demands"},
		{"opaque with timeout", listener(`,"protocol":"opaque","timeout":"5s"`), "listeners[0].timeout: bounds requests, and protocol opaque has none"},
		{"opaque with upstream protocol", listener(`,"protocol":"opaque","upstream_protocol":"http1"`), "listeners[0].upstream_protocol: "},
		{"itself", `{"listeners":[{"address":"127.0.0.1:1","upstream":"127.0.0.1:1"}]}`, "listeners[0].upstream: 127.0.0.1:1 is where listeners[0] listens itself"},
		{"itself on every address", `{"listeners":[{"address":"[::]:1","upstream":"127.1.2.3:1"}]}`, "listeners[0].upstream: "},
		{"itself as every address", `{"listeners":[{"address":"127.0.0.1:1","upstream":"0.0.0.0:1"}]}`, "listeners[0].upstream: "},
		{"a circle", `{"listeners":[{"address":"127.0.0.1:1","upstream":"127.0.0.1:2"},{"address":"127.0.0.1:3","upstream":"127.0.0.1:4"},
			{"address":"127.0.0.1:2","upstream":"[::ffff:127.0.0.1]:1"}]}`, "listeners[0].upstream: 127.0.0.1:2 is where listeners[2] listens"},
		{"junk ca", listener(fmt.Sprintf(`,"upstream_tls":{"ca":%q}`, junk)), "listeners[0].upstream_tls: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.in))
			if err == nil || !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

// TestMutual: TLS is not called mutual before both ends present a certificate.
func TestMutual(t *testing.T) {
	cert, key := selfSigned(t)
	for in, want := range map[string]bool{
		``: false,
		fmt.Sprintf(`,"tls":{"cert":%q,"key":%q}`, cert, key):                                        false,
		fmt.Sprintf(`,"tls":{"cert":%q,"key":%q,"ca":%q}`, cert, key, cert):                          true,
		fmt.Sprintf(`,"upstream_tls":{"ca":%q}`, cert):                                               false,
		fmt.Sprintf(`,"upstream_tls":{"ca":%q,"cert":%q,"key":%q}`, cert, cert, key):                 true,
		fmt.Sprintf(`,"tls":{"cert":%q,"key":%q,"ca":%[1]q},"upstream_tls":{"ca":%[1]q}`, cert, key): true,
	} {
		c, err := Parse([]byte(`{"listeners":[{"address":"127.0.0.1:1","upstream":"127.0.0.1:2"` + in + `}]}`))
		if err != nil || c.Listeners[0].Mutual != want {
			t.Errorf("%s: %v, %+v; want %v", in, err, c, want)
		}
	}
}

// A listener may be the upstream of another, and what listens on one address is not reached at the others.
func TestNoCircle(t *testing.T) {
	for _, in := range []string{
		`{"address":"127.0.0.1:1","upstream":"127.0.0.1:2"},{"address":"127.0.0.1:2","upstream":"127.0.0.1:3"}`,
		`{"address":"127.0.0.2:1","upstream":"127.0.0.1:1"}`,
		`{"address":"[::1]:1","upstream":"127.0.0.1:1"}`,
		`{"address":"0.0.0.0:1","upstream":"192.0.2.1:1"}`,
		`{"address":"0.0.0.0:1","upstream":"[::1]:1"}`,
		`{"address":"127.0.0.1:0","upstream":"127.0.0.1:5"}`,
	} {
		if _, err := Parse([]byte(`{"listeners":[` + in + `]}`)); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// TestDates: a certificate that nobody would accept is no configuration; one that will end is watched.
func TestDates(t *testing.T) {
	now := time.Now()
	good, goodKey := selfSigned(t)
	for _, c := range []struct {
		name     string
		from, to time.Duration
		want     string
	}{
		{"expired", -2 * time.Hour, -time.Hour, "expired on " + now.Add(-time.Hour).UTC().Format(time.DateOnly)},
		{"early", time.Hour, 2 * time.Hour, "is not valid before " + now.Add(time.Hour).UTC().Format(time.DateOnly)},
		{"good", -time.Hour, time.Hour, ""},
	} {
		cert, key := dated(t, now.Add(c.from), now.Add(c.to))
		for field, in := range map[string]string{
			"tls: cert ":          fmt.Sprintf(`"tls":{"cert":%q,"key":%q}`, cert, key),
			"upstream_tls: cert ": fmt.Sprintf(`"upstream_tls":{"ca":%q,"cert":%q,"key":%q}`, good, cert, key),
			"tls: ca ":            fmt.Sprintf(`"tls":{"cert":%q,"key":%q,"ca":%q}`, good, goodKey, cert),
			"upstream_tls: ca ":   fmt.Sprintf(`"upstream_tls":{"ca":%q}`, cert),
		} {
			got, err := Parse([]byte(`{"listeners":[{"address":"127.0.0.1:1","upstream":"127.0.0.1:2",` + in + `}]}`))
			if c.want != "" {
				if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "listeners[0]."+field) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %s: %v; want %q", c.name, in, err, c.want)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", in, err)
			} else if n := len(got.Listeners[0].Certificates); (n == 0) != (field == "upstream_tls: ca ") {
				t.Errorf("%s: %d certificates are watched", in, n)
			}
		}
	}
}

// selfSigned writes a certificate and its key into files.
func selfSigned(t *testing.T) (cert, key string) {
	t.Helper()
	return dated(t, time.Time{}, time.Now().Add(time.Hour))
}

// dated is selfSigned with a validity.
func dated(t *testing.T, from, to time.Time) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
}

func TestLoadMissingFile(t *testing.T) {
	if _, err := Load("/nonexistent.json"); !errors.Is(err, ErrConfig) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
