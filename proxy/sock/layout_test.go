package sock

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// fallbackEnv, if set, has crypto/tls deal with all records, as with a Go release that is not known.
const fallbackEnv = "CONDUIT_TEST_CRYPTO_TLS"

func TestVerifiedRelease(t *testing.T) {
	for version, want := range map[string]bool{
		"go1.26": true, "go1.26.0": true, "go1.26.8": true, "go1.26.12": true,
		"go1.26.": false, "go1.26rc1": false, "go1.26.8 X:boringcrypto": false, "go1.26.8-1.el9": false, "go1.26.8 (distribution)": false,
		"go1.25.9": false, "go1.27": false, "go1.260": false, "devel go1.27-0123abcd": false, "": false,
	} {
		if got := verified(version); got != want {
			t.Errorf("verified(%q) = %v", version, got)
		}
	}
	if _, ok := lookUp("go1.27"); ok {
		t.Error("the layout of another release is relied on")
	}
}

// TestOtherPaths runs the tests of TLS with crypto/tls dealing with all records, and with the cipher that is preferred
// where there is no hardware for AES.
func TestOtherPaths(t *testing.T) {
	if testing.Short() || !known || os.Getenv(fallbackEnv) != "" {
		t.Skip("the tests of TLS run again")
	}
	for env, tests := range map[string]string{
		fallbackEnv + "=1":    "TLS|Handshake|^TestRecord|^TestKeyUpdate|^TestBadRecords|^TestLargeRecords|^TestTinyRecords|^TestWorn",
		"GODEBUG=cpu.aes=off": "^TestTLS|^TestTinyRecords|^TestRecordsAreOurs",
	} {
		skip := "Memory|OtherPaths|LikeCryptoTLS"
		if strings.HasPrefix(env, fallbackEnv) {
			skip += "|TestRecordsAreOurs|TestLargeRecordsInTurns" // what is ours alone
		}
		cmd := exec.Command(os.Args[0], "-test.v", "-test.run="+tests, "-test.skip="+skip)
		cmd.Env = append(os.Environ(), env)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", env, err, out)
		}
		if n := bytes.Count(out, []byte("--- PASS")); n < 10 || bytes.Contains(out, []byte("--- SKIP")) {
			t.Errorf("%s: %d tests passed, or some were skipped\n%s", env, n, out)
		}
	}
}
