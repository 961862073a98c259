// Command watch says what lies behind addresses of a cluster, and goes on saying it whenever that changes: an example for those who build
// tools on the controller's API (docs/api.md). It needs no more than the generated client.
//
//	kubectl -n conduit get configmap conduit-trust-roots -o 'jsonpath={.data.ca\.crt}' > roots.pem
//	kubectl -n tools create token viewer --audience conduit > token
//	kubectl -n conduit port-forward service/conduit-controller 8085 &
//	go run ./tests/watch --connect 127.0.0.1:8085 10.96.0.7:80
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"time"

	"conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"

	"connectrpc.com/connect"
)

type options struct {
	server, connect, roots, token string
	addresses                     []*discoveryv1.Address
}

func main() {
	var o options
	flag.StringVar(&o.server, "server", "https://conduit-controller.conduit.svc:8085", "`URL` of the controller")
	flag.StringVar(&o.connect, "connect", "", "`HOST:PORT` to connect to, instead of the URL's")
	flag.StringVar(&o.roots, "roots", "roots.pem", "`FILE` with the mesh's roots")
	flag.StringVar(&o.token, "token", "token", "`FILE` with a Kubernetes token of the audience conduit; read again for each connection")
	flag.Parse()
	for _, text := range flag.Args() {
		a, err := netip.ParseAddrPort(text)
		if err != nil {
			fmt.Fprintf(os.Stderr, "watch: %v\n", err)
			os.Exit(64)
		}
		o.addresses = append(o.addresses, &discoveryv1.Address{Ip: a.Addr().AsSlice(), Port: uint32(a.Port())})
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := watch(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintf(os.Stderr, "watch: %v\n", err)
		os.Exit(1)
	}
}

// watch follows the addresses until ctx ends: when a stream ends, it takes up the next one where that was. Only what asking again cannot
// mend is an error.
func watch(ctx context.Context, o options, out, trouble io.Writer) error {
	pem, err := os.ReadFile(o.roots)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s has no certificate", o.roots)
	}
	tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
	defer tr.CloseIdleConnections()
	if o.connect != "" {
		tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, o.connect)
		}
	}
	client := discoveryv1connect.NewDiscoveryServiceClient(&http.Client{Transport: tr}, o.server, connect.WithGRPC())
	for held := newView(); ; {
		err := follow(ctx, client, o, held, out)
		pause := rand.N(time.Second)
		var e *connect.Error
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &e) && (e.Code() == connect.CodeUnauthenticated || e.Code() == connect.CodePermissionDenied):
			return err
		case errors.As(err, &e):
			if after, err := time.ParseDuration(e.Meta().Get("Retry-After") + "s"); err == nil {
				pause += after
			}
		}
		fmt.Fprintf(trouble, "watch: %v; again in %v\n", err, pause.Round(time.Millisecond))
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// follow opens one stream, with what is held already, and says what changes.
func follow(ctx context.Context, client discoveryv1connect.DiscoveryServiceClient, o options, held *view, out io.Writer) error {
	token, err := os.ReadFile(o.token)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx, call := connect.NewClientContext(ctx)
	call.RequestHeader().Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	stream, err := client.Watch(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&discoveryv1.WatchRequest{Subscribe: o.addresses, Resume: held.at}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		held.apply(m)
		if !m.More {
			held.say(o.addresses, out)
		}
	}
}
