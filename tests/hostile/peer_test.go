package hostile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// patience bounds everything that an attacker waits for.
const patience = time.Minute

// frame is an HTTP/2 frame, as good or bad as its parts.
func frame(typ, flags byte, id uint32, payload ...byte) []byte {
	n := len(payload)
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), typ, flags, byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}, payload...)
}

// block encodes name, value pairs without the dynamic table, so that any connection may carry it.
func block(kv ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(kv); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1], Sensitive: true})
	}
	return b.Bytes()
}

func request(path string, more ...string) []byte {
	return block(append([]string{":method", "GET", ":scheme", "http", ":path", path, ":authority", "app"}, more...)...)
}

var (
	get  = request("/")
	post = block(":method", "POST", ":scheme", "http", ":path", "/upload", ":authority", "app")
)

// h2 is a client of HTTP/2 that writes what it likes, and reads on or does not.
type h2 struct {
	net.Conn
	read chan verdict // of reader
}

// verdict is what a peer that reads to the end has seen.
type verdict struct {
	code   http2.ErrCode // of GOAWAY
	gone   bool
	err    error // of the connection, nil when it was closed in order
	status map[uint32]string
	resets map[http2.ErrCode]int
}

// dialH2 connects and sends SETTINGS.
func dialH2(addr string, settings ...http2.Setting) (*h2, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	var b bytes.Buffer
	b.WriteString(http2.ClientPreface)
	if err := http2.NewFramer(&b, nil).WriteSettings(settings...); err != nil {
		return nil, err
	}
	if _, err := c.Write(append(b.Bytes(), frame(4, 1, 0)...)); err != nil {
		c.Close()
		return nil, err
	}
	return &h2{Conn: c}, nil
}

// reader reads everything that comes, to the end. It calls each for every frame; an error of it ends the reading.
func (p *h2) reader(each func(http2.Frame) error) {
	p.read = make(chan verdict, 1)
	go func() {
		v := verdict{status: map[uint32]string{}, resets: map[http2.ErrCode]int{}}
		f := http2.NewFramer(io.Discard, p.Conn)
		f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					v.err = err
				}
				break
			}
			switch fr := fr.(type) {
			case *http2.GoAwayFrame:
				v.code, v.gone = fr.ErrCode, true
			case *http2.MetaHeadersFrame:
				if s := fr.PseudoValue("status"); s != "" { // not trailers
					v.status[fr.StreamID] = s
				}
			case *http2.RSTStreamFrame:
				v.resets[fr.ErrCode]++
			}
			if each != nil {
				if err := each(fr); err != nil {
					v.err = err
					break
				}
			}
		}
		p.read <- v
	}()
}

// flood writes what next gives, piece after piece, until the proxy ends the connection, and returns how.
func (p *h2) flood(next func(i int) []byte) verdict {
	p.reader(nil)
	defer p.Close()
	for i := 0; len(p.read) == 0; i++ {
		if _, err := p.Write(next(i)); err != nil {
			break
		}
	}
	return <-p.read
}

// calmed is the error of a verdict that is not what a flood deserves.
func (v verdict) calmed() error {
	if !v.gone || v.code != http2.ErrCodeEnhanceYourCalm {
		return fmt.Errorf("GOAWAY %v with %v, the connection ended with %v", v.gone, v.code, v.err)
	}
	return nil
}

// http1 writes a request, and returns the answer until the connection ends, at most max bytes of it.
func http1(addr, text string, limit int64) (string, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	go func() { _, _ = io.WriteString(c, text) }()
	b, err := io.ReadAll(io.LimitReader(c, limit))
	return string(b), err
}
