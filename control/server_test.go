package control

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
)

// certificate makes a self-signed certificate, PEM.
func certificate(t *testing.T, name string, ca bool) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: ca,
		BasicConstraintsValid: true, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func write(t *testing.T, dir string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, CAFile), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// serve runs a controller on a real listener and returns its URL.
func serve(t *testing.T, dir string) string {
	t.Helper()
	s, err := New(Config{CADir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}

func get(t *testing.T, url string, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(body)
}

// TestTrustBundle follows the file through its life: absent, one root, two roots, broken, whole again, gone.
func TestTrustBundle(t *testing.T) {
	dir := t.TempDir()
	url := serve(t, dir)
	one, two := certificate(t, "one", true), certificate(t, "two", true)
	both := append(append([]byte("# the old and the new\n"), one...), two...)
	key := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("secret")})
	etags := map[string]bool{}
	for _, step := range []struct {
		name    string
		content []byte
		status  int
		body    string // whole when 200, else a part
	}{
		{"absent", nil, 503, "no such file"},
		{"one root", one, 200, string(one)},
		{"two roots", both, 200, string(one) + string(two)},
		{"a key in it", append(bytes.Clone(one), key...), 503, `type \"EC PRIVATE KEY\"`},
		{"no authority", certificate(t, "leaf", false), 503, "is not an authority's"},
		{"not PEM", []byte("hello"), 503, "it has no certificate"},
		{"bad DER", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), 503, "certificate 1: "},
		{"the other root", two, 200, string(two)},
		{"gone", nil, 503, "no such file"},
	} {
		t.Run(step.name, func(t *testing.T) {
			os.Remove(filepath.Join(dir, CAFile))
			if step.content != nil {
				write(t, dir, step.content)
			}
			status, header, body := get(t, url+"/v1/trust-bundle")
			if status != step.status || !strings.Contains(body, step.body) {
				t.Fatalf("want %d with %q, got %d with %q", step.status, step.body, status, body)
			}
			ready, _, _ := get(t, url+"/readyz")
			if ready != step.status {
				t.Errorf("readyz: want %d, got %d", step.status, ready)
			}
			if status == 200 {
				if body != step.body || etags[header.Get("ETag")] {
					t.Errorf("body %q, etag %s seen before: %v", body, header.Get("ETag"), etags)
				}
				etags[header.Get("ETag")] = true
				if again, _, _ := get(t, url+"/v1/trust-bundle", "If-None-Match", header.Get("ETag")); again != 304 {
					t.Errorf("If-None-Match: want 304, got %d", again)
				}
				return
			}
			var f failure
			if err := json.Unmarshal([]byte(body), &f); err != nil || f.Error == "" || f.Hint == "" {
				t.Errorf("want a JSON error and a hint, got %q (%v)", body, err)
			}
			if strings.Contains(body, "secret") || strings.Contains(body, "c2VjcmV0") {
				t.Error("the key was published")
			}
		})
	}
}

func TestOtherRoutes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, certificate(t, "one", true))
	url := serve(t, dir)
	if status, _, body := get(t, url+"/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("healthz: %d %q", status, body)
	}
	if status, _, body := get(t, url+"/version"); status != 200 || !strings.Contains(body, mesh.Version()) {
		t.Errorf("version: %d %q", status, body)
	}
	if status, _, _ := get(t, url+"/nothing"); status != 404 {
		t.Errorf("unknown path: %d", status)
	}
	res, err := http.Post(url+"/v1/trust-bundle", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", res.StatusCode)
	}
	_, _, body := get(t, url+"/metrics")
	for _, want := range []string{"conduit_trust_bundle_roots 1\n", `conduit_controller_requests_total{path="/healthz",class="2xx"} 1`,
		"conduit_trust_bundle_expiry_seconds ", "process_start_time_seconds "} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %q:\n%s", want, body)
		}
	}
}

// TestMainServes runs the whole command, asks it, and ends it.
func TestMainServes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	logR, logW := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- Main(ctx, []string{"--addr", "127.0.0.1:0", "--ca-dir", t.TempDir()}, io.Discard, logW)
		logW.Close()
	}()
	var addr string
	for sc := bufio.NewScanner(logR); sc.Scan(); {
		if _, rest, ok := strings.Cut(sc.Text(), "address="); ok && addr == "" {
			addr, _, _ = strings.Cut(rest, " ")
			if status, _, _ := get(t, "http://"+addr+"/healthz"); status != 200 {
				t.Errorf("healthz: %d", status)
			}
			cancel()
		}
	}
	if addr == "" {
		t.Error("the log does not say the address")
	}
	if c := <-code; c != 0 {
		t.Errorf("exit code %d", c)
	}
}

func TestMainErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tc := range []struct {
		args     []string
		code     int
		out, err string
	}{
		{[]string{"--version"}, 0, "conduit-controller " + mesh.Version(), ""},
		{[]string{"--help"}, 0, "GET /v1/trust-bundle", ""},
		{[]string{"--nonsense"}, 64, "", "--help"},
		{[]string{"extra"}, 64, "", `unexpected argument "extra"`},
		{nil, 64, "", "set --ca-dir"},
		{[]string{"--ca-dir", "x", "--addr", "nowhere"}, 64, "", `address "nowhere"`},
		{[]string{"--ca-dir", "x", "--addr", taken.Addr().String()}, 1, "", "choose one with --addr"},
	} {
		t.Run(fmt.Sprint(tc.args), func(t *testing.T) {
			var out, errOut bytes.Buffer
			if code := Main(t.Context(), tc.args, &out, &errOut); code != tc.code {
				t.Errorf("want exit code %d, got %d", tc.code, code)
			}
			if !strings.Contains(out.String(), tc.out) || !strings.Contains(errOut.String(), tc.err) {
				t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
			}
		})
	}
}
