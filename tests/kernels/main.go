// Command kernels runs the tests that depend on the kernel under kernels other than this machine's: Debian's, fetched
// with apt-get and booted in qemu. It needs no root and no KVM.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

type config struct {
	series []string // of Debian's kernels, as "6.1"
	debs   []string // kernel packages that the user has
	cache  string
	suites []string
	run    string
	accel  string
	memory int // MiB
	cpus   int
	boot   time.Duration // until the first process of the kernel speaks
	limit  time.Duration // for everything that runs under one kernel
}

func main() {
	runtime.LockOSThread() // qemu ends with the thread that started it: see its Pdeathsig
	c, err := parse(os.Args[1:])
	if err != nil {
		os.Exit(2) // the flag package has said why
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	failed, err := c.all(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
	}
	if err != nil || failed {
		stop()
		os.Exit(1)
	}
}

func parse(args []string) (*config, error) {
	c := &config{}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	var series, debs, names string
	f := flag.NewFlagSet("kernels", flag.ContinueOnError)
	f.StringVar(&series, "series", "6.1,6.12", "Debian `kernels` to test, the newest of each series that apt offers")
	f.StringVar(&debs, "deb", "", "kernel packages to test as well: `files` of linux-image-*.deb")
	f.StringVar(&c.cache, "cache", filepath.Join(cache, "conduit", "kernels"), "`directory` that keeps the fetched kernels")
	f.StringVar(&names, "suites", strings.Join(suiteNames(), ","), "`names` of the test suites to run")
	f.StringVar(&c.run, "run", "", "run only the tests that match this `regexp`, in every suite")
	f.StringVar(&c.accel, "accel", "tcg", "qemu's `accelerator`: tcg, or kvm where it works")
	f.IntVar(&c.memory, "memory", 1024, "`MiB` of memory")
	f.IntVar(&c.cpus, "cpus", min(2, runtime.NumCPU()), "`number` of virtual CPUs")
	f.DurationVar(&c.boot, "boot-timeout", 2*time.Minute, "how long a kernel may take to boot")
	f.DurationVar(&c.limit, "timeout", 20*time.Minute, "how long everything may take under one kernel")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	c.series, c.debs, c.suites = list(series), list(debs), list(names)
	return c, nil
}

// list splits at commas; "" has no element.
func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// all runs everything under every kernel, and says at the end how each did.
func (c *config) all(ctx context.Context) (failed bool, err error) {
	if err := needTools(); err != nil {
		return true, err
	}
	chosen, err := choose(c.suites, c.run)
	if err != nil {
		return true, err
	}
	dir, err := os.MkdirTemp("", "conduit-kernels-")
	if err != nil {
		return true, err
	}
	defer os.RemoveAll(dir)
	kernels, err := c.fetch(ctx, dir)
	if err != nil {
		return true, err
	}
	began := time.Now()
	tree, err := build(ctx, dir, chosen)
	if err != nil {
		return true, err
	}
	fmt.Printf("built the tests in %v\n", time.Since(began).Round(time.Second))
	var verdicts []string
	for _, k := range kernels {
		r := c.boots(ctx, dir, k, tree)
		failed = failed || r.err() != nil
		verdicts = append(verdicts, r.String())
	}
	fmt.Println(strings.Join(verdicts, "\n"))
	return failed, ctx.Err()
}

// boots runs the tests under one kernel.
func (c *config) boots(ctx context.Context, dir string, k kernel, t *tree) *result {
	image := filepath.Join(dir, "initramfs")
	r := newResult(k.name, len(t.runs), os.Stdout)
	if err := t.write(image, k); err != nil {
		r.broken = append(r.broken, err.Error())
		return r
	}
	defer os.Remove(image)
	fmt.Printf("booting %s\n", k.name)
	began := time.Now()
	if err := c.qemu(ctx, k, image, r); err != nil {
		r.broken = append(r.broken, err.Error())
	}
	r.took = time.Since(began)
	return r
}

// needTools is an error if a program is missing, with the name of its Debian package.
func needTools() error {
	var errs []error
	for _, t := range []struct{ program, pkg string }{
		{qemuProgram, "qemu-system-x86"}, {"dpkg-deb", "dpkg"}, {"xz", "xz-utils"}, {"go", "golang-go"},
	} {
		if _, err := exec.LookPath(t.program); err != nil {
			errs = append(errs, fmt.Errorf("%s is missing: apt-get install %s", t.program, t.pkg))
		}
	}
	return errors.Join(errs...)
}
