package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// variant is a listener of the proxy.
type variant struct {
	name               string
	protocol, upstream string
	tls                bool
}

// variants are all combinations.
var variants = func() (l []variant) {
	for _, secure := range []bool{false, true} {
		for _, protocol := range []string{"http2", "detect"} {
			for _, upstream := range []string{"http2", "http1"} {
				name := "h2c-" + protocol + "-to-" + upstream
				if secure {
					name = "tls-" + protocol + "-to-" + upstream
				}
				l = append(l, variant{name, protocol, upstream, secure})
			}
		}
	}
	return l
}()

// body is long enough to be cut by the small windows that h2spec opens.
const body = "An answer that takes more than one frame through a window of a few bytes.\n"

// serve runs the application behind the proxy: it takes the whole request before it answers, so that what h2spec sends
// after a request meets a stream that is still open.
func serve() (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	both := new(http.Protocols)
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: both, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			_, _ = io.WriteString(w, body) // h2spec may have left
		}
	})}
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "conformance: application:", err)
		}
	}()
	return l.Addr().String(), func() { s.Close() }, nil
}

// proxy is the process under test.
type proxy struct {
	cmd   *exec.Cmd
	ports []string // in the order of variants
}

var listening = regexp.MustCompile(`msg=listening address=127\.0\.0\.1:(\d+)`)

// startProxy runs the binary with a listener for each variant, on ports of the kernel's choice.
func startProxy(ctx context.Context, binary, dir, backend string) (*proxy, error) {
	file, err := configure(dir, backend)
	if err != nil {
		return nil, err
	}
	p := &proxy{cmd: exec.CommandContext(ctx, binary, "--static", file)}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(stderr)
	for len(p.ports) < len(variants) && lines.Scan() {
		if m := listening.FindSubmatch(lines.Bytes()); m != nil {
			p.ports = append(p.ports, string(m[1]))
		}
	}
	if len(p.ports) < len(variants) {
		p.stop()
		return nil, fmt.Errorf("%s opened %d of %d listeners", binary, len(p.ports), len(variants))
	}
	go func() { _, _ = io.Copy(os.Stderr, stderr) }()
	return p, nil
}

func (p *proxy) stop() {
	_ = p.cmd.Process.Kill() // it has no state worth a farewell
	_ = p.cmd.Wait()
}

// configure writes the proxy's configuration and a certificate.
func configure(dir, backend string) (file string, err error) {
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := selfSigned(cert, key); err != nil {
		return "", err
	}
	var l []map[string]any
	for _, v := range variants {
		o := map[string]any{"address": "127.0.0.1:0", "upstream": backend, "protocol": v.protocol, "upstream_protocol": v.upstream}
		if v.tls {
			o["tls"] = map[string]string{"cert": cert, "key": key}
		}
		l = append(l, o)
	}
	data, err := json.Marshal(map[string]any{"listeners": l})
	if err != nil {
		return "", err
	}
	file = filepath.Join(dir, "proxy.json")
	return file, os.WriteFile(file, data, 0o600)
}

func selfSigned(cert, key string) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	for name, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(b), 0o600); err != nil {
			return err
		}
	}
	return nil
}
