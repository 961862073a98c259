package trip

import (
	"testing"
	"time"
)

// FuzzNote: whatever another proxy writes into its note, what is believed of it is a time.
func FuzzNote(f *testing.F) {
	for _, s := range []string{"1/2", "0/0", "1", "/", "-1/2", "99999999999999999999/1", "1/2/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		const most = int64(14 * 24 * time.Hour)
		if there, app, ok := parseNote(s); ok && (there < 0 || app < 0 || there > most || app > most) {
			t.Fatalf("%q reads as %d and %d", s, there, app)
		}
	})
}
