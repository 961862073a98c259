package sock

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"reflect"
	"runtime"
	"strings"
	"unsafe"
)

// crypto/tls shakes hands, and deals with every record that is not application data: alerts, tickets, key updates. Those
// which are, nearly all of them, are opened and sealed here (record.go), with crypto/tls's own keys and sequence numbers.
// It would read every record into a buffer that a connection then keeps for its life, 17 to 46 KB, allocate for
// every read, copy every byte once more, and write every record by itself.
//
// This needs unexported fields of tls.Conn, which are looked up by name and type. That they mean what we think is known
// only of the Go releases of which crypto/tls was read and compared with us (TestLikeCryptoTLS). With another, or should
// one name or type them otherwise, crypto/tls does everything, and connections merely cost more (and TestRecordsAreOurs
// fails).
var fields, known = lookUp(runtime.Version())

// verifiedGo is the release whose crypto/tls is known, with all of its patch releases.
const verifiedGo = "go1.26"

// verified is false also for what says more than the number of a release: crypto/tls may be another there (boringcrypto,
// toolchains of distributions).
func verified(version string) bool {
	patch, ok := strings.CutPrefix(version, verifiedGo)
	if !ok || patch == "" {
		return ok
	}
	return patch[0] == '.' && len(patch) > 1 && strings.Trim(patch[1:], "0123456789") == ""
}

// layout is where fields are in tls.Conn.
type layout struct {
	in, out  halfLayout
	rawInput uintptr // bytes.Buffer: records that were read
	hand     uintptr // bytes.Buffer: handshake messages
	retries  uintptr // int: records in succession that were of no use
	certs    uintptr // []*x509.Certificate: the peer's
	chains   uintptr // [][]*x509.Certificate: by which they were verified
}

// halfLayout is where fields of one direction are, a halfConn.
type halfLayout struct {
	err    uintptr // error: what ended it
	cipher uintptr // any: in TLS 1.3 an AEAD that makes the nonce of a sequence number by itself
	seq    uintptr // [8]byte
}

func lookUp(version string) (l layout, ok bool) {
	conn, ok := reflect.TypeFor[tls.Conn](), verified(version)
	field := func(in reflect.Type, name string, typ reflect.Type) (reflect.Type, uintptr) {
		f, found := in.FieldByName(name)
		if !found || typ != nil && f.Type != typ || typ == nil && f.Type.Kind() != reflect.Struct {
			ok = false
			return reflect.TypeFor[struct{}](), 0
		}
		return f.Type, f.Offset
	}
	half := func(name string) (h halfLayout) {
		typ, base := field(conn, name, nil)
		_, h.err = field(typ, "err", reflect.TypeFor[error]())
		_, h.cipher = field(typ, "cipher", reflect.TypeFor[any]())
		_, h.seq = field(typ, "seq", reflect.TypeFor[[8]byte]())
		return halfLayout{base + h.err, base + h.cipher, base + h.seq}
	}
	l.in, l.out = half("in"), half("out")
	_, l.rawInput = field(conn, "rawInput", reflect.TypeFor[bytes.Buffer]())
	_, l.hand = field(conn, "hand", reflect.TypeFor[bytes.Buffer]())
	_, l.retries = field(conn, "retryCount", reflect.TypeFor[int]())
	_, l.certs = field(conn, "peerCertificates", reflect.TypeFor[[]*x509.Certificate]())
	_, l.chains = field(conn, "verifiedChains", reflect.TypeFor[[][]*x509.Certificate]())
	return l, ok
}

// inside is the field of tc at an offset.
func inside[T any](tc *tls.Conn, offset uintptr) *T {
	return (*T)(unsafe.Add(unsafe.Pointer(tc), offset))
}
