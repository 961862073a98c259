package remote

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"conduit.io/conduit/mesh"
)

const (
	// maxFile bounds the files of token and roots.
	maxFile = 1 << 20

	// A connection that is silent for pingAfter is asked for a sign of life, and given up pingWait later.
	pingAfter   = 15 * time.Second
	pingWait    = 10 * time.Second
	dialTimeout = 5 * time.Second
	// nameFirst is how long the controller's name is tried, where there is another way to it.
	nameFirst = 2 * time.Second
)

// transport speaks HTTP/2 with the controller alone: it proves the caller by the token as its file has it at that time, and
// the controller by a certificate under the trusted roots for the controller's SPIFFE ID.
type transport struct {
	http      http.RoundTripper
	tokenFile string
}

// newTransport makes one. trusted is asked at every handshake.
func newTransport(cfg *Config, trusted func() *x509.CertPool) *transport {
	return &transport{tokenFile: cfg.TokenFile, http: &http.Transport{
		DialContext:         dial(cfg.Address),
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: dialTimeout,
		IdleConnTimeout:     5 * time.Minute,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingWait},
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			Time:       cfg.Now,
			// The controller's name is a SPIFFE ID, which crypto/tls cannot be asked for: VerifyConnection does the whole
			// verification instead.
			InsecureSkipVerify: true,
			VerifyConnection: func(cs tls.ConnectionState) error {
				return verify(cs.PeerCertificates, cfg.Controller, trusted(), cfg.Now())
			},
		},
	}}
}

// dial connects by the name, and where that brings nothing, to address, unless it is empty. Who has answered is found out by the
// certificate, whichever way it was.
func dial(address string) func(ctx context.Context, network, name string) (net.Conn, error) {
	d := &net.Dialer{Timeout: dialTimeout}
	if address == "" {
		return d.DialContext
	}
	return func(ctx context.Context, network, name string) (net.Conn, error) {
		early, cancel := context.WithTimeout(ctx, nameFirst)
		defer cancel()
		conn, err := d.DialContext(early, network, name)
		if err == nil || ctx.Err() != nil {
			return conn, err
		}
		conn, other := d.DialContext(ctx, network, address)
		if other != nil {
			return nil, errors.Join(err, other)
		}
		return conn, nil
	}
}

// verify checks that certs are a chain of id's.
func verify(certs []*x509.Certificate, id mesh.Identity, roots *x509.CertPool, now time.Time) error {
	if len(certs) == 0 {
		return errors.New("the controller has sent no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return fmt.Errorf("the controller's certificate is not trusted: %w", err)
	}
	if len(certs[0].URIs) != 1 || certs[0].URIs[0].String() != id.String() {
		return fmt.Errorf("whoever answers at the controller's address is %v, and not %s", certs[0].URIs, id)
	}
	return nil
}

// RoundTrip is http.RoundTripper's.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := readBounded(t.tokenFile)
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("read token: %w", err)
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	return t.http.RoundTrip(req)
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s: longer than %d bytes", path, maxFile)
	}
	return data, err
}
