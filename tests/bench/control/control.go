// Package control is what the controls of the benchmark have in common: their flags, and that they serve links.
package control

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"
)

// Link is a listener and where its traffic goes. Out is "http1", "http2" or "opaque".
type Link struct{ Listen, Upstream, Out string }

// Config is what the flags say: --link listen,upstream,out for each listener, --tls-in cert,key,ca and --tls-out
// cert,key,ca,name for mutual TLS on one side.
type Config struct {
	Links   []Link
	In, Out *tls.Config // nil: plaintext
}

// Main serves every link of the process's flags, until one ends with an error.
func Main(name string, serve func(k Link, c *Config) error) {
	log.SetFlags(0)
	c, err := parse()
	if err != nil {
		log.Fatalf("%s: %v", name, err)
	}
	failed := make(chan error)
	for _, k := range c.Links {
		go func() { failed <- serve(k, c) }()
	}
	log.Fatalf("%s: %v", name, <-failed)
}

// parse reads the process's flags.
func parse() (*Config, error) {
	c := &Config{}
	flag.Func("link", "`listen,upstream,out` (repeated)", func(s string) error {
		f := strings.Split(s, ",")
		if len(f) != 3 {
			return errors.New("want listen,upstream,out")
		}
		c.Links = append(c.Links, Link{f[0], f[1], f[2]})
		return nil
	})
	flag.Func("tls-in", "`cert,key,ca` of a server that demands client certificates", func(s string) (err error) {
		c.In, err = ServerTLS(strings.Split(s, ","))
		return err
	})
	flag.Func("tls-out", "`cert,key,ca,name` of a client, and the server's name", func(s string) (err error) {
		c.Out, err = ClientTLS(strings.Split(s, ","))
		return err
	})
	flag.Parse()
	if len(c.Links) == 0 {
		return nil, errors.New("no --link")
	}
	return c, nil
}

// ServerTLS is from cert, key and ca.
func ServerTLS(f []string) (*tls.Config, error) {
	if len(f) != 3 {
		return nil, errors.New("want cert,key,ca")
	}
	cert, roots, err := load(f[0], f[1], f[2])
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: cert, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert}, nil
}

// ClientTLS is from cert, key, ca and the server's name.
func ClientTLS(f []string) (*tls.Config, error) {
	if len(f) != 4 {
		return nil, errors.New("want cert,key,ca,name")
	}
	cert, roots, err := load(f[0], f[1], f[2])
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: cert, RootCAs: roots, ServerName: f[3]}, nil
}

func load(certFile, keyFile, caFile string) ([]tls.Certificate, *x509.CertPool, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read a certificate: %w", err)
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read the CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("no certificate in %s", caFile)
	}
	return []tls.Certificate{cert}, roots, nil
}
