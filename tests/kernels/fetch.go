package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// kernel is an unpacked kernel package.
type kernel struct {
	name    string // of the package, as "linux-image-6.1.0-56-cloud-amd64"
	image   string // vmlinuz
	modules string // the directory below lib/modules
}

// fetch gets every kernel that is asked for: from apt if it has a newer one than the cache, else from the cache.
func (c *config) fetch(ctx context.Context, dir string) ([]kernel, error) {
	var kernels []kernel
	for _, series := range c.series {
		k, err := c.fetchSeries(ctx, series)
		if err != nil {
			return nil, err
		}
		kernels = append(kernels, k)
	}
	for i, deb := range c.debs {
		to := filepath.Join(dir, fmt.Sprintf("deb%d", i))
		if err := command(ctx, "", "dpkg-deb", "-x", deb, to); err != nil {
			return nil, err
		}
		k, err := unpacked(to, strings.TrimSuffix(filepath.Base(deb), ".deb"))
		if err != nil {
			return nil, err
		}
		kernels = append(kernels, k)
	}
	if len(kernels) == 0 {
		return nil, errors.New("no kernel was asked for: see -series and -deb")
	}
	return kernels, nil
}

func (c *config) fetchSeries(ctx context.Context, series string) (kernel, error) {
	if err := os.MkdirAll(c.cache, 0o755); err != nil {
		return kernel{}, err
	}
	cached, err := os.ReadDir(c.cache)
	if err != nil {
		return kernel{}, err
	}
	var have []string
	for _, e := range cached {
		have = append(have, e.Name())
	}
	out, aptErr := exec.CommandContext(ctx, "apt-cache", "search", "--names-only", "^linux-image-"+regexp.QuoteMeta(series)+`\.`).Output()
	offered, old := newest(series, strings.Fields(string(out))), newest(series, have)
	name := offered
	if name == "" {
		name = old
	}
	if name == "" {
		return kernel{}, errors.Join(aptErr, fmt.Errorf("apt offers no linux-image-%s.*-cloud-amd64, and none is in %s: run `apt-get update` as root; "+
			"the sources must have a Debian suite with Linux %s (bookworm has 6.1, bookworm-security 6.12), or give a package with -deb",
			series, c.cache, series))
	}
	if !slices.Contains(have, name) {
		if err := c.download(ctx, name); err != nil {
			return kernel{}, err
		}
		if old != "" {
			os.RemoveAll(filepath.Join(c.cache, old)) // superseded; one that stays costs only space
		}
	}
	return unpacked(filepath.Join(c.cache, name), name)
}

// download unpacks a package into the cache; it is there as a whole or not at all.
func (c *config) download(ctx context.Context, name string) error {
	tmp, err := os.MkdirTemp(c.cache, ".fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	fmt.Printf("fetching %s\n", name)
	if err := command(ctx, tmp, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s left %v, want one package (%v)", name, debs, err)
	}
	tree := filepath.Join(tmp, "tree")
	if err := command(ctx, tmp, "dpkg-deb", "-x", debs[0], tree); err != nil {
		return err
	}
	err = os.Rename(tree, filepath.Join(c.cache, name))
	if errors.Is(err, os.ErrExist) {
		return nil // another run was faster
	}
	return err
}

// unpacked finds the kernel and its modules below a directory.
func unpacked(dir, name string) (kernel, error) {
	images, err1 := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	modules, err2 := filepath.Glob(filepath.Join(dir, "lib", "modules", "*"))
	if merged, _ := filepath.Glob(filepath.Join(dir, "usr", "lib", "modules", "*")); len(modules) == 0 {
		modules = merged // Debian after bookworm
	}
	if len(images) != 1 || len(modules) != 1 {
		return kernel{}, fmt.Errorf("%s is not a kernel package: kernels %v, modules %v (%w)", dir, images, modules, errors.Join(err1, err2))
	}
	return kernel{name: name, image: images[0], modules: modules[0]}, nil
}

var twoNumbers = regexp.MustCompile(`^\d+\.\d+$`)

// newest picks the latest package of a series, as 6.1, out of names; "" if there is none. A point update changes the
// last number of linux-image-6.1.0-56-cloud-amd64 or of linux-image-6.12.117+deb12-cloud-amd64.
func newest(series string, names []string) string {
	if !twoNumbers.MatchString(series) {
		return ""
	}
	pattern := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `\.(\d+)(?:-(\d+))?(?:[+~][a-z0-9.+~]+)?-cloud-amd64$`)
	best, version := "", []int{}
	for _, n := range names {
		m := pattern.FindStringSubmatch(n)
		if m == nil {
			continue
		}
		patch, _ := strconv.Atoi(m[1])
		abi, _ := strconv.Atoi(m[2]) // 0 where there is none
		if v := []int{patch, abi}; best == "" || slices.Compare(v, version) > 0 {
			best, version = n, v
		}
	}
	return best
}

// command runs a program; its output is in the error.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
