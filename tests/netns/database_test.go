package netns_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// Where the servers listen.
const (
	pgPort    = 5432
	redisPort = 6379
)

// daemon starts a server program in a pod, as the user, and stops it with sig when the test ends.
func daemon(t *testing.T, p testnet.Pod, cred *syscall.Credential, sig syscall.Signal, dir, name string, args ...string) {
	t.Helper()
	cmd := p.Command(context.Background(), name, args...)
	log := filepath.Join(dir, "log")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr, cmd.Dir = f, f, dir
	cmd.SysProcAttr.Credential = cred
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(sig)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			t.Errorf("%s does not stop", name)
		}
		if b, err := os.ReadFile(log); t.Failed() && err == nil {
			t.Logf("%s says:\n%s", name, b)
		}
	})
}

// pgBin is where Debian keeps PostgreSQL's server programs.
func pgBin(t *testing.T) string {
	t.Helper()
	needProgram(t, "psql", "postgresql")
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(dirs) == 0 {
		t.Skip("SKIPPED: needs a PostgreSQL server: run `apt-get install postgresql` (.ci/run does)")
	}
	return dirs[len(dirs)-1]
}

func postgresUser(t *testing.T) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Skipf("SKIPPED: needs Debian's package postgresql and its user: %v", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// pgCluster makes a database cluster that trusts everybody and has a TLS certificate for the addresses. It returns its
// directory and the certificate's file.
func pgCluster(t *testing.T, addrs []netip.Addr, bin string, cred *syscall.Credential) (dir, cert string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "conduit-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
		t.Fatal(err)
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", filepath.Join(dir, "data"), "-A", "trust", "-U", "postgres", "--no-sync", "--locale=C", "-E", "UTF8")
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	initdb.Dir = dir
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	hba := "host all all all trust\n"
	if err := os.WriteFile(filepath.Join(dir, "data/pg_hba.conf"), []byte(hba), 0o600); err != nil {
		t.Fatal(err)
	}
	cert = filepath.Join(dir, "server.crt")
	selfSigned(t, addrs, cert, filepath.Join(dir, "server.key"), cred)
	return dir, cert
}

func selfSigned(t *testing.T, addrs []netip.Addr, certFile, keyFile string, cred *syscall.Credential) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pg"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	for _, ip := range addrs {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		err := errors.Join(os.WriteFile(file, pem.EncodeToMemory(block), 0o600), os.Chown(file, int(cred.Uid), int(cred.Gid)))
		if err != nil {
			t.Fatal(err)
		}
	}
}

func testPostgreSQL(t *testing.T, w *town) {
	bin, cred := pgBin(t), postgresUser(t)
	dir, cert := pgCluster(t, slices.Concat(w.server.Addrs(), w.service), bin, cred)
	var addrs []string
	for _, ip := range w.server.Addrs() {
		addrs = append(addrs, ip.String())
	}
	daemon(t, w.server, cred, syscall.SIGINT, dir, filepath.Join(bin, "postgres"), "-D", filepath.Join(dir, "data"), "-p", fmt.Sprint(pgPort),
		"-c", "listen_addresses="+strings.Join(addrs, ","), "-c", "unix_socket_directories="+dir, "-c", "fsync=off",
		"-c", "ssl=on", "-c", "ssl_cert_file="+cert, "-c", "ssl_key_file="+filepath.Join(dir, "server.key"))
	paths := w.paths(pgPort)
	testnet.Eventually(t, 30*time.Second, func(ctx context.Context) error {
		out, err := psqlCommand(ctx, paths[0], "sslmode=disable", "-c", "SELECT 1").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	w.onPaths(t, pgPort, func(t *testing.T, p path) {
		for mode, ssl := range map[string]string{"sslmode=disable": "f", "sslmode=verify-full sslrootcert=" + cert: "t"} {
			t.Run(mode[:len("sslmode=disable")], func(t *testing.T) { queryPostgreSQL(t, p, mode, ssl) })
		}
	})
}

func psqlCommand(ctx context.Context, p path, mode string, args ...string) *lab.Cmd {
	conn := fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres connect_timeout=10 %s", p.to.Addr(), p.to.Port(), mode)
	return p.from.Command(ctx, "psql", append([]string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", conn}, args...)...)
}

func psql(t *testing.T, p path, mode string, stdin io.Reader, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := psqlCommand(ctx, p, mode, args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = stdin, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("psql %v: %v\n%s", args, err, &stderr)
	}
	return string(out)
}

// queryPostgreSQL asks who is asking, copies 8 MB in and out again, and has the server notify an idle client.
func queryPostgreSQL(t *testing.T, p path, mode, ssl string) {
	who := psql(t, p, mode, nil, "-c", "SELECT inet_client_addr(), inet_server_addr(), ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
	if want := fmt.Sprintf("%s|%s|%s\n", p.client(), p.at, ssl); who != want {
		t.Errorf("server sees client|itself|TLS %q, want %q", who, want)
	}
	var rows bytes.Buffer
	for i := range 100_000 {
		fmt.Fprintf(&rows, "%d\tline %d of a table that is about eight megabytes long, more or less, all in all\n", i, i)
	}
	psql(t, p, mode, nil, "-c", "DROP TABLE IF EXISTS lines; CREATE UNLOGGED TABLE lines (n int, words text)")
	psql(t, p, mode, bytes.NewReader(rows.Bytes()), "-c", `\copy lines FROM STDIN`)
	back := psql(t, p, mode, nil, "-c", `\copy (SELECT * FROM lines ORDER BY n) TO STDOUT`)
	if back != rows.String() {
		t.Errorf("%d bytes copied in, %d out, or they differ", rows.Len(), len(back))
	}
	if n := psql(t, p, mode, nil, "-c", "SELECT count(*), sum(n) FROM lines"); n != "100000|4999950000\n" {
		t.Errorf("count and sum: %q", n)
	}
	// An error in the middle of a session, and many statements in one connection.
	var script strings.Builder
	for i := range 500 {
		fmt.Fprintf(&script, "SELECT %d;\n", i)
	}
	script.WriteString("SELECT 1/0;\nSELECT 'after';\n")
	out := psql(t, p, mode, strings.NewReader(script.String()), "-v", "ON_ERROR_STOP=0", "-f", "-")
	if !strings.HasSuffix(out, "\n498\n499\nafter\n") || strings.Count(out, "\n") != 501 {
		t.Errorf("script: %d lines", strings.Count(out, "\n"))
	}
}

func testRedis(t *testing.T, w *town) {
	server := needProgram(t, "redis-server", "redis-server")
	needProgram(t, "redis-cli", "redis-server")
	args := []string{"--port", fmt.Sprint(redisPort), "--save", "", "--protected-mode", "no", "--daemonize", "no", "--bind", "*", "-::*"}
	daemon(t, w.server, nil, syscall.SIGTERM, t.TempDir(), server, args...)
	paths := w.paths(redisPort)
	testnet.Eventually(t, 20*time.Second, func(ctx context.Context) error {
		out, err := paths[0].from.Command(ctx, "redis-cli", "-h", paths[0].to.Addr().String(), "PING").CombinedOutput()
		if string(out) != "PONG\n" {
			return fmt.Errorf("PING: %q, %v", out, err)
		}
		return nil
	})
	w.onPaths(t, redisPort, askRedis)
}

func askRedis(t *testing.T, p path) {
	cli := func(stdin io.Reader, args ...string) string {
		t.Helper()
		return output(t, p.from, stdin, "redis-cli", append([]string{"-h", p.to.Addr().String()}, args...)...)
	}
	cli(nil, "FLUSHALL")
	if got := cli(nil, "SET", "key", "a value\r\nof two lines"); got != "OK\n" {
		t.Errorf("SET: %q", got)
	}
	if got := cli(nil, "GET", "key"); got != "a value\r\nof two lines\n" {
		t.Errorf("GET: %q", got)
	}
	if got := cli(nil, "CLIENT", "LIST"); !strings.Contains(got, "addr="+addrPrefix(p)) || strings.Count(got, " addr=") != 1 {
		t.Errorf("CLIENT LIST: %q, want the one client %s", got, p.client())
	}
	pipelineRedis(t, p, 10_000)
	if got := cli(strings.NewReader(strings.Repeat("INCR piped\r\n", 10_000)), "--pipe"); !strings.Contains(got, "errors: 0, replies: 10000") {
		t.Errorf("redis-cli --pipe: %q", got)
	}
	if got := cli(nil, "GET", "piped"); got != "10000\n" {
		t.Errorf("after --pipe: %q", got)
	}
	subscriber := p.dial(t)
	r := bufio.NewReader(subscriber)
	fmt.Fprint(subscriber, "SUBSCRIBE news\r\n")
	expect(t, r, "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n")
	for i := range 20 { // to a client that is silent
		if got := cli(nil, "PUBLISH", "news", fmt.Sprintf("item %02d", i)); got != "1\n" {
			t.Fatalf("PUBLISH: %q receivers", got)
		}
		expect(t, r, fmt.Sprintf("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$7\r\nitem %02d\r\n", i))
	}
}

// addrPrefix is how Redis begins a client's address.
func addrPrefix(p path) string {
	if p.client().Is6() {
		return "[" + p.client().String() + "]:"
	}
	return p.client().String() + ":"
}

func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v; want %q", got[:n], err, want)
	}
}

// pipelineRedis sends n commands without waiting for an answer, and then reads the answers.
func pipelineRedis(t *testing.T, p path, n int) {
	t.Helper()
	c := p.dial(t)
	failed := make(chan error, 1)
	go func() {
		b := bufio.NewWriter(c)
		for i := range n {
			fmt.Fprintf(b, "*2\r\n$4\r\nECHO\r\n$9\r\nvalue%04d\r\n", i%10_000)
		}
		failed <- b.Flush()
	}()
	r := bufio.NewReader(c)
	for i := range n {
		expect(t, r, fmt.Sprintf("$9\r\nvalue%04d\r\n", i%10_000))
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	fmt.Fprint(c, "CLIENT LIST\r\n")
	list, err := r.ReadString('\n')
	for err == nil && !strings.Contains(list, "cmd=") {
		list, err = r.ReadString('\n')
	}
	if want := " addr=" + c.LocalAddr().String() + " "; err != nil || !strings.Contains(list, want) {
		t.Errorf("CLIENT LIST: %q, %v; want%s", list, err, want)
	}
}
