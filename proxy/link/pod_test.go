package link_test

import (
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/api/frame"
	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// setPod sends a pod's record with its descriptors, as at its beginning, for listeners that it has already.
func (n *testNode) setPod(cookie uint64, w mesh.Workload, files []*os.File) {
	n.t.Helper()
	n.must(&api.Message{Pod: &api.Pod{Cookie: cookie, Workload: w}}, append([]*os.File{ownNetns(n.t)}, files...)...)
}

// What a pod has under way ends with it; it is not sent again.
func TestRemoveDoesNotRetry(t *testing.T) {
	n1, _ := pair(t)
	asked := make(chan struct{}, 10)
	l, err := net.Listen("tcp", webIP+":8080")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	ended := make(chan error, 1)
	go func() {
		res, err := httpClient(t, false).Get("http://" + httpSvc + "/") // which may be repeated, by its method
		if err == nil {
			res.Body.Close()
		}
		ended <- err
	}()
	<-asked
	n1.must(&api.Message{Remove: &api.Remove{Cookie: 101}})
	if err := <-ended; err == nil {
		t.Error("the request had an answer")
	}
	n1.want("conduit_proxy_retries_total 0", "conduit_proxy_mesh_connections_dialled_total 1", "conduit_proxy_mesh_connections_open 0",
		"conduit_proxy_connections_open 0")
	if len(asked) > 0 {
		t.Error("the application was asked again")
	}
}

// A record that comes with descriptors is in force for the connections that are open, like one that comes alone.
func TestRecordChangesWithDescriptors(t *testing.T) {
	n := local(t, mesh.HTTP1, webIP+":8080")
	httpApp(t, webIP+":8080", "one")
	files := podFiles(t, "", "127.9.9.4:80")
	defer frame.CloseAll(files)
	c := httpClient(t, false)
	if status, _, _ := get(t, c, "http://"+httpSvc+"/"); status != 200 {
		t.Fatal(status)
	}
	w := workload("client", "n1", clientIP)
	w.Owner = "ReplicaSet/renamed"
	n.setPod(101, w, files)
	if status, _, _ := get(t, c, "http://"+httpSvc+"/"); status != 200 {
		t.Fatal(status)
	}
	n.want(`request_total{direction="outbound",src="shop/client",dst="shop/web",protocol="http1",tls="local",route="default"} 1`,
		`request_total{direction="outbound",src="shop/renamed",dst="shop/web",protocol="http1",tls="local",route="default"} 1`)
}

// A pod that turns STRICT has no plaintext from then on: not on connections that it had taken before, either.
func TestStrictEndsPlaintext(t *testing.T) {
	n := local(t, mesh.Detect)
	w := workload("open", "n1", "127.9.3.1")
	w.Mode = mesh.Permissive
	ns := otherNetns(t, "127.9.3.1:8080", echo)
	n.addPodIn(ns, 204, w, "127.9.3.1:8080", "")
	raw := dial(t, "127.9.3.1:8080")
	echoed := func(c net.Conn, s string) {
		t.Helper()
		io.WriteString(c, s)
		if _, err := io.ReadFull(c, make([]byte, len(s))); err != nil {
			t.Fatal(err)
		}
	}
	echoed(raw, "hello")
	silent := dial(t, "127.9.3.1:8080")
	n.want("conduit_proxy_connections_open 2")
	n.must(&api.Message{Pod: &api.Pod{Cookie: 204, Workload: w}}) // nothing has changed
	echoed(raw, "again")
	w.Mode = mesh.Strict
	n.must(&api.Message{Pod: &api.Pod{Cookie: 204, Workload: w}})
	for name, c := range map[string]net.Conn{"in use": raw, "silent": silent} {
		if k, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || k > 0 {
			t.Errorf("%s: want a reset, got %v", name, err)
		}
	}
	n.want("conduit_proxy_refused_plaintext_total 2", "conduit_proxy_connections_open 0",
		`tcp_close_total{direction="inbound",src="unknown",dst="shop/open",protocol="tcp",tls="none",reason="plaintext-refused"} 2`)
}

// HTTP in plaintext may end what it has begun, but not for long, and begins nothing more.
func TestStrictDrainsPlaintextHTTP(t *testing.T) {
	n := local(t, mesh.Detect)
	w := workload("open", "n1", "127.9.3.1")
	w.Mode = mesh.Permissive
	ask, answer := make(chan string, 10), make(chan struct{})
	ns := otherNetns(t, "127.9.3.1:8080", func(c *net.TCPConn) {
		b := make([]byte, 1000)
		for {
			k, err := c.Read(b)
			if err != nil {
				return
			}
			ask <- string(b[:k])
			<-answer
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	n.addPodIn(ns, 204, w, "127.9.3.1:8080", "")
	c := dial(t, "127.9.3.1:8080")
	idle := dial(t, "127.9.3.1:8080")
	io.WriteString(idle, "GET /idle HTTP/1.1\r\nHost: x\r\n\r\n")
	<-ask
	answer <- struct{}{}
	if k, err := idle.Read(make([]byte, 1000)); err != nil {
		t.Fatal(k, err)
	}
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-ask
	w.Mode = mesh.Strict
	n.must(&api.Message{Pod: &api.Pod{Cookie: 204, Workload: w}})
	io.WriteString(idle, "GET /late HTTP/1.1\r\nHost: x\r\n\r\n") // may meet a reset
	if b, err := io.ReadAll(idle); os.IsTimeout(err) || len(b) > 0 {
		t.Errorf("between two requests: %q, %v", b, err)
	}
	answer <- struct{}{}
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(b), "ok") || !strings.Contains(strings.ToLower(string(b)), "connection: close") {
		t.Errorf("in a request: %q, %v", b, err)
	}
	n.want("conduit_proxy_connections_open 0")
	if len(ask) > 0 {
		t.Errorf("the application got %q", <-ask)
	}
	stuck := make(chan error, 1)
	w.Mode = mesh.Permissive
	n.must(&api.Message{Pod: &api.Pod{Cookie: 204, Workload: w}})
	c = dial(t, "127.9.3.1:8080")
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, "GET /stuck HTTP/1.1\r\nHost: x\r\n\r\n")
	<-ask
	w.Mode = mesh.Strict
	n.must(&api.Message{Pod: &api.Pod{Cookie: 204, Workload: w}})
	go func() {
		_, err := io.ReadAll(c)
		stuck <- err
	}()
	if err := <-stuck; err == nil || os.IsTimeout(err) {
		t.Errorf("a request without an answer: want a reset, got %v", err)
	}
	close(answer)
}
