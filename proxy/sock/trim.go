package sock

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"sync"
	"sync/atomic"
	"unsafe"
)

// crypto/tls keeps the buffer into which it reads records for the life of a connection: 17 to 46 KB once a full record
// has come, which is most of what an idle connection costs, and it offers no way to give it back. So the session lends
// it one before reading, and takes it away when no part of a record is in it. This needs two unexported fields of
// tls.Conn; should a Go release name or type them otherwise, nothing is lent and connections merely cost more (and
// TestIdleTLSConnectionMemory fails).
var rawInput, hand = fieldOf("rawInput"), fieldOf("hand")

// fieldOf is the offset of a bytes.Buffer in tls.Conn, 0 when there is no such field.
func fieldOf(name string) uintptr {
	f, ok := reflect.TypeFor[tls.Conn]().FieldByName(name)
	if !ok || f.Type != reflect.TypeFor[bytes.Buffer]() {
		return 0
	}
	return f.Offset
}

const (
	// maxPlain is the most that a record carries (RFC 8446, 5.1), and maxRecord its size (5.2).
	maxPlain  = 16 << 10
	maxRecord = 5 + maxPlain + 256
	// lentSize is as much as one turn delivers, and a record that is not complete.
	lentSize = turnBytes + maxRecord
	// maxLent connections at once keep a lent buffer while a record in it is not complete; more of them copy what they
	// have into memory of its size.
	maxLent = 16
)

var (
	lentPool = sync.Pool{New: func() any { return new([lentSize]byte) }}
	lentOut  atomic.Int32
)

func (s *session) raw() *bytes.Buffer {
	return (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(s.tc), rawInput))
}

// empty reports whether a read would find nothing.
func (s *session) empty() bool { return s.lent != nil && !s.w.c.canRead && s.raw().Len() == 0 }

// lend is called on the loop, after the handshake, before crypto/tls reads.
func (s *session) lend() {
	if rawInput == 0 || s.lent != nil || s.raw().Len() > lentSize-maxRecord {
		return
	}
	lentOut.Add(1)
	s.lent = lentPool.Get().(*[lentSize]byte)
	n := copy(s.lent[:], s.raw().Bytes()) // what the handshake has read ahead, or the start of a record
	*s.raw() = *bytes.NewBuffer(s.lent[:n])
}

// takeBack is called when crypto/tls has been read until it had no complete record, or the reader has had enough.
// Decrypted bytes are never left in the buffer: a read of the loop's buffer takes a whole record.
func (s *session) takeBack() {
	if s.lent == nil {
		return
	}
	raw := s.raw()
	switch n := raw.Len(); {
	case n > maxRecord, n > 0 && lentOut.Load() <= maxLent:
		return
	case n > 0:
		*raw = *bytes.NewBuffer(append(make([]byte, 0, n), raw.Bytes()...))
	default:
		*raw = bytes.Buffer{} // if it had grown, the lent one is free all the more
	}
	lentPool.Put(s.lent)
	s.lent = nil
	lentOut.Add(-1)
	if hand != 0 {
		if h := (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(s.tc), hand)); h.Len() == 0 && h.Cap() > 0 {
			*h = bytes.Buffer{}
		}
	}
}
