package link_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"
)

// authorities are one CA with two clocks: what the first issues expires when left has passed.
func authorities(t *testing.T, left time.Duration) (short, fresh *identity.CA) {
	t.Helper()
	dir := t.TempDir()
	began := time.Now()
	short, err := identity.OpenCA(dir, "test", func() time.Time { return began.Add(left - identity.LeafLife) })
	if err != nil {
		t.Fatal(err)
	}
	if fresh, err = identity.OpenCA(dir, "test", nil); err != nil {
		t.Fatal(err)
	}
	return short, fresh
}

// line gives the echo of one line.
func line(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(s))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != s {
		t.Fatalf("%q came back, %v", got, err)
	}
}

// A link ends with the certificates that it was made with, its own or its peer's: what it carries goes on to its end, and
// what is new goes over a new link with the certificates that are there now.
func TestLinkEndsWithItsCertificates(t *testing.T) {
	for _, account := range []string{"client", "web"} {
		t.Run(account, func(t *testing.T) {
			n1, n2 := pair(t)
			short, fresh := authorities(t, 5*time.Second)
			n1.certify(fresh, "client")
			n2.certify(fresh, "web")
			of := map[string]*testNode{"client": n1, "web": n2}[account]
			of.certify(short, account)
			httpApp(t, webIP+":8080", "web")
			tcpApp(t, webIP+":5432", func(c *net.TCPConn) { echo(c) })
			tunnel := dial(t, tcpSvc)
			line(t, tunnel, "before")
			if status, body, _ := get(t, httpClient(t, true), "http://"+httpSvc+"/"); status != 200 {
				t.Fatalf("%d %s", status, body)
			}
			n1.want("conduit_proxy_mesh_connections_dialled_total 1")
			of.certify(fresh, account) // in time: nobody notices
			line(t, tunnel, "renewed")
			within(t, 30*time.Second, func() bool {
				if status, body, _ := get(t, httpClient(t, true), "http://"+httpSvc+"/"); status != 200 {
					t.Fatalf("%d %s", status, body)
				}
				return strings.Contains(n1.stats(), "conduit_proxy_mesh_connections_dialled_total 2\n")
			}, func() string { return "requests go on over a link whose certificate has expired" })
			line(t, tunnel, "after")
			n1.want("conduit_proxy_mesh_connections_open 2")
			tunnel.Close()
			n1.want("conduit_proxy_mesh_connections_open 1", "conduit_proxy_mesh_connections_dialled_total 2")
			n2.want("conduit_proxy_mesh_connections_open 1")
		})
	}
}

// Nothing new begins with a certificate that has expired, on a link that stands no more than on a new one.
func TestExpiredCertificateCarriesNothingNew(t *testing.T) {
	n1, n2 := pair(t)
	short, fresh := authorities(t, 3*time.Second)
	n1.certify(short, "client")
	n2.certify(fresh, "web")
	httpApp(t, webIP+":8080", "web")
	tcpApp(t, webIP+":5432", func(c *net.TCPConn) { echo(c) })
	tunnel := dial(t, tcpSvc)
	line(t, tunnel, "before")
	var last http.Header
	within(t, 30*time.Second, func() bool {
		status, _, h := get(t, httpClient(t, true), "http://"+httpSvc+"/")
		last = h
		return status != 200
	}, func() string { return "requests are served with an expired certificate" })
	if got := last.Get("Conduit-Reason"); got != string(mesh.ReasonTLS) {
		t.Errorf("reason %q", got)
	}
	line(t, tunnel, "after")
	n1.certify(fresh, "client")
	if status, body, _ := get(t, httpClient(t, true), "http://"+httpSvc+"/"); status != 200 {
		t.Errorf("after renewal: %d %s", status, body)
	}
}

// Certificates are replaced under a live link, which goes on; a new one presents what is there now.
func TestCertificateReplacedWhileLive(t *testing.T) {
	_, n2 := pair(t)
	tcpApp(t, webIP+":5432", func(c *net.TCPConn) { echo(c) })
	open := func() (*meshPeer, string) {
		p, err := dialMesh(t, n2.ca, "client", mesh.ALPNHBONE)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.ask(1, false, ":method", "CONNECT", ":authority", webIP+":5432"); got[":status"] != "200" {
			t.Fatalf("CONNECT: %v", got)
		}
		return p, p.c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	say := func(p *meshPeer, s string) {
		t.Helper()
		if err := p.f.WriteData(1, false, []byte(s)); err != nil {
			t.Fatal(err)
		}
		if got := p.data(1, len(s)); got != s {
			t.Errorf("%q came back", got)
		}
	}
	old, before := open()
	say(old, "one")
	n2.certify(n2.ca, "web")
	fresh, after := open()
	if before == after {
		t.Error("the new link was shown the old certificate")
	}
	say(old, "two")
	say(fresh, "three")
	n2.must(&api.Message{Certificates: &api.Certificates{Roots: n2.ca.Roots()}})
	say(old, "four")
}
