package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// authority is whom the requests are for.
const authority = "server.bench.local"

func ask1(c net.Conn) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nhost: "+authority+"\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}

func ask2(c net.Conn) error {
	var head, out bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", authority}} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return err
		}
	}
	out.WriteString(http2.ClientPreface)
	w := http2.NewFramer(&out, nil)
	if err := w.WriteSettings(); err != nil {
		return err
	}
	if err := w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
		return err
	}
	if _, err := c.Write(out.Bytes()); err != nil {
		return err
	}
	return answer2(http2.NewFramer(c, c))
}

// answer2 reads until the answer has ended.
func answer2(f *http2.Framer) error {
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return err
		}
		switch fr := fr.(type) {
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				if err := f.WriteSettingsAck(); err != nil {
					return err
				}
			}
		case *http2.MetaHeadersFrame:
			if s := fr.PseudoValue("status"); s != "200" {
				return fmt.Errorf("status %s", s)
			}
			if fr.StreamEnded() {
				return nil
			}
		case *http2.DataFrame:
			if fr.StreamEnded() {
				return nil
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return fmt.Errorf("no answer: %v", fr)
		}
	}
}
