package differential

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// renderRequest is the request's head and body in HTTP/1.1; the body is empty if it has to wait.
func (r *request) head1() []byte {
	var b bytes.Buffer
	target := r.path
	switch {
	case r.method == "CONNECT":
		target = r.authority
	case r.absolute:
		target = r.scheme + "://" + r.authority + r.path
	}
	fmt.Fprintf(&b, "%s %s HTTP/1.%d\r\n", r.method, target, r.minor)
	if !r.noHost {
		fmt.Fprintf(&b, "Host: %s\r\n", r.authority)
	}
	writeFields(&b, r.fields)
	writeFraming(&b, r.framing, len(r.body))
	b.WriteString("\r\n")
	return b.Bytes()
}

func (r *request) body1() []byte {
	return renderBody(r.framing, r.body, r.cuts, r.extension, r.trailers)
}

func writeFields(b *bytes.Buffer, fs []field) {
	for _, f := range fs {
		fmt.Fprintf(b, "%s: %s\r\n", f.name, f.value)
	}
}

func writeFraming(b *bytes.Buffer, f framing, n int) {
	switch f {
	case length:
		fmt.Fprintf(b, "Content-Length: %d\r\n", n)
	case chunked:
		b.WriteString("Transfer-Encoding: chunked\r\n")
	}
}

func renderBody(f framing, body []byte, cuts []int, extension string, trailers []field) []byte {
	switch f {
	case none:
		return nil
	case chunked:
		var b bytes.Buffer
		writeChunks(&b, body, cuts, extension)
		fmt.Fprintf(&b, "0%s\r\n", extension)
		writeFields(&b, trailers)
		b.WriteString("\r\n")
		return b.Bytes()
	}
	return body
}

func writeChunks(b *bytes.Buffer, body []byte, cuts []int, extension string) {
	for _, p := range pieces(body, cuts) {
		fmt.Fprintf(b, "%x%s\r\n%s\r\n", len(p), extension, p)
	}
}

// write1 answers in HTTP/1.1. It reports whether the connection can be used again.
func (r *response) write1(w io.Writer, method string, keep bool, minor int) (again bool, err error) {
	var b bytes.Buffer
	if minor > 0 {
		for _, i := range r.interims {
			fmt.Fprintf(&b, "HTTP/1.1 %d Interim\r\n", i.status)
			writeFields(&b, i.fields)
			b.WriteString("\r\n")
		}
	}
	version := "1.1"
	if r.old {
		version = "1.0"
	}
	fmt.Fprintf(&b, "HTTP/%s %d %s\r\n", version, r.status, r.phrase)
	writeFields(&b, r.fields)
	f := r.framing
	if f == chunked && minor == 0 {
		f = untilClose
	}
	writeFraming(&b, f, len(r.body))
	again = keep && f != untilClose && !r.early && r.truncate == 0
	switch {
	case !again:
		b.WriteString("Connection: close\r\n")
	case r.old:
		b.WriteString("Connection: keep-alive\r\n")
	}
	b.WriteString("\r\n")
	switch {
	case method == "HEAD" || r.status == 204 || r.status == 304:
	case r.truncate > 0 && f == chunked:
		writeChunks(&b, r.body[:r.truncate-1], r.cuts, "")
	case r.truncate > 0:
		b.Write(r.body[:r.truncate-1])
	default:
		b.Write(renderBody(f, r.body, r.cuts, "", r.trailers))
	}
	_, err = w.Write(b.Bytes())
	return again, err
}

var errSyntax = errors.New("not HTTP/1.1")

// readHead reads a start line and fields, strictly.
func readHead(r *bufio.Reader) (line string, fs []field, err error) {
	if line, err = readLine(r); err != nil {
		return "", nil, err
	}
	if fs, err = readFields(r); errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return line, fs, err
}

func readLine(r *bufio.Reader) (string, error) {
	l, err := r.ReadString('\n')
	if err != nil {
		if l != "" && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	l, ok := strings.CutSuffix(l, "\r\n")
	if !ok {
		return "", fmt.Errorf("%w: a line ends in a bare LF: %q", errSyntax, l)
	}
	return l, nil
}

// readFields reads field lines up to the empty one.
func readFields(r *bufio.Reader) (fs []field, err error) {
	for {
		l, err := readLine(r)
		if err != nil || l == "" {
			return fs, err
		}
		name, value, ok := strings.Cut(l, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("%w: field line %q", errSyntax, l)
		}
		fs = append(fs, field{name, strings.Trim(value, " \t")})
	}
}

// readBody reads a body as RFC 9112, 6.3 says; toEnd: it may be delimited by the end of the connection.
func readBody(r *bufio.Reader, m *message, toEnd bool) error {
	m.end = whole
	cl, te := m.get("content-length"), m.get("transfer-encoding")
	var err error
	switch {
	case te != "" && cl != "":
		return fmt.Errorf("%w: both lengths", errSyntax)
	case te != "":
		if te != "chunked" {
			return fmt.Errorf("%w: transfer coding %q", errSyntax, te)
		}
		err = readChunks(r, m)
	case cl != "":
		var n int
		if n, err = strconv.Atoi(cl); err != nil {
			return err
		}
		m.body = make([]byte, n)
		n, err = io.ReadFull(r, m.body)
		m.body = m.body[:n]
	case toEnd:
		m.body, err = io.ReadAll(r)
	}
	if err != nil {
		m.end = "cut"
	}
	return err
}

func readChunks(r *bufio.Reader, m *message) error {
	for {
		l, err := readLine(r)
		if err != nil {
			return err
		}
		size, _, _ := strings.Cut(l, ";")
		n, err := strconv.ParseUint(size, 16, 31)
		if err != nil {
			return fmt.Errorf("%w: chunk %q", errSyntax, l)
		}
		if n == 0 {
			break
		}
		at := len(m.body)
		m.body = append(m.body, make([]byte, n)...)
		k, err := io.ReadFull(r, m.body[at:])
		m.body = m.body[:at+k]
		if err != nil {
			return err
		}
		if l, err = readLine(r); err != nil || l != "" {
			return fmt.Errorf("%w: after a chunk: %q, %w", errSyntax, l, err)
		}
	}
	var err error
	m.trailers, err = readFields(r)
	return err
}

// readResponse reads the responses to one request up to the final one.
func readResponse(r *bufio.Reader, method string) (*message, error) {
	m := &message{}
	for {
		line, fs, err := readHead(r)
		if err != nil {
			return nil, err
		}
		version, rest, _ := strings.Cut(line, " ")
		if version != "HTTP/1.1" && version != "HTTP/1.0" || len(rest) < 4 || rest[3] != ' ' {
			return nil, fmt.Errorf("%w: status line %q", errSyntax, line)
		}
		status := rest[:3]
		if status[0] == '1' && status != "101" {
			m.interims = append(m.interims, message{line: status, fields: fs})
			continue
		}
		m.line, m.fields, m.end = status, fs, whole
		if method == "HEAD" || status == "204" || status == "304" || status == "101" || method == "CONNECT" && status[0] == '2' {
			return m, nil
		}
		err = readBody(r, m, m.get("transfer-encoding") == "" && m.get("content-length") == "")
		return m, err
	}
}
