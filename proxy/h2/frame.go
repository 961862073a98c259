// Package h2 speaks HTTP/2 (RFC 9113) on both sides of an exchange. It reads frames in place and keeps one small
// record per stream; header blocks that repeat are neither decoded nor encoded again.
package h2

import (
	"fmt"

	"conduit.io/conduit/mesh"
)

// Preface is what a client sends first (RFC 9113, 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Frame types and flags (RFC 9113, 6).
const (
	frData         = 0
	frHeaders      = 1
	frPriority     = 2
	frReset        = 3
	frSettings     = 4
	frPush         = 5
	frPing         = 6
	frGoAway       = 7
	frWindow       = 8
	frContinuation = 9
	// frClientEnd is the links' own, from the range for such use (RFC 9113, 11.2): behind the end of a request it says that
	// the client has finished sending on its HTTP/1.1 connection. It has no payload. Who does not know it ignores it.
	frClientEnd = 0xf1

	flEndStream  = 1
	flAck        = 1
	flEndHeaders = 4
	flPadded     = 8
	flPriority   = 0x20
)

// Settings (RFC 9113, 6.5.2; RFC 8441, 3).
const (
	setTableSize  = 1
	setPush       = 2
	setMaxStreams = 3
	setWindow     = 4
	setMaxFrame   = 5
	setListSize   = 6
	setConnect    = 8
)

// Error codes (RFC 9113, 7).
const (
	codeNo           = 0
	codeProtocol     = 1
	codeInternal     = 2
	codeFlow         = 3
	codeSettings     = 4
	codeStreamClosed = 5
	codeFrameSize    = 6
	codeRefused      = 7
	codeCancel       = 8
	codeCompression  = 9
	codeCalm         = 11
)

const (
	frameHeader = 9
	maxFrame    = 16384 // what we accept and what we send
	maxWindow   = 1<<31 - 1

	streamWindow = 256 << 10 // receive window of a stream: bounds its queue
	// connWindow bounds the queues of a connection together; links between proxies carry many clients' streams.
	connWindow     = 4 << 20
	connWindowLink = 16 << 20
	// parkedWindows is how many times the connection's window may wait, for peers that do not take what came for them,
	// before the connection gets no new streams. Those that it has may make it more.
	parkedWindows = 3

	advertised     = 1000 // concurrent streams that we accept
	unlimited      = 1000 // concurrent streams that we open where the peer sets no limit
	assumedStreams = 100  // concurrent streams before the peer's SETTINGS (RFC 9113, 6.5.2 recommends no less)

	maxBlock         = 64 << 10 // header block, encoded and decoded
	maxFields        = 256
	maxContinuations = 16 // CVE-2024-27316
	// maxString is the longest string of a header block that is not an error of HPACK: one that fills the frames. It is
	// too large, then, but not wrong.
	maxString = (maxContinuations + 1) * maxFrame
)

// connError ends the connection with GOAWAY.
type connError struct {
	code  uint32
	text  string
	abuse mesh.Abuse
	// reason of the failure, if it is another than that the peer broke the protocol
	reason mesh.Reason
}

// why is the reason of the failure, where other is that of a broken protocol.
func (e *connError) why(other mesh.Reason) mesh.Reason {
	if e.reason != "" {
		return e.reason
	}
	return other
}

func (e *connError) Error() string { return fmt.Sprintf("http2: %s (code %d)", e.text, e.code) }

func fatal(code uint32, text string) error { return &connError{code: code, text: text} }

// calm ends the connection of a peer that asks for too much (ENHANCE_YOUR_CALM).
func calm(abuse mesh.Abuse, text string) error {
	return &connError{code: codeCalm, text: text, abuse: abuse}
}

func be32(p []byte) uint32 {
	return uint32(p[0])<<24 | uint32(p[1])<<16 | uint32(p[2])<<8 | uint32(p[3])
}

func appendFrame(b []byte, length int, typ, flags byte, id uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), typ, flags,
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func append32(b []byte, v uint32) []byte {
	return append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func appendSetting(b []byte, id uint16, v uint32) []byte {
	return append32(append(b, byte(id>>8), byte(id)), v)
}
