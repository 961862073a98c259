package control

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"conduit.io/conduit/identity"
)

// CAFile is the name of the trust bundle in the authority's directory: one or more root certificates, PEM.
const CAFile = "ca.crt"

// maxBundle bounds the file: some thousand roots.
const maxBundle = 4 << 20

// roots are the certificates of one version of the file.
type roots struct {
	pem    []byte // the certificates alone, in the file's order
	etag   string
	count  int
	expiry time.Time // of the first to expire
}

// bundle reads the file again whenever its bytes have changed.
type bundle struct {
	path string

	mu   sync.Mutex // guards what follows
	raw  []byte
	now  *roots
	last error
}

func newBundle(dir string) *bundle { return &bundle{path: filepath.Join(dir, CAFile)} }

// get is the bundle as the file has it now. The file is small and read each time: modification times are too coarse
// to tell two writes apart. The result is immutable.
func (b *bundle) get() (*roots, error) {
	raw, err := read(b.path)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.raw == nil || !bytes.Equal(raw, b.raw) {
		b.raw = raw
		b.now, b.last = parseRoots(raw)
	}
	if b.last != nil {
		return nil, fmt.Errorf("%s: %w", b.path, b.last)
	}
	return b.now, nil
}

func read(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxBundle {
		return nil, fmt.Errorf("%s: not a regular file of at most %d bytes", path, maxBundle)
	}
	return os.ReadFile(path)
}

func parseRoots(raw []byte) (*roots, error) {
	certs, err := identity.ParseRoots(raw)
	if err != nil {
		return nil, err
	}
	r := &roots{count: len(certs), expiry: certs[0].NotAfter}
	for _, cert := range certs {
		if cert.NotAfter.Before(r.expiry) {
			r.expiry = cert.NotAfter
		}
		r.pem = append(r.pem, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	sum := sha256.Sum256(r.pem)
	r.etag = `"` + hex.EncodeToString(sum[:16]) + `"`
	return r, nil
}
