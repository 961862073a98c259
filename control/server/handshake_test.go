package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"
)

// serverConfig is that of a server with a certificate of its own making.
func serverConfig(t *testing.T) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// pair is a connection's two ends.
func pair(t *testing.T) (client, server net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// TestHandshakesHaveTurns: with one turn, a client that stops after its hello, and one that refuses the server, keep nobody from theirs;
// and one that has its turn does.
func TestHandshakesHaveTurns(t *testing.T) {
	plain := serverConfig(t)
	entered, free := make(chan struct{}, 10), make(chan struct{})
	held := plain.Clone()
	held.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		entered <- struct{}{}
		if hello.ServerName == "held" {
			<-free
		}
		return &plain.Certificates[0], nil
	}
	held.Certificates = nil
	cfg := oneByOne(held, 1)
	serve := func(c net.Conn) <-chan error {
		done := make(chan error, 1)
		go func() { done <- tls.Server(c, cfg).HandshakeContext(t.Context()) }()
		return done
	}
	dial := func(name string, insecure bool) (client, server <-chan error) {
		c, s := pair(t)
		done := make(chan error, 1)
		go func() {
			done <- tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: insecure, MinVersion: tls.VersionTLS13}).HandshakeContext(t.Context())
		}()
		return done, serve(s)
	}

	c, s := pair(t)
	stopped := serve(s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	mute := &muted{Conn: c, gone: ctx.Done()}
	go func() { _ = tls.Client(mute, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) }() // it never ends by itself
	<-entered

	refusing, refused := dial("refusing", false)
	<-entered
	if <-refusing == nil || <-refused == nil {
		t.Error("a certificate that nobody vouches for was accepted")
	}
	first, _ := dial("held", true)
	<-entered
	second, secondServer := dial("second", true)
	select {
	case <-entered:
		t.Error("two had the one turn")
	case <-time.After(50 * time.Millisecond): // it would need a fiftieth of that
	}
	close(free)
	for _, done := range []<-chan error{first, second, secondServer} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	select {
	case err := <-stopped:
		t.Errorf("the handshake of a client that has stopped ended with %v", err)
	default:
	}
}

// muted is a connection on which nothing is heard.
type muted struct {
	net.Conn
	gone <-chan struct{}
}

func (m *muted) Read([]byte) (int, error) {
	<-m.gone
	return 0, net.ErrClosed
}
