package loader

import "testing"

// BenchmarkLookupProgram is what a pod's own copy of the lookup program costs to load: most of it is the kernel's verifier.
func BenchmarkLookupProgram(b *testing.B) {
	d := open(b)
	for b.Loop() {
		c, err := d.spares.load()
		if err != nil {
			b.Fatal(err)
		}
		c.close()
	}
}
