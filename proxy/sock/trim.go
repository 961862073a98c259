package sock

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"sync"
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

// lentSize lets a record (RFC 8446, 5.2: at most 16,640 bytes) move about in the buffer without being reallocated.
const lentSize = 48 << 10

var lentPool = sync.Pool{New: func() any { return new([lentSize]byte) }}

// lend is called on the loop, after the handshake, before crypto/tls reads.
func (s *session) lend() {
	if rawInput == 0 || s.lent != nil {
		return
	}
	raw := (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(s.tc), rawInput))
	s.lent = lentPool.Get().(*[lentSize]byte)
	n := copy(s.lent[:], raw.Bytes()) // what the handshake has read ahead
	*raw = *bytes.NewBuffer(s.lent[:n])
}

// takeBack is called when crypto/tls has been read until it had no complete record, or the reader has had enough.
// Decrypted bytes are never left in the buffer: a read of the loop's buffer takes a whole record.
func (s *session) takeBack() {
	if s.lent == nil {
		return
	}
	raw := (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(s.tc), rawInput))
	if raw.Len() > 0 {
		return
	}
	*raw = bytes.Buffer{} // if it had grown, the lent one is free all the more
	lentPool.Put(s.lent)
	s.lent = nil
	if hand != 0 {
		if h := (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(s.tc), hand)); h.Len() == 0 && h.Cap() > 0 {
			*h = bytes.Buffer{}
		}
	}
}
