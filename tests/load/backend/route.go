package backend

import (
	"strconv"
	"strings"
	"time"

	"conduit.io/conduit/tests/load/h2"
)

type action uint8

const (
	answer action = iota // with content
	count                // with the length of the request's body
	echo                 // with the request's body
	reset                // by breaking the connection or stream off
	stats                // with what was served until now
	unknown
)

// plan is what a path asks for.
type plan struct {
	action  action
	content h2.Content
	delay   time.Duration
	grpc    bool
	bare    bool // a HEAD request
}

const (
	small     = 128
	maxBytes  = 1 << 30
	maxDelay  = 10 * time.Minute
	grpcTypes = "application/grpc"
)

// route finds the plan for a request.
func route(method, path, kind string) *plan {
	path, _, _ = strings.Cut(path, "?")
	p := &plan{grpc: strings.HasPrefix(kind, grpcTypes), bare: method == "HEAD"}
	p.content = h2.Content{Chunks: 1, Size: small, GRPC: p.grpc}
	name, arg, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	ok := true
	switch name {
	case "":
	case "bytes":
		p.content.Size, ok = number(arg, maxBytes)
	case "upload":
		p.action = count
	case "stream":
		chunks, size, _ := strings.Cut(arg, "/")
		var ok2 bool
		p.content.Chunks, ok = number(chunks, 1<<20)
		p.content.Size, ok2 = number(size, 1<<20)
		ok = ok && ok2
	case "slow":
		var ms int
		ms, ok = number(arg, int(maxDelay.Milliseconds()))
		p.delay = time.Duration(ms) * time.Millisecond
	case "echo":
		p.action = echo
	case "reset":
		p.action = reset
	case "stats":
		p.action = stats
	default:
		ok = p.grpc
		p.action = echo
	}
	if !ok {
		p.action = unknown
	}
	return p
}

func number(s string, limit int) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && 0 <= n && n <= limit
}

// Expected is how many bytes of body the backend answers to a request for path with a body of sent bytes; -1 when that
// is not known beforehand.
func Expected(path string, grpc bool, sent int) int {
	kind := ""
	if grpc {
		kind = grpcTypes
	}
	switch p := route("", path, kind); p.action {
	case answer:
		return p.content.Len()
	case count:
		if grpc {
			return -1
		}
		return len(strconv.Itoa(sent))
	case echo:
		return sent
	}
	return -1
}
