package netns_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	rpc "google.golang.org/grpc/interop/grpc_testing"

	"conduit.io/conduit/cli/lab"
)

// meshPort is where proxies accept each other's TLS.
const meshPort = 15008

// TestWireEncrypted lets STRICT and PERMISSIVE pods on two nodes speak every protocol, in both directions and both families:
// whatever they say is unreadable on the wire, which carries TLS 1.3 between them and nothing else. What an outsider says to
// a PERMISSIVE pod is readable there, or the test could not fail.
func TestWireEncrypted(t *testing.T) {
	g := newGround(t)
	whole, stopWhole := record(t, g) // before there are pods: it has the beginning of every connection between them
	r := newRegionOn(t, g)
	capture, stop := record(t, g) // and this one what they say when everybody knows of everybody
	secret, public := "secret-of-the-enrolled", "words-of-the-outsider"
	enrolledPairs := []pair{{r.openA, r.openB}, {r.openB, r.openA}, {r.shutA, r.shutB}, {r.shutB, r.shutA},
		{r.openA, r.shutB}, {r.shutB, r.openA}, {r.shutA, r.openB}, {r.openB, r.shutA}}
	for _, p := range enrolledPairs {
		p.sayAll(t, secret)
	}
	outside := pair{r.outsider, r.openB}
	outside.sayAll(t, public)
	stop()
	stopWhole()

	if found := capture.Find([]byte(secret)); len(found) != 0 {
		t.Errorf("words of enrolled pods are on the wire: %v", found)
	}
	seen := map[uint16]bool{}
	for _, flow := range capture.Find([]byte(public)) {
		seen[min(flow.Src.Port(), flow.Dst.Port())] = true
	}
	if want := []uint16{regionHTTP, regionWitness, regionGRPC}; !slices.Equal(slices.Sorted(maps.Keys(seen)), want) {
		t.Errorf("the outsider's words are on the wire for ports %v only, want %v", seen, want)
	}
	for _, p := range enrolledPairs {
		for _, f := range p.families() {
			if err := p.wantTLS(whole, capture, f); err != nil {
				t.Error(err)
			}
		}
	}
}

// sayAll says the words by HTTP/1.1, HTTP/2, gRPC and opaque TCP, in both families, and wants them back.
func (p pair) sayAll(t *testing.T, words string) {
	t.Helper()
	for _, f := range p.families() {
		for _, version := range []int{1, 2} {
			dials := 0
			c := p.client(version, &dials)
			if err := p.post(t.Context(), c, f, words); err != nil {
				t.Errorf("HTTP/%d: %v", version, err)
			}
			c.CloseIdleConnections()
		}
		if err := p.ask(t.Context(), f, words); err != nil {
			t.Errorf("opaque: %v", err)
		}
		g := dialCalls(t, path{from: p.from, to: p.at(f, regionGRPC)})
		got, err := g.UnaryCall(t.Context(), &rpc.SimpleRequest{Payload: &rpc.Payload{Body: []byte(words)}})
		if err != nil || string(got.GetPayload().GetBody()) != words {
			t.Errorf("%s, gRPC: %q, %v", p, got.GetPayload().GetBody(), err)
		}
	}
}

// wantTLS looks at what was captured between the client's and the server's address: lately it must go to the mesh port alone, what goes
// there must be TLS 1.3 from its beginning, and there must be some.
func (p pair) wantTLS(whole, lately *lab.Capture, f lab.Families) error {
	from, to := p.from.IP(f), p.to.IP(f)
	between := func(flow lab.Flow) bool { return flow.Src.Addr() == from && flow.Dst.Addr() == to }
	var errs []error
	for flow, sent := range lately.Flows() {
		if between(flow) && flow.Src.Port() != meshPort && flow.Dst.Port() != meshPort {
			errs = append(errs, fmt.Errorf("%d bytes in %s, which is no mesh connection", len(sent), flow))
		}
	}
	flows, sessions := whole.Flows(), 0
	for flow, sent := range flows {
		if between(flow) && flow.Dst.Port() == meshPort {
			sessions++
			answer := flows[lab.Flow{Src: flow.Dst, Dst: flow.Src}]
			errs = append(errs, tlsHello(sent, clientHello), tls13(answer))
		}
	}
	if sessions == 0 {
		errs = append(errs, errors.New("no connection to the mesh port"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s (%s to %s): %w", p, from, to, err)
	}
	return nil
}

// The messages of RFC 8446, section 4.
const (
	clientHello = 1
	serverHello = 2

	supportedVersions = 43 // an extension
)

// tlsHello expects a handshake record (RFC 8446, 5.1) with a message of a kind.
func tlsHello(b []byte, kind byte) error {
	if len(b) < 9 || b[0] != 0x16 || b[1] != 0x03 || b[5] != kind {
		return fmt.Errorf("begins with % x, want a TLS handshake record with message %d", b[:min(9, len(b))], kind)
	}
	return nil
}

// tls13 expects a ServerHello that selects TLS 1.3 (RFC 8446, 4.1.3 and 4.2.1).
func tls13(b []byte) error {
	if err := tlsHello(b, serverHello); err != nil {
		return err
	}
	const random = 5 + 4 + 2 // record header, message header, legacy_version
	short := errors.New("ServerHello is cut short")
	if len(b) < random+32+1 {
		return short
	}
	b = b[random+32:]
	if b = b[1+int(b[0]):]; len(b) < 5 { // session ID; then cipher suite, compression, length of the extensions
		return short
	}
	for b = b[5:]; len(b) >= 4; {
		kind, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if len(b) < 4+n {
			return short
		}
		if kind == supportedVersions {
			if n != 2 || binary.BigEndian.Uint16(b[4:]) != 0x0304 {
				return fmt.Errorf("version % x selected, want TLS 1.3", b[4:4+n])
			}
			return nil
		}
		b = b[4+n:]
	}
	return errors.New("no supported_versions in ServerHello: an older TLS than 1.3")
}
