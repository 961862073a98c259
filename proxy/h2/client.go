package h2

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

// maxInterim bounds the interim responses to one request.
const maxInterim = 32

// Client is the upstream codec of one HTTP/2 connection. It implements flow.Receiver and exchange.Upstream.
type Client struct {
	conn
	o      exchange.ClientOptions
	next   uint32
	served uint64
	gone   bool // the server sent GOAWAY
	held   []held
	asked  bool        // a PING awaits its answer
	broken bool        // the server broke the protocol: what is sent again must go elsewhere
	full   bool        // Room was 0 when the last stream was sent
	why    mesh.Reason // of the end of the connection
}

// NewClient makes itself the receiver of c and greets the server.
func NewClient(c flow.Conn, o exchange.ClientOptions) *Client {
	cl := &Client{o: o, next: 1}
	cl.init(c, o.Pool, o.Clock, exchange.Up, o.Internal, cl)
	cl.o.Pool = cl.pool
	if o.Streams != nil && *o.Streams > 0 {
		cl.maxPeer = min(cl.maxPeer, *o.Streams)
	}
	c.SetReceiver(cl)
	cl.greet()
	return cl
}

// Send implements exchange.Upstream.
func (cl *Client) Send(s *exchange.Stream, extra []hpack.HeaderField) {
	if cl.Room() == 0 {
		s.Abort(exchange.Up, mesh.ReasonUpstreamReset, codeRefused, true)
		return
	}
	if s.Req.Protocol != "" && cl.awaits(s, extra) {
		return
	}
	id := cl.next
	if cl.next += 2; cl.next > maxWindow { // it goes with its last stream (RFC 9113, 5.1.1)
		cl.draining = true
	}
	ended := s.RequestEnded()
	extended := cl.extends(s.Req)
	if s.Req.Protocol != "" && !extended { // such a server is not asked to upgrade, and so will not
		ended = true
	}
	*s.Port(exchange.Up) = exchange.Port{ID: id, Window: cl.initWin, Left: -1, SentEnd: ended, Extended: extended}
	cl.streams.put(id, s)
	cl.writeRequest(id, s.Req, extra, ended)
	cl.Room() // notes if that was the last
	if cl.watch == nil {
		cl.listen()
	}
	s.Attach(cl, ended)
}

func (cl *Client) writeRequest(id uint32, req *exchange.Head, extra []hpack.HeaderField, ended bool) {
	if len(extra) == 0 {
		if b := cl.hp.known(req); b != nil {
			cl.writeBlock(id, ended, b)
			return
		}
	}
	cl.hp.begin(cl.pool)
	if b := cl.hp.known(req); b != nil {
		cl.hp.out = append(cl.hp.out, b...)
	} else {
		cl.encodeHead(req)
		if b := cl.hp.out; fixed(b) {
			cl.hp.remember(req, b)
		}
	}
	for i := range extra {
		cl.hp.field(extra[i])
	}
	cl.writeBlock(id, ended, cl.hp.finish(cl.pool))
}

func (cl *Client) encodeHead(req *exchange.Head) {
	method := req.Method
	upgrade := cl.extends(req)
	if upgrade {
		method = "CONNECT" // RFC 8441, 5
	}
	cl.hp.field(hpack.HeaderField{Name: ":method", Value: method})
	if upgrade {
		cl.hp.field(hpack.HeaderField{Name: ":protocol", Value: req.Protocol})
	}
	if method != "CONNECT" || upgrade {
		scheme := req.Scheme
		if scheme == "" {
			scheme = "http"
		}
		cl.hp.field(hpack.HeaderField{Name: ":scheme", Value: scheme})
		cl.hp.field(hpack.HeaderField{Name: ":path", Value: req.Path})
	}
	if req.Authority != "" { // HTTP/1.0 need not name a host
		cl.hp.field(hpack.HeaderField{Name: ":authority", Value: req.Authority})
	}
	if upgrade && cl.internal && req.Method != "GET" {
		cl.hp.field(hpack.HeaderField{Name: exchange.UpgradeMethod, Value: req.Method})
	}
	if req.Absolute && cl.internal {
		cl.hp.field(hpack.HeaderField{Name: exchange.TargetForm, Value: "absolute"})
	}
	tunnel := method == "CONNECT"
	for i := range req.Fields {
		name := req.Fields[i].Name
		if exchange.HopByHop(name) || !cl.internal && exchange.MeshField(name) || tunnel && name == "content-length" ||
			upgrade && !cl.internal && name == "sec-websocket-key" || name == exchange.UpgradeMethod {
			continue
		}
		cl.hp.field(req.Fields[i])
	}
}

// Room implements exchange.Upstream. A connection that holds much of what slow clients have not taken takes no more
// streams: another one serves them better.
func (cl *Client) Room() int {
	if cl.over || cl.gone || cl.broken || cl.draining {
		return 0
	}
	n := int(min(cl.maxPeer, 1<<20)) - cl.Active()
	if n <= 0 || cl.c.Backlog() > maxBacklog || cl.used-cl.unacked+cl.parked > cl.recvWin*parkedWindows/4*3 {
		cl.full = true
		return 0
	}
	return n
}

// Active implements exchange.Upstream.
func (cl *Client) Active() int { return cl.streams.len() + len(cl.held) }

// Served implements exchange.Upstream.
func (cl *Client) Served() uint64 { return cl.served }

// Drain implements exchange.Upstream.
func (cl *Client) Drain() {
	cl.draining = true
	cl.idle()
}

// Close implements exchange.Upstream.
func (cl *Client) Close() {
	if !cl.over {
		cl.writeGoAway(0, codeNo)
		cl.shut()
	}
}

// Closed implements flow.Receiver.
func (cl *Client) Closed(err error) {
	cl.over = true
	if cl.why == "" {
		cl.why = exchange.LostReason(err)
	}
	cl.abortAll()
	cl.release()
	cl.free()
	if cl.o.OnChange != nil {
		cl.o.OnChange(cl, true, err)
	}
}

func (cl *Client) violated(e *connError) {
	cl.broken = true
	cl.why = e.why(mesh.ReasonUpstreamProto)
	if cl.o.OnViolation != nil {
		cl.o.OnViolation(exchange.Violation{Reason: cl.why, Abuse: e.abuse, Detail: e.text})
	}
	for _, r := range cl.streams.refs() {
		if r.Live() {
			cl.remove(r.S)
			r.S.Abort(exchange.Up, cl.why, codeNo, false)
		}
	}
	cl.release()
}

// settled implements role.
func (cl *Client) settled() {
	if cl.first && cl.o.Streams != nil {
		*cl.o.Streams = max(1, cl.maxPeer) // a connection that takes none says so itself
	}
	if cl.first {
		cl.release()
	}
	cl.roomy()
}

// lost is the reason why a stream ends with the connection.
func (cl *Client) lost() mesh.Reason {
	if cl.why != "" {
		return cl.why
	}
	return mesh.ReasonUpstreamReset
}

// slow implements role; a client receives no requests.
func (cl *Client) slow(*exchange.Stream) {}

// acked implements role; a client sends no PING.
func (cl *Client) acked() {}

// roomy tells when streams fit again.
func (cl *Client) roomy() {
	if cl.full && cl.Room() > 0 {
		cl.full = false
		if cl.o.OnChange != nil {
			cl.o.OnChange(cl, false, nil)
		}
	}
}

func (cl *Client) idle() {
	if (cl.draining || cl.gone) && cl.Active() == 0 && !cl.over {
		cl.writeGoAway(0, codeNo)
		cl.shut()
	}
}

func (cl *Client) reset(s *exchange.Stream, code uint32) {
	cl.served++
	s.Abort(exchange.Up, cl.lost(), code, code == codeRefused)
	cl.roomy()
	cl.idle()
}

// broke implements role. The client is told by an answer of ours, if it has none yet.
func (cl *Client) broke(s *exchange.Stream, reason mesh.Reason) {
	cl.served++
	s.Abort(exchange.Up, reason, codeNo, false)
	cl.roomy()
	cl.idle()
}

// goAway implements role: streams above last have not been processed and never will be (RFC 9113, 6.8).
func (cl *Client) goAway(last, _ uint32) {
	cl.gone = true
	for _, r := range cl.streams.refs() {
		if r.Live() && r.S.Port(exchange.Up).ID > last {
			cl.remove(r.S)
			r.S.Abort(exchange.Up, mesh.ReasonUpstreamReset, codeRefused, true)
		}
	}
	cl.idle()
}

// unknown handles a frame on a stream that is not open: late frames on a stream that we have reset, or nonsense.
func (cl *Client) unknown(id uint32, _ byte) error {
	if id&1 == 0 || id >= cl.next {
		return fatal(codeProtocol, "frame on an idle stream")
	}
	return nil
}

// headers implements role: an interim or final response, or trailers.
func (cl *Client) headers(id uint32, end bool, b *block) error {
	s := cl.streams.get(id)
	if s == nil {
		return cl.unknown(id, frHeaders)
	}
	if s.Res != nil {
		return cl.trailers(s, end, b)
	}
	if b.big {
		return cl.giveUp(id, codeProtocol, mesh.ReasonTooLarge)
	}
	res, left, err := cl.response(b)
	if err != nil || res.Status < 200 && end {
		return cl.streamError(id, codeProtocol)
	}
	if res.Status < 200 {
		p := s.Port(exchange.Up)
		if p.Interims++; p.Interims > maxInterim {
			return cl.streamError(id, codeProtocol)
		}
		s.Interim(res)
		return nil
	}
	tunnel := accepted(s, res)
	if s.Req.Method == "HEAD" || res.Status == 304 || tunnel {
		left = -1
	}
	if end && left > 0 {
		return cl.streamError(id, codeProtocol)
	}
	port := s.Port(exchange.Up)
	port.Left, port.GotEnd = left, end
	if tunnel && !cl.internal && s.Req.IsWebSocket() {
		res = welcome(res, s.Req)
	}
	s.ResponseHead(res, end, tunnel)
	return nil
}

// accepted reports whether a response opens the tunnel that the request asked for.
func accepted(s *exchange.Stream, res *exchange.Head) bool {
	if s.Req.Method != "CONNECT" && s.Req.Protocol == "" || s.Req.Protocol != "" && !s.Port(exchange.Up).Extended {
		return false
	}
	return res.Status/100 == 2 && res.Get(declined) == ""
}

// Detach implements exchange.Half.
func (cl *Client) Detach(s *exchange.Stream, e exchange.Ending) {
	p := s.Port(exchange.Up)
	cl.remove(s)
	cl.served++
	if !p.SentEnd || !p.GotEnd {
		code := e.Code
		if code == codeNo {
			code = codeCancel
		}
		cl.rst(p.ID, code)
	}
	cl.roomy()
	cl.idle()
}
