package server

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"
	"conduit.io/conduit/api/identityv1/identityv1connect"
	"conduit.io/conduit/api/nodev1/nodev1connect"
	"conduit.io/conduit/control/access"
	"conduit.io/conduit/control/identity"

	"connectrpc.com/connect"
)

const (
	// maxMessage bounds a message from a client, in bytes; identity.MaxMessage those with requests for certificates.
	maxMessage = 256 << 10
	// maxPublic bounds those that need no token, and say little.
	maxPublic = 4 << 10
	// maxCalls is how many calls of one procedure a caller may have at a time: agents have one or two. maxOpen is that of whoever
	// calls from one address without a token, and maxStrangers of all of them together: streams of theirs may stay open.
	maxCalls     = 32
	maxOpen      = 8
	maxStrangers = 256
	// bodyTime is how long the body of a call that is no stream may take to come.
	bodyTime = 20 * time.Second
)

func readMax(procedure string) int {
	switch procedure {
	case identityv1connect.IdentityServiceCertifyProcedure:
		return identity.MaxMessage
	case identityv1connect.IdentityServiceGetRootsProcedure:
		return maxPublic
	}
	return maxMessage
}

// streams are procedures whose clients may take their time to say something.
var streams = map[string]bool{
	discoveryv1connect.DiscoveryServiceWatchProcedure:    true,
	identityv1connect.IdentityServiceWatchRootsProcedure: true,
	nodev1connect.NodeServiceReportProcedure:             true,
	healthWatch:                                          true, reflection: true, reflectionAlpha: true,
}

// crowd counts calls under way. It is safe for concurrent use.
type crowd struct {
	mu sync.Mutex
	n  map[string]int // by caller and procedure; none is 0
}

// enter reports false if there are as many as there may be.
func (c *crowd) enter(key string, most int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[key] >= most {
		return false
	}
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[key]++
	return true
}

func (c *crowd) leave(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[key]--; c.n[key] == 0 {
		delete(c.n, key)
	}
}

// known answers for procedures that there are not, whoever asks.
func (s *Server) known(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.codes[r.URL.Path] == nil {
			http.NotFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// bounded bounds what a caller that the gate has let through may have kept for it: calls, and the time that their bodies
// take.
func (s *Server) bounded(next http.Handler) http.Handler {
	answer := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := access.From(r.Context())
		leave, err := s.admit(r, c)
		if err != nil {
			s.refused(r, c, err, nil)
			_ = answer.Write(w, r, err) // the caller is gone: nobody to tell
			return
		}
		defer leave()
		if !streams[r.URL.Path] {
			err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
			if err != nil && !errors.Is(err, http.ErrNotSupported) {
				return // the connection is gone
			}
		}
		next.ServeHTTP(w, r)
	})
}

// admit counts the call among those of its caller, until leave is called, or says that there are too many.
func (s *Server) admit(r *http.Request, c access.Caller) (leave func(), told *connect.Error) {
	key, most := r.URL.Path+" "+c.User+" "+c.Node, maxCalls
	if c.User == "" {
		key, most = r.URL.Path+" "+hostOf(r), maxOpen
	}
	if !s.crowd.enter(key, most) {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("more than %d calls of %s at a time", most, r.URL.Path))
	}
	if c.User != "" {
		return func() { s.crowd.leave(key) }, nil
	}
	if !s.crowd.enter(strangers, maxStrangers) {
		s.crowd.leave(key)
		return nil, connect.NewError(connect.CodeResourceExhausted, errors.New("too many calls without a token at a time"))
	}
	return func() { s.crowd.leave(key); s.crowd.leave(strangers) }, nil
}

// strangers is the key of all who call without a token.
const strangers = "strangers"

// hostOf is the address that the request comes from.
func hostOf(r *http.Request) string {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return host
}

// refused counts and logs a refusal, each kind of a caller once; of a caller that is not known, of its address.
func (s *Server) refused(r *http.Request, c access.Caller, told *connect.Error, err error) {
	s.count(r.URL.Path, told)
	host := hostOf(r)
	who := c.User
	if c.Node != "" {
		who += " " + c.Node
	}
	key := told.Code().String() + " " + r.URL.Path + " " + who
	if who == "" {
		key += host
	}
	if s.told.First(key, time.Now()) {
		s.cfg.Log.Warn("call refused; the same is not logged again for a while", "procedure", r.URL.Path, "caller", who, "from", host,
			"code", told.Code().String(), "told", told.Message(), "error", err)
	}
}
